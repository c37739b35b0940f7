"""Text that must be the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ponder.errors import UserError
from ponder.types import Verdict, VerdictKind
from ponder.verifiers.base import shown, too_long, verdict
from ponder.verifiers.extract import LISTING, clean, final_number, final_piece, last_line
from ponder.verifiers.notation import plain, unwrapped

_SPACE = re.compile(r"\s+")
_EXPLAINS = re.compile(
    r"(?i:,?\s+(?:because|since)\b)"
    r"|(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bSt)(?<!\bProf)\.(?!\s+[A-Z]\.)(?=\s+[A-Z]\S*\s+\S+\s+\S+)"
)
"""Where an explanation begins in the sentence that names the answer, or a next sentence."""
_EXCLAIMS = re.compile(r"(?<=[^\W\d_]{2})!+$")
"""After a word; `5!` and `n!` are formulas."""
_AROUND = " \"'`$.,;:*\u3002"
_IN_BRACKETS = re.compile(r"[(\[]([^\s()\[\],;]+)[)\]]")


@dataclass(frozen=True)
class Exact:
    """What a marker names, or the last line of the answer, equals the gold.

    A last line of one word counts as a later answer than a marker before it; a longer one explains. Runs of spaces
    count as one, and one spelling of dashes, quotes and accents; quotes, dollar signs and a full stop around the
    answer, brackets around a single word and LaTeX's `\\text{…}` are ignored.
    """

    ignore_case: bool = True
    """`Paris` equals `paris`."""

    def __call__(self, gold: Any, answer: str) -> Verdict:
        """Raises `UserError` if the gold is empty."""
        wanted = self._golds(gold)
        long = too_long(answer)
        if long is not None:
            return long
        answer = clean(answer)
        text, given = self._final(answer)
        if not given:
            return verdict(VerdictKind.NO_ANSWER, "the answer is empty")
        if given not in wanted:
            return verdict(VerdictKind.WRONG, f"{text!r} is not {shown(gold)!r}", given)
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
        self._golds(gold)

    def _golds(self, gold: Any) -> set[str]:
        """The spellings of a gold: a number of JSON (`1e-05`, `5.0`) has more than one."""
        texts = [shown(gold, 100_000)]
        if isinstance(gold, float):
            texts += [format(Decimal(repr(gold)), "f"), *([str(int(gold))] if gold.is_integer() else [])]
        found = {self._plain(t) for text in texts for t in (text, clean(text))} - {""}  # `__init__` is no bold text
        if not found:
            raise UserError(f"the gold {shown(gold)!r} is empty")
        return found

    def _final(self, answer: str) -> tuple[str, str]:
        """The final answer as it is written and as it is compared."""
        piece, line = final_piece(answer), last_line(answer)
        text = line
        if piece is not None and not self._is_later(answer, piece.text, line):
            text = piece.text if piece.marked else _EXPLAINS.split(piece.text, maxsplit=1)[0]
        return text, self._plain(text)

    def _is_later(self, answer: str, piece: str, line: str) -> bool:
        """Whether the last line is an answer by itself: one word after the line in which the marker stands."""
        stripped = self._plain(line)
        before = answer.rstrip()[: -len(line)] if line else ""
        return bool(stripped) and " " not in stripped and line != piece and piece in before and "\\" not in line

    def _plain(self, text: str) -> str:
        text = _EXCLAIMS.sub("", _SPACE.sub(" ", unwrapped(plain(text))).strip(_AROUND)).strip(_AROUND)
        inside = _IN_BRACKETS.fullmatch(text)
        text = text if inside is None else inside[1]
        return text.casefold() if self.ignore_case else text
