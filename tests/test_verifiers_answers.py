"""Answers read and compared without a gold: the same readings as the judge's, and an equality to vote with."""

import json
import pickle
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.environments._expressions import canonical, evaluate
from ponder.environments.arithmetic import Arithmetic
from ponder.environments.countdown import Countdown
from ponder.environments.gsm8k import Gsm8k
from ponder.environments.jsonl import Jsonl
from ponder.protocols import Answers
from ponder.search.clusters import cluster_answers
from ponder.types import Problem, Response
from ponder.verifiers.answers import MarkedText, VerifierAnswers
from ponder.verifiers.exact import Exact
from ponder.verifiers.numeric import Numeric

PROBLEM = Problem("p", "What is 1+1?", {"question": "What is 1+1?"})


def read(answers, text, problem=PROBLEM):
    return answers.extract(problem, Response(text))


def groups(answers, *texts, problem=PROBLEM):
    """The texts by what they say."""
    votes = cluster_answers(answers, problem, [Response(t) for t in texts])
    found = {}
    for text, vote in zip(texts, votes, strict=True):
        found.setdefault(None if vote is None else vote.cluster, []).append(text)
    return list(found.values())


def test_numbers_are_one_answer_however_they_are_written():
    assert groups(
        VerifierAnswers(Numeric()), "The answer is 0.5.", "#### 1/2", "50%", "2", "so $2.00", "\\boxed{\\frac{1}{2}}"
    ) == [["The answer is 0.5.", "#### 1/2", "50%", "\\boxed{\\frac{1}{2}}"], ["2", "so $2.00"]]


@pytest.mark.parametrize("text", ["", "no idea", "1 2 3 4 5 6", "What is 1+1?", "The answer is", "7" * 200_000])
def test_what_gives_no_number_does_not_vote(text):
    assert read(VerifierAnswers(Numeric()), text) is None


@given(*[st.sampled_from(["1", "1.0", "2/2", "-3", "0.5", "1/2", "50%", "0.5%", "1/200", "200", "1e3", "1,000"])] * 2)
def test_numbers_without_a_tolerance_are_compared_as_the_judge_does(a, b):
    first, second = Numeric().read(a), Numeric().read(b)
    assert Numeric().same(first, second) == Numeric()(first, second).correct


def test_a_tolerance_makes_numbers_equal_that_are_near():
    answers = VerifierAnswers(Numeric(absolute=0.01))
    assert groups(answers, "3.14", "3.141", "3.2") == [["3.14", "3.141"], ["3.2"]]


@given(st.text(max_size=40) | st.from_regex(r"-?[0-9]{1,5}([./][0-9]{1,4})?(e[0-9]{1,3})?%?", fullmatch=True))
def test_a_number_is_read_as_the_judge_reads_it_and_equals_itself(text):
    answers, verdict = VerifierAnswers(Numeric()), Numeric()(0, text)
    given = read(answers, text, Problem("p", "?"))
    assert (given is None) == (verdict.answer is None)
    if given is not None:
        assert answers.same(given, given)
        assert answers.same(given, str(0)) == verdict.correct


def test_text_is_compared_as_the_exact_verifier_does():
    answers = VerifierAnswers(Exact())
    assert groups(answers, "So it is\nParis.", "The answer is paris", "Lyon", " ") == [
        ["So it is\nParis.", "The answer is paris"],
        ["Lyon"],
        [" "],
    ]
    assert len(groups(VerifierAnswers(Exact(ignore_case=False)), "Paris", "paris")) == 2


def test_a_verifier_that_cannot_read_is_asked_to_compare_what_a_marker_names():
    class Length:
        def __call__(self, gold, answer):
            return Numeric()(len(gold), str(len(answer)))

    answers = VerifierAnswers(Length())
    assert groups(answers, "The answer is abc", "xyz", "<answer>q</answer>") == [
        ["The answer is abc", "xyz"],
        ["<answer>q</answer>"],
    ]


def test_marked_text_is_what_the_marker_names_or_all_of_it():
    answers = MarkedText()
    assert read(answers, "x <answer> A  b</answer>") == "A b"
    assert read(answers, "What is 1+1?\n 0 1\n1 0 ") == "0 1 1 0"
    assert answers.same("A b", "a B")


def test_formulas_are_equal_if_mathematics_says_so():
    pytest.importorskip("math_verify")
    from ponder.verifiers.math import Math

    answers = VerifierAnswers(Math())
    assert answers.slow
    assert groups(answers, "\\boxed{2x+2}", "The answer is 2(x+1)", "$\\frac{1}{2}$", "0.5", "x+1", "...") == [
        ["\\boxed{2x+2}", "The answer is 2(x+1)"],
        ["$\\frac{1}{2}$", "0.5"],
        ["x+1"],
        ["..."],
    ]
    assert read(answers, "...") is None


# Environments -----------------------------------------------------------------------------------------------------


def test_countdown_expressions_are_one_answer_if_they_do_the_same():
    env = Countdown()
    problem = Problem("p", "Make 24 from 5 2 8.", {"numbers": [5, 2, 8], "target": 24, "operations": "+-*"})
    same = ["(5-2)*8", "8 * (5 - 2) = 24", "The answer is (-2+5)*8.", "8×(5−2)"]
    assert groups(env.answers, *same, "8*5-8*2", "8*(5-", "none", problem=problem) == [
        same,
        ["8*5-8*2"],
        ["8*(5-"],
        ["none"],
    ]
    assert read(env.answers, "none", problem) is None


def trees(draw, depth):
    if depth == 0 or draw(st.booleans()):
        return str(draw(st.integers(1, 9)))
    left, right = trees(draw, depth - 1), trees(draw, depth - 1)
    return f"({left}{draw(st.sampled_from('+-*'))}{right})"


@given(st.data())
def test_the_canonical_expression_has_the_value_and_the_numbers_of_the_written_one(data):
    text = trees(data.draw, 3)
    value, numbers, _ = evaluate(text)
    again = canonical(text)
    value_again, numbers_again, _ = evaluate(again)
    assert value_again == value
    assert sorted(numbers_again) == sorted(numbers)
    assert canonical(again) == again


def test_every_environment_reads_its_own_gold_and_tells_it_from_another(tmp_path):
    rows = [{"prompt": f"Double {i}", "answer": str(2 * i)} for i in range(1, 30)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = tmp_path / "words.jsonl"
    words.write_text("".join(json.dumps({"question": f"Q {i}?", "answer": f"so #### {i}"}) + "\n" for i in range(30)))
    exact = Jsonl(data=str(data), verifier="exact")
    for env in (Arithmetic(), Countdown(), Jsonl(data=str(data)), exact, Gsm8k(data=str(words))):
        assert isinstance(env.answers, Answers)
        problem = env.problem("train", 0)
        gold = env.gold_response(problem)
        given = read(env.answers, gold, problem)
        assert given is not None
        assert env.answers.same(given, read(env.answers, f"The answer is {gold}", problem))
        golds = {env.gold_response(env.problem("train", i)) for i in range(12)}
        texts = [t for t in (read(env.answers, g, problem) for g in sorted(golds)) if t is not None]
        equal = [(a, b) for a, b in combinations(texts, 2) if env.answers.same(a, b)]
        assert not equal
        assert read(env.answers, str(problem.prompt), problem) is None


def test_answers_go_to_another_process():
    answers = pickle.loads(pickle.dumps(VerifierAnswers(Numeric(absolute=0.5))))
    assert answers.same("1", "1.4")
