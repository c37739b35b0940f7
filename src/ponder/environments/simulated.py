"""Problems for the simulated engine."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from ponder.engines.reasoner import read_answer, right_answer, state
from ponder.environments.base import SingleTurn, check_address, stable_int
from ponder.errors import UserError
from ponder.protocols import Checker
from ponder.scorers.base import BaseScorer
from ponder.types import Gold, Problem, Response, Split, Verdict, VerdictKind
from ponder.verifiers.base import verdict


@dataclass(frozen=True)
class Simulated(SingleTurn):
    """Problems that only the simulated engine can solve, with a checker and a scorer whose error is set.

    The engine draws the difficulty of a problem from its name, so that the same problem is hard for every simulated
    model. Any other model is wrong on all of them.
    """

    seed: int = 0
    """Seed of the problems."""
    count: int | None = None
    """Problems of each split; None is unlimited."""
    checked: bool = True
    """Whether a search may use the checker."""
    noise: float = 0.3
    """Standard deviation of the error of a partial score (the truth is 0 or 1)."""

    name = "simulated"

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise UserError(f"count = {self.count}: give at least 1, or leave it out for no limit")
        if not 0.0 <= self.noise < float("inf"):
            raise UserError(f"noise = {self.noise!r}: give 0 or more")

    def size(self, split: Split) -> int | None:
        return self.count

    def problem(self, split: Split, index: int) -> Problem:
        check_address(split, index)
        if self.count is not None and index >= self.count:
            raise IndexError(f"{self.name} has {self.count} {split} problems, there is no index {index}")
        key = f"{self.seed}-{split}-{index}"
        return Problem(f"{self.name}-{split}-{index}", f"Solve [problem {key}].\n", {"key": key})

    def gold(self, problem: Problem) -> Gold:
        split, index = self.address(problem)
        return Gold(right_answer(f"{self.seed}-{split}-{index}"))

    def verdict(self, problem: Problem, answer: str) -> Verdict:
        return _compare(self.gold(problem).answer, answer)

    @property
    def checker(self) -> Checker | None:
        return _Checker() if self.checked else None

    @property
    def answers(self) -> _Answers:
        """Reads the answer that a response gives last."""
        return _Answers()

    @property
    def scorer(self) -> _Partial:
        """1 where the chain of a response is right so far, 0 where it is not, plus Gaussian noise."""
        return _Partial(self.noise, self.seed)

    def gold_response(self, problem: Problem) -> str:
        return f"answer {self.gold(problem).answer}"


def _compare(right: str, text: str) -> Verdict:
    given = read_answer(text)
    if given is None:
        return verdict(VerdictKind.NO_ANSWER, "no answer of the form: answer 1234")
    if given == right:
        return verdict(VerdictKind.CORRECT, "right", given)
    return verdict(VerdictKind.WRONG, f"{given} is not it", given)


@dataclass(frozen=True)
class _Checker:
    def __call__(self, problem: Problem, response: Response) -> Verdict:
        if response.tool_calls:
            return verdict(VerdictKind.NO_ANSWER, "the response calls a tool: it is not an answer")
        if response.answer is None:
            return verdict(VerdictKind.NO_ANSWER, "the response was truncated or its thought never closed")
        return _compare(right_answer(problem.public["key"]), response.answer)


@dataclass(frozen=True)
class _Answers:
    def extract(self, problem: Problem, response: Response) -> str | None:
        return None if response.answer is None or response.tool_calls else read_answer(response.answer)

    def same(self, a: str, b: str) -> bool:
        return a == b


@dataclass(frozen=True)
class _Partial(BaseScorer):
    noise: float
    seed: int

    def value(self, problem: Problem, response: Response) -> float:
        key = problem.public["key"]
        answer = None if response.answer is None or response.tool_calls else read_answer(response.answer)
        right = state(key, response.text)[1] if answer is None else answer == right_answer(key)
        # The same text always has the same score.
        return right + self.noise * Random(stable_int(self.seed, problem.id, response.text)).gauss(0.0, 1.0)
