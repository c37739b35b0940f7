"""Multiple choice: the answer is a letter."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ponder.errors import UserError
from ponder.types import Verdict, VerdictKind
from ponder.verifiers.base import shown, too_long, verdict
from ponder.verifiers.extract import clean, final_piece, last_line
from ponder.verifiers.notation import unwrapped
from ponder.verifiers.quantity import negated

SEVERAL = "the answer names several letters"
NONE = "the answer names no letter"

_SAID = re.compile(
    r"\b(?:answers?|ans|options?|choices?|letter|correct(?=\s*:))\b[^\n.:=]{0,60}?"
    r"(?:\b(?:is|are|would be|must be|should be)\b:?|:|=|\s[-\u2192]>?\s)(?=(?P<rest>[^\n]*))",
    re.IGNORECASE,
)
_FORM = re.compile(
    r"[\s\"'`*_$<>#\u2022-]*(?:\\\()?,?\s*"
    r"(?:(?:therefore|thus|hence|clearly|definitely|probably|likely|most likely|in fact),?\s+)?"
    r"(?:the\s+)?(?:(?:option|choice|letter|answer)\s*:?\s+)?"
    r"(?P<open>[(\[{])?\s*(?P<letter>[A-Za-z])(?![A-Za-z0-9]|'[A-Za-z])\s*(?P<close>[)\]}])?(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_MORE = re.compile(
    r"[\s$*\"']*(?:[,;/&+]|\band\b|\bor\b)[\s$*\"']*(?:(?:option|choice)\s+)?[(\[]?[A-Za-z](?![A-Za-z0-9]|'[A-Za-z])"
    r"|[ \t]*[(\[][A-Za-z][)\]]"
)
_ENDS = re.compile(
    r"[\s\"'`*_$.,;:!)\]}\\]*(?:\Z|\n)|[\s*]*[.:)\]}–-]|,?\s*(?:because|since|as|for|so|which)\b|\s*\(|,"
    r"|>|\s*(?:instead of|rather than)\b|\s*(?:is|seems)\s+(?:the\s+)?(?:correct|right|best|true|answer|final)"
)
_LABEL = re.compile(r"(?<![A-Za-z0-9(\[])([A-Z])[.):](?=\s|\Z)")
_DENIES = re.compile(r"\b(?:not|wrong|incorrect|false)\b|n't\b", re.IGNORECASE)
_DENIED = re.compile(r"\s*(?:is|are|was)?(?:\s+(?:not|wrong|incorrect|false)\b|n't\b)")
_IN_BRACKETS = re.compile(r"\(([A-Za-z])\)")
_NAMED = re.compile(
    r"\b(?:option|choice)\s+\(?([A-Za-z])\b|\b([A-Z])\)?\s+(?:is|must be)\s+(?:the\s+)?(?:correct|right|best|answer)\b"
    r"|(?i:\b(?:wrong|false|incorrect)|\bneither\s+\(?[A-Z]\)?\s+nor\s+\(?[A-Z]\)?)[.,;:]"
    r"\s+(?:[Ss]o\s+)?\(?([A-Z])\)?[.!]?\s*\Z"
    r"|\b(?i:choose|pick|select|say|go(?:ing)? with|it is|it's|it must be|it should be|but|but rather)\s+"
    r"\(?([A-Z])\b(?!'[A-Za-z])(?=\)?\s*(?:[.,!;:]|\Z))",
)


@dataclass(frozen=True)
class Choice:
    """The letter that the answer chooses, as in multiple-choice questions: `B`, `(B)`, `B) 5 cm`, `Option B`.

    The letter is read where a marker names the answer (`verifiers.extract`), or `The correct option is …` does; else
    in the last line, in the first one if that is a letter alone, or where one letter stands in brackets. Small letters
    count too. Several letters, or a letter that is denied, are no answer.
    """

    letters: str = "ABCDEFGHIJ"
    """The letters that there may be."""

    def __post_init__(self) -> None:
        if not (self.letters.isascii() and self.letters.isalpha() and self.letters.isupper()):
            raise UserError(f"letters must be capital letters, not {self.letters!r}")

    def __call__(self, gold: Any, answer: str) -> Verdict:
        """Raises `UserError` if the gold is not one of the letters."""
        wanted = self._gold(gold)
        long = too_long(answer)
        if long is not None:
            return long
        given = self._letter(answer)
        if given in (SEVERAL, NONE):
            return verdict(VerdictKind.NO_ANSWER, given)
        if given != wanted:
            return verdict(VerdictKind.WRONG, f"{given} is not {wanted}", given)
        return verdict(VerdictKind.CORRECT, f"{given} is right", given)

    def read(self, answer: str) -> str | None:
        """The letter, a capital; None if there is none or more than one."""
        given = NONE if too_long(answer) is not None else self._letter(answer)
        return None if given in (SEVERAL, NONE) else given

    def same(self, a: str, b: str) -> bool:
        """Whether two letters that `read` gave are equal."""
        return a == b

    def check_gold(self, gold: Any) -> None:
        """Raises `UserError` if the gold is not one of the letters."""
        self._gold(gold)

    def _gold(self, gold: Any) -> str:
        text = gold.strip(" ().") if isinstance(gold, str) else ""
        if len(text) != 1 or text.upper() not in self.letters:
            raise UserError(f"the gold {shown(gold)!r} is not one of the letters {self.letters}")
        return text.upper()

    def _letter(self, answer: str) -> str:
        """The letter, or why there is none."""
        text = unwrapped(clean(answer)).strip()
        piece = final_piece(text)
        if piece is not None and (piece.marked or piece.text == last_line(text)):
            return self._of(piece.text, piece.marked)
        said = list(_SAID.finditer(text))
        if said and not negated(text, said[-1].start("rest")):
            found = self._of(said[-1]["rest"], True)
            if found != NONE:
                return found
        lines = [line for line in text.splitlines() if line.strip()]
        for line in (lines[-1], lines[0]) if lines else ():
            found = self._of(line, False)
            if found != NONE:
                return found
        return self._named(lines[-1]) if lines else NONE

    def _of(self, text: str, marked: bool) -> str:
        """The letter that a text begins with or, where a marker names it, holds."""
        form = _FORM.match(text)
        if form is not None and form["letter"].upper() in self.letters:
            rest = form["rest"]
            labels = {m[1] for m in _LABEL.finditer(rest)} - {form["letter"]}
            if _MORE.match(rest) or (len(labels) > 1 and not _DENIES.search(rest)):
                return SEVERAL
            alone = form["close"] is not None or not rest.strip(" .*`'\"$")
            capital = form["letter"].isupper()
            if not _DENIED.match(rest) and (alone or _ENDS.match(rest)) and (capital or marked or alone):
                return form["letter"].upper()
            return NONE
        return self._named(text) if marked else NONE

    def _named(self, text: str) -> str:
        """The one letter that a sentence names."""
        found = {
            (m[1] or m[m.lastindex or 1]).upper()
            for pattern in (_IN_BRACKETS, _NAMED)
            for m in pattern.finditer(text)
            if not negated(text, m.start(m.lastindex or 0)) and not _DENIED.match(text[m.end() :])
        }
        found &= set(self.letters)
        if len(found) > 1:
            return SEVERAL
        return found.pop() if found else NONE
