"""Which rows of a file are for training and which for testing: the row decides, whatever the options."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder import registry
from ponder.environments._rows import key_of
from ponder.environments.arithmetic import Arithmetic
from ponder.environments.calculator import Calculator
from ponder.environments.countdown import Countdown
from ponder.environments.gsm8k import Gsm8k
from ponder.environments.jsonl import Jsonl
from ponder.environments.simulated import Simulated
from ponder.errors import UserError


def build(**options):
    return registry.build("environments", "jsonl", options)


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def sums(count, start=0, **extra):
    return [
        {"prompt": f"What is {n} plus {n}?", "short": f"{n} + {n} =", "answer": 2 * n, "text": str(2 * n), **extra}
        for n in range(start, start + count)
    ]


def sources(environment, split) -> set[str]:
    """The lines that a split holds."""
    return {environment.problem(split, i).metadata["source"] for i in range(environment.size(split))}


OPTIONS = {
    "prompt_field": "short",
    "answer_field": "text",
    "verifier": "exact",
    "verifier_options": {"absolute": 0.5},
    "instructions": "Answer with a number alone.",
    "seed": 3,
}
SAY_THE_SPLIT = {"data", "test_data", "test_share", "split_field"}


def test_no_option_moves_a_row_of_jsonl_to_the_other_split(tmp_path):
    """Trained with one set of options and tested with another, a model has seen none of the test rows."""
    data = write(tmp_path / "d.jsonl", sums(200))
    plain = build(data=data)
    assert {f.name for f in dataclasses.fields(Jsonl)} == set(OPTIONS) | SAY_THE_SPLIT
    for name, value in OPTIONS.items():
        other = build(data=data, **{name: value})
        assert sources(other, "test") == sources(plain, "test"), name
        assert not sources(other, "train") & sources(plain, "test"), name


def test_the_order_of_lines_and_fields_moves_no_row(tmp_path):
    rows = sums(60)
    turned = [dict(reversed(row.items())) for row in reversed(rows)]

    def asked(name, rows):
        environment = build(data=write(tmp_path / name, rows), test_share=0.3)
        return {environment.problem("test", i).prompt for i in range(environment.size("test"))}

    assert asked("a.jsonl", rows) == asked("b.jsonl", turned)


@pytest.mark.parametrize(
    ("share", "rows", "tests"), [(0.3, 10, 3), (0.1, 10, 1), (None, 10, 1), (0.01, 10, 1), (0.99, 10, 9), (0.5, 2, 1)]
)
def test_a_share_of_few_rows_is_that_share_with_a_row_at_least_on_each_side(share, rows, tests, tmp_path):
    environment = build(data=write(tmp_path / "d.jsonl", sums(rows)), test_share=share)
    assert (environment.size("train"), environment.size("test")) == (rows - tests, tests)


def test_one_question_is_for_one_split_by_request_only(tmp_path):
    data = write(tmp_path / "d.jsonl", sums(1) * 3)
    with pytest.raises(UserError, match=r"one question cannot be divided .* test_share = 1 \(test it\) or 0"):
        build(data=data)
    assert build(data=data, test_share=1.0).size("test") == 1
    assert build(data=data, test_share=0.0).size("train") == 1


@given(st.integers(2, 60), st.integers(1, 40), st.floats(0.05, 0.95))
@settings(max_examples=30, deadline=None)
def test_rows_that_are_added_move_the_border_in_one_direction(tmp_path_factory, count, more, share):
    folder = tmp_path_factory.mktemp("d")

    def tests(rows):
        environment = build(data=write(folder / "d.jsonl", rows), test_share=share)
        found = {environment.problem("test", i).prompt for i in range(environment.size("test"))}
        return found & {r["prompt"] for r in sums(count)}

    few, many = tests(sums(count)), tests(sums(count + more))
    assert few <= many or many <= few


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 2), st.booleans()), min_size=2, max_size=30).filter(
        lambda rows: len({prompt for prompt, _, _ in rows}) > 1
    )
)
@settings(max_examples=50, deadline=None)
def test_duplicates_of_a_prompt_never_straddle_the_splits(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("d") / "d.jsonl"
    data = write(path, [{"prompt": f"{'  Say' if loud else 'say'} {p}", "answer": n} for p, n, loud in rows])
    environment = build(data=data, test_share=0.5)
    keys = {
        split: [key_of(environment.problem(split, i).prompt) for i in range(environment.size(split))]
        for split in ("train", "test")
    }
    assert not set(keys["train"]) & set(keys["test"])
    assert set(keys["train"]) | set(keys["test"]) == {f"say {p}" for p, _, _ in rows}
    assert len(keys["train"]) + len(keys["test"]) == len({(p, n) for p, n, _ in rows})


# A field that says the split ------------------------------------------------------------------------------------------


def test_a_split_field_is_honoured(tmp_path):
    rows = [*sums(7, split="train"), *sums(3, start=7, split=" Test ")]
    data = write(tmp_path / "d.jsonl", rows)
    environment = build(data=data)
    assert sources(environment, "test") == {f"d.jsonl:{n}" for n in (8, 9, 10)}
    assert environment.size("train") == 7
    renamed = write(tmp_path / "r.jsonl", [{**r, "part": r.pop("split")} for r in rows])
    assert sources(build(data=renamed, split_field="part"), "test") == {f"r.jsonl:{n}" for n in (8, 9, 10)}
    assert build(data=data, split_field="").size("test") == 1  # a tenth, by hash


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        (sums(3, split="validation"), {}, "line 1: the field 'split' holds 'validation': it must be train or test"),
        (sums(3, split=None), {}, "line 1: the field 'split' holds None"),
        (sums(3, split=["test"]), {}, "line 1: the field 'split' holds"),
        ([*sums(2, split="test"), *sums(2, start=2)], {}, "d.jsonl:1 says its split and d.jsonl:3 does not"),
        ([*sums(2), *sums(2, start=2, split="test")], {}, "d.jsonl:3 says its split and d.jsonl:1 does not"),
        (sums(3, split="test"), {"test_share": 0.5}, "the rows say their split themselves: leave test_share out"),
    ],
)
def test_a_split_field_that_cannot_be_honoured_is_refused(rows, options, says, tmp_path):
    with pytest.raises(UserError) as caught:
        build(data=write(tmp_path / "d.jsonl", rows), **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_second_file_and_what_the_rows_say_must_agree(tmp_path):
    train = write(tmp_path / "a.jsonl", sums(5, split="train"))
    test = write(tmp_path / "b.jsonl", sums(5, start=5, split="test"))
    environment = build(data=train, test_data=test)
    assert (environment.size("train"), environment.size("test")) == (5, 5)
    with pytest.raises(UserError, match=r"b\.jsonl:1 says that it is of the test split"):
        build(data=test, test_data=write(tmp_path / "c.jsonl", sums(2)))
    with pytest.raises(UserError, match=r"a\.jsonl:1 says that it is of the train split"):
        build(data=write(tmp_path / "c.jsonl", sums(2)), test_data=train)
    with pytest.raises(UserError, match="test_share and test_data both say"):
        build(data=train, test_data=test, test_share=0.5)


def test_a_second_file_that_leaves_nothing_to_train_on_is_refused(tmp_path):
    data = write(tmp_path / "d.jsonl", sums(10))
    with pytest.raises(UserError, match=r"asks all that .*d\.jsonl asks, so nothing is left to train on"):
        build(data=data, test_data=data)


def test_training_rows_that_ask_what_a_test_row_asks_are_left_out(tmp_path):
    environment = build(
        data=write(tmp_path / "a.jsonl", sums(20)), test_data=write(tmp_path / "b.jsonl", sums(10, start=15))
    )
    assert (environment.size("train"), environment.size("test")) == (15, 10)


# Other environments ---------------------------------------------------------------------------------------------------


def word_problems(count, **extra):
    return [
        {"question": f"Ann has {n} eggs and finds {n}. How many?", "answer": f"{n}+{n}\n#### {2 * n}", **extra}
        for n in range(count)
    ]


def test_no_option_of_gsm8k_moves_a_row(tmp_path):
    data = write(tmp_path / "mine.jsonl", word_problems(80))
    options = {"few_shot": 2, "few_shot_style": "text", "instructions": "Think.", "seed": 5}
    assert {f.name for f in dataclasses.fields(Gsm8k)} == {*options, "data"}
    plain = registry.build("environments", "gsm8k", {"data": data})
    for name, value in options.items():
        other = registry.build("environments", "gsm8k", {"data": data, name: value})
        assert sources(other, "test") == sources(plain, "test"), name


def test_the_split_field_of_gsm8k_is_honoured_or_refused(tmp_path):
    rows = [{**row, "split": "test" if n < 3 else "train"} for n, row in enumerate(word_problems(10))]
    environment = registry.build("environments", "gsm8k", {"data": write(tmp_path / "mine.jsonl", rows)})
    assert (environment.size("train"), environment.size("test")) == (7, 3)
    with pytest.raises(UserError, match=r"x-test\.jsonl:4 says that it is of the train split"):
        registry.build("environments", "gsm8k", {"data": write(tmp_path / "x-test.jsonl", rows)})


SUMS = {"digits": 1, "max_operands": 2, "operations": "+"}
PROCEDURAL = [
    (Countdown, {}, ["seed", "template", "instructions", "operations", "largest"]),
    (Arithmetic, {}, ["seed", "spaces", "template", "instructions", "few_shot", "operations", "nesting"]),
    (Arithmetic, SUMS, ["seed", "spaces", "template", "instructions", "few_shot", "max_operands"]),
    (Calculator, {}, ["seed", "spaces", "instructions", "most_turns"]),
]
CHANGED = {
    "seed": 7,
    "template": "Now: {expression} {target} {numbers}",
    "instructions": "Be brief.",
    "operations": "+",
    "largest": 14,
    "spaces": True,
    "few_shot": 1,
    "nesting": 0,
    "max_operands": 4,
    "most_turns": 3,
}


@pytest.mark.parametrize(("cls", "base", "names"), PROCEDURAL, ids=lambda v: getattr(v, "__name__", None))
def test_a_drawn_problem_is_of_the_same_split_with_all_options(cls, base, names):
    """What is asked decides: a problem that one set of options tests on is none that another one trains on."""

    def asked(environment, split, count):
        size = environment.size(split)
        problems = [environment.problem(split, i) for i in range(count if size is None else min(count, size))]
        return {_content(p.public, environment.gold(p).answer) for p in problems}

    tests = asked(cls(**base), "test", 100)
    for name in names:
        other = cls(**{**base, name: CHANGED[name]})
        assert not asked(other, "train", 300) & tests, name


def _content(public, answer) -> str:
    if "numbers" in public:
        return f"{sorted(public['numbers'])}={public['target']}"
    return f"{public['expression']}={answer}"


def test_simulated_problems_are_of_one_split():
    environment = Simulated()
    ids = {s: {environment.problem(s, i).id for i in range(50)} for s in ("train", "test")}
    assert not ids["train"] & ids["test"]


def test_no_option_of_reasoning_gym_moves_a_question():
    pytest.importorskip("reasoning_gym")

    def asked(split, count, **options):
        environment = registry.build("environments", "reasoning-gym:chain_sum", options)
        return {environment.problem(split, i).public["question"] for i in range(count)}

    tests = asked("test", 20)
    for name, value in {"instructions": "Be brief.", "seed": 4, "partial": True, "seconds": 2.0}.items():
        assert not asked("train", 20, **{name: value}) & tests, name
