"""Right verdicts: cases that other graders get wrong, rewritings that mean the same, and hand-checked pairs."""

import json
from collections import defaultdict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ponder import registry
from ponder.environments.countdown import check
from ponder.environments.gsm8k import Gsm8k
from ponder.environments.jsonl import Jsonl
from ponder.errors import UserError
from ponder.search.clusters import cluster_answers
from ponder.types import Problem, Response, VerdictKind
from ponder.verifiers.answers import VerifierAnswers
from ponder.verifiers.choice import Choice
from ponder.verifiers.exact import Exact
from ponder.verifiers.numeric import Numeric

PAIRS = Path(__file__).parent / "data" / "verdict_pairs.jsonl"


def math():
    pytest.importorskip("math_verify")
    from ponder.verifiers.math import Math

    return Math(seconds=30)


# Numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", "\\boxed{\\sqrt{25}}"),
        ("4", "\\boxed{\\sqrt{16}}"),
        ("120", "\\boxed{5!}"),
        ("0.5", "½"),
        ("0.5", "\\dfrac12"),
        ("1.5", "1½"),
        ("1.5", "1 ½"),
        ("1.5", "1\\frac{1}{2}"),
        ("-1.25", "-1\\frac{1}{4}"),
        ("1.25", "1 1/4"),
        *[("-3", f"{dash}3") for dash in "-‐‑‒–—−﹣－➖"],
        ("-3", "negative 3"),
        ("12", "12 m^2"),
        ("12", "12 m²"),
        ("12", "12 \\text{ ft}^2"),
        ("12", "3 * 4 = 12 cm^3"),
        ("12", "\\boxed{12 \\tfrac{m}{s}}"),
        ("12", "12 km/h"),
        ("300", "3 \\times 10^2"),
        ("300", "3.0 x 10^2"),
        ("300", "3·10²"),
        ("0.0003", "3 × 10⁻⁴"),
        ("1500000", "1.5e6"),
        ("1500000", "1.5 million"),
        ("1500000", "1 500 000"),
        ("1500000", "1\u202f500\u202f000"),
        ("1500000", "1'500'000"),
        ("1500000", "15,00,000"),
        ("18", "１８"),
        ("18", "١٨"),
        (1e-05, "0.00001"),
        (1e-05, "10^{-5}"),
        (21, "Rs21"),
        (-18, "- 18"),
        (324, "18²"),
        (20, "The answer is not 18 but 20."),
        (20, "It is 20, not 18."),
        (1, "0.\\overline{9}"),
    ],
)
def test_numbers_are_read_however_they_are_written(gold, answer):
    assert Numeric()(gold, answer).correct


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", "\\boxed{5!}"),
        ("5", "\\boxed{5\\pi}"),
        ("5", "\\boxed{5π}"),
        ("5", "\\boxed{5x}"),
        ("5", "\\boxed{5i}"),
        ("5", "\\boxed{5^2}"),
        ("5", "\\boxed{x > 5}"),
        ("5", "\\boxed{\\ln 5}"),
        ("16", "\\boxed{\\sqrt{16}}"),
        (18, "√18"),
        (18, "18²"),
        (8, "x18"),
        (1, "Rs21"),
        (2, "0x12"),
        (12, "0x12"),
        (0, "1_000"),
        (19, "COVID-19"),
        (2, "H2O"),
        (30, "5:30"),
        (5, "10101_5"),
        (18, "The answer is not 18."),
        (18, "The answer isn't 18."),
        (18, "It is not equal to 18."),
        (18, "x \\ne 18"),
        (18, "- 18"),
        (4, "(3, 4)"),
        (999, " ".join(map(str, range(600, 1000)))),
        (4, "either 3 or 4"),
        (300, "3 \\times 10^3"),
        (7, "\\boxed{3}, \\boxed{5}, \\boxed{7}"),
    ],
)
def test_a_number_inside_something_else_is_not_the_answer(gold, answer):
    assert Numeric()(gold, answer).reward == 0.0


@pytest.mark.parametrize(
    "gold", ["5:30", "(3, 4)", "2 and 5", "x18", "0x12", "5x", "√18", "5\\pi", "3-4", "12/31/2020", "10101_2", "3, 4"]
)
def test_a_gold_that_is_more_than_one_number_is_refused_by_line(gold, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(
        json.dumps({"prompt": "a", "answer": 1}) + "\n" + json.dumps({"prompt": "b", "answer": gold}) + "\n"
    )
    with pytest.raises(UserError, match=r"rows.jsonl.*2.*is not a number"):
        Jsonl(data=str(data))


# The same value written in several ways -----------------------------------------------------------------------------


def decimal(value):
    """A value as a decimal, if it has one."""
    bottom = value.denominator
    for factor in (2, 5):
        while bottom % factor == 0:
            bottom //= factor
    if bottom != 1:
        return None
    top, bottom = value.as_integer_ratio()
    digits = 0
    while (top * 10**digits) % bottom:
        digits += 1
    text = str(abs(top * 10**digits // bottom)).rjust(digits + 1, "0")
    return ("-" if top < 0 else "") + (f"{text[:-digits]}.{text[-digits:]}" if digits else text)


def spellings(value):
    """Ways to write a rational number."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    top, bottom = size.as_integer_ratio()
    yield f"{sign}\\frac{{{top}}}{{{bottom}}}"
    yield f"{sign}\\dfrac{{{top * 3}}}{{{bottom * 3}}}"
    yield f"{sign}{top}/{bottom}"
    yield f"−{top}/{bottom}" if sign else f"{top} / {bottom}"
    whole, rest = divmod(top, bottom)
    if whole and rest:
        yield f"{sign}{whole} {rest}/{bottom}"
        yield f"{sign}{whole}\\frac{{{rest}}}{{{bottom}}}"
    if bottom == 1:
        yield f"{sign}{top:,}"
        yield f"{sign}{top}.00"
        if top < 10**15:  # more groups are a list
            yield f"{sign}{top:,}".replace(",", " ")
    text = decimal(value)
    if text is not None:
        yield text
        shifted = decimal(value / 1000)
        yield f"{shifted} \\times 10^{{3}}"
        yield f"{decimal(value * 100)}e-2"
    root = Fraction(top**2, bottom**2)
    yield f"{sign}\\sqrt{{\\frac{{{root.numerator}}}{{{root.denominator}}}}}"


RATIONALS = st.one_of(
    st.fractions(max_denominator=60, min_value=-1000, max_value=1000),
    st.builds(Fraction, st.integers(-(10**6), 10**6)),
    st.builds(lambda n, k: Fraction(n, 10**k), st.integers(-999, 999), st.integers(1, 40)),
    st.builds(lambda n, k: Fraction(n) * 10**k, st.integers(-999, 999), st.integers(1, 40)),
)
WRAPPERS = ["{}", "\\boxed{{{}}}", "The answer is ${}$.", "#### {}", "<answer>{}</answer>", "so x = \\({}\\)"]


@given(RATIONALS, st.data())
@settings(max_examples=150)
def test_a_rewriting_has_the_value_and_a_near_value_has_not_at_any_magnitude(value, data):
    text = data.draw(st.sampled_from(list(spellings(value))))
    answer = data.draw(st.sampled_from(WRAPPERS)).format(text)
    # Less than half a unit of the last place that either is written with: no tolerance may hide it.
    near = value + data.draw(st.sampled_from([-1, 1])) * Fraction(1, 10 ** data.draw(st.integers(1, 60)))
    for gold, right in ((value, True), (near, False), (-value, value == 0)):
        assert Numeric()(gold, answer).correct is right


@given(RATIONALS, st.data())
@settings(max_examples=60)
def test_formulas_with_a_rational_value_are_compared_exactly_and_without_a_process(value, data):
    verifier = math()
    texts = data.draw(st.lists(st.sampled_from(list(spellings(value))), min_size=2, max_size=2))
    near = value + Fraction(1, 10 ** data.draw(st.integers(1, 60)))
    other = data.draw(st.sampled_from(list(spellings(near))))
    assume(value != 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ponder.verifiers.math.shared", lambda memory: pytest.fail("a process was asked"))
        assert verifier(texts[0], f"\\boxed{{{texts[1]}}}").correct
        assert not verifier(texts[0], f"\\boxed{{{other}}}").correct
        assert verifier.same(verifier.read(texts[0]), verifier.read(texts[1]))


@given(RATIONALS, RATIONALS, st.data())
@settings(max_examples=100)
def test_answers_are_one_vote_exactly_if_they_are_equal(a, b, data):
    answers = VerifierAnswers(Numeric())
    texts = [data.draw(st.sampled_from(list(spellings(v)))) for v in (a, b)]
    votes = cluster_answers(answers, Problem("p", "?"), [Response(t) for t in texts])
    assert (votes[0].cluster == votes[1].cluster) is (a == b)


# Formulas -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\sqrt{17}", "√17"),
        ("\\sqrt{17}", "sqrt(17)"),
        ("2\\sqrt{3}", "2√3"),
        ("2\\sqrt{3}", "\\boxed{\\sqrt{12}}"),
        ("5/4", "1 1/4"),
        ("3,5,7", "\\boxed{3}, \\boxed{5}, \\boxed{7}"),
        ("3,5,7", "The answers are $7$, $3$ and $5$."),
        ("(1,4]", "1 < x \\le 4"),
        ("[3,\\infty)", "x ≥ 3"),
        ("1e-05", "0.00001"),
        ("12", "12 \\text{ ft}^2"),
        ("1 - \\frac{1}{\\mathrm{e}}", "\\boxed{1 - e^{-1}}"),
        ("1, 2, \\ldots, n", "1, 2, \\dots, n"),
        ("2516_8", "\\boxed{2516_{8}}"),
        ("\\frac{1}{2004!}", "\\boxed{\\frac{1}{2004!}}"),
    ],
)
def test_formulas_that_mean_the_same_are_equal(gold, answer):
    assert math()(gold, answer).correct


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\frac{1}{2004!}", "\\boxed{\\frac{1}{2006!}}"),
        ("\\frac{1}{2^{99}}", "\\boxed{\\frac{1}{2^{98}}}"),
        ("e^{-300}", "\\boxed{e^{-301}}"),
        ("x + 10^{-60}", "\\boxed{x}"),
        ("1 - \\frac{1}{\\mathrm{e}}", "\\boxed{1 + \\frac{1}{\\mathrm{e}}}"),
        ("1, 2, \\ldots, n", "\\boxed{1, 3, 5, \\ldots, 2n-1}"),
        ("2516_8", "\\boxed{2516_7}"),
        ("10101_2", "\\boxed{10101}"),
        ("10101_2", "\\boxed{21}"),
        ("11/4", "1 1/4"),
        ("1/3", "0.333333"),
        ("(1,4]", "\\boxed{(1,4)}"),
        ("(3,5)", "\\boxed{(5,3)}"),
        ("\\text{east}", "\\boxed{\\text{seat}}"),
        ("1 - \\foo{2}", "\\boxed{1 - \\foo{3}}"),
    ],
)
def test_formulas_that_differ_are_not_equal(gold, answer):
    assert math()(gold, answer).reward == 0.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "\\boxed{\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}}"),
        ("8 \\text{ inches}", "\\boxed{8 \\text{ in}}"),
        ("\\cos^2 x", "\\boxed{1-\\sin^2 x}"),
        ("\\text{June 20}", "\\boxed{\\text{June 20}}"),
        ("\\text{even}", "\\boxed{\\text{Even}}"),
    ],
)
def test_a_formula_that_is_all_of_an_answer_is_a_vote_for_itself(gold, answer):
    verifier = math()
    assert verifier.same(verifier.read(gold), verifier.read(answer))


def test_a_vote_holds_what_the_judge_calls_equal():
    answers = VerifierAnswers(math())
    texts = ["\\boxed{\\text{Tuesday}}", "\\boxed{Tuesday}", "\\boxed{tuesday}", "\\boxed{Monday}"]
    votes = cluster_answers(answers, Problem("p", "?"), [Response(t) for t in texts])
    assert [v.cluster for v in votes] == [0, 0, 0, 3]
    votes = cluster_answers(answers, Problem("p", "?"), [Response(t) for t in ("1 1/4", "11/4", "5/4")])
    assert [v.cluster for v in votes] == [0, 1, 0]


# Text and letters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("B", "(B)"),
        ("B", "The answer is (B)."),
        ("B", "\\text{B}"),
        ("no", "Answer: No\nThe two sums differ by one."),
        ("no", "Answer: No\nIt is so."),
        ("don't", "don’t"),
        ("Zo\u00eb", "Zoe\u0308"),
        ("“yes”", '"yes"'),
        (1e-05, "0.00001"),
        (5.0, "5"),
    ],
)
def test_text_is_compared_by_what_it_says(gold, answer):
    assert Exact()(gold, answer).correct


@pytest.mark.parametrize(
    "answer", ["B", "(B)", "b)", "**B.**", "B) 5 cm", "Option B", "The answer is (B) because", "B is correct."]
)
def test_a_letter_is_read_as_people_write_it(answer):
    assert Choice()("B", answer).correct
    assert Choice()("(B)", f"A and C are wrong.\n{answer}").correct
    assert not Choice()("A", answer).correct


@pytest.mark.parametrize("answer", ["A or B", "not B", "Both A and B", "Bananas", "I do not know", "A dog", ""])
def test_what_names_no_letter_or_several_is_no_choice(answer):
    assert {Choice()(letter, answer).kind for letter in "ABI"} == {VerdictKind.NO_ANSWER}


def test_a_gold_that_is_no_letter_is_refused():
    with pytest.raises(UserError, match="not one of the letters"):
        Choice()("Paris", "B")
    assert registry.build("verifiers", "choice", {"letters": "XYZ"})("X", "(X)").correct


# Files and texts that run on ----------------------------------------------------------------------------------------


def test_a_list_of_golds_is_alternatives_and_anything_else_is_refused_by_line(tmp_path):
    def made(answer):
        data = tmp_path / "rows.jsonl"
        data.write_text(json.dumps({"prompt": "Capital?", "answer": answer}) + "\n")
        return Jsonl(data=str(data), verifier="exact", test_share=0.0)

    env = made(["Paris", "City of Light"])
    problem = env.problem("train", 0)
    assert [env.judge(problem, Response(t)).correct for t in ("city of light", "Paris", "London")] == [
        True,
        True,
        False,
    ]
    assert env.judge(problem, Response(env.gold_response(problem))).correct
    for wrong in ({"ground_truth": "7"}, [["a"]], [None], [{"a": 1}]):
        with pytest.raises(UserError, match=r"rows.jsonl.*1.*alternatives"):
            made(wrong)


@pytest.mark.parametrize(
    "answer",
    [
        "16 - 3 = 13\n#### 72\n\nQuestion: How many?\nAnswer: 5",
        "#### 72\nQ: Next?\nA: The answer is 5.",
        "The answer is 72.\n\nQ: Next?\nA: The answer is 5.",
        "72\n\nQuestion: How many?\nAnswer: 5\n#### 5",
        "\\boxed{72}\n\n### Question 2: How many?\n\\boxed{5}",
        "#### 72\nHuman: thanks! What is 2+3?\nAssistant: 5",
        "Question 1: How many boxes?\nAnswer: 5\nQuestion 2: How many eggs?\nAnswer: 72",
        "First ask smaller questions.\nQuestion: boxes?\nAnswer: 5\nSo there are 72.\n#### 72",
    ],
)
def test_a_text_that_runs_on_into_a_new_question_keeps_its_answer(answer, tmp_path):
    assert Numeric()(72, answer).correct
    data = tmp_path / "test.jsonl"
    data.write_text(json.dumps({"question": "How many?", "answer": "x\n#### 72"}) + "\n")
    env = Gsm8k(data=str(data))
    split = "train" if env.size("train") else "test"
    assert env.judge(env.problem(split, 0), Response(answer)).correct


@pytest.mark.parametrize(
    "more",
    [
        "\n\nNext question: how many?\nThe answer is 5.",
        "\n\nQuestion 2\nTom has 3 apples.\nThe answer is 5.",
        "\n\n### Problem\nTom has 3 apples.\n### Solution\nThe answer is 5.",
        "\n\nQ2. How many apples?\nA2. The answer is 5.",
        "\n\nExample 2:\nTom has 3 apples.\nThe answer is 5.",
        "\n[Question] How many?\nThe answer is 5.",
        "\n\nUser Question: How many?\nThe answer is 5.",
        "\n\nFollow-up question: How many?\nThe answer is 5.",
        "\n\nQuestion #2: How many?\nThe answer is 5.",
        "\n\nExercise 4.\nHow many?\nThe answer is 5.",
        "\n\nProblem statement: How many?\nThe answer is 5.",
        "\n\nTask: How many?\nThe answer is 5.",
        "\n\n<question>How many?</question>\n<answer>5</answer>",
        "\nuser\nHow many?\nassistant\nThe answer is 5.",
        "<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n\\boxed{5}",
        "<|endoftext|>The answer is 5.",
        "</s><s>[INST] How many? [/INST] The answer is 5.",
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHow many?<|eot_id|>The answer is 5.",
        "<start_of_turn>user\nHow many?<end_of_turn>\n<start_of_turn>model\nThe answer is 5.",
        "<\uff5cend\u2581of\u2581sentence\uff5c><\uff5cUser\uff5c>How many? 5",
    ],
)
def test_every_way_to_begin_a_new_turn_ends_the_answer(more):
    for verifier, gold, answer in ((Numeric(), 72, "The answer is 72."), (Choice(), "B", "Answer: B")):
        assert verifier(gold, answer + more).correct
    assert Exact()("Paris", "Answer: Paris" + more).correct
    assert Numeric()(72, "<|im_start|>assistant\n72" + more).correct


def test_a_struck_number_and_an_echoed_prompt_end_no_answer():
    assert Numeric()(18, "<s>17</s> 18").correct
    assert Numeric()(18, "<|im_start|>user\n3 eggs?<|im_end|>\n<|im_start|>assistant\nThe answer is 18.").correct
    assert Numeric()(18, "<s>[INST] What is 9*2? [/INST] The answer is 18.</s>").correct
    assert Numeric()(18, "<|user|>\nWhat is 9*2?\n<|assistant|>\nThe answer is 18.\n<|user|>\n5?").correct
    assert Numeric()(18, "<|begin_of_thought|>5<|end_of_thought|>\nThe answer is 18.").correct


@given(st.lists(st.sampled_from(["7", "- 3", "not 4", "5 or 6", "1, 2", "x = 8", "18 eggs", "so", "(2)"]), max_size=9))
@settings(max_examples=60)
def test_what_stands_far_before_an_answer_changes_nothing(parts):
    text = " and then ".join(parts) or "none"
    far = "Some eggs were laid on that day and some were sold at the market. " * 5
    assert Numeric().read(f"{far}\nSo {text} is 9 = 3*3 and {text}") == Numeric().read(
        f"So {text} is 9 = 3*3 and {text}"
    )


# Countdown ----------------------------------------------------------------------------------------------------------

GAME = Problem("p", "?", {"numbers": [8, 12, 10, 3], "target": 16, "operations": "+-*/"})
RIGHT = [
    "8*(12-10)",
    "8*(12-10) = 16",
    "The answer is 8*(12-10).",
    "So **8*(12-10)** works",
    "**8*(12-10) = 16**",
    "8 × (12 − 10) = 16.",
    "\\boxed{8*(12-10)}",
    "$8 \\times (12-10) = 16$",
    "- 8*(12-10)",
    "1. 8*(12-10)",
    "x = 8*(12-10)",
    "we get 8*(12-10), which is 16",
    "8*(12-10) - done here",
    "8*(12-10)\n\nQuestion: Make 5 from 1 4\nAnswer: 1+4",
    "<answer>8*(12-10)</answer>",
    "<answer> 8 * (12 - 10) = 16 </answer>",
    "8*(12-10) = \\boxed{16}",
    "8 x (12-10) = 16",
    "= 8*(12-10)",
    "* 8*(12-10) = 16",
    "1) 8*(12-10) = 16",
    "8*(12-10) → 16 ✓",
    "8*(12-10)<|im_end|>\n<|im_start|>user\n1+1",
    "8*(12-10)\u200b",
    "'8*(12-10)'",
]
JUNK = """
8*(12-10)!
8*(12-10)+a
8*(12-10) + a
8*(12-10)*pi
√8*(12-10)
3.8*(12-10)
8*(12-10) ≠ 16
8*(12-10)^1
8*(12-10)²
8*(12-10)%
8*(12-10) mod 3
pi*8*(12-10)
a+8*(12-10)
x8*(12-10)
8*(12-10)x
8*(12-10) != 16
8*(12-10) is not 16
not 8*(12-10)
8*(12-10).5
\\sqrt{8}*(12-10)
8*(12-10) < 16
sqrt(8*(12-10))
8*(12-10) + 0x10
!8*(12-10)
8*(12-10)\\pi
|8*(12-10)|
8*(12-10)e2
8*(12-10)+√3
8*(12-10) \\ne 16
8*(12-10)+[1]
⌊8*(12-10)⌋
log 8*(12-10)
the root of 8*(12-10)
half of 8*(12-10)
∛8*(12-10)
8*(12-10)°
8*(12-10)′
8*(12-10)'
8*(12-10)€
8*(12-10) ∘ 1
8*(12-10) is wrong
8*(12-10) *
8*(12-10)\\cdot
\\frac{1}{2}8*(12-10)
[3]8*(12-10)
3:8*(12-10)
8*(12-10)\u200b!
<answer>8*(12-10)!</answer>
\\boxed{8*(12-10)!}
""".strip().splitlines()


@pytest.mark.parametrize("answer", RIGHT)
def test_a_countdown_expression_may_stand_in_a_sentence(answer):
    assert check(GAME, answer).correct


@pytest.mark.parametrize("answer", JUNK)
def test_a_countdown_expression_inside_another_formula_earns_nothing(answer):
    assert check(GAME, answer).reward == 0.0


# Hand-checked pairs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["numeric", "math", "exact", "choice"])
def test_no_hand_checked_pair_is_judged_wrongly(name):
    verifier = math() if name == "math" else registry.build("verifiers", name, {})
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["verifier"] == name]
    counts = defaultdict(int)
    for row in rows:
        counts[row["right"]] += 1
    assert min(counts.values()) >= 60
    failed = [row for row in rows if verifier(row["gold"], row["answer"]).correct is not row["right"]]
    assert not failed


# Hostile texts ------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="0123456789.,-+*/^!%$()[]{}\\=<>_ \nabcxei√½²", max_size=60))
@settings(max_examples=300)
def test_no_text_makes_a_verifier_raise_or_disagree_with_its_votes(text):
    for verifier, gold in ((Numeric(), 5), (Exact(), "five"), (Choice(), "B")):
        verdict = verifier(gold, text)
        given = verifier.read(text)
        assert verdict.reward is not None
        if verdict.correct:
            assert given is not None
            assert verifier.same(given, verifier.read(str(gold)))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=12))
def test_a_decimal_of_json_equals_itself_in_every_form(value):
    assert Numeric()(float(value), str(float(value))).correct
    assert Numeric()(float(value), format(Decimal(str(float(value))), "f")).correct
