"""An environment that even random weights have signal on: a response is right if its text has an even length."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from ponder.environments.base import SingleTurn
from ponder.environments.turns import BaseEpisode
from ponder.protocols import Turn
from ponder.types import Gold, Message, Problem, Response, Split, Verdict, VerdictKind


@dataclass(frozen=True)
class Even(SingleTurn):
    """Right if the response has an even number of characters."""

    problems: int = 40
    digits: bool = False
    """Right if the response begins with a digit instead: easier to learn."""
    broken: bool = False
    """End in an infrastructure error at every judgement."""

    name = "even"

    def size(self, split: Split) -> int:
        return self.problems

    def problem(self, split: Split, index: int) -> Problem:
        return Problem(f"even-{split}-{index}", f"{split} {index}")

    def gold(self, problem: Problem) -> Gold:
        return Gold("any")

    def judge(self, problem: Problem, response: Response) -> Verdict:
        if self.broken:
            return Verdict(VerdictKind.JUDGE_ERROR, None, "the judge is broken")
        right = response.text[:1].isdigit() if self.digits else len(response.text) % 2 == 0
        return Verdict(VerdictKind.CORRECT if right else VerdictKind.WRONG, float(right), f"{len(response.text)}")


@dataclass(frozen=True)
class Twice(Even):
    """The same in two turns, the first of which earns 2 where its response has an even number of characters."""

    name = "twice"
    turns = True

    def problem(self, split: Split, index: int) -> Problem:
        return Problem(f"twice-{split}-{index}", f"{split} {index}")

    def episode(self, problem: Problem) -> _Asks:
        return _Asks()


class _Asks(BaseEpisode):
    def __init__(self) -> None:
        self.heard = 0

    async def step(self, response: Response) -> Turn:
        self.heard += 1
        if self.heard == 2:
            return Turn()
        return Turn((Message("user", "Again."),), done=False, reward=2.0 * (len(response.text) % 2 == 0))

    def fork(self) -> _Asks:
        return copy.copy(self)
