"""Reading numbers and the arithmetic around them exactly, in prose and in formulas.

`scan` finds every expression of a text that holds a digit: `12 + 34`, `\\frac{3}{4}`, `1 1/2`, `3 \\times 10^2`, `-5`,
`18 cm^2`. Each has an exact value, or says why it has none: `5x`, `5\\pi` and `\\sqrt{18}` are no rational numbers,
`x18` and `H2O` are words. A digit inside a word is never read as a number. The grammar is in `verifiers.grammar`.
"""

from __future__ import annotations

import re

from ponder.verifiers.grammar import Quantity, Reader

_NEGATIONS = re.compile(
    r"(?:\bnot?\b|n't\b|\bnever\b|\banything but\b|\bexcept\b|\bneither\b|\bnor\b|\bcannot\b|\\ne\b|\\not\b|≠|!=|<>"
    r"|\brather than\b|\binstead of\b)"
    r"(?P<rest>[^.;:\n]{0,40})$",
    re.IGNORECASE,
)
_REFUTED = re.compile(
    r"[\s$*]*(?:(?:is|was|are|would be|can|could)\s+(?:definitely |clearly |certainly |simply |also |just )?"
    r"(?:not\b|never\b|wrong\b|incorrect\b|false\b)|(?:isn't|wasn't|cannot|can't|couldn't)\b"
    r"|(?:does not|doesn't|do not|don't|will not|won't)\s+(?:work|fit|hold|satisfy)\b)",
    re.IGNORECASE,
)
_CONTRAST = re.compile(r"\b(?:but|only|just|rather|instead|less|more|fewer|greater|sure)\b|[=,]", re.IGNORECASE)


def scan(text: str, inside: bool = False) -> list[Quantity]:
    """Every expression that holds a digit, from left to right, in a text that `notation.formula` has spelt.

    `inside` a box or a gold all of the text is a formula: `5!` is 120 there and not five with an exclamation mark.
    """
    reader = Reader(text, inside)
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


def refuted(text: str, end: int) -> bool:
    """Whether what ends at a position is denied by what follows: `18 is not the answer`, `18 is wrong`."""
    return _REFUTED.match(text, end) is not None


def negated(text: str, start: int) -> bool:
    """Whether what stands at a position is denied: `not 18`, `isn't equal to 18`, `\\ne 18`."""
    found = _NEGATIONS.search(text[max(0, start - 60) : start])
    return found is not None and not _CONTRAST.search(found["rest"])
