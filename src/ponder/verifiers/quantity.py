"""Reading numbers and the arithmetic around them exactly, in prose and in formulas.

`scan` finds every expression of a text that holds a digit: `12 + 34`, `\\frac{3}{4}`, `1 1/2`, `3 \\times 10^2`, `-5`,
`18 cm^2`. Each has an exact value, or says why it has none: `5x`, `5\\pi` and `\\sqrt{18}` are no rational numbers, `x18`
and `H2O` are words. A digit inside a word is never read as a number. Texts are read once from left to right, so the
time grows with their length alone; the grammar is

    sum      = product (("+" | "-" | "\\pm") product)*
    product  = signed (("*" | "/" | "\\times" | … | nothing) signed)*
    signed   = ("+" | "-")* power
    power    = atom ("^" atom | "!" | "%" | "^\\circ")*
    atom     = number | mixed number | "(" sum ")" | "{" sum "}" | "\\frac" atom atom | "\\sqrt" "[" n "]" atom | symbol
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

MAX_DIGITS = 1_000
"""Digits of a number that is read."""
_MAX_BITS = 200_000
"""Of a value; a larger one is not computed."""
_DEPTH = 30
"""Parentheses inside one another."""

SYMBOLIC = "it is a formula and not a number"
UNFINISHED = "the answer ends with an expression, not with its value"
TOO_LONG = "the last number is too long"
SEVERAL = "several numbers are written as one"

_TOKEN = re.compile(
    r"""
    (?P<repeat>[0-9]*\.[0-9]*(?:\\overline\ ?\{[0-9]{1,9}\}|\\dot\ ?\{?[0-9]\}?|\([0-9]{1,9}\)(?![0-9(])))
    |(?P<number>
        [0-9]{1,3}(?:\ [0-9]{3}(?![0-9]))+(?:\.[0-9]+)?(?!\ ?[0-9/]|,[0-9]|\.[0-9])   # 1 500 000
        |(?:\.?[0-9](?:[0-9,.'_]*[0-9])?)(?:[eE][-+]?[0-9]{1,4}(?![0-9A-Za-z.]))?)
    |(?P<unit>\\frac\ ?\{\ ?[A-Za-z]{1,12}\ ?\}\ ?\{\ ?[A-Za-z]{1,12}(?:\ ?\^\ ?\{?[0-9]\}?)?\ ?\})
    |(?P<degree>\^\ ?\{?\ ?\\circ\ ?\}?(?:\ ?[CFK](?![A-Za-z]))?)
    |(?P<command>\\[A-Za-z]+)
    |(?P<bound>\\[()\[\]]|\$)
    |(?P<money>(?:Rs\.?|US|USD|EUR|GBP|INR|CAD|AUD|JPY|CNY|[A-Z]{1,2}(?=\$)|[€£¥₹₽₩])(?=\ ?\$?[-+]?\.?[0-9]))
    |(?P<word>[^\W\d_](?:[\w'’]|-(?=[^\W\d_]|(?<=[A-Za-z]{2}-)[0-9]))*)
    |(?P<line>\n[ \t\r\n]*)
    |(?P<space>[ \t\r\f\v]+)
    |(?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_GROUPED = re.compile(
    r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]{1,3}(?:'[0-9]{3})+(?:\.[0-9]+)?|[0-9]{1,3}(?:_[0-9]{3})+"
    r"|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?:\.[0-9]+)?|[0-9]{1,3}(?:\ [0-9]{3})+(?:\.[0-9]+)?"
)
_DOTTED = re.compile(r"[0-9]{1,3}(?:\.[0-9]{3}){2,}")
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SHORT_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "m": 10**6, "mn": 10**6, "B": 10**9, "b": 10**9, "bn": 10**9}
_UNITS = frozenset(
    "m g s h t l L W V A J N K C F cm mm km dm in ft yd mi kg mg lb lbs oz ms hr hrs min mins sec secs ml mL dL cl cc "
    "gal pt qt mph kph kW MW GB MB KB Hz st nd rd th am pm AM PM ° sq cu ha ct pc pcs ea".split()
)
"""Units of one or two letters and the like; a longer word after a number is a unit too, unless it is a function."""
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc log ln exp sqrt pi mod div arcsin arccos arctan sinh cosh lim abc xyz".split()
)
_RELATIONS = frozenset(
    {"=", "<", ">", "\\approx", "\\le", "\\ge", "\\to", "\\implies", "\\equiv", "\\in", "\\Rightarrow"}
)
_DIVIDES = frozenset({"/", "\\div"})
_TIMES = frozenset({"*", "\\times", "\\cdot"})
_NEGATIONS = re.compile(
    r"(?:\bnot?\b|n't\b|\bnever\b|\bneither\b|\bnor\b|\bcannot\b|\\ne\b|\\not\b|≠|!=|<>|\brather than\b|\binstead of\b)"
    r"(?P<rest>[^.;:\n]{0,40})$",
    re.IGNORECASE,
)
_CONTRAST = re.compile(r"\b(?:but|only|just|rather|instead|less|more|fewer|greater|sure)\b|[=,]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Quantity:
    """An expression of a text."""

    text: str
    """As it is written."""
    value: Fraction | None = None
    reason: str = ""
    """Why it has no value, or why its value is not an answer (`UNFINISHED`)."""
    percent: bool = False
    start: int = 0
    end: int = 0
    atoms: int = 1
    """How many numbers are written in it."""
    unit: str = ""
    """What follows the number and belongs to it: `cm^2`."""


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Part:
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


class _Unread(Exception):
    """No expression begins here."""


def scan(text: str, inside: bool = False) -> list[Quantity]:
    """Every expression that holds a digit, from left to right, in a text that `notation.formula` has spelt.

    `inside` a box or a gold all of the text is a formula: `5!` is 120 there and not five with an exclamation mark.
    """
    reader = _Reader(text, inside)
    return reader.all()


def exact(text: str) -> Quantity | None:
    """The value of a text that is one expression and nothing else (a unit aside); None if it is not.

    Operations are carried out: `2^{10} - 24` is 1000.
    """
    found = scan(text, True)
    if len(found) != 1 or found[0].value is None:
        return None
    left = (text[: found[0].start] + text[found[0].end :]).strip(" \t\n$.\\()[]")
    return None if left else found[0]


def negated(text: str, start: int) -> bool:
    """Whether what stands at a position is denied: `not 18`, `isn't equal to 18`, `\\ne 18`."""
    found = _NEGATIONS.search(text[max(0, start - 60) : start])
    return found is not None and not _CONTRAST.search(found["rest"])


class _Reader:
    def __init__(self, text: str, inside: bool) -> None:
        self.text = text
        self.inside = inside
        self.tokens = [_Token(m.lastgroup or "", m[0], m.start(), m.end()) for m in _TOKEN.finditer(text)]
        self.tokens.append(_Token("end", "", len(text), len(text)))
        self.at = 0
        self.begin = 0
        self.depth = 0
        self.failed: set[int] = set()
        """Where no atom could be read: it is not tried again, so that reading stays linear."""
        self.bullets = len(re.findall(r"(?m)^[ \t]*- ", text)) > 1

    def all(self) -> list[Quantity]:
        found = []
        while self.tokens[self.at].kind != "end":
            start = self.begin = self.at
            quantity = None
            if self._may_begin():
                try:
                    quantity = self._quantity()
                except _Unread:
                    pass
            if quantity is None:
                # What was looked at stays words; after a failed try reading goes on behind it, never before.
                self.at = max(self.at, start + 1)
            else:
                found.append(quantity)
        return found

    def _may_begin(self) -> bool:
        token = self.tokens[self.at]
        if token.kind in ("number", "repeat", "money"):
            return True
        if token.kind == "command":
            return token.text in ("\\frac", "\\sqrt", "\\pm", "\\pi") or self.inside
        if token.kind == "word":
            following = self.tokens[self.at + 1].text
            letter = len(token.text) == 1 or token.text in _FUNCTIONS
            return letter and (following in ("^", "_", "(", "+", "-", "*", "/", "!") or self.inside)
        return token.text in ("-", "+", "(", "{", "[")

    def _quantity(self) -> Quantity | None:
        start = self.at
        part = self._sum()
        if part.atoms == 0:
            return None
        part = self._scaled(part)
        end = self.tokens[self.at - 1].end
        self._tail()
        last = max(end, self.tokens[self.at - 1].end)
        reason = part.reason or (UNFINISHED if part.open or self._is_operand(start) else "")
        if part.value is not None and max(map(int.bit_length, part.value.as_integer_ratio())) > _MAX_BITS:
            part, reason = replace(part, value=None), UNFINISHED
        begin = self.tokens[start].start
        text = " ".join(self.text[begin:last].split())
        unit = " ".join(self.text[end:last].split())
        return Quantity(text, part.value, reason, part.percent, begin, last, part.atoms, unit)

    def _is_operand(self, start: int) -> bool:
        """Whether an operator without a left side that could be read comes before: `6 boxes * 3`."""
        first = self.tokens[start]
        before = self.text[max(0, first.start - 20) : first.start].rstrip(" \t$({")
        if first.text == "+":
            return before[-1:].isalnum()
        return before[-1:] in ("*", "/", "^") or before.endswith(("\\times", "\\cdot", "\\div"))

    def _sum(self) -> _Part:
        left = self._product()
        while True:
            sign = self._operator(("+", "-", "\\pm", "\\mp"))
            if sign is None:
                return left
            back = self.at
            self._take_operator()
            try:
                right = self._product()
            except _Unread:
                self.at = back
                return left
            if right.atoms == 0 and left.atoms and not right.reason:
                self.at = back
                return left
            value = None
            if left.value is not None and right.value is not None and sign in ("+", "-"):
                value = left.value + (right.value if sign == "+" else -right.value)
            left = _joined(left, right, value)

    def _product(self) -> _Part:
        left = self._signed()
        while True:
            operator = self._operator(("*", "/", "\\times", "\\cdot", "\\div", ":"))
            back = self.at
            if operator is None:
                nearby = self._beside(left)
                if nearby is None:
                    return left
                left = nearby
                continue
            self._take_operator()
            try:
                right = self._signed()
            except _Unread:
                self.at = back
                return left
            left = self._multiplied(left, operator, right)

    def _multiplied(self, left: _Part, operator: str, right: _Part) -> _Part:
        if operator == ":":  # a time or a ratio
            return _joined(left, right, None, SYMBOLIC)
        if left.value is None or right.value is None:
            return _joined(left, right, None)
        if operator in _DIVIDES:
            if right.value == 0:
                return _joined(left, right, None, UNFINISHED)
            value = left.value / right.value
            if left.literal and right.literal and operator == "/":
                whole = left.value.denominator == right.value.denominator == 1
                proper = whole and 0 < value < 1 and not right.percent
                return _Part(value, percent=right.percent, atoms=left.atoms + right.atoms, proper=proper)
            joined = _joined(left, right, value)
            return replace(joined, open=right.open) if left.literal and operator == "/" else joined
        joined = _joined(left, right, left.value * right.value)
        scientific = left.literal and _power_of_ten(right)
        return replace(joined, open=joined.open if not scientific else False)

    def _signed(self) -> _Part:
        sign = 1
        token = self.tokens[self.at]
        signs = 0
        while token.text in ("-", "+"):
            signs += 1
            if signs > 3:
                raise _Unread
            if token.text == "-" and self._is_minus():
                sign = -sign
            self.at += 1
            self._spaces()
            token = self.tokens[self.at]
        if token.text in ("\\pm", "\\mp"):
            self.at += 1
            self._spaces()
            return replace(self._power(), value=None, reason=SYMBOLIC)
        part = self._power()
        if signs and not part.atoms and not part.reason:
            raise _Unread
        if sign < 0 and part.value is not None:
            # -1 1/4 is -(1 + 1/4): the fraction that may follow is taken before the sign.
            part = self._mixed(part) or part
            part = replace(part, value=-part.value if part.value is not None else None, whole=False)
        return part

    def _is_minus(self) -> bool:
        """Whether the `-` here is a sign, not a bullet or a dash between words."""
        here = self.tokens[self.at]
        following = self.tokens[self.at + 1]
        if following.kind != "space" and following.kind != "line":
            before = self.tokens[self.at - 1] if self.at else None
            return before is None or before.kind != "word" or before.text in ("x",)
        before = self.text[max(0, here.start - 40) : here.start].rstrip(" \t$({[")
        if not before:
            return not self.bullets and (self.inside or self._alone())
        return before[-1] in "=<>(,{[:*/+-^" and before[-1] != "\n"

    def _alone(self) -> bool:
        """Whether nothing but a number follows to the end of the text."""
        rest = self.text[self.tokens[self.at].end :]
        return re.fullmatch(r"[\s$]*[0-9.,/\s]*[0-9][\s$.%]*", rest) is not None

    def _power(self) -> _Part:
        return self._power_of(self._atom())

    def _power_of(self, part: _Part) -> _Part:
        while True:
            token = self.tokens[self.at]
            if token.kind == "degree":
                self.at += 1
                part = replace(part, whole=False)
            elif token.text == "^" or (token.kind == "space" and self.tokens[self.at + 1].text == "^"):
                self.at += 1 if token.text == "^" else 2
                self._spaces()
                sign = 1
                if self.tokens[self.at].text == "-":
                    sign = -1
                    self.at += 1
                exponent = self._atom() if self.tokens[self.at].kind != "number" else self._digits()
                if self.tokens[self.at].text == "^":  # 9^9^9 says nothing that is read here
                    part = replace(part, value=None, reason=UNFINISHED)
                if sign < 0 and exponent.value is not None:
                    exponent = replace(exponent, value=-exponent.value)
                part = _raised(part, exponent)
            elif token.text == "!" and self.inside and self.tokens[self.at + 1].text not in ("=", "!"):
                self.at += 1
                part = _factorial(part)
            elif token.text == "%" or (token.kind == "space" and self.tokens[self.at + 1].text in ("%", "percent")):
                self.at += 1 if token.text == "%" else 2
                return replace(part, percent=True, whole=False)
            elif token.text == "percent":
                self.at += 1
                return replace(part, percent=True, whole=False)
            elif token.text == "_" and self.tokens[self.at - 1].kind in ("number", "other"):
                self.at += 1  # a base
                self._skip_index()
                part = replace(part, value=None, reason=SYMBOLIC, whole=False)
            else:
                return part

    def _skip_index(self) -> None:
        if self.tokens[self.at].text == "{":
            while self.tokens[self.at].text not in ("}", "") and self.tokens[self.at].kind not in ("line", "end"):
                self.at += 1
        if self.tokens[self.at].kind != "end":
            self.at += 1

    def _digits(self) -> _Part:
        """One number as an exponent: in `3^2` and `10^5` without braces."""
        token = self.tokens[self.at]
        self.at += 1
        return _number(token.text)

    def _atom(self) -> _Part:
        start = self.at
        if start in self.failed or self.depth >= _DEPTH:
            raise _Unread
        self.depth += 1
        try:
            return self._read_atom()
        except _Unread:
            self.failed.add(start)
            raise
        finally:
            self.depth -= 1

    def _read_atom(self) -> _Part:
        token = self.tokens[self.at]
        if token.kind == "money" or (token.text == "$" and self.tokens[self.at + 1].kind in ("number", "bound")):
            self.at += 1
            self._spaces()
            token = self.tokens[self.at]
            if token.text == "$":
                self.at += 1
                token = self.tokens[self.at]
            if token.text in ("-", "+") and self.tokens[self.at + 1].kind == "number":
                self.at += 1
                part = self._atom()
                return part if token.text == "+" or part.value is None else replace(part, value=-part.value)
            return self._short_scale(self._atom())
        if token.kind in ("number", "repeat"):
            self.at += 1
            return _number(token.text) if token.kind == "number" else _repeating(token.text)
        if token.text in ("(", "{", "["):
            return self._group(token.text)
        if token.text == "\\frac":
            self.at += 1
            return self._fraction()
        if token.text == "\\sqrt":
            self.at += 1
            return self._root()
        if self.inside and token.text.lstrip("\\") in _FUNCTIONS and self.tokens[self.at + 1].kind != "end":
            self.at += 1
            self._spaces()
            atoms = 0
            if self.tokens[self.at].kind in ("number", "other", "command"):
                atoms = self._atom().atoms
            return _Part(None, SYMBOLIC, atoms=atoms)
        if token.kind == "command" and self._is_symbol(token.text):
            self.at += 1
            return _Part(None, SYMBOLIC)
        if token.kind == "word" and (len(token.text) == 1 or token.text in _FUNCTIONS):
            self.at += 1
            return _Part(None, SYMBOLIC)
        raise _Unread

    def _is_symbol(self, text: str) -> bool:
        return text not in _RELATIONS and text not in ("\\ldots", "\\boxed", "\\text", "\\cup", "\\cap", "\\ne", "\\pm")

    def _group(self, opens: str) -> _Part:
        closes = {"(": ")", "{": "}", "[": "]"}[opens]
        self.at += 1
        self._spaces()
        part = self._sum()
        self._spaces()
        if self.tokens[self.at].text in (",", ";") and opens != "{":  # a tuple or an interval
            while self.tokens[self.at].text not in (closes, "]", ")") and self.tokens[self.at].kind not in (
                "end",
                "line",
            ):
                self.at += 1
            part = _Part(None, SEVERAL, atoms=part.atoms + 1)
        if self.tokens[self.at].text not in (closes, "]" if opens == "(" else closes):
            raise _Unread
        self.at += 1
        return replace(part, whole=False)

    def _fraction(self) -> _Part:
        top = self._braced()
        bottom = self._braced()
        atoms = top.atoms + bottom.atoms
        if top.value is None or bottom.value is None or bottom.value == 0:
            return _Part(None, top.reason or bottom.reason or UNFINISHED, atoms=atoms)
        value = top.value / bottom.value
        proper = top.whole and bottom.whole and 0 < value < 1
        return _Part(value, open=top.open or bottom.open, atoms=atoms, proper=proper)

    def _braced(self) -> _Part:
        self._spaces()
        if self.tokens[self.at].text != "{":
            return self._atom()
        # That the content is a plain integer is kept.
        first = self.tokens[self.at + 1]
        single = first.kind == "number" and self.tokens[self.at + 2].text == "}"
        part = self._group("{")
        return replace(part, whole=single and part.value is not None and part.value.denominator == 1)

    def _root(self) -> _Part:
        self._spaces()
        index = 2
        if self.tokens[self.at].text == "[":
            inner = self._group("[")
            if inner.value is None or inner.value.denominator != 1 or not 2 <= inner.value <= 100:
                raise _Unread
            index = int(inner.value)
        part = self._braced()
        if part.value is None:
            return _Part(None, part.reason or SYMBOLIC, atoms=part.atoms)
        value = _rooted(part.value, index)
        return _Part(value, "" if value is not None else SYMBOLIC, part.open, atoms=part.atoms)

    def _mixed(self, left: _Part) -> _Part | None:
        """`1 1/2` and `1\\frac{1}{2}` after the integer `left`: their sum if the fraction is below one.

        With another fraction in LaTeX the product, None if no fraction follows.
        """
        if not left.whole or left.value is None:
            return None
        back = self.at
        self._spaces()
        try:
            if self.tokens[self.at].text == "\\frac":
                part = self._atom()
            elif self.at > back and self.tokens[self.at].kind == "number" and self._slash():
                top = self._digits()
                self._take_operator()
                part = self._multiplied(top, "/", self._digits())
                if not part.proper:
                    raise _Unread
            else:
                raise _Unread
        except _Unread:
            self.at = back
            return None
        if part.proper and part.value is not None:
            return _Part(left.value + part.value, atoms=1)
        return _joined(left, part, None if part.value is None else left.value * part.value)

    def _slash(self) -> bool:
        following = [t.text for t in self.tokens[self.at + 1 : self.at + 5] if t.kind != "space"]
        return following[:1] == ["/"] and following[1:2] != [] and following[1][:1].isdigit()

    def _beside(self, left: _Part) -> _Part | None:
        """What stands directly after without an operator: a fraction, a root, a symbol, a group; None for a word."""
        mixed = self._mixed(left)
        if mixed is not None:
            return mixed
        back = self.at
        spaced = self.tokens[self.at].kind == "space"
        self._spaces()
        token = self.tokens[self.at]
        if token.kind == "number" and not spaced and self.tokens[self.at - 1].text in (")", "}"):
            return self._product_with(left, back)
        if token.text == "(" and not spaced and left.atoms:
            return self._product_with(left, back)
        if token.text == "(" and spaced and self.inside and left.atoms and self._symbol_within():
            return self._product_with(left, back)
        if token.text in ("\\frac", "\\sqrt") and token.kind == "command":
            return self._product_with(left, back)
        if token.kind == "command" and token.text.startswith("\\") and self._is_factor(token.text):
            return self._product_with(left, back)
        if token.kind == "word" and left.atoms:
            return self._with_word(left, token, spaced, back)
        if token.kind == "word" and not left.atoms and not spaced and len(token.text) == 1:
            self.at += 1
            return _Part(None, SYMBOLIC)
        self.at = back
        return None

    def _symbol_within(self) -> bool:
        inside = self.text[self.tokens[self.at].end : self.tokens[self.at].end + 60].partition(")")[0]
        return re.fullmatch(r"[ ]?[A-Za-z0-9](?:[ ]?[-+*/^][ ]?[A-Za-z0-9]+)+[ ]?", inside) is not None

    def _is_factor(self, text: str) -> bool:
        if text in ("\\pm", "\\mp", "\\times", "\\cdot", "\\div", "\\circ"):
            return False
        if text in _RELATIONS or text in ("\\ldots", "\\ne", "\\cup", "\\cap", "\\boxed", "\\text", "\\sqrt", "\\frac"):
            return False
        return text in ("\\pi", "\\theta", "\\alpha", "\\beta", "\\gamma", "\\lambda", "\\phi", "\\omega", "\\infty",
                        "\\sin", "\\cos", "\\tan", "\\log", "\\ln", "\\binom", "\\overline", "\\mathbb", "\\mathbf",
                        "\\vec", "\\hat", "\\bar", "\\sec", "\\csc", "\\cot", "\\exp", "\\lfloor", "\\lceil")  # fmt: skip

    def _with_word(self, left: _Part, token: _Token, spaced: bool, back: int) -> _Part | None:
        """A word after a number: a unit is left for `_tail`; a variable or a constant makes it a formula."""
        word = token.text
        symbol = (
            word in _FUNCTIONS
            or (not spaced and any(c.isdigit() for c in word))
            or (
                len(word) <= 2 and word not in _UNITS and (not spaced or self.inside) and word not in ("of", "to", "is")
            )
        )
        if spaced and not self.inside and word in _FUNCTIONS and word not in ("pi", "sqrt"):
            symbol = False
        if not symbol or word in _SHORT_SCALES and not spaced and not self.inside:
            self.at = back
            return None
        self.at += 1
        return _Part(None, SYMBOLIC, atoms=left.atoms)

    def _product_with(self, left: _Part, back: int) -> _Part | None:
        try:
            right = self._power()
        except _Unread:
            self.at = back
            return None
        value = left.value * right.value if left.value is not None and right.value is not None else None
        joined = _joined(left, right, value)
        if value is not None and not left.open and not right.open and self.text[self.tokens[back].start :][:1] == "\\":
            return replace(joined, open=False)
        return joined

    def _short_scale(self, part: _Part) -> _Part:
        """`$5k`, `$1.5M`: only after a currency sign."""
        token = self.tokens[self.at]
        if token.kind == "word" and token.text in _SHORT_SCALES and part.value is not None:
            self.at += 1
            return replace(part, value=part.value * _SHORT_SCALES[token.text], whole=False)
        return part

    def _scaled(self, part: _Part) -> _Part:
        """`1.5 million`."""
        back = self.at
        while part.value is not None and not part.open and not part.percent:
            self._spaces()
            word = self.tokens[self.at].text.lower()
            if self.tokens[self.at].kind != "word" or word not in _SCALES:
                break
            self.at += 1
            back = self.at
            part = replace(part, value=part.value * _SCALES[word])
        self.at = back
        return part

    def _tail(self) -> None:
        """Take the unit: words with exponents, `m/s^2`, a degree sign. In prose only what has an exponent or a slash."""
        back = self.at
        while True:
            self._spaces()
            if self.tokens[self.at].kind in ("unit", "degree"):
                self.at += 1
                back = self.at
                continue
            joint = self.tokens[self.at].text in ("/", "\\cdot", "*")
            if joint:
                self.at += 1
                self._spaces()
            token = self.tokens[self.at]
            if token.kind != "word" or token.text in _FUNCTIONS:
                break
            if not (self.inside or joint or self._raised_word()):
                break
            self.at += 1
            back = self.at
            self._spaces()
            if self.tokens[self.at].text == "^":
                self.at += 1
                self._skip_exponent()
                back = self.at
        self.at = back

    def _raised_word(self) -> bool:
        rest = [t.text for t in self.tokens[self.at + 1 : self.at + 3] if t.kind != "space"]
        return rest[:1] == ["^"] or rest[:1] == ["/"]

    def _skip_exponent(self) -> None:
        self._spaces()
        if self.tokens[self.at].text == "{":
            self._skip_index()
            return
        if self.tokens[self.at].text == "-":
            self.at += 1
        if self.tokens[self.at].kind == "number":
            self.at += 1

    def _operator(self, among: tuple[str, ...]) -> str | None:
        """The operator that comes next, spaces and ends of formulas apart; None for another or none."""
        at = self.at
        while at < self.at + 4 and (self.tokens[at].kind == "space" or self._crossing(at)):
            at += 1
        token = self.tokens[at]
        if token.text not in among:
            return None
        if token.text == ":" and (at != self.at or self.tokens[at + 1].kind != "number"):
            return None
        after = self._next(at + 1)
        if after.kind in ("end", "line"):
            return None
        if token.text in ("-", "/", ":", "*") and after.kind == "word" and len(after.text) > 1:
            return None
        if token.text == "-" and after.text == "-":
            return None
        return token.text

    def _crossing(self, at: int) -> bool:
        """The end of one formula where an operator joins it to the next: `$3$ + $4$`."""
        if self.tokens[at].kind != "bound":
            return False
        return self._next(at + 1).text in ("+", "-", "*", "/", "\\times", "\\cdot", "\\div")

    def _next(self, at: int) -> _Token:
        """The token at a position or behind the few spaces and ends of formulas there."""
        for token in self.tokens[at : at + 4]:
            if token.kind not in ("space", "bound"):
                return token
        return self.tokens[-1]

    def _take_operator(self) -> None:
        while self.tokens[self.at].kind in ("space", "bound"):
            self.at += 1
        self.at += 1
        while self.tokens[self.at].kind == "space" or (
            self.tokens[self.at].kind == "bound" and self.tokens[self.at].text != "$"
        ):
            self.at += 1

    def _spaces(self) -> None:
        while self.tokens[self.at].kind == "space":
            self.at += 1


def _joined(left: _Part, right: _Part, value: Fraction | None, reason: str = "") -> _Part:
    why = reason or left.reason or right.reason
    return _Part(value, why if value is None else "", True, left.percent or right.percent, left.atoms + right.atoms)


def _power_of_ten(part: _Part) -> bool:
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


def _number(text: str) -> _Part:
    """A number as it is written, grouped or not."""
    digits, _, exponent = text.replace("E", "e").partition("e")
    if len(digits) > MAX_DIGITS or (exponent and abs(int(exponent)) > MAX_DIGITS):
        return _Part(None, TOO_LONG, atoms=1)
    if _DOTTED.fullmatch(digits):
        digits = digits.replace(".", "")
    elif _GROUPED.fullmatch(digits):
        digits = re.sub("[,'_ ]", "", digits)
    if not re.fullmatch(r"[0-9]*(?:\.[0-9]+)?", digits):
        return _Part(None, SEVERAL if "_" not in digits else SYMBOLIC, atoms=1 + digits.count(","))
    value = Fraction(f"{digits}e{exponent}" if exponent else digits)
    return _Part(value, atoms=1, whole="." not in digits and not exponent, literal=True)


def _repeating(text: str) -> _Part:
    """`0.1\\overline{6}` is 1/6."""
    before, _, rest = text.partition(".")
    fixed = re.match("[0-9]*", rest)
    assert fixed is not None
    period = re.sub("[^0-9]", "", rest[fixed.end() :])
    if len(text) > MAX_DIGITS or not period:
        return _Part(None, TOO_LONG, atoms=1)
    scale = 10 ** len(fixed[0])
    value = Fraction(int(before or "0")) + Fraction(int(fixed[0] or "0"), scale)
    return _Part(value + Fraction(int(period), scale * (10 ** len(period) - 1)), atoms=1)


def _raised(base: _Part, exponent: _Part) -> _Part:
    atoms = base.atoms + exponent.atoms
    if base.value is None or exponent.value is None:
        return _Part(None, base.reason or exponent.reason or SYMBOLIC, atoms=atoms)
    if exponent.value.denominator != 1:
        root = _rooted(base.value, exponent.value.denominator)
        if root is None:
            return _Part(None, SYMBOLIC, atoms=atoms)
        base = replace(base, value=root)
    power = exponent.value.numerator
    value = base.value
    assert value is not None
    bits = max(value.numerator.bit_length(), value.denominator.bit_length())
    if bits > 1 and abs(power) * bits > _MAX_BITS:
        return _Part(None, UNFINISHED, atoms=atoms)
    if value == 0 and power < 0:
        return _Part(None, SYMBOLIC, atoms=atoms)
    if bits <= 1:
        power = power % 2 + 2 * (power != 0)  # of -1, 0 and 1
    return _Part(value**power, open=base.open, atoms=atoms)


def _factorial(part: _Part) -> _Part:
    if part.value is None or part.value.denominator != 1 or not 0 <= part.value <= 5_000:
        return _Part(None, part.reason or SYMBOLIC, atoms=part.atoms)
    return _Part(Fraction(math.factorial(int(part.value))), open=part.open, atoms=part.atoms)


def _rooted(value: Fraction, index: int) -> Fraction | None:
    """An exact root; None if it is irrational or not real."""
    if value < 0:
        if index % 2 == 0:
            return None
        root = _rooted(-value, index)
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
