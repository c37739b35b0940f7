"""Exact and numeric verifiers, and where they find the answer."""

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder import registry
from ponder.errors import UserError
from ponder.types import VerdictKind
from ponder.verifiers.exact import Exact
from ponder.verifiers.extract import final_number, final_piece
from ponder.verifiers.numeric import Numeric

COUNTING = [str(n) for n in range(1000)]


def test_the_room_lists_its_verifiers_and_builds_them_with_options():
    assert {"exact", "numeric", "math"} <= set(registry.names("verifiers"))
    assert registry.build("verifiers", "numeric", {"absolute": 0.5}) == Numeric(absolute=0.5)
    with pytest.raises(UserError, match="did you mean 'numeric'"):
        registry.build("verifiers", "numerc")
    with pytest.raises(UserError, match="did you mean 'absolute'"):
        registry.build("verifiers", "numeric", {"absolut": 1})
    with pytest.raises(UserError, match="absolute must be at least 0"):
        registry.build("verifiers", "numeric", {"absolute": -1})


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (46, "46"),
        (46, "12 + 34 = 46."),
        (46, "The answer is **46**."),
        (46, "The answer is:\n\n46"),
        (46, "12 eggs and 34 eggs make 46 eggs"),
        (46, "\\boxed{46} for 2 boxes"),
        (46, "\\[\n\\boxed{46}\n\\]"),
        (46, "<answer>46</answer>"),
        (46, "#### 46"),
        (46, "- 46 eggs"),
        (46, "- 12 eggs\n- 46"),
        (-46, "- 46"),
        (3, "x = 3"),
        (1234, "\\$1{,}234"),
        (1234567, "$1,234,567.00"),
        (-5, "it is −5"),
        (-5, "= - 5"),
        (Fraction(1, 2), "1/2"),
        ("\\frac{3}{4}", "0.75"),
        ("2.5", "2 1/2"),
        (Decimal("0.1"), "0.1"),
        (0.1, "\\boxed{\\frac{1}{10}}"),
        (0.5, "50%"),
        (50, "50\\%"),
        ("50%", "0.5"),
        ("18 cm", "18"),
        (150, "1.5e2"),
    ],
)
def test_numeric_reads_the_ways_in_which_a_number_is_written(gold, answer):
    assert Numeric()(gold, answer).correct


@pytest.mark.parametrize(
    ("gold", "answer", "kind"),
    [
        (46, "47", VerdictKind.WRONG),
        (46, "The answer is 46. No, 47.", VerdictKind.WRONG),
        (46, "#### 46\n47", VerdictKind.WRONG),
        (46, "\\boxed{46}\nThe answer is 47", VerdictKind.WRONG),
        (46, "The answer is 46.\n\\boxed{47}", VerdictKind.WRONG),
        (5, "\\boxed{4 or 5}", VerdictKind.NO_ANSWER),
        (34, "12+34", VerdictKind.NO_ANSWER),
        (34, "What is 12 - 34", VerdictKind.NO_ANSWER),
        (9, "9**9**9", VerdictKind.NO_ANSWER),
        (9, "9 * 9", VerdictKind.NO_ANSWER),
        (46, "forty-six", VerdictKind.NO_ANSWER),
        (46, "\\boxed{46", VerdictKind.NO_ANSWER),
        (46, "The answer is", VerdictKind.NO_ANSWER),
        (2, "1/0", VerdictKind.NO_ANSWER),
        (999, " ".join(COUNTING), VerdictKind.NO_ANSWER),
        (999, "\n".join(COUNTING), VerdictKind.NO_ANSWER),
        (999, ", ".join(COUNTING), VerdictKind.NO_ANSWER),
        (999, " or ".join(COUNTING), VerdictKind.NO_ANSWER),
        (999, "The answer is " + " ".join(COUNTING), VerdictKind.NO_ANSWER),
        (7, "7" * (1 << 20), VerdictKind.OUTPUT_LIMIT),
        (7, "7" * 99_999, VerdictKind.NO_ANSWER),
        (7, "\x00" * 99, VerdictKind.NO_ANSWER),
        (7, "\ud800" * 99, VerdictKind.NO_ANSWER),
    ],
)
def test_numeric_gives_nothing_for_what_is_not_the_final_answer(gold, answer, kind):
    verdict = Numeric()(gold, answer)
    assert (verdict.kind, verdict.reward) == (kind, 0.0)


# The first two are ends of recorded MATH-500 responses.
@pytest.mark.parametrize(
    "answer",
    [
        "\\[ h = 5 \\]\n\nSo the height of the cylinder is:\n\\[\\boxed{5}\\] cm",
        "\\[\n   h = 5\n   \\]\n\nTherefore, the height of the cylinder is \\(\\boxed{5}\\) cm.",
        "\\(\\boxed{5}\\)",
        "$\\boxed{5}$ cm",
        "The answer is $\\boxed{5}$ cm.",
        "$$\\boxed{5}$$ m",
        "\\[\n\\boxed{5}\n\\] cm^3",
        "$$\n\\boxed{5}\n$$ m/s",
        "\\boxed{5}\\, \\mathrm{cm}",
        "$\\boxed{5}\\ \\text{cm}^2$",
        "\\boxed{5} m^2",
        "\\boxed{\\text{The answer is } 5} m",
        "\\boxed{x = {5}} cm",
        "\\boxed{3} or rather \\boxed{5} km",
        "\\boxed {\n5\n}",
        "<answer>The answer is 5</answer> cm",
        "<answer>$\\boxed{5}$</answer> cm",
        "<answer>#### 5</answer>",
        "\\boxed{4}\n$5$",
        "\\[\\boxed{4}\\] cm\n\\[5\\]",
        "\\[\n\\boxed{4}\n\\] cm\n$$5$$",
    ],
)
def test_a_unit_beside_a_box_is_not_the_answer_and_a_later_line_is(answer):
    assert Numeric()(5, answer).correct
    assert final_number(answer) == final_number("5")


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("\\[\\boxed{\\frac{1}{2}}\\]", "\\frac{1}{2}"),
        ("\\(\\boxed{\\left\\{1, \\sqrt{2}\\right\\}}\\) cm", "\\left\\{1, \\sqrt{2}\\right\\}"),
        ("$\\boxed{\\dfrac{a}{\\sqrt{b}}}$ m/s", "\\dfrac{a}{\\sqrt{b}}"),
        ("\\boxed{1}, \\boxed{x^{2}} cm", "1, x^{2}"),
        ("\\boxed{1}\nand then\n\\boxed{x^{2}} cm", "x^{2}"),
        ("\\boxed{\\text{Answer: } x}", "\\text{Answer: } x"),
        ("\\boxed{1} and the answer is $x$", "$x$"),
        ("\\boxed{5", ""),
        ("\\boxed{5} cm, or \\boxed{6", ""),
    ],
)
def test_a_box_names_all_that_its_braces_hold(text, piece):
    assert final_piece(text).text == piece


def test_numeric_tolerance_is_absolute_or_a_share_of_the_gold():
    assert not Numeric()("3.14159", "3.14").correct
    assert Numeric(absolute=0.002)("3.14159", "3.14").correct
    assert Numeric(relative=0.01)(1000, "1009").correct
    assert not Numeric(relative=0.01)(1000, "1011").correct
    assert not Numeric()(10**17, str(10**17 + 1)).correct


@pytest.mark.parametrize("gold", ["many", "", None, float("nan"), True, [1], "1 2 3 4 5 6"])
def test_a_gold_that_is_no_number_is_refused(gold):
    with pytest.raises(UserError, match="is not a number"):
        Numeric()(gold, "1")


@given(st.integers(-(10**15), 10**15))
def test_every_integer_equals_itself_however_it_is_wrapped(n):
    for text in (f"{n}", f"{n:,}", f"The answer is {n}.", f"#### {n}", f"\\boxed{{{n}}}", f"{n}.0"):
        assert Numeric()(n, text).correct
        assert not Numeric()(n + 1, text).correct


@given(st.text(max_size=300))
@settings(max_examples=200)
def test_no_text_makes_a_verifier_raise(text):
    for verdict in (Numeric()(5, text), Exact()("five", text)):
        assert verdict.reward is not None
        (verdict.reason + (verdict.answer or "")).encode("utf-8")


@pytest.mark.parametrize(
    "piece",
    [
        "1 ",
        "1,",
        "9*",
        "(",
        "{",
        "\\boxed{",
        "\\boxed{1} answer is ",
        "answer ",
        "\\frac{1}{",
        "**1",
        "1/",
        "-",
        "1.1.",
    ],
)
def test_hostile_repetition_is_read_in_linear_time(piece):
    text = piece * (100_000 // len(piece))
    began = time.process_time()
    Numeric()(5, text)
    Exact()("5", text)
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        ("Paris", "paris.", True),
        ("Paris", "It is big.\nThe answer is Paris.", True),
        ("Paris", "Answer:\nParis", True),
        ("Paris", "\\boxed{Paris}", True),
        ("Paris", "**Paris**", True),
        ("Paris", "Paris\nLondon", False),
        ("Paris", "Paris. The answer is London", False),
        ("Paris", "Paris or London", False),
        ("Paris", "", False),
        ("a  b", "A B", True),
        (999, "999", True),
        (999, "\n".join(COUNTING), False),
        (999, " ".join(COUNTING), False),
    ],
)
def test_exact_compares_the_last_line_or_what_its_marker_names(gold, answer, correct):
    assert Exact()(gold, answer).correct is correct


def test_exact_respects_case_when_asked():
    assert not Exact(ignore_case=False)("Paris", "paris").correct
    assert Exact(ignore_case=False)("Paris", "Paris").correct


def test_verdicts_hold_only_text_that_can_be_written_to_a_file():
    verdict = Exact()("Paris", "\ud800\x00" * 1000)
    assert len(verdict.answer or "") <= 300
    (verdict.reason + (verdict.answer or "")).encode("utf-8")
