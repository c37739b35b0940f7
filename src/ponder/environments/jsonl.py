"""Any JSON Lines file with a prompt field and an answer field, judged by a verifier of your choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ponder import jsonl, registry
from ponder.config import Options
from ponder.environments._rows import Row, Rows, divide, key_of, mark_of, refuse_split, split_in, take
from ponder.errors import UserError
from ponder.messages import read_prompt
from ponder.types import Gold, Message, Problem, Prompt, Split, Verdict
from ponder.verifiers.answers import VerifierAnswers
from ponder.verifiers.base import any_of


@dataclass(frozen=True, eq=False)
class Jsonl(Rows):
    """Problems of a JSON Lines file: a prompt field, an answer field, a verifier by name.

    The answer is text or a number; a list holds alternatives, each of them right: `["Paris", "City of Paris"]`.

    A row that holds `"split": "train"` or `"split": "test"` says itself what it is for. Else a share of the rows is
    held out for testing, those that come first by a hash of the whole row, or `test_data` is a file of its own. No
    other option moves a row to the other side, but adding or changing rows may: write the split into the rows, or use
    `test_data`, where a file grows. A question is never in both splits: training rows that ask it are left out.
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
    test_share: float | None = None
    """Share of the questions of `data` that is held out for testing (default: 0.1), one at least; 0 or 1 is none or
    all. Not for rows that say their split, nor with `test_data`."""
    split_field: str = "split"
    """Field that says train or test, in every row or in none; empty if the field of this name means something else."""
    instructions: str = ""
    """Added after each question, on a line of its own."""
    seed: int = 0
    """Seed of the problems' order; which split a row is in does not depend on it."""

    name = "jsonl"
    greedy = True

    def __post_init__(self) -> None:
        if not self.data:
            raise UserError("jsonl needs a file: give it as data=PATH")
        if self.test_share is not None and not 0.0 <= self.test_share <= 1.0:
            raise UserError(f"test_share must be between 0 and 1, not {self.test_share}")
        if self.test_share is not None and self.test_data:
            raise UserError("test_share and test_data both say what is for testing: give one of them")
        verifier = registry.build("verifiers", self.verifier, self.verifier_options)
        self.__dict__.update(_verify=verifier, _answers=VerifierAnswers(verifier))
        check = getattr(verifier, "check_gold", lambda gold: None)
        rows = list(self._read(self.data, check))
        if self.test_data:
            train, test = rows, list(self._read(self.test_data, check))
            refuse_split(train, "test", "with test_data, data holds the training problems")
            refuse_split(test, "train", "test_data holds the test problems")
        else:
            train, test = divide(rows, self.test_share, self.data, "test_share = 1 (test it) or 0 (train on it)")
        self._keep(train, test, self.seed)
        if self.test_data and not self.size("train"):
            raise UserError(
                f"test_data = {self.test_data}: it asks all that {self.data} asks, so nothing is left to train on; "
                "give other problems, or leave test_data out (test_share = 1 tests on all of data)"
            )

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
            split = split_in(row, self.split_field, where)
            yield Row(f"{Path(path).name}:{number}", prompt, Gold(answer), mark_of(row), split)

    @property
    def by_default_share(self) -> bool:
        """Whether a tenth is held out for testing, since neither options nor rows say what is."""
        return self.test_share is None and not self.test_data and self.row("test", 0).split is None

    def _with_instructions(self, prompt: Prompt) -> Prompt:
        if not self.instructions:
            return prompt
        if isinstance(prompt, str):
            return f"{prompt}\n{self.instructions}"
        last = prompt[-1]
        return (*prompt[:-1], Message(last.role, f"{last.content}\n{self.instructions}"))

    def problem(self, split: Split, index: int) -> Problem:
        row = self.row(split, index)
        prompt = self._with_instructions(row.prompt)
        return Problem(f"{self.name}-{split}-{index}", prompt, {}, {"family": "jsonl", "source": row.source})

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
