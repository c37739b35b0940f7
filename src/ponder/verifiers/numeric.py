"""Numbers: whole, decimal, fractions, percent, with thousands separators, units and currency signs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from ponder.errors import UserError
from ponder.types import Verdict, VerdictKind
from ponder.verifiers.base import shown, too_long, verdict
from ponder.verifiers.extract import Number, final_number, only_number
from ponder.verifiers.parts import MAX_DIGITS, SYMBOLIC, written

_INTEGER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Numeric:
    """The final number of the answer equals the gold, exactly or within a tolerance.

    Where the number is found is said in `verifiers.extract`, how it may be written in `verifiers.quantity`: `18`,
    `18.0`, `$18`, `18 eggs`, `36/2`, `1.8e1`, `1.8 \\times 10^1` and `\\sqrt{324}` are equal. `5x`, `5\\pi` and
    `\\sqrt{18}` are wrong whatever the gold is; `12 + 34` is no answer. A percent sign is read both
    ways (`50%` equals 0.5 and 50), unless the gold has one too.
    """

    absolute: float = 0.0
    """Largest difference that still counts as equal."""
    relative: float = 0.0
    """The same, as a share of the gold."""

    def __post_init__(self) -> None:
        if not (0 <= self.absolute < math.inf and 0 <= self.relative < 1):
            raise UserError("absolute must be at least 0, and relative from 0 to below 1")

    def __call__(self, gold: Any, answer: str) -> Verdict:
        """Raises `UserError` if the gold is not a number."""
        answer = answer.strip()
        if type(gold) is int and _INTEGER.fullmatch(answer):
            value = int(answer)
            if value == gold or not (self.absolute or self.relative):
                return _result(value == gold, answer, gold, str(value))
        wanted = read_gold(gold)
        long = too_long(answer)
        if long is not None:
            return long
        found = final_number(answer)
        if isinstance(found, str):
            return verdict(VerdictKind.WRONG if found == SYMBOLIC else VerdictKind.NO_ANSWER, found)
        return _result(any(map(self._equal, *_readings(wanted, found))), found.text, gold, _canonical(found))

    def check_gold(self, gold: Any) -> None:
        """Raises `UserError` if the gold is not a number."""
        read_gold(gold)

    def read(self, answer: str) -> str | None:
        """The number that an answer gives, in one spelling for equal numbers; None if it gives none."""
        found = final_number(answer) if too_long(answer) is None else ""
        return None if isinstance(found, str) else _canonical(found)

    def same(self, a: str, b: str) -> bool:
        """Whether two numbers that `read` gave are equal, by the verifier's tolerance."""
        if a == b:
            return True
        # Equal numbers are spelt alike, so only a tolerance or a percent sign is a reason to look closer.
        alike = a.endswith("%") == b.endswith("%")
        return not (alike and not (self.absolute or self.relative)) and self(a, b).correct

    def _equal(self, gold: Fraction, value: Fraction) -> bool:
        if gold == value:
            return True
        if not (self.absolute or self.relative):
            return False
        allowed = max(Fraction(self.absolute), Fraction(self.relative) * abs(gold))
        return abs(gold - value) <= allowed


def _readings(gold: Number, found: Number) -> tuple[list[Fraction], list[Fraction]]:
    """The pairs of values that would each do."""
    if gold.percent == found.percent:
        return [gold.value], [found.value]
    if found.percent:
        return [gold.value] * 2, [found.value, found.value / 100]
    return [gold.value, gold.value / 100], [found.value] * 2


def _canonical(number: Number) -> str:
    return f"{written(number.value)}%" if number.percent else written(number.value)


def _result(correct: bool, given: str, gold: Any, answer: str) -> Verdict:
    if correct:
        return verdict(VerdictKind.CORRECT, f"{given} is right", answer)
    return verdict(VerdictKind.WRONG, f"{given} is not {shown(gold)}", answer)


def read_gold(gold: Any) -> Number:
    """A gold as a number: an int, float, Fraction or Decimal, or a text that holds exactly one.

    Raises `UserError` for anything else.
    """
    if isinstance(gold, int | Fraction) and not isinstance(gold, bool):
        return Number(Fraction(gold), shown(gold))
    if isinstance(gold, float | Decimal) and math.isfinite(gold):
        return Number(Fraction(str(gold)), str(gold))
    if isinstance(gold, str) and len(gold) <= MAX_DIGITS:
        found = only_number(gold)
        if found is not None:
            return found
    raise UserError(f"the gold {shown(gold)!r} is not a number; choose another verifier for it")
