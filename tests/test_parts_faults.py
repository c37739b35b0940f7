"""What is wrong with a user's part is said with its file, its line and the method, wherever it comes in."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from ponder.cli.main import main
from ponder.environments.base import SingleTurn
from ponder.environments.loading import problem_at
from ponder.errors import PartFailed
from ponder.scorers.base import BaseScorer
from ponder.training.losses.base import BaseLoss
from ponder.types import Gold, Problem, Verdict, VerdictKind

HERE = Path(__file__)


class NoProblem(SingleTurn):
    name = "mine"


class NoGold(SingleTurn):
    name = "mine"

    def problem(self, split, index):
        return Problem(f"mine-{split}-{index}", "1 + 1?")


class NoVerdict(NoGold):
    def gold(self, problem):
        return Gold(2)


class OwnJudge(NoVerdict):
    """Needs no `verdict`, which only the judge of the base class calls."""

    def judge(self, problem, response):
        return Verdict(VerdictKind.CORRECT, 1.0, "")


class JudgeNone(NoVerdict):
    def judge(self, problem, response):
        return None


class VerdictNone(NoVerdict):
    def verdict(self, problem, answer):
        return None


class VerdictTuple(NoVerdict):
    def verdict(self, problem, answer):
        return True, 1.0


class FailsForOdd(OwnJudge):
    def judge(self, problem, response):
        if int(problem.id.rpartition("-")[2]) % 2:
            raise KeyError("no such row")
        return Verdict(VerdictKind.WRONG, 0.0, "")


class FeedbackNone(OwnJudge):
    @property
    def feedback(self):
        return None


class FeedbackFails(OwnJudge):
    @property
    def checker(self):
        raise RuntimeError("no checker today")


class EpisodeNone(OwnJudge):
    turns = True

    def episode(self, problem):
        return None


class SizeText(OwnJudge):
    def size(self, split):
        return "many"


class ProblemText(OwnJudge):
    def problem(self, split, index):
        return "1 + 1?"


class StartNone:
    def start(self, problem, context):
        return None


class NotCalled:
    """Neither a verifier nor an advantage estimator: it has no `__call__`."""


class GivesNone:
    def __call__(self, *given):
        return None


class GivesNumbers:
    def __call__(self, groups):
        return [1.0 for _ in groups]


class Fails:
    def __call__(self, *given):
        raise KeyError("no such key")


class LossNone(BaseLoss):
    def __call__(self, tokens):
        return None


class LossLacks(BaseLoss):
    pass


class ScorerLacks(BaseScorer):
    pass


def line_of(thing) -> str:
    return f"{HERE.name}:{inspect.getsourcelines(thing)[1]}"


def spec(cls) -> str:
    return f"{HERE}:{cls.__name__}"


SIMULATED = ["--engine", "simulated", "--environment", "simulated"]
EVAL = ["eval", "-n", "8", "--show", "0"]
ENVIRONMENT = [
    (NoProblem, NoProblem, "has no gold, problem, verdict ("),
    (NoGold, NoGold, "has no gold, verdict ("),
    (NoVerdict, NoVerdict, "has no verdict ("),
    (JudgeNone, JudgeNone.judge, "the judge of the environment mine gave a NoneType, not a Verdict"),
    (VerdictNone, VerdictNone.verdict, "the judge of the environment mine gave a NoneType, not a Verdict"),
    (VerdictTuple, VerdictTuple.verdict, "the judge of the environment mine gave a tuple, not a Verdict"),
    (FeedbackNone, FeedbackNone, "gave a NoneType, not a Feedback, as feedback"),
    (FeedbackFails, None, "feedback failed: RuntimeError: no checker today"),
    (SizeText, SizeText.size, "gave 'many': it must be a whole number"),
    (ProblemText, ProblemText.problem, "gave a str, not a Problem"),
]


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("cls", "where", "says"), ENVIRONMENT, ids=lambda v: getattr(v, "__name__", None))
def test_an_environment(cls, where, says, capsys) -> None:
    assert main([*EVAL, "--engine", "simulated", "--environment", spec(cls)]) in (1, 2)
    said = capsys.readouterr().err.splitlines()[-1]
    assert says in said
    assert "this is a bug" not in said
    assert (line_of(where) if where is not None else f"{HERE.name}:") in said


def test_an_environment_that_judges_for_itself_needs_no_verdict(capsys) -> None:
    assert main([*EVAL, "--engine", "simulated", "--environment", spec(OwnJudge)]) == 0


def test_an_episode_that_is_none(capsys) -> None:
    args = ["--environment", spec(EpisodeNone), "--strategy", "turns", "--max-tokens", "8"]
    assert main([*EVAL, *args]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "gave a NoneType, which has no step" in said
    assert line_of(EpisodeNone.episode) in said


def test_a_strategy_that_starts_no_search(capsys) -> None:
    assert main([*EVAL, *SIMULATED, "--strategy", spec(StartNone)]) == 1
    said = capsys.readouterr().err
    assert "the strategy StartNone: start" in said
    assert "gave a NoneType, which has no ask, tell" in said
    assert line_of(StartNone.start) in said


def test_a_scorer_without_a_score(capsys) -> None:
    assert main([*EVAL, *SIMULATED, "--strategy", "best_of_n", "--scorer", spec(ScorerLacks)]) == 2
    said = capsys.readouterr().err
    assert "has no value" in said
    assert line_of(ScorerLacks) in said


@pytest.mark.parametrize(("cls", "says"), [(NotCalled, "has no __call__"), (GivesNone, "gave a NoneType, not a Verd")])
def test_a_verifier(cls, says, capsys) -> None:
    Path("d.jsonl").write_text("".join(f'{{"prompt": "{n}?", "answer": {n}}}\n' for n in range(8)))
    options = [f"verifier={spec(cls)}", "test_share=1.0"]
    args = ["--engine", "simulated", "--environment", "jsonl", "--data", "d.jsonl", "--environment-options", *options]
    assert main([*EVAL, *args]) in (1, 2)
    said = capsys.readouterr().err.splitlines()[-1]
    assert says in said
    assert (line_of(cls) if cls is NotCalled else line_of(cls.__call__)) in said


RL = ["train", "rl", "--environment", "arithmetic", "--steps", "1", "--problems", "1", "--group-size", "2"]
RL += ["--eval-problems", "0", "--strategy-options", "thought_tokens=4", "--overwrite", "--out", "run"]


@pytest.mark.parametrize(
    ("flag", "cls", "says", "where"),
    [
        ("--advantage", NotCalled, "has no __call__", NotCalled),
        ("--advantage", GivesNone, "must give a list of Credit for each group", GivesNone.__call__),
        ("--advantage", GivesNumbers, "must give a list of Credit for each group", GivesNumbers.__call__),
        ("--advantage", Fails, "failed: KeyError: 'no such key'", None),
        ("--loss", LossLacks, "has no __call__", LossLacks),
        ("--loss", LossNone, "gave a NoneType, not a LossOutput", LossNone.__call__),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_an_advantage_estimator_and_a_loss(flag, cls, says, where, monkeypatch, capsys) -> None:
    if cls is LossNone:  # only a group with a signal reaches the loss
        monkeypatch.setattr("ponder.training.advantages.mean_only.has_signal", lambda group: True)
    assert main([*RL, flag, spec(cls)]) in (1, 2)
    said = capsys.readouterr().err.splitlines()[-1]
    assert says in said
    assert "this is a bug" not in said
    assert (line_of(where) if where is not None else f"{HERE.name}:") in said


def test_a_part_that_is_given_as_an_object_names_its_method_too() -> None:
    with pytest.raises(PartFailed) as caught:
        problem_at(ProblemText(), "test", 0)
    assert line_of(ProblemText.problem) in str(caught.value)


def test_a_file_that_is_no_python_is_said_with_its_line_once(capsys) -> None:
    Path("mine.py").write_text("x = 1\ndef x(:\n")
    assert main(["eval", "--environment", "./mine.py:Mine"]) == 2
    assert capsys.readouterr().err == "ponder: mine.py: cannot be imported: SyntaxError: invalid syntax (mine.py:2)\n"


def test_what_a_judge_could_not_judge_in_a_training_is_counted_named_and_in_no_gain(capsys) -> None:
    flags = ["--problems", "2", "--eval-problems", "4", "--environment", spec(FailsForOdd)]
    assert main([*RL, *flags]) == 0
    said = capsys.readouterr().err
    assert said.count("n = 2; 2 of 4 responses could not be generated or judged; the first: ") == 2
    assert re.search(rf"first: .* KeyError: 'no such row' \(\S*{HERE.name}:\d+\)", said)
    assert "50.0 % of the responses could not be judged" in said
    assert "failures 2" in said
    facts = json.loads(Path("run/summary.json").read_text())["facts"]
    assert facts["Failed judgements"].startswith("2 of 4 in training")
    assert "; 2 problems: too few" in facts["Gain (paired)"]


def test_a_judge_that_always_fails_stops_a_training_however_few_its_samples(capsys) -> None:
    assert main([*RL, "--environment", spec(JudgeNone)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "step 1: 2 of 2 judgements failed: the judge of the environment mine gave a NoneType" in said
    assert "once that is fixed, continue with: ponder train rl --config run/config.toml --resume" in said
