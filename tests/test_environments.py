"""Environments: self-checks, splits, determinism, and what each of the computed ones promises."""

import asyncio
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder import registry
from ponder.environments._expressions import evaluate, write
from ponder.environments.arithmetic import Arithmetic
from ponder.environments.base import SingleTurn, split_of
from ponder.environments.calculator import Calculator
from ponder.environments.countdown import Countdown
from ponder.environments.selfcheck import self_check
from ponder.errors import UserError
from ponder.protocols import Environment
from ponder.responses import split_response
from ponder.types import FinishReason, Gold, Message, Problem, Response, ThoughtFormat, VerdictKind
from ponder.verifiers.base import verdict

SMALL = Arithmetic(digits=1, max_operands=2, nesting=0)
COMPUTED = {
    "countdown": Countdown(),
    "countdown with division": Countdown(operations="+-*/", instructions="Use each number once.", max_numbers=5),
    "arithmetic": Arithmetic(),
    "arithmetic, one digit": SMALL,
    "arithmetic, nested": Arithmetic(digits=1, max_operands=6, nesting=3, negative=True, spaces=True),
    "arithmetic, examples in chat": Arithmetic(max_operands=2, operations="+", few_shot=3),
    "calculator": Calculator(few_shot=1),
    "arithmetic, examples as text": Arithmetic(digits=1, few_shot=2, few_shot_style="text"),
}


@pytest.fixture(params=COMPUTED.values(), ids=COMPUTED.keys())
def environment(request):
    return request.param


def test_the_self_check_passes(environment):
    for split in ("train", "test"):
        assert self_check(environment, split, range(8)) == []


def test_it_is_an_environment_and_one_turn_ends_it(environment):
    assert isinstance(environment, Environment)
    problem = environment.problem("train", 0)
    assert environment.turns or asyncio.run(environment.episode(problem).step(Response("1"))).done


def test_the_same_index_gives_the_same_problem_in_any_order_and_any_copy(environment):
    copy = pickle.loads(pickle.dumps(environment))
    for split in ("train", "test"):
        backwards = [copy.problem(split, i) for i in range(19, -1, -1)][::-1]
        assert backwards == [environment.problem(split, i) for i in range(20)]
        assert [copy.gold(p) for p in backwards] == [environment.gold(p) for p in backwards]


def test_problems_do_not_depend_on_the_process():
    code = (
        "from ponder.environments.countdown import Countdown; from ponder.environments.arithmetic import Arithmetic;"
        "print([e.problem(s, 9).prompt for e in (Countdown(), Arithmetic()) for s in ('train', 'test')])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_splits_share_no_problem_whatever_the_seeds():
    one, two = Countdown(seed=1), Countdown(seed=2)
    tests = {_asks(one, "test", i) for i in range(300)}
    trains = {_asks(two, "train", i) for i in range(3000)}
    assert len(tests) == 300, "a test problem came twice"
    assert not tests & trains
    assert len(trains) > 2500


def _asks(environment, split, index):
    public = environment.problem(split, index).public
    return tuple(sorted(public["numbers"])), public["target"]


def test_two_digit_sums_are_all_there_once_and_enough_are_for_testing():
    sums = Arithmetic(max_operands=2, operations="+")
    prompts = {s: {sums.problem(s, i).prompt for i in range(sums.size(s))} for s in ("train", "test")}
    assert len(prompts["train"]) + len(prompts["test"]) == 8100
    assert not prompts["train"] & prompts["test"]
    assert len(prompts["test"]) >= 400
    for a, b in ((12, 34), (98, 10), (55, 56)):
        assert (f"What is {a}+{b}?" in prompts["test"]) == (f"What is {b}+{a}?" in prompts["test"])
    with pytest.raises(IndexError, match="test problems"):
        sums.problem("test", sums.size("test"))


def test_a_test_split_that_runs_out_says_how_many_there_are():
    tiny = Countdown(min_numbers=2, max_numbers=2, largest=5, operations="+*", min_target=6, max_target=20)
    with pytest.raises(IndexError, match=r"has \d+ test problems with these options, 100 were asked"):
        tiny.problem("test", 99)


def test_other_seeds_give_other_problems():
    assert Countdown(seed=1).problem("train", 0).prompt != Countdown(seed=2).problem("train", 0).prompt


@pytest.mark.parametrize("index", [-1])
def test_bad_addresses_are_refused(index):
    with pytest.raises(IndexError, match="negative"):
        Countdown().problem("train", index)
    with pytest.raises(UserError, match="unknown split 'dev'"):
        Countdown().problem("dev", 0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not one of environment 'countdown'"):
        Countdown().gold(Problem("arithmetic-test-0", "?"))


def test_a_problem_never_holds_its_gold(environment):
    for index in range(5):
        problem = environment.problem("train", index)
        asked = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1].content
        gold = environment.gold_response(problem)
        if len(gold) > 3:  # short numbers may be there by chance
            assert gold not in str(problem.public) + asked.rpartition("Question:")[2]


# Countdown -----------------------------------------------------------------------------------------------------------

PROBLEM = Problem("x", "Make 24 from 3 5 8 2.", {"numbers": [3, 5, 8, 2], "target": 24, "operations": "+-*"})


@pytest.mark.parametrize(
    "answer",
    [
        "(5-2)*8",
        "3*8",
        "(5-2)*8=24",
        "24 = (5-2)*8",
        "(5-2)*8 = 3*8 = 24",
        "The answer is (5-2)*8 = 24.",
        "We try 5+8 = 13, no.\n(5-2)*8 which gives 24",
        "\\boxed{(5-2)*8}",
        "(5−2)×8",
        "$(5-2) \\times 8$",
        "8·(5-2)",
        "- (5-2)*8",
        "-(2-5)*8",
        "((((5-2))))*8",
        "Make 24 from 3 5 8 2.\n(5-2)*8",
    ],
)
def test_countdown_accepts_right_expressions_as_models_write_them(answer):
    assert Countdown().judge(PROBLEM, Response(answer)).correct


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("24", VerdictKind.WRONG),
        ("3+5", VerdictKind.WRONG),
        ("5*5-1", VerdictKind.WRONG),
        ("8+8+8", VerdictKind.WRONG),
        ("4*6", VerdictKind.WRONG),
        ("(5-2)*8=25", VerdictKind.WRONG),
        ("3*8=25=24", VerdictKind.WRONG),
        ("(5-2)*8\n3+5", VerdictKind.WRONG),
        ("(5-2)*8. The answer is 12.", VerdictKind.WRONG),
        ("(5-2)*8, 5+3", VerdictKind.WRONG),
        ("(5-2)*8 or 5+3", VerdictKind.WRONG),
        ("(8)(3)", VerdictKind.WRONG),
        ("8 3*", VerdictKind.WRONG),
        ("8**3/8/8*3", VerdictKind.WRONG),
        ("(5-2*8", VerdictKind.WRONG),
        ("8/2*(5+3)-8", VerdictKind.WRONG),
        ("3 5 8 2", VerdictKind.WRONG),
        ("9**9**9", VerdictKind.WRONG),
        ("8*3" + "+0" * 200, VerdictKind.WRONG),
        ("(" * 300 + "3*8" + ")" * 300, VerdictKind.WRONG),
        ("no idea", VerdictKind.NO_ANSWER),
        ("", VerdictKind.NO_ANSWER),
        ("8*3" * 100_000, VerdictKind.OUTPUT_LIMIT),
    ],
)
def test_countdown_refuses_everything_else(answer, kind):
    for decide in (Countdown().judge, Countdown().checker):
        assert decide(PROBLEM, Response(answer)).kind is kind


def test_countdown_division_must_be_allowed():
    allowed = Problem("x", "?", {"numbers": [8, 2, 6], "target": 24, "operations": "*/"})
    assert Countdown().judge(allowed, Response("8/2*6")).correct
    denied = Problem("x", "?", {"numbers": [8, 2, 6], "target": 24, "operations": "+-*"})
    assert Countdown().judge(denied, Response("8/2*6")).reason == "8/2*6 uses /, which is not allowed"
    assert Countdown().judge(allowed, Response("8/(2-2)")).kind is VerdictKind.WRONG


@pytest.mark.parametrize("options", [{}, {"operations": "+-*/", "max_numbers": 6, "max_target": 200}])
def test_countdown_problems_are_solved_by_their_steps(options):
    environment = Countdown(**options)
    for index in range(200):
        problem = environment.problem("train", index)
        gold = environment.gold(problem)
        pool = list(problem.public["numbers"])
        for a, op, b, c in gold.metadata["steps"]:
            pool.remove(a)
            pool.remove(b)
            assert 0 <= c <= environment.max_target
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a // b if op == "/" else None}[op] == c
            pool.append(c)
        assert pool == [problem.public["target"]]
        assert evaluate(gold.answer)[0] == problem.public["target"]
        assert sorted(evaluate(gold.answer)[1]) == sorted(problem.public["numbers"])
        assert environment.min_target <= problem.public["target"] <= environment.max_target


def test_countdown_draws_each_count_of_numbers_equally_often():
    counts = [Countdown().problem("train", i).metadata["numbers"] for i in range(1000)]
    assert 400 < counts.count(3) < 600


def test_countdown_is_quick_enough_for_hundreds_of_thousands_of_checks():
    environment, response = Countdown(), Response("(5-2)*8")
    best = min(_seconds(lambda: [environment.judge(PROBLEM, response) for _ in range(500)]) for _ in range(5))
    assert best / 500 < 100e-6  # measured 9 µs; loose, for busy machines


def _seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operations": "+^"}, "operations must be some of"),
        ({"min_numbers": 5}, "min_numbers and max_numbers"),
        ({"template": "Make it."}, "template must contain {target}"),
        ({"smallest": 1, "largest": 1, "min_target": 90}, "no problem has these numbers"),
        ({"smalest": 1}, "did you mean 'smallest'"),
    ],
)
def test_countdown_refuses_options_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message.replace("{", "\\{")):
        registry.build("environments", "countdown", options)


TREES = st.recursive(st.integers(0, 20), lambda t: st.tuples(st.sampled_from("+-*"), t, t), max_leaves=8)


@given(TREES, st.booleans())
def test_expressions_are_written_so_that_they_read_back(tree, keep):
    text = write(tree, keep_grouping=keep)
    expected = eval(text)  # plain digits and operators that `write` made
    assert _value(tree) == expected == evaluate(text)[0]


def _value(tree):
    if isinstance(tree, int):
        return tree
    op, a, b = tree[0], _value(tree[1]), _value(tree[2])
    return a + b if op == "+" else a - b if op == "-" else a * b


def test_expressions_are_written_with_no_parenthesis_too_many():
    assert write(("*", ("-", 5, 2), 8)) == "(5-2)*8"
    assert write(("+", 3, ("-", 4, 2))) == "3+4-2"
    assert write(("-", 3, ("-", 4, 2))) == "3-(4-2)"
    assert write(("+", 3, ("-", 4, 2)), keep_grouping=True) == "3+(4-2)"


@given(st.text("0123456789+-*/() ", max_size=60))
@settings(max_examples=300)
def test_expressions_are_read_as_python_does_or_refused(text):
    try:
        value = evaluate(text)[0]
    except ValueError:
        return
    python = text.strip()
    assert "**" not in python
    assert "//" not in python
    digits = "".join(f" {int(t)} " if t.isdigit() else t for t in _tokens(python))
    assert abs(float(value) - eval(digits)) <= 1e-9 * max(1.0, abs(float(value)))


def _tokens(text):
    import re

    return re.findall(r"\d+|\D", text)


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_no_text_makes_a_judge_raise_or_fail(text):
    for environment, problem in ((Countdown(), PROBLEM), (SMALL, SMALL.problem("test", 0))):
        assert environment.judge(problem, Response(text)).reward is not None


# Arithmetic ----------------------------------------------------------------------------------------------------------


def test_arithmetic_keeps_to_its_options():
    environment = Arithmetic(digits=3, min_digits=2, min_operands=3, max_operands=5, nesting=2, max_result=5000)
    depths = set()
    for index in range(200):
        problem = environment.problem("train", index)
        text = problem.public["expression"]
        value, numbers, _ = evaluate(text)
        assert value == environment.gold(problem).answer
        assert 0 <= value <= 5000
        assert all(10 <= n <= 999 for n in numbers)
        assert 3 <= len(numbers) <= 5 == max(5, problem.metadata["operands"])
        depths.add(problem.metadata["depth"])
    assert depths == {0, 1, 2}


def test_arithmetic_without_nesting_has_no_parentheses():
    environment = Arithmetic(nesting=0, max_operands=4)
    assert not any("(" in environment.problem("train", i).prompt for i in range(100))


def test_examples_are_right_are_from_training_and_are_never_the_question():
    environment = Arithmetic(max_operands=2, operations="+", few_shot=4)
    for split in ("train", "test"):
        for index in range(50):
            prompt = environment.problem(split, index).prompt
            assert [m.role for m in prompt] == ["user", "assistant"] * 4 + ["user"]
            questions = [m.content for m in prompt if m.role == "user"]
            assert len(set(questions)) == 5
            for asked, told in zip(prompt[:-1:2], prompt[1::2], strict=True):
                a, b = map(int, asked.content.removeprefix("What is ").removesuffix("?").split("+"))
                assert a + b == int(told.content)
                assert split_of(f"{sorted([a, b])}={a + b}") == "train"
    text = Arithmetic(few_shot=1, few_shot_style="text").problem("test", 0).prompt
    assert text.startswith("Question: What is ")
    assert text.endswith("?\nAnswer:")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operations": "+/"}, "operations must be some of"),
        ({"digits": 2, "min_digits": 3}, "min_digits not above digits"),
        ({"max_result": 1, "operations": "+"}, "no expression fits"),
        ({"few_shot_style": "prose"}, "few_shot_style"),
    ],
)
def test_arithmetic_refuses_options_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        registry.build("environments", "arithmetic", options)


# The base ------------------------------------------------------------------------------------------------------------


class Broken(SingleTurn):
    """An environment that gets things wrong on purpose."""

    name = "broken"

    def problem(self, split, index):
        return Problem(f"broken-{split}-{index}", (Message("user", f"Say {index}."),))

    def gold(self, problem):
        return Gold(problem.id.rpartition("-")[2])

    def verdict(self, problem, answer):
        if "7" in answer:
            raise RuntimeError("seven")
        return verdict(VerdictKind.CORRECT, "anything goes", answer)


def test_a_judge_that_fails_gives_a_judge_error_and_does_not_raise():
    result = Broken().judge(Broken().problem("train", 0), Response("7"))
    assert (result.kind, result.reward) == (VerdictKind.JUDGE_ERROR, None)
    assert result.reason.startswith("the judge of the environment broken failed: RuntimeError: seven (tests/")


def test_truncated_unclosed_empty_and_echoed_responses_never_reach_the_hook():
    environment = Broken()
    problem = environment.problem("train", 0)
    thought = ThoughtFormat("<think>", "</think>")
    for response in (
        split_response("4", FinishReason.LENGTH),
        split_response("<think>4", FinishReason.STOP, thought),
        Response(" \n"),
        Response("Say 0."),
        Response("Say 0.\n"),
    ):
        assert environment.judge(problem, response).kind is VerdictKind.NO_ANSWER
    assert environment.judge(problem, Response("Say 0.\n4")).answer == "4"


def test_the_self_check_finds_what_is_wrong():
    failures = self_check(Broken(), "test", [1])
    cases = {f.case for f in failures}
    assert {"0 to 999, commas", "9**9**9", "NUL bytes"} <= cases
    assert not {"gold", "empty", "prompt echoed", "prompt echoed twice", "answer in an unclosed thought"} & cases
    assert any("must earn 0, got correct" in f.message for f in failures)
    assert any("judge_error" in f.message for f in self_check(Broken(), "test", [7]))


def test_a_custom_environment_outside_the_repo_works_the_same(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from ponder.environments.base import Item, Procedural\n"
        "from ponder.types import Gold\n"
        "from ponder.verifiers.numeric import Numeric\n"
        "@dataclass\n"
        "class Mine(Procedural):\n"
        "    '''Doubles.'''\n"
        "    limit: int = 1000\n"
        "    seed: int = 0\n"
        "    name = 'mine'\n"
        "    def draw(self, rng):\n"
        "        n = rng.randrange(self.limit)\n"
        "        return str(n), n\n"
        "    def item(self, n, split, index):\n"
        "        return Item(f'Double {n}.', Gold(2 * n))\n"
        "    def verdict(self, problem, answer):\n"
        "        return Numeric()(self.gold(problem).answer, answer)\n"
    )
    environment = registry.build("environments", f"{file}:Mine", {"limit": 5000})
    assert self_check(environment, "test", range(5)) == []
    assert json.dumps(environment.problem("test", 0).prompt).startswith('"Double ')
