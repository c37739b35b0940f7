"""What a search was told, so that another process can resume it.

A search is deterministic in its seed and in what it was told, and telling it the same twice changes nothing. So its
state is its journal: start the strategy again, tell it what is written here, and it asks for what is missing. Calls
that were running when the search stopped are made again (their spend so far is in `spend`); with an engine in its exact
mode the outcome is that of a search that never stopped.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ponder.errors import UserError
from ponder.protocols import Ask, Generate, Hold, Release, Strategy, Turn, Vote, Work
from ponder.types import Completion, FinishReason, Problem, Spend, Verdict, to_json

_KINDS: dict[str, Any] = {
    "completions": tuple[Completion, ...],
    "verdict": Verdict,
    "votes": tuple[Vote | None, ...],
    "scores": tuple[float, ...],
    "turn": Turn,
    "nothing": None,
}


@dataclass
class Journal:
    """The answers of a search so far. Give it to `runner.solve`, which writes it and resumes from it."""

    strategy: str = ""
    """The strategy with its options; empty in a new journal."""
    problem: str = ""
    seed: int = 0
    answers: dict[int, Any] = field(default_factory=dict)
    """By ask; failures are not kept, so that what failed is tried again."""
    asked: dict[int, str] = field(default_factory=dict)
    """What each answer is the answer to (`fingerprint`): a search resumed with a larger budget may ask otherwise."""
    spend: Spend = field(default_factory=Spend)
    """Everything that was spent, unfinished calls included."""
    seconds: float = 0.0
    """How long the search ran, in all processes so far; the time between them does not count."""

    def check(self, strategy: Strategy, problem: Problem, seed: int) -> None:
        """Take the name of a search, or raise `UserError` if the journal is of another one."""
        name = repr(strategy)
        if not self.strategy:
            self.strategy, self.problem, self.seed = name, problem.id, seed
        for what, mine, given in (
            ("strategy", self.strategy, name),
            ("problem", self.problem, problem.id),
            ("seed", self.seed, seed),
        ):
            if mine != given:
                raise UserError(f"the saved search has {what} {mine}, not {given}: resume with that one")

    def note(self, ask: Ask, answer: Any) -> None:
        """Write an answer down, unless a budget truncated it: a larger one would not."""
        if not _cut_short(ask.work, answer):
            self.answers[ask.id], self.asked[ask.id] = answer, fingerprint(ask.work)

    def holds(self, ask: Ask) -> bool:
        """Whether the answer of exactly this ask is here."""
        if isinstance(ask.work, Hold | Release):
            return False
        return ask.id in self.answers and self.asked.get(ask.id) == fingerprint(ask.work)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them."""
        rows = [
            {"ask": i, "work": self.asked[i], "kind": _kind(a), "value": to_json(a)}
            for i, a in sorted(self.answers.items())
        ]
        return {
            "strategy": self.strategy,
            "problem": self.problem,
            "seed": self.seed,
            "spend": to_json(self.spend),
            "seconds": self.seconds,
            "answers": rows,
        }

    @classmethod
    def from_json(cls, values: Any) -> Journal:
        """Raises `UserError` for anything that `to_json` did not make (before there were `seconds`, too)."""
        try:
            answers = {
                int(row["ask"]): msgspec.convert(row["value"], _KINDS[row["kind"]], strict=False)
                for row in values["answers"]
            }
            asked = {int(row["ask"]): str(row["work"]) for row in values["answers"]}
            spend = msgspec.convert(values["spend"], Spend)
            seconds = msgspec.convert(values.get("seconds", 0.0), float)
            if not 0.0 <= seconds < math.inf:
                raise ValueError(f"seconds is {seconds}")
            name, problem, seed = str(values["strategy"]), str(values["problem"]), int(values["seed"])
            return cls(name, problem, seed, answers, asked, spend, seconds)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise UserError(f"not a saved search: {type(error).__name__}: {error}") from None


def fingerprint(work: Work) -> str:
    """A short name of what was asked, the same in every process."""
    return hashlib.blake2b(repr(work).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _cut_short(work: Work, answer: Any) -> bool:
    if not isinstance(work, Generate):
        return False
    most = work.request.params.max_tokens
    return any(
        c.finish_reason is FinishReason.LENGTH and (len(c.ids) or c.spend.response_tokens) < most for c in answer
    )


def _kind(answer: Any) -> str:
    if answer is None:
        return "nothing"
    if isinstance(answer, Verdict):
        return "verdict"
    if isinstance(answer, Turn):
        return "turn"
    first = next((a for a in answer if a is not None), None)
    if isinstance(first, Completion):
        return "completions"
    if isinstance(first, Vote) or first is None:
        return "votes"
    return "scores"
