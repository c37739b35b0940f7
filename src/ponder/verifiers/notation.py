"""One spelling for what is written in many ways: dashes, spaces, digits and quotes of Unicode, and LaTeX.

`plain` changes characters only and suits any text. `formula` also brings mathematics to one LaTeX spelling, so that
`√17`, `sqrt(17)` and `\\sqrt{17}` are one text, and so are `½`, `\\dfrac12` and `\\frac{1}{2}`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2796\u02d7\ufe58\ufe63\uff0d\u2043\u207b\u208b"
_QUOTES = {"\u2018": "'", "\u2019": "'", "\u201b": "'", "\u02bc": "'", "\u2032": "'", "\u00b4": "'"}
_DOUBLE = dict.fromkeys("\u201c\u201d\u201f\u00ab\u00bb\u2033", '"')
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-", strict=True))
_SYMBOLS = {
    "×": "\\times ",
    "✕": "\\times ",
    "✖": "\\times ",
    "⋅": "\\cdot ",
    "·": "\\cdot ",
    "∙": "\\cdot ",
    "∗": "*",
    "÷": "\\div ",
    "∕": "/",
    "⁄": "/",
    "π": "\\pi ",
    "𝜋": "\\pi ",
    "θ": "\\theta ",
    "α": "\\alpha ",
    "β": "\\beta ",
    "γ": "\\gamma ",
    "λ": "\\lambda ",
    "φ": "\\phi ",
    "ω": "\\omega ",
    "∞": "\\infty ",
    "≤": "\\le ",
    "⩽": "\\le ",
    "≥": "\\ge ",
    "⩾": "\\ge ",
    "≠": "\\ne ",
    "≈": "\\approx ",
    "±": "\\pm ",
    "∓": "\\mp ",
    "∪": "\\cup ",
    "∩": "\\cap ",
    "∈": "\\in ",
    "∅": "\\emptyset ",
    "ℝ": "\\mathbb{R}",
    "°": "^\\circ ",
    "º": "^\\circ ",
    "…": "\\ldots ",
    "⋯": "\\ldots ",
    "∛": "\\sqrt[3]",
    "∜": "\\sqrt[4]",
    "√": "\\sqrt",
    "⌊": "\\lfloor ",
    "⌋": "\\rfloor ",
    "⌈": "\\lceil ",
    "⌉": "\\rceil ",
}
_SCRIPTS = re.compile(f"[{re.escape(''.join(_SUPERSCRIPTS))}]+|[{re.escape(''.join(_SUBSCRIPTS))}]+")

_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|operatorname)\s?"
    r"\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_LATEX = {
    "{,}": ",",
    "\\!": "",
    "\\,": " ",
    "\\;": " ",
    "\\:": " ",
    "\\ ": " ",
    "\\>": " ",
    "~": " ",
    "\\$": "$",
    "\\%": "%",
    "\\#": "#",
    "\\&": "&",
    "\\dots": "\\ldots",
    "\\cdots": "\\ldots",
    "\\leq": "\\le",
    "\\leqslant": "\\le",
    "\\geq": "\\ge",
    "\\geqslant": "\\ge",
    "\\neq": "\\ne",
    "\\lt": "<",
    "\\gt": ">",
    "\\dfrac": "\\frac",
    "\\tfrac": "\\frac",
    "\\cfrac": "\\frac",
    "\\nicefrac": "\\frac",
    "\\sfrac": "\\frac",
    "\\dbinom": "\\binom",
    "\\tbinom": "\\binom",
    "\\quad": " ",
    "\\qquad": " ",
    "\\degree": "^\\circ",
    "\\ast": "*",
    "\\colon": ":",
    "\\lbrace": "\\{",
    "\\rbrace": "\\}",
    "\\lbrack": "[",
    "\\rbrack": "]",
    "\\varnothing": "\\emptyset",
    "\\land": " and ",
    "\\lor": " or ",
    "\\left.": "",
    "\\right.": "",
}
_NOTHING = ("left", "right", "bigl", "bigr", "Bigl", "Bigr", "big", "Big", "bigg", "Bigg", "displaystyle", "textstyle",
            "limits", "nolimits", "rm", "bf", "mathrm", "mathbf", "boldsymbol", "scriptstyle", "small", "large",
            "Large", "LARGE", "huge", "Huge", "normalsize", "notag", "nonumber")  # fmt: skip
_COMMAND = re.compile(r"\\\\|\{,\}|\\(?:left|right)\.(?![0-9])|\\[A-Za-z]+|\\[!,;: >$%#&]|~")
_STRUCK = re.compile(r"\\(?:[bx]?cancel|sout|[hv]?phantom)\s?\{[^{}]*\}")
"""What is crossed out or not to be seen."""
_ROW_GAP = re.compile(r"\\\\ ?\[-?[0-9.]{1,6} ?(?:pt|em|ex|mm|cm|in)\]")
"""Space between rows of a matrix: `\\\\[4pt]`."""
_TIMES = re.compile(r"(?<=[0-9)}]) ?[xX] ?(?=10 ?(?:\^|\*\*))|(?<=[0-9]) [xX] (?=[0-9])")
_SIGNS = re.compile(r"\b(?:negative|minus) (?=[$\\]?\.?[0-9])", re.IGNORECASE)
_BASED = re.compile(r"\(([0-9A-F]+)\)(?=_)")
_NAMES = re.compile(r"(?<![A-Za-z\\])(pi|infty|theta)(?![A-Za-z])")
_ROOT = re.compile(r"(?<![A-Za-z\\])(sqrt|cbrt)(?= ?\()")
_BARE_ROOT = re.compile(r"(\\sqrt(?: ?\[[0-9]{1,3}\])?) ?(?:([0-9]+(?:\.[0-9]+)?)|(\\[A-Za-z]+|[A-Za-z]))")
_ONE = r"[0-9A-Za-z]|\\(?:pi|theta|alpha|beta|phi|omega|lambda)(?![A-Za-z])"
"""What `\\frac` takes without braces."""
_DEEP = 50
"""Roots written with parentheses inside one another are rewritten this many times at most."""


def plain(text: str) -> str:
    """Characters that mean the same in one form: composed letters, ASCII digits, `-`, quotes and spaces.

    Invisible characters are dropped. Lone surrogates and NUL become ordinary characters.
    """
    if text.isascii():
        return text.replace("\x00", " ")
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8").replace("\x00", " "))
    return "".join([c if c < "\x7f" else _plain_character(c) for c in text])


@lru_cache(maxsize=65_536)
def _plain_character(c: str) -> str:
    if c in _DASHES and c not in _SUPERSCRIPTS and c not in _SUBSCRIPTS:
        return "-"
    if c in _QUOTES or c in _DOUBLE:
        return _QUOTES.get(c) or _DOUBLE[c]
    kind = unicodedata.category(c)
    if kind == "Nd":
        return str(unicodedata.decimal(c))
    if kind == "Zs":
        return " "
    if kind in ("Zl", "Zp"):
        return "\n"
    if kind == "Cf":
        return ""
    if "\uff01" <= c <= "\uff5e" or "\U0001d400" <= c <= "\U0001d7cb":  # full width; mathematical letters
        return unicodedata.normalize("NFKC", c)
    return c


def formula(text: str) -> str:
    """Mathematics in one LaTeX spelling, after `plain`. The result need not be valid LaTeX where the text was not."""
    text = plain(text)
    if not text.isascii():
        text = _SCRIPTS.sub(_script, text)
        text = "".join([c if c < "\x7f" else _symbol(c) for c in text])
    if "\\" in text or "{,}" in text or "~" in text:
        text = unwrapped(_STRUCK.sub("", text))
        text = _COMMAND.sub(_command, text)
        text = _ROW_GAP.sub(r"\\\\", text)
    text = text.replace("**", "^") if "**" in text else text
    if "x" in text or "X" in text:
        text = _TIMES.sub(r"\\times ", text)
    text = _SIGNS.sub("-", text)
    if ")_" in text:
        text = _BASED.sub(r"\1", text)
    text = _NAMES.sub(r"\\\1", text)
    if "sqrt" in text or "cbrt" in text:
        text = _roots(text)
    if "\\frac" in text:
        text = _fractions(text)
    return text


def _script(match: re.Match[str]) -> str:
    mark, table = ("^", _SUPERSCRIPTS) if match[0][0] in _SUPERSCRIPTS else ("_", _SUBSCRIPTS)
    return f"{mark}{{{''.join(table[c] for c in match[0])}}}"


@lru_cache(maxsize=65_536)
def _symbol(c: str) -> str:
    if c in _SYMBOLS:
        return _SYMBOLS[c]
    if unicodedata.category(c) == "No":  # ½
        top, _, bottom = unicodedata.normalize("NFKC", c).partition("\u2044")
        if bottom.isascii() and bottom.isdigit() and top.isascii() and top.isdigit():
            return f"\\frac{{{top}}}{{{bottom}}}"
    return c


def _command(match: re.Match[str]) -> str:
    name = match[0]
    if name[1:] in _NOTHING:
        return ""
    return _LATEX.get(name, name)


def unwrapped(text: str) -> str:
    """`\\text{ft}` and its like give what they hold."""
    for _ in range(4):  # one inside the other
        text, changed = _WRAPPER.subn(_content, text)
        if not changed:
            break
    return text


def _content(match: re.Match[str]) -> str:
    inside = match[1]
    before = match.string[match.start() - 1 : match.start()]
    # A word must not run into the one before it, nor into a command.
    return f" {inside}" if before.isalnum() and inside[:1].isalpha() and len(inside) > 1 else inside


def _roots(text: str) -> str:
    """`sqrt(17)`, `\\sqrt(17)` and `\\sqrt17` as `\\sqrt{17}`."""
    text = _ROOT.sub(lambda m: "\\sqrt" if m[1] == "sqrt" else "\\sqrt[3]", text)
    for _ in range(_DEEP):
        opened = re.search(r"\\sqrt(?: ?\[[0-9]{1,3}\])? ?\(", text)
        if opened is None:
            break
        start = opened.end()
        end = closing(text, start, "(", ")")
        if end < 0:
            break
        head = text[: opened.start()] + opened[0][:-1].rstrip()
        text = f"{head}{{{text[start:end]}}}{text[end + 1 :]}"
    return _BARE_ROOT.sub(lambda m: f"{m[1]}{{{m[2] or m[3]}}}", text)


def closing(text: str, start: int, opens: str, closes: str) -> int:
    """Where what was opened before `start` closes; -1 if it does not."""
    depth = 1
    for match in re.finditer(f"[{re.escape(opens + closes)}]", text[start:]):
        depth += 1 if match[0] == opens else -1
        if depth == 0:
            return start + match.start()
    return -1


def _fractions(text: str) -> str:
    """`\\frac12`, `\\frac{1}2` and `\\frac1{2}` as `\\frac{1}{2}`."""
    text = re.sub(rf"\\frac ?({_ONE}) ?({_ONE})", r"\\frac{\1}{\2}", text)
    text = re.sub(rf"\\frac ?({_ONE}) ?(?=[{{\\])", r"\\frac{\1}", text)
    return re.sub(r"(\\frac ?\{[^{}]*\}) ?([0-9A-Za-z])", r"\1{\2}", text)
