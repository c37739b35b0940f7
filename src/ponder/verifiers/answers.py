"""Reading and comparing answers without a gold, for votes: what `protocols.Answers` asks for, from a verifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ponder.errors import UserError
from ponder.types import Problem, Response
from ponder.verifiers.base import MAX_ANSWER, Verifier, answer_text
from ponder.verifiers.extract import clean, final_piece


@dataclass(frozen=True, slots=True)
class MarkedText:
    """What a marker (`<answer>`, `\\\\boxed`, `The answer is`) names, or all of the answer; compared as text."""

    def extract(self, problem: Problem, response: Response) -> str | None:
        text = answer_text(problem, response.answer or "")
        if len(text) > MAX_ANSWER:
            return None
        piece = final_piece(clean(text))
        return " ".join((text if piece is None else piece.text).split()) or None

    def same(self, a: str, b: str) -> bool:
        return a.casefold() == b.casefold()


class VerifierAnswers:
    """Answers as a verifier reads and compares them, with one of two answers in the gold's place.

    A verifier that cannot `read` an answer by itself is given the text that `MarkedText` finds.
    """

    def __init__(self, verifier: Verifier) -> None:
        self.slow: bool = getattr(verifier, "slow", False)
        """Comparing may take long: to be run on a thread."""
        self._verifier = verifier
        self._read: Callable[[str], str | None] | None = getattr(verifier, "read", None)
        # A vote that is counted after each sample compares the same pairs again and again.
        self._same = lru_cache(maxsize=4096)(getattr(verifier, "same", self._correct))

    def extract(self, problem: Problem, response: Response) -> str | None:
        if self._read is None:
            return MarkedText().extract(problem, response)
        text = answer_text(problem, response.answer or "")
        return self._read(text) if text else None

    def same(self, a: str, b: str) -> bool:
        try:
            return a == b or self._same(a, b)
        except UserError:  # what can be read as an answer need not be a gold
            return False

    def _correct(self, a: str, b: str) -> bool:
        return self._verifier(a, b).correct

    def __reduce__(self) -> tuple[Any, ...]:
        return VerifierAnswers, (self._verifier,)
