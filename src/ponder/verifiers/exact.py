"""Text that must be the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ponder.errors import UserError
from ponder.types import Verdict, VerdictKind
from ponder.verifiers.base import too_long, verdict
from ponder.verifiers.extract import LISTING, clean, final_number, final_piece, last_line

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Exact:
    """The last line of the answer equals the gold; what a marker names in that line, if it has one.

    Runs of spaces count as one; quotes, dollar signs and a full stop around the answer are ignored.
    """

    ignore_case: bool = True
    """`Paris` equals `paris`."""

    def __call__(self, gold: Any, answer: str) -> Verdict:
        """Raises `UserError` if the gold is empty."""
        self.check_gold(gold)
        wanted = self._plain(str(gold))
        long = too_long(answer)
        if long is not None:
            return long
        answer = clean(answer)
        text, given = self._final(answer)
        if not given:
            return verdict(VerdictKind.NO_ANSWER, "the answer is empty")
        if given != wanted:
            return verdict(VerdictKind.WRONG, f"{text!r} is not {str(gold)!r}", given)
        if any(c.isdigit() for c in given) and final_number(answer) == LISTING:
            return verdict(VerdictKind.NO_ANSWER, LISTING)
        return verdict(VerdictKind.CORRECT, f"{text!r} is right", given)

    def read(self, answer: str) -> str | None:
        """The answer as it is compared; None if it is empty or a list of numbers."""
        if too_long(answer) is not None:
            return None
        answer = clean(answer)
        given = self._final(answer)[1]
        listing = any(c.isdigit() for c in given) and final_number(answer) == LISTING
        return None if listing else given or None

    def same(self, a: str, b: str) -> bool:
        """Whether two answers that `read` gave are equal."""
        return self._plain(a) == self._plain(b)

    def check_gold(self, gold: Any) -> None:
        """Raises `UserError` if nothing is left of the gold to compare with."""
        if not self._plain(str(gold)):
            raise UserError(f"the gold {str(gold)[:60]!r} is empty")

    def _final(self, answer: str) -> tuple[str, str]:
        """The final answer as it is written and as it is compared."""
        line = last_line(answer)
        piece = final_piece(line)
        if piece is None and len(lines := answer.strip().splitlines()) > 1:
            marked = final_piece("\n".join(lines[-2:]))  # the marker ends the line before
            piece = marked if marked is not None and marked.text == line else None
        text = line if piece is None else piece.text
        return text, self._plain(text)

    def _plain(self, text: str) -> str:
        text = _SPACE.sub(" ", text).strip(" \"'`$.,;:")
        return text.casefold() if self.ignore_case else text
