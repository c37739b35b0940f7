"""Any JSON Lines file with a prompt field and an answer field, judged by a verifier of your choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ponder import jsonl, registry
from ponder.config import Options
from ponder.environments._rows import Row, Rows, key_of, split_by_hash, take
from ponder.errors import UserError
from ponder.messages import read_prompt
from ponder.types import Gold, Message, Problem, Prompt, Split, Verdict
from ponder.verifiers.answers import VerifierAnswers
from ponder.verifiers.base import any_of


@dataclass(frozen=True, eq=False)
class Jsonl(Rows):
    """Problems of a JSON Lines file: a prompt field, an answer field, a verifier by name.

    The answer is text or a number; a list holds alternatives, each of them right: `["Paris", "City of Paris"]`.

    Without `test_data` a hash of each prompt decides its split, so a prompt that comes twice is never in both. With it,
    training rows that ask what a test row asks are left out.
    """

    data: str = ""
    """Path of the file (`.jsonl`, may be `.gz`)."""
    prompt_field: str = "prompt"
    """Field with the question: text, or a list of messages with role and content."""
    answer_field: str = "answer"
    """Field with the right answer."""
    verifier: str = "numeric"
    """How answers are judged: exact, numeric, math, choice, or another verifier by name or PATH.py:Class."""
    verifier_options: Options = field(default_factory=dict)
    """Options of the verifier."""
    test_data: str = ""
    """A second file for the test split; without it a share of `data` is held out."""
    test_share: float = 0.1
    """Share of `data` that is held out for testing, without `test_data`."""
    instructions: str = ""
    """Added after each question, on a line of its own."""
    seed: int = 0
    """Seed of the problems' order; which split a row is in does not depend on it."""

    name = "jsonl"

    def __post_init__(self) -> None:
        if not self.data:
            raise UserError("jsonl needs a file: give it as data=PATH")
        if not 0.0 <= self.test_share <= 1.0:
            raise UserError(f"test_share must be between 0 and 1, not {self.test_share}")
        verifier = registry.build("verifiers", self.verifier, self.verifier_options)
        self.__dict__.update(_verify=verifier, _answers=VerifierAnswers(verifier))
        check = getattr(verifier, "check_gold", lambda gold: None)
        rows = list(self._read(self.data, check))
        if self.test_data:
            train, test = rows, list(self._read(self.test_data, check))
        else:
            train, test = split_by_hash(rows, self.test_share)
        self._keep(train, test, self.seed)

    def _read(self, path: str, check: Callable[[Any], None]) -> Iterator[Row]:
        for number, where, row in jsonl.objects(path):
            prompt = read_prompt(take(row, self.prompt_field, where), where)
            if not key_of(prompt):
                raise UserError(f"{where}: the field {self.prompt_field!r} is empty")
            answer = take(row, self.answer_field, where)
            if answer is None or answer in ("", []):
                raise UserError(f"{where}: the field {self.answer_field!r} is empty")
            for one in answer if isinstance(answer, list) else [answer]:
                if not isinstance(one, str | int | float):
                    kind = "an object" if isinstance(one, dict) else "null" if one is None else "a list in a list"
                    raise UserError(
                        f"{where}: the field {self.answer_field!r} holds {kind}: give text, a number, or a list of "
                        "alternatives"
                    )
                try:
                    check(one)
                except UserError as error:
                    raise UserError(f"{where}: {error}") from None
            yield Row(f"{Path(path).name}:{number}", self._with_instructions(prompt), Gold(answer))

    def _with_instructions(self, prompt: Prompt) -> Prompt:
        if not self.instructions:
            return prompt
        if isinstance(prompt, str):
            return f"{prompt}\n{self.instructions}"
        last = prompt[-1]
        return (*prompt[:-1], Message(last.role, f"{last.content}\n{self.instructions}"))

    def problem(self, split: Split, index: int) -> Problem:
        row = self.row(split, index)
        return Problem(f"{self.name}-{split}-{index}", row.prompt, {}, {"family": "jsonl", "source": row.source})

    def verdict(self, problem: Problem, answer: str) -> Verdict:
        gold = self.gold(problem).answer
        return any_of(self.__dict__["_verify"], gold if isinstance(gold, list) else [gold], answer)

    def gold_response(self, problem: Problem) -> str:
        """The answer of the file, the first of several."""
        gold = self.gold(problem).answer
        return str(gold[0] if isinstance(gold, list) else gold)

    @property
    def answers(self) -> VerifierAnswers:
        """Answers as the verifier reads and compares them."""
        return self.__dict__["_answers"]

    @property
    def slow(self) -> bool:
        """Whether the verifier compares answers slowly."""
        return self.answers.slow
