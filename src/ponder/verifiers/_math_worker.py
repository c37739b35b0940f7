"""What `math` does inside a worker process: formulas without structure are compared by sympy.

A formula is parsed whole or not at all (latex2sympy, through math-verify): what a parser would skip is never ignored.
Numbers are equal if they agree in 50 significant digits, whatever their magnitude; formulas with variables if they
agree so at several points; what cannot be evaluated is left to math-verify's own comparison.
"""

from __future__ import annotations

import functools
import logging
import random
import re
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from math_verify import verify
from sympy.core.function import AppliedUndef

from ponder.verifiers.structure import matches, read, split
from ponder.verifiers.tokens import UNITS
from ponder.verifiers.units import unit

logging.disable(logging.CRITICAL)
_CONFIG = ConversionConfig(lowercase_symbols=False)
_DIGITS = 60
_AGREE = sympy.Float(10, _DIGITS) ** -50
_POINTS = 8
"""Points tried for a formula with variables; both formulas must have a value at `_ENOUGH` of them."""
_ENOUGH = 3
_DECIMAL = re.compile(r"-?[0-9]*\.([0-9]+)")
_SIGNIFICANT = 6
"""Digits of a decimal that may stand for an irrational number."""
_BASE = re.compile(r"(?<![A-Za-z0-9_.\\])([0-9][0-9A-F]*)_(?:\{([0-9]{1,2})\}|([0-9]))")
_EXPONENT = re.compile(r"(?<=[0-9])[eE]([-+]?[0-9]{1,3})(?![0-9A-Za-z])")
_MIXED = re.compile(r"(?<![0-9.}^_])([0-9]{1,30})\s*(\\frac\s*\{([0-9]{1,30})\}\s*\{([0-9]{1,30})\})")
_FACTOR = re.compile(r"(?<![A-Za-z\\])([abcdkmnrstuvwxyz])\s*\(")
"""A variable before a parenthesis, which a parser may take for a function's name."""
_ANGLE = re.compile(r"([0-9.]+)\s*\^\s*\{?\s*\\circ\s*\}?")
_TRIG = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)")
_UNIT = re.compile(
    r"(?<=[0-9}A-Za-z)\s])(?<![A-Za-z\\])\s*(?:(?:square|cubic|sq\.?|cu\.?)\s+)?(?P<word>[A-Za-z]{2,}|(?<=\s)m)"
    r"(?:\s*(?:/|\bper\b)\s*[A-Za-z]+)?(?:\s*\^\s*\{?[0-9]\}?)?\s*$"
)
_FUNCTION = re.compile(r"(?<![A-Za-z\\])(sin|cos|tan|cot|sec|csc|ln|log|exp|arcsin|arccos|arctan)(?![A-Za-z])")
_REFUSED = re.compile(
    r"\\ldots|(?<![_^0-9])[0-9]+ +[0-9]|[0-9]:[0-9]|'|\.{2}|\?|\\text|\\boxed|(?<![A-Za-z\\])[A-Za-z]{4,}"
)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[a-z]+\*?\}")


class _Parser(_Latex2Sympy):  # type: ignore[misc,unused-ignore]
    """latex2sympy, but numbers side by side are a product: it adds them, `(6)(6)` too."""

    def convert_postfix_list(self, arr: list[Any], i: int = 0) -> Any:
        first = self.convert_postfix(arr[i]) if i < len(arr) else None
        if not isinstance(first, sympy.Expr) or i == len(arr) - 1:
            return super().convert_postfix_list(arr, i)
        rest = self.convert_postfix_list(arr, i + 1)
        matrices = isinstance(rest, sympy.MatrixBase)
        return self.mat_mul_flat(first, rest) if matrices else self.mul_flat(first, rest)


class _Unread(Exception):
    """A text that is no formula."""


def equal(gold: str, answer: str) -> str:
    """`correct` or `wrong`, for two formulas that `notation.formula` has spelt."""
    return "correct" if matches(read(gold), read(answer), scalars_equal) else "wrong"


def scalars_equal(gold: str, answer: str) -> bool:
    """Whether two formulas without lists, sets and intervals are equal."""
    gold, answer = _without_unit(gold, answer)
    if "".join(gold.split()) == "".join(answer.split()):
        return True
    try:
        return _equations_equal(split(gold, ("=",)), split(answer, ("=",)))
    except _Unread:
        return False


def _without_unit(gold: str, answer: str) -> tuple[str, str]:
    """Both without the unit that only one of them has, or that they share."""
    units = [unit(m[0]) if (m := _UNIT.search(t)) and _is_unit(m) else "" for t in (gold, answer)]
    if units[0] and units[1] and units[0] != units[1]:
        return gold, answer
    return _UNIT.sub("", gold) if units[0] else gold, _UNIT.sub("", answer) if units[1] else answer


def _is_unit(match: re.Match[str]) -> bool:
    """Whether the last word of a formula is a unit and no product of variables, as in `2xy`."""
    word = match["word"]
    spaced = " " in match.string[max(0, match.start() - 1) : match.start() + 1]
    return word in UNITS or (spaced and len(word) > 3 and list(word) != sorted(word))


def _equations_equal(golds: list[str], answers: list[str]) -> bool:
    if len(golds) == 1 or len(answers) == 1:
        return _equal(_parsed(golds[-1]), _parsed(answers[-1]), (golds[-1], answers[-1]))
    if len(golds) == len(answers) == 2:
        (a, b), (c, d) = map(_parsed, golds), map(_parsed, answers)
        if all(isinstance(e, sympy.Expr) for e in (a, b, c, d)):
            return _proportional(a - b, c - d)
    return all(_equal(_parsed(g), _parsed(a), (g, a)) for g, a in zip(golds, answers, strict=False)) and (
        len(golds) == len(answers)
    )


@functools.lru_cache(maxsize=512)
def _parsed(text: str) -> Any:
    """A formula as sympy reads it. Raises `_Unread` if any part of it cannot be read."""
    text = text.strip()
    if not text or _REFUSED.search(_ENVIRONMENT.sub("", text)):
        raise _Unread
    text = _BASE.sub(_symbol_of, text)
    text = _EXPONENT.sub(r"\\times 10^{\1}", text)
    text = _FACTOR.sub(r"\1\\cdot (", text)
    text = _MIXED.sub(_sum_of_mixed, text)
    text = _ANGLE.sub(r"{\\frac{\1\\pi}{180}}" if _TRIG.search(text) else r"\1", text)
    text = _FUNCTION.sub(r"\\\1", text).replace("%", "\\%")
    text = re.sub(r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])", lambda m: m[0].replace(",", ""), text)
    try:
        found = _Parser(config=_CONFIG).parse(text)
    except Exception:
        raise _Unread from None
    if isinstance(found, sympy.MatrixBase):
        return found.applyfunc(_exactly)
    if not isinstance(found, sympy.Basic):
        raise _Unread
    return _exactly(found)


def _sum_of_mixed(match: re.Match[str]) -> str:
    """`1\\frac{1}{2}` is a sum, where the fraction is below one; else a product."""
    return f"({match[1]}+{match[2]})" if int(match[3]) < int(match[4]) else match[0]


def _symbol_of(match: re.Match[str]) -> str:
    """A number with a base is a name of its own: `10101_2` is neither `10101` nor `21`."""
    base = int(match[2] or match[3])
    digits = [int(c, 36) for c in match[1]]
    if not 2 <= base <= 36 or any(d >= base for d in digits):
        raise _Unread
    return f"{{\\beta_{{{int(match[1].lstrip('0') or '0', 36)}{base:02d}}}}}"


def _exactly(expression: Any) -> Any:
    """Decimals as fractions, `i` as the imaginary unit, operations carried out."""
    replaced = {f: sympy.Rational(str(f)) for f in expression.atoms(sympy.Float)}
    bound = {s for part in expression.atoms(sympy.Sum, sympy.Product, sympy.Integral) for s in part.bound_symbols}
    i = sympy.Symbol("i")
    if i in expression.free_symbols and i not in bound:
        replaced[i] = sympy.I
    expression = expression.xreplace(replaced)
    return expression.doit()


def _equal(a: Any, b: Any, texts: tuple[str, str]) -> bool:
    if isinstance(a, sympy.MatrixBase) or isinstance(b, sympy.MatrixBase):
        if not (isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase) and a.shape == b.shape):
            return False
        return all(_equal(x, y, ("", "")) for x, y in zip(a, b, strict=True))
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)):
        return bool(a == b) or bool(verify([a], [b], timeout_seconds=None))
    if a == b:
        return True
    if a.free_symbols or b.free_symbols or a.atoms(AppliedUndef) or b.atoms(AppliedUndef):
        return _agree_at_points(a, b)
    if a.is_Rational and b.is_Rational:
        return False
    return _numbers_equal(a, b) or _rounded(a, b, texts)


def _numbers_equal(a: Any, b: Any) -> bool:
    if a.is_infinite or b.is_infinite or a is sympy.nan or b is sympy.nan:
        return bool(a == b)
    if a.is_zero or b.is_zero:
        return bool((a - b).equals(0))
    return _near(sympy.N(a, _DIGITS), sympy.N(b, _DIGITS))


def _near(x: Any, y: Any) -> bool:
    if not (x.is_number and y.is_number and x.is_finite and y.is_finite):
        raise _Unread
    return bool(abs(x - y) <= _AGREE * max(abs(x), abs(y)))


def _rounded(a: Any, b: Any, texts: tuple[str, str]) -> bool:
    """Whether one is a decimal of `_SIGNIFICANT` digits or more, rightly rounded from the other, an irrational one."""
    for text, decimal, other in ((texts[0], a, b), (texts[1], b, a)):
        written = _DECIMAL.fullmatch(text.strip())
        if written is None or other.is_rational is not False or not other.is_extended_real:
            continue
        if len(text.strip().lstrip("-0.").replace(".", "")) >= _SIGNIFICANT:
            half = sympy.Rational(1, 2 * 10 ** len(written[1]))
            return bool(abs(sympy.N(other, _DIGITS) - decimal) <= half)
    return False


def _agree_at_points(a: Any, b: Any) -> bool:
    """Whether two formulas agree at random points of both signs: at those where both are real, if there are enough."""
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    rng = random.Random(0)
    pairs = []
    for _ in range(_POINTS):
        point = {s: sympy.Rational(rng.randint(-400, 400) * 2 + 1, 2 * rng.randint(50, 99) + 1) for s in symbols}
        x, y = a.subs(point), b.subs(point)
        if not (x.is_Rational and y.is_Rational):
            x, y = sympy.N(x, _DIGITS), sympy.N(y, _DIGITS)
        if not (x.is_number and y.is_number):
            return bool(sympy.simplify(a - b) == 0)
        if x.is_finite and y.is_finite:
            pairs.append((x, y))
    real = [p for p in pairs if p[0].is_extended_real and p[1].is_extended_real]
    pairs = real if len(real) >= _ENOUGH else pairs
    if len(pairs) < _ENOUGH:
        return bool(sympy.simplify(a - b) == 0)
    return all(x == y if x.is_Rational and y.is_Rational else _near(x, y) for x, y in pairs)


def _proportional(a: Any, b: Any) -> bool:
    """Whether two equations a = 0 and b = 0 are the same up to a constant factor."""
    if a == 0 or b == 0:
        return bool(a == b)
    ratio = sympy.simplify(a / b)
    return not ratio.free_symbols and ratio.is_finite is not False and ratio != 0


def _warm() -> None:
    """Compile the grammar now, before any time limit runs."""
    scalars_equal("\\frac{x}{2}", "0.5x")


_warm()
