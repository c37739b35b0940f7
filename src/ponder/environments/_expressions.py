"""Arithmetic expressions as trees, written with parentheses, and read back without recursion or `eval`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

Tree = int | tuple[str, "Tree", "Tree"]
"""A number, or (operation, left, right)."""
Value = int | Fraction

PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "~": 3}
"""`~` is the sign of a number."""
MAX_LENGTH = 200
"""Characters of an expression that is read at all."""
_MAX_DIGITS = 9
_TOKEN = re.compile(r"[0-9]+|[-+*/()]")
_ALLOWED = re.compile(r"[-+*/() \t0-9]+")


def write(tree: Tree, *, keep_grouping: bool = False, space: str = "") -> str:
    """Write a tree with the parentheses that its value needs.

    With `keep_grouping` also those that only the order of work needs: 3+(4-2), not 3+4-2.
    """
    return _write(tree, keep_grouping, space)[0]


def _write(tree: Tree, keep: bool, space: str) -> tuple[str, int]:
    if isinstance(tree, int):
        return str(tree), 3
    op, left, right = tree
    level = PRECEDENCE[op]
    left_text, left_level = _write(left, keep, space)
    right_text, right_level = _write(right, keep, space)
    if left_level < level:
        left_text = f"({left_text})"
    if right_level < level or (right_level == level and (keep or op in "-/")):
        right_text = f"({right_text})"
    return f"{left_text}{space}{op}{space}{right_text}", level


def apply(op: str, a: Value, b: Value) -> Value:
    """Raises `ZeroDivisionError`."""
    if op == "+":
        return a + b
    if op == "-":
        return a - b
    if op == "*":
        return a * b
    value = Fraction(a, 1) / b
    return value.numerator if value.denominator == 1 else value


def evaluate(text: str) -> tuple[Value, list[int], str]:
    """Read `(5-2)*8`: its value, the numbers in it and the operations in it, in the order of writing.

    Whole numbers, + - * /, a sign, parentheses; nothing else. Cheap for any text: at most 200 characters and nine
    digits a number, no powers. Raises `ValueError` with the reason.
    """
    numbers: list[int] = []
    used: list[str] = []

    def leaf(number: int) -> Value:
        numbers.append(number)
        return number

    return _read(text, leaf, _applied, lambda value: -value, used), numbers, "".join(used)


T = TypeVar("T")


def _read(
    text: str, leaf: Callable[[int], T], join: Callable[[str, T, T], T], negate: Callable[[T], T], used: list[str]
) -> T:
    """Read an expression into whatever `leaf`, `join` and `negate` make of it; `used` gets its operations."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"the expression is longer than {MAX_LENGTH} characters")
    if not _ALLOWED.fullmatch(text):
        raise ValueError("not an arithmetic expression")
    values: list[T] = []
    pending: list[str] = []
    operand = True  # an operand is due

    def reduce(op: str) -> None:
        if op == "~":
            values[-1] = negate(values[-1])
        else:
            right = values.pop()
            values[-1] = join(op, values[-1], right)

    for token in _TOKEN.findall(text):
        if token == "(":
            if not operand:
                raise ValueError("an operation is missing before a parenthesis")
            pending.append(token)
        elif token == ")":
            if operand:
                raise ValueError("a number is missing before a closing parenthesis")
            while pending and pending[-1] != "(":
                reduce(pending.pop())
            if not pending:
                raise ValueError("a closing parenthesis has no opening one")
            pending.pop()
        elif token in PRECEDENCE:
            if operand:
                if token != "-":
                    raise ValueError("a number is missing before an operation")
                pending.append("~")
                used.append("-")
                continue
            level = PRECEDENCE[token]
            while pending and pending[-1] != "(" and PRECEDENCE[pending[-1]] >= level:
                reduce(pending.pop())
            pending.append(token)
            used.append(token)
            operand = True
        else:
            if not operand:
                raise ValueError("an operation is missing between two numbers")
            if len(token) > _MAX_DIGITS:
                raise ValueError("a number has too many digits")
            values.append(leaf(int(token)))
            operand = False
    if operand:
        raise ValueError("the expression ends without a number")
    while pending:
        op = pending.pop()
        if op == "(":
            raise ValueError("an opening parenthesis is never closed")
        reduce(op)
    return values[0]


def _applied(op: str, a: Value, b: Value) -> Value:
    try:
        return apply(op, a, b)
    except ZeroDivisionError:
        raise ValueError("division by zero") from None


_Term = tuple[int, tuple[tuple[int, str], ...]]
"""A sign, and factors with their exponents, 1 or -1."""


@dataclass(frozen=True, slots=True)
class _Sum:
    """A sum of products in the order of `_sum`."""

    terms: tuple[_Term, ...]

    def __str__(self) -> str:
        text = "".join(("+" if sign > 0 else "-") + _product(factors) for sign, factors in self.terms)
        return text.removeprefix("+")

    def negated(self) -> _Sum:
        return _sum((-sign, factors) for sign, factors in self.terms)

    def factors(self) -> _Term:
        """The sum as one product: its own, if it is one; itself in parentheses, if it is not."""
        return self.terms[0] if len(self.terms) == 1 else (1, ((1, f"({self})"),))


def _sum(terms: Iterable[_Term]) -> _Sum:
    """Terms that are added come first, each kind by its factors."""
    return _Sum(tuple(sorted(terms, key=lambda t: (-t[0], t[1]))))


def _product(factors: tuple[tuple[int, str], ...]) -> str:
    above = "*".join(text for exponent, text in factors if exponent > 0)
    return (above or "1") + "".join(f"/{text}" for exponent, text in factors if exponent < 0)


def _joined(op: str, a: _Sum, b: _Sum) -> _Sum:
    if op in "+-":
        return _sum(a.terms + (b if op == "+" else b.negated()).terms)
    (sign_a, left), (sign_b, right) = a.factors(), b.factors()
    if op == "/":
        right = tuple((-exponent, text) for exponent, text in right)
    return _Sum(((sign_a * sign_b, tuple(sorted(left + right, key=lambda f: (-f[0], f[1])))),))


def canonical(text: str) -> str:
    """One spelling for expressions that do the same with the same numbers: `8*(5-2)` and `(-2+5)*8`.

    The order of terms and of factors, and parentheses that change nothing, do not count; nothing is multiplied out.
    Raises `ValueError` for what is no expression.
    """
    return str(_read(text, lambda n: _Sum(((1, ((1, str(n)),)),)), _joined, _Sum.negated, []))
