"""All tasks of the library `reasoning_gym` with their own scorers (Stojanovski et al. 2025, arXiv:2505.24760)."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import dataclass, field
from random import Random
from typing import Any

from ponder.config import Options
from ponder.environments.base import Item, Procedural
from ponder.errors import MissingExtra, PonderError, UserError, nearest
from ponder.types import Gold, Problem, Split, Verdict, VerdictKind
from ponder.verifiers.answers import MarkedText
from ponder.verifiers.base import verdict
from ponder.verifiers.extract import final_piece
from ponder.verifiers.processes import Result, shared

_WORKER = "ponder.environments._gym_worker"
_MEMORY = 3 << 30
_LONGEST = 4_000
"""Characters; an answer may be longer only where the right one is long."""
_MAKING = 60.0
"""Seconds of processor time for making one problem."""
_ONE = 1 - 1e-9
_EQUAL = {"game_of_life_halting"}
"""Tasks whose scorer gives 1 to every text (`bool(answer)`): here the answer must equal theirs."""
_KINDS = {"timeout": VerdictKind.TIMEOUT, "memory": VerdictKind.MEMORY, "error": VerdictKind.ERROR}


def tasks() -> list[str]:
    """Names of all tasks. Raises `MissingExtra` if the library is not installed."""
    return list(_call("tasks", [], 60.0).value)


def _call(function: str, arguments: list[Any], seconds: float) -> Result:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise MissingExtra("the environment 'reasoning-gym'", "gym")
    return shared(_MEMORY).call(f"{_WORKER}:{function}", arguments, seconds)


@dataclass(frozen=True, eq=False)
class ReasoningGym(Procedural):
    """A task of reasoning-gym, named after the colon: `reasoning-gym:chain_sum`.

    The library makes the problems and scores the answers, in worker processes: a scorer that hangs or fails on an
    answer is killed, which is then the answer's fault. An answer is correct if its score is 1, and if no other answer
    follows in its last line (some scorers read only the beginning). A marker (`<answer>`, `\\boxed`, `The answer is`)
    names what is scored, otherwise all of the answer is. Other seeds do not make other problems in this library, so a
    hash of the question decides the split; one question in four is for testing.
    """

    task: str = ""
    """Name of the task."""
    options: Options = field(default_factory=dict)
    """Options of the task's own config (difficulty)."""
    partial: bool = False
    """Give a wrong answer the task's partial score as its reward. Some scorers give every text a little."""
    instructions: str = ""
    """Added after each question, on a line of its own."""
    seconds: float = 5.0
    """Longest that scoring one answer may take, in seconds of processor time."""
    seed: int = 0
    """Seed of the problems' order; the splits are the same for every seed."""

    name = "reasoning-gym"
    answers = MarkedText()
    test_one_in = 4

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 600:
            raise UserError("seconds must be above 0 and at most 600")
        known = tasks()
        if self.task.replace("-", "_") in known:
            self.__dict__["task"] = self.task.replace("-", "_")
        if self.task not in known:
            if not self.task:
                raise UserError(f"name a task, as in reasoning-gym:chain_sum; known: {', '.join(known)}")
            raise UserError(f"unknown task {self.task!r} of reasoning-gym{nearest(self.task, known)}")
        for key in ("seed", "size"):
            if key in self.options:
                raise UserError(f"options: {key!r} is set by the environment; leave it out")
        self.__dict__["name"] = f"reasoning-gym:{self.task}"
        try:
            options = {key.replace("-", "_"): value for key, value in self.options.items()}
            self.__dict__["_options"] = json.dumps(options, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise UserError(f"options: {error}") from None
        self.problem("train", 0)  # wrong options fail here, not in the middle of a run

    def draw(self, rng: Random) -> tuple[str, dict[str, Any]]:
        number = rng.getrandbits(31)
        made = _call("make", [self.task, self.__dict__["_options"], number], _MAKING)
        if made.kind != "ok":
            raise UserError(f"{self.name} cannot make a problem with options {self.options}: {made.reason}")
        return " ".join(made.value["question"].split()), {**made.value, "number": number}

    def item(self, drawn: dict[str, Any], split: Split, index: int) -> Item:
        question = drawn["question"]
        prompt = f"{question}\n{self.instructions}" if self.instructions else question
        gold = Gold(drawn["answer"], {"entry": drawn["entry"]})
        metadata = {"family": "reasoning-gym", "task": self.task, "number": drawn["number"]}
        return Item(prompt, gold, {"question": question}, metadata)

    def verdict(self, problem: Problem, answer: str) -> Verdict:
        gold = self.gold(problem)
        right = "" if gold.answer is None else gold.answer.strip()
        piece = None if answer == right else final_piece(answer)
        given = gold.answer if answer == right else answer if piece is None else piece.text
        if not given:
            return verdict(VerdictKind.NO_ANSWER, "nothing follows the answer's marker")
        if len(given) > max(_LONGEST, 4 * len(right)):
            return verdict(VerdictKind.OUTPUT_LIMIT, f"the answer is too long for {self.task}: {len(given)} characters")
        if self.task in _EQUAL and given.casefold() != right.casefold():
            return verdict(VerdictKind.WRONG, f"{given[:60]!r} is not {right!r}", given)
        result = self._score(gold, given)
        if result.kind != "ok":
            own = None if gold.answer is None else self._score(gold, gold.answer)
            if own is None or own.kind != "ok":
                return verdict(VerdictKind.JUDGE_ERROR, f"{self.task} cannot score its own gold: {result.reason}")
            return verdict(_KINDS[result.kind], f"scoring the answer: {result.reason}")
        score = float(result.value)
        if not math.isfinite(score):
            return verdict(VerdictKind.JUDGE_ERROR, f"{self.task} gave the score {score}")
        if score >= _ONE:
            if answer != right and self._continues(gold, given):
                return verdict(VerdictKind.WRONG, "a different answer follows the right one", given)
            return verdict(VerdictKind.CORRECT, f"{self.task} scored it 1", given)
        reward = max(0.0, score) if self.partial else 0.0
        return verdict(VerdictKind.WRONG, f"{self.task} scored it {score:.3g}", given, reward)

    def _continues(self, gold: Gold, answer: str) -> bool:
        """True if an answer is complete before its last line, and that line says something else.

        Several scorers read only the beginning of an answer, or search it for the right one.
        """
        before, _, last = answer.rpartition("\n")
        if not before.strip():
            return False
        return self._is_one(gold, before.rstrip()) and not self._is_one(gold, last.strip())

    def _is_one(self, gold: Gold, answer: str) -> bool:
        result = self._score(gold, answer)
        return result.kind == "ok" and float(result.value) >= _ONE

    def _score(self, gold: Gold, answer: str) -> Result:
        arguments = [self.task, self.__dict__["_options"], gold.metadata["entry"], answer]
        return _call("score", arguments, self.seconds)

    def gold_response(self, problem: Problem) -> str:
        """The library's answer, or one that was worked out for it. Raises `PonderError` where there is none."""
        answer = self.gold(problem).answer
        if answer is None:
            raise PonderError(f"{self.name} gives no answer to its own problem {problem.id}")
        return answer
