"""The grammar of arithmetic in prose and in formulas, read once from left to right.

sum      = product (("+" | "-" | "\\pm") product)*
product  = signed (("*" | "/" | "\\times" | … | nothing) signed)*
signed   = ("+" | "-")* power
power    = atom ("^" atom | "!" | "%" | "^\\circ")*
atom     = number | mixed number | "(" sum ")" | "{" sum "}" | "\\frac" atom atom | "\\sqrt" "[" n "]" atom | symbol
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, replace
from fractions import Fraction

from ponder.verifiers.parts import (
    MAX_BITS,
    SEVERAL,
    SYMBOLIC,
    UNFINISHED,
    Part,
    factorial,
    joined,
    number,
    power_of_ten,
    raised,
    repeating,
    rooted,
)
from ponder.verifiers.tokens import (
    DIVIDES,
    FACTORS,
    FUNCTIONS,
    PLAIN_FUNCTIONS,
    RELATIONS,
    SCALES,
    SHORT_SCALES,
    UNITS,
    Token,
    tokens,
)

_DEPTH = 30
"""Parentheses inside one another."""


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


class _Unread(Exception):
    """No expression begins here."""


class Reader:
    """Reads one text; `all` gives what it holds."""

    def __init__(self, text: str, inside: bool) -> None:
        self.text = text
        self.inside = inside
        self.tokens = tokens(text)
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
                with contextlib.suppress(_Unread):
                    quantity = self._quantity()
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
            return token.text in ("\\frac", "\\sqrt", "\\pm", "\\pi") or self.inside or token.text[1:] in FUNCTIONS
        if token.kind == "word":
            following = self.tokens[self.at + 1].text
            letter = len(token.text) == 1 or token.text in FUNCTIONS
            if token.text in PLAIN_FUNCTIONS and "number" in (t.kind for t in self.tokens[self.at + 1 : self.at + 3]):
                return True
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
        if part.value is not None and max(map(int.bit_length, part.value.as_integer_ratio())) > MAX_BITS:
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

    def _sum(self) -> Part:
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
            left = joined(left, right, value)

    def _product(self) -> Part:
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

    def _multiplied(self, left: Part, operator: str, right: Part) -> Part:
        if operator == ":":  # a time or a ratio
            return joined(left, right, None, SYMBOLIC)
        if left.value is None or right.value is None:
            return joined(left, right, None)
        if operator in DIVIDES:
            if right.value == 0:
                return joined(left, right, None, UNFINISHED)
            value = left.value / right.value
            if left.literal and right.literal and operator == "/":
                whole = left.value.denominator == right.value.denominator == 1
                proper = whole and 0 < value < 1 and not right.percent
                return Part(value, percent=right.percent, atoms=left.atoms + right.atoms, proper=proper)
            quotient = joined(left, right, value)
            return replace(quotient, open=right.open) if left.literal and operator == "/" else quotient
        product = joined(left, right, left.value * right.value)
        return replace(product, open=not (left.literal and power_of_ten(right)))

    def _signed(self) -> Part:
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
        head = self.text[max(0, here.start - 40) : here.start].rstrip(" \t$({[")
        if not head:
            return not self.bullets and (self.inside or self._alone())
        return head[-1] in "=<>(,{[:*/+-^" and head[-1] != "\n"

    def _alone(self) -> bool:
        """Whether nothing but a number follows to the end of the text."""
        rest = self.text[self.tokens[self.at].end :]
        return re.fullmatch(r"[\s$]*[0-9.,/\s]*[0-9][\s$.%]*", rest) is not None

    def _power(self) -> Part:
        return self._power_of(self._atom())

    def _power_of(self, part: Part) -> Part:
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
                part = raised(part, exponent)
            elif token.text == "!" and self.inside and self.tokens[self.at + 1].text not in ("=", "!"):
                self.at += 1
                part = factorial(part)
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

    def _digits(self) -> Part:
        """One number as an exponent: in `3^2` and `10^5` without braces."""
        token = self.tokens[self.at]
        self.at += 1
        return number(token.text)

    def _atom(self) -> Part:
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

    def _read_atom(self) -> Part:
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
            part = number(token.text) if token.kind == "number" else repeating(token.text)
            return self._short_scale(part) if self.at > 1 and self.tokens[self.at - 2].text == "$" else part
        if token.text in ("(", "{", "["):
            return self._group(token.text)
        if token.text == "\\frac":
            self.at += 1
            return self._fraction()
        if token.text == "\\sqrt":
            self.at += 1
            return self._root()
        name = token.text.lstrip("\\")
        if (self.inside or token.kind == "command" or name in PLAIN_FUNCTIONS) and name in FUNCTIONS and name != "pi":
            self.at += 1
            self._spaces()
            atoms = 0
            if self.tokens[self.at].text == "_":
                self.at += 1
                self._skip_index()
                self._spaces()
            if self.tokens[self.at].kind in ("number", "command") or self.tokens[self.at].text in ("(", "{", "["):
                atoms = self._atom().atoms
            return Part(None, SYMBOLIC, atoms=atoms)
        if token.kind == "command" and self._is_symbol(token.text):
            self.at += 1
            return Part(None, SYMBOLIC)
        if token.kind == "word" and (len(token.text) == 1 or token.text in FUNCTIONS):
            self.at += 1
            return Part(None, SYMBOLIC)
        raise _Unread

    def _is_symbol(self, text: str) -> bool:
        return text not in RELATIONS and text not in ("\\ldots", "\\boxed", "\\text", "\\cup", "\\cap", "\\ne", "\\pm")

    def _group(self, opens: str) -> Part:
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
            part = Part(None, SEVERAL, atoms=part.atoms + 1)
        if self.tokens[self.at].text not in (closes, "]" if opens == "(" else closes):
            raise _Unread
        self.at += 1
        return replace(part, whole=False)

    def _fraction(self) -> Part:
        top = self._braced()
        bottom = self._braced()
        atoms = top.atoms + bottom.atoms
        if top.value is None or bottom.value is None or bottom.value == 0:
            return Part(None, top.reason or bottom.reason or UNFINISHED, atoms=atoms)
        value = top.value / bottom.value
        proper = top.whole and bottom.whole and 0 < value < 1
        return Part(value, open=top.open or bottom.open, atoms=atoms, proper=proper)

    def _braced(self) -> Part:
        self._spaces()
        if self.tokens[self.at].text != "{":
            return self._atom()
        # That the content is a plain integer is kept.
        first = self.tokens[self.at + 1]
        single = first.kind == "number" and self.tokens[self.at + 2].text == "}"
        part = self._group("{")
        return replace(part, whole=single and part.value is not None and part.value.denominator == 1)

    def _root(self) -> Part:
        self._spaces()
        index = 2
        if self.tokens[self.at].text == "[":
            inner = self._group("[")
            if inner.value is None or inner.value.denominator != 1 or not 2 <= inner.value <= 100:
                raise _Unread
            index = int(inner.value)
        part = self._braced()
        if part.value is None:
            return Part(None, part.reason or SYMBOLIC, atoms=part.atoms)
        value = rooted(part.value, index)
        return Part(value, "" if value is not None else SYMBOLIC, part.open, atoms=part.atoms)

    def _mixed(self, left: Part) -> Part | None:
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
            return Part(left.value + part.value, atoms=1)
        return joined(left, part, None if part.value is None else left.value * part.value)

    def _slash(self) -> bool:
        following = [t.text for t in self.tokens[self.at + 1 : self.at + 5] if t.kind != "space"]
        return following[:1] == ["/"] and following[1:2] != [] and following[1][:1].isdigit()

    def _beside(self, left: Part) -> Part | None:
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
        if token.text == "(" and not spaced and (left.atoms or left.reason == SYMBOLIC):
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
            return Part(None, SYMBOLIC)
        self.at = back
        return None

    def _symbol_within(self) -> bool:
        inside = self.text[self.tokens[self.at].end : self.tokens[self.at].end + 60].partition(")")[0]
        return re.fullmatch(r"[ ]?[A-Za-z0-9](?:[ ]?[-+*/^][ ]?[A-Za-z0-9]+)+[ ]?", inside) is not None

    def _is_factor(self, text: str) -> bool:
        if text in ("\\pm", "\\mp", "\\times", "\\cdot", "\\div", "\\circ"):
            return False
        if text in RELATIONS or text in ("\\ldots", "\\ne", "\\cup", "\\cap", "\\boxed", "\\text", "\\sqrt", "\\frac"):
            return False
        return text in FACTORS

    def _with_word(self, left: Part, token: Token, spaced: bool, back: int) -> Part | None:
        """A word after a number: a unit is left for `_tail`; a variable or a constant makes it a formula."""
        word = token.text
        symbol = (
            word in FUNCTIONS
            or (not spaced and any(c.isdigit() for c in word))
            or (len(word) <= 2 and word not in UNITS and (not spaced or self.inside) and word not in ("of", "to", "is"))
        )
        if spaced and not self.inside and word in FUNCTIONS and word not in ("pi", "sqrt"):
            symbol = False
        if len(word) in (3, 4) and not spaced and self.inside and word not in UNITS:  # 2xyz
            symbol = symbol or list(word) == sorted(word) or not set(word.lower()) & set("aeiou")
        money = self.tokens[back - 2].text == "$" and back > 1
        if not symbol or (word in SHORT_SCALES and not spaced and not self.inside and not money):
            self.at = back
            return None
        self.at += 1
        return Part(None, SYMBOLIC, atoms=left.atoms)

    def _product_with(self, left: Part, back: int) -> Part | None:
        try:
            right = self._power()
        except _Unread:
            self.at = back
            return None
        value = left.value * right.value if left.value is not None and right.value is not None else None
        product = joined(left, right, value)
        after_command = self.tokens[back].text.startswith("\\")
        return replace(product, open=left.open or right.open) if after_command else product

    def _short_scale(self, part: Part) -> Part:
        """`$5k`, `$1.5M`: only after a currency sign, and not in a formula such as `$5k$` or `$5k + 1$`."""
        token = self.tokens[self.at]
        if token.kind == "word" and token.text in SHORT_SCALES and part.value is not None:
            after = [t.text for t in self.tokens[self.at + 1 : self.at + 3] if t.kind != "space"]
            if after[:1] and after[0] in ("$", "^", "_", "(", "=", "+", "-", "*", "/", "<", ">"):
                return part
            self.at += 1
            return replace(part, value=part.value * SHORT_SCALES[token.text], whole=False)
        return part

    def _scaled(self, part: Part) -> Part:
        """`1.5 million`."""
        back = self.at
        while part.value is not None and not part.open and not part.percent:
            self._spaces()
            word = self.tokens[self.at].text.lower()
            if self.tokens[self.at].kind != "word" or word not in SCALES:
                break
            self.at += 1
            back = self.at
            part = replace(part, value=part.value * SCALES[word])
        self.at = back
        return part

    def _tail(self) -> None:
        """Take the unit: `cm^2`, `m/s^2`, a degree sign; in prose a word only if it has an exponent or a slash."""
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
            if token.kind != "word" or token.text in FUNCTIONS:
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
        rest = [t.text for t in self.tokens[self.at + 1 : self.at + 5] if t.kind != "space"]
        if self.tokens[self.at].text in UNITS and rest[1:2] == ["^"] and rest[0] in UNITS:  # km h^{-1}
            return True
        return rest[:1] == ["^"] or (rest[:1] == ["/"] and self.tokens[self.at].text not in ("and", "or"))

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

    def _next(self, at: int) -> Token:
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
