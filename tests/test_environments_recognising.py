"""Questions that are problems of an environment are recognised, judged, and nothing else is."""

import json

import pytest

from ponder import sync
from ponder.cli.main import main
from ponder.environments.countdown import Countdown
from ponder.environments.judging import judge
from ponder.environments.recognising import recognised
from ponder.types import Response, VerdictKind


@pytest.mark.parametrize(
    ("question", "name", "right", "wrong"),
    [
        ("Make 24 from 3 5 7 2.", "countdown", "2+7+3*5", "3*(2+(5*7))"),
        ("make 20 using 3, 5 and 7", "countdown", "5*(7-3)", "3+5+7"),
        ("Make 10 from 5, 2", "countdown", "5*2", "5+2"),
        ("What is 17 + 25?", "arithmetic", "42", "61"),
        ("17 * (23 + 4) =", "arithmetic", "So it is 459.", "391"),
        ("Calculate 7 − 9.", "arithmetic", "-2", "2"),
        ("how much is 3 / 4", "arithmetic", "0.75", "7"),
    ],
)
def test_a_question_of_an_environment_is_judged_by_it(question, name, right, wrong):
    found = recognised(question)
    assert found is not None
    environment, problem = found
    assert environment.name == name
    assert problem.prompt == question
    if name == "arithmetic" or question.startswith("Make"):
        assert sync.run(judge(environment, problem, Response(right))).correct
    assert sync.run(judge(environment, problem, Response(wrong))).kind is VerdictKind.WRONG


@pytest.mark.parametrize(
    "question",
    [
        "",
        "Who wrote Faust?",
        "Make 24.",
        "Make tea from 3 5 7.",
        "What is 5?",
        "What is 1/0?",
        "What is 5 +?",
        "2024-05",
    ],
)
def test_any_other_question_is_nobodys(question):
    if question == "2024-05":  # a subtraction, as it is written
        assert recognised(question)[0].name == "arithmetic"
    else:
        assert recognised(question) is None


def test_every_countdown_question_is_recognised_as_what_it_is():
    environment = Countdown()
    for index in range(20):
        problem = environment.problem("test", index)
        found = recognised(problem.prompt)[1]
        assert found.public["numbers"] == problem.public["numbers"]
        assert found.public["target"] == problem.public["target"]


def test_the_first_question_of_the_readme_is_answered_rightly(capsys):
    pytest.importorskip("torch")
    assert main(["solve", "Make 24 from 3 5 7 2.", "--strategy", "best_of_n"]) == 0
    said = capsys.readouterr()
    assert "judge: correct" in said.err
    assert said.out.strip()


def test_a_search_without_an_answer_says_what_it_spent_and_how_it_voted(capsys):
    pytest.importorskip("torch")
    command = ["solve", "Make 24 from 3 5 7 2.", "--strategy", "majority", "--max-tokens", "12"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "8 branches" in said
    assert "96 response tokens" in said
    assert "no answer:" in said
    assert main([*command, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["branches"] == 8
