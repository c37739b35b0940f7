"""Numbers, words, signs and LaTeX commands of a text, and what the words around a number mean."""

from __future__ import annotations

import re
from typing import NamedTuple

_TOKEN = re.compile(
    r"""
    (?P<repeat>[0-9]*\.[0-9]*(?:\\overline\ ?\{[0-9]{1,9}\}|\\dot\ ?\{?[0-9]\}?|\([0-9]{1,9}\)(?![0-9(])))
    |(?P<number>
        (?<![0-9]\ )[0-9]{1,3}(?:\ [0-9]{3}(?![0-9])){1,4}(?:\.[0-9]+)?(?!\ ?[0-9/]|,[0-9]|\.[0-9])   # 1 500 000
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
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SHORT_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "m": 10**6, "mn": 10**6, "B": 10**9, "b": 10**9, "bn": 10**9}
UNITS = frozenset(
    "m g s h t l L W V A J N K C F cm mm km dm in ft yd mi kg mg lb lbs oz ms hr hrs min mins sec secs ml mL dL cl cc "  # noqa: SIM905
    "gal pt qt mph kph kW MW GB MB KB Hz st nd rd th am pm AM PM ° sq cu ha ct pc pcs ea".split()
)
"""Units of one or two letters and the like; a longer word after a number is a unit too, unless it is a function."""
FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "ln",
        "exp",
        "sqrt",
        "pi",
        "mod",
        "div",
        "arcsin",
        "arccos",
        "arctan",
        "sinh",
        "cosh",
        "lim",
    ]
)
PLAIN_FUNCTIONS = frozenset(("sin", "cos", "tan", "cot", "ln", "arcsin", "arccos", "arctan"))
"""Functions that are no words of prose, as `log` and `sec` are."""
FACTORS = frozenset(
    "\\pi \\theta \\alpha \\beta \\gamma \\lambda \\phi \\omega \\infty \\sin \\cos \\tan \\cot \\sec \\csc \\log \\ln "  # noqa: SIM905
    "\\exp "
    "\\binom \\overline \\mathbb \\mathbf \\vec \\hat \\bar \\lfloor \\lceil".split()
)
"""Commands that make a product with the number before them."""
RELATIONS = frozenset(
    {"=", "<", ">", "\\approx", "\\le", "\\ge", "\\to", "\\implies", "\\equiv", "\\in", "\\Rightarrow"}
)
DIVIDES = frozenset({"/", "\\div"})


class Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


def tokens(text: str) -> list[Token]:
    """All of a text, in order, with an empty token of the kind `end` behind it."""
    found = [Token(m.lastgroup or "", m[0], m.start(), m.end()) for m in _TOKEN.finditer(text)]
    return [*found, Token("end", "", len(text), len(text))]
