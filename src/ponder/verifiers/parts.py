"""Values of the parts of an expression: exact numbers, powers, roots and factorials, each of bounded size."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction

MAX_DIGITS = 1_000
"""Digits of a number that is read."""
MAX_BITS = 200_000
"""Of a value; a larger one is not computed."""

SYMBOLIC = "it is a formula and not a number"
UNFINISHED = "the answer ends with an expression, not with its value"
TOO_LONG = "the last number is too long"
SEVERAL = "several numbers are written as one"

_GROUPED = re.compile(
    r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]{1,3}(?:'[0-9]{3})+(?:\.[0-9]+)?|[0-9]{1,3}(?:_[0-9]{3})+"
    r"|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?:\.[0-9]+)?|[0-9]{1,3}(?:\ [0-9]{3})+(?:\.[0-9]+)?"
)
_DOTTED = re.compile(r"[0-9]{1,3}(?:\.[0-9]{3}){2,}")


@dataclass(frozen=True, slots=True)
class Part:
    """What a rule of the grammar read."""

    value: Fraction | None
    reason: str = ""
    """`SYMBOLIC`, `TOO_LONG`, `SEVERAL`, or empty."""
    open: bool = False
    """An operation is left to be done: `12+34`."""
    percent: bool = False
    atoms: int = 0
    whole: bool = False
    """An unsigned integer as it is written: the first part of a mixed number."""
    proper: bool = False
    """A fraction of two integers below one: the second part of a mixed number."""
    literal: bool = False


def joined(left: Part, right: Part, value: Fraction | None, reason: str = "") -> Part:
    why = reason or left.reason or right.reason
    return Part(value, why if value is None else "", True, left.percent or right.percent, left.atoms + right.atoms)


def power_of_ten(part: Part) -> bool:
    value = part.value
    if value is None or value <= 0 or part.literal:
        return False
    top = max(value.numerator, value.denominator)
    return (
        min(value.numerator, value.denominator) == 1
        and set(_short(top)) <= {"1", "0"}
        and _short(top)[0] == "1"
        and (_short(top).count("1") == 1)
    )


def _short(value: int) -> str:
    return str(value) if value.bit_length() < 10_000 else "2"


def number(text: str) -> Part:
    """A number as it is written, grouped or not."""
    digits, _, exponent = text.replace("E", "e").partition("e")
    if len(digits) > MAX_DIGITS or (exponent and abs(int(exponent)) > MAX_DIGITS):
        return Part(None, TOO_LONG, atoms=1)
    if _DOTTED.fullmatch(digits):
        digits = digits.replace(".", "")
    elif _GROUPED.fullmatch(digits):
        digits = re.sub("[,'_ ]", "", digits)
    if not re.fullmatch(r"[0-9]*(?:\.[0-9]+)?", digits):
        return Part(None, SEVERAL if "_" not in digits else SYMBOLIC, atoms=1 + digits.count(","))
    value = Fraction(f"{digits}e{exponent}" if exponent else digits)
    return Part(value, atoms=1, whole="." not in digits and not exponent, literal=True)


def repeating(text: str) -> Part:
    """`0.1\\overline{6}` is 1/6."""
    before, _, rest = text.partition(".")
    fixed = re.match("[0-9]*", rest)
    assert fixed is not None
    period = re.sub("[^0-9]", "", rest[fixed.end() :])
    if len(text) > MAX_DIGITS or not period:
        return Part(None, TOO_LONG, atoms=1)
    scale = 10 ** len(fixed[0])
    value = Fraction(int(before or "0")) + Fraction(int(fixed[0] or "0"), scale)
    return Part(value + Fraction(int(period), scale * (10 ** len(period) - 1)), atoms=1)


def raised(base: Part, exponent: Part) -> Part:
    atoms = base.atoms + exponent.atoms
    if base.value is None or exponent.value is None:
        return Part(None, base.reason or exponent.reason or SYMBOLIC, atoms=atoms)
    if exponent.value.denominator != 1:
        root = rooted(base.value, exponent.value.denominator)
        if root is None:
            return Part(None, SYMBOLIC, atoms=atoms)
        base = replace(base, value=root)
    power = exponent.value.numerator
    value = base.value
    assert value is not None
    bits = max(value.numerator.bit_length(), value.denominator.bit_length())
    if bits > 1 and abs(power) * bits > MAX_BITS:
        return Part(None, UNFINISHED, atoms=atoms)
    if value == 0 and power < 0:
        return Part(None, SYMBOLIC, atoms=atoms)
    if bits <= 1:
        power = power % 2 + 2 * (power != 0)  # of -1, 0 and 1
    return Part(value**power, open=base.open, atoms=atoms)


def factorial(part: Part) -> Part:
    if part.value is None or part.value.denominator != 1 or not 0 <= part.value <= 5_000:
        return Part(None, part.reason or SYMBOLIC, atoms=part.atoms)
    return Part(Fraction(math.factorial(int(part.value))), open=part.open, atoms=part.atoms)


def rooted(value: Fraction, index: int) -> Fraction | None:
    """An exact root; None if it is irrational or not real."""
    if value < 0:
        if index % 2 == 0:
            return None
        root = rooted(-value, index)
        return None if root is None else -root
    top, bottom = _integer_root(value.numerator, index), _integer_root(value.denominator, index)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _integer_root(value: int, index: int) -> int | None:
    if index == 2:
        root = math.isqrt(value)
    elif value.bit_length() > 5_000 or index > 100:
        return None
    else:
        root = round(value ** (1 / index)) if value.bit_length() < 900 else 0
        low, high = (root - 2, root + 2) if value.bit_length() < 50 else (0, 1 << (value.bit_length() // index + 1))
        while low < high:
            root = (low + high + 1) // 2
            low, high = (root, high) if root**index <= value else (low, root - 1)
        root = low
    return root if root**index == value else None


def written(value: Fraction) -> str:
    """A value as text, the same for equal values; in hexadecimal where decimal digits would take long."""
    top, bottom = value.as_integer_ratio()
    if max(top.bit_length(), bottom.bit_length()) <= 10_000:
        return str(value)
    return f"{top:#x}/{bottom:#x}"
