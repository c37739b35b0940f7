"""Arithmetic expressions as trees, written with parentheses, and read back without recursion or `eval`."""

from __future__ import annotations

import re
from fractions import Fraction

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
    if len(text) > MAX_LENGTH:
        raise ValueError(f"the expression is longer than {MAX_LENGTH} characters")
    if not _ALLOWED.fullmatch(text):
        raise ValueError("not an arithmetic expression")
    values: list[Value] = []
    pending: list[str] = []
    numbers: list[int] = []
    used = ""
    operand = True  # an operand is due
    for token in _TOKEN.findall(text):
        if token == "(":
            if not operand:
                raise ValueError("an operation is missing before a parenthesis")
            pending.append(token)
        elif token == ")":
            if operand:
                raise ValueError("a number is missing before a closing parenthesis")
            while pending and pending[-1] != "(":
                _reduce(values, pending.pop())
            if not pending:
                raise ValueError("a closing parenthesis has no opening one")
            pending.pop()
        elif token in PRECEDENCE:
            if operand:
                if token != "-":
                    raise ValueError("a number is missing before an operation")
                pending.append("~")
                used += "-"
                continue
            level = PRECEDENCE[token]
            while pending and pending[-1] != "(" and PRECEDENCE[pending[-1]] >= level:
                _reduce(values, pending.pop())
            pending.append(token)
            used += token
            operand = True
        else:
            if not operand:
                raise ValueError("an operation is missing between two numbers")
            if len(token) > _MAX_DIGITS:
                raise ValueError("a number has too many digits")
            number = int(token)
            numbers.append(number)
            values.append(number)
            operand = False
    if operand:
        raise ValueError("the expression ends without a number")
    while pending:
        op = pending.pop()
        if op == "(":
            raise ValueError("an opening parenthesis is never closed")
        _reduce(values, op)
    return values[0], numbers, used


def _reduce(values: list[Value], op: str) -> None:
    if op == "~":
        values[-1] = -values[-1]
        return
    right = values.pop()
    try:
        values[-1] = apply(op, values[-1], right)
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
