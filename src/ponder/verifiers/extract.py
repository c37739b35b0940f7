"""Finding the final answer in the text after the thought.

The rules, the same for every verifier:

1. A *marker* names the answer: `\\boxed{…}`, `#### …`, `<answer>…</answer>`, or a sentence such as `The answer is …` or
   `Answer: …`. Of several markers the last one counts; a sentence or `####` inside a box is part of what the box names.
2. A last line that is nothing but a number or a formula counts as a later answer than any marker before it. The line
   in which a box or a tag ends is not one, nor is that in which the formula around it ends: what follows there
   (`$\\boxed{5}$ cm`) goes with the answer.
3. Without a marker: for numbers the last number of the text, for other answers its last line.
4. A number that is only part of a list of numbers, or an operand of an expression whose value is not given, is no
   answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LISTED = 5
"""This many numbers in a row, with only commas or spaces between them, are a list and not an answer."""
_LOOSELY_LISTED = 30
"""This many numbers with only a few characters, and no `=`, between them are a list too."""
MAX_DIGITS = 1_000
LISTING = "the answer lists numbers instead of giving one"
UNFINISHED = "the answer ends with an expression, not with its value"

_MARKER = re.compile(
    r"(?P<box>\\(?:boxed|fbox)\s{0,3}\{)|(?P<hash>####)|(?P<tag><answer>)"
    r"|(?P<said>\banswer\b[^\n.:=]{0,60}?(?:\bis\b:?|:|=))",
    re.IGNORECASE,
)
_TAG_ENDS = re.compile("</answer>", re.IGNORECASE)
_CLOSES = re.compile(r"\\[\])]|\$\$(?!.*\$\$)")
"""A line that begins with the end of a formula from the lines before."""
_BOLD = re.compile(r"(?<![\w)*])(\*{1,2})(?=[^\s*])([^*\n]{1,500}?)(?<=[^\s*])\1(?![\w(*])")
_CLEAN = {"−": "-", "{,}": ",", "\\,": "", "\\!": "", "\\$": "$", "\\%": "%", "\u202f": "", "\u00a0": " "}
_CLEANER = re.compile("|".join(map(re.escape, _CLEAN)))
_NUMBER = re.compile(
    r"(?<![A-Za-z_])(?:"
    r"\\[dt]?frac\s?\{(?P<fn>-?[0-9]{1,30})\}\s?\{(?P<fd>-?[0-9]{1,30})\}"
    r"|(?:(?P<whole>[0-9]{1,30})[ ])?(?P<n>[0-9]{1,30})[ ]?/[ ]?(?P<d>[0-9]{1,30})(?![0-9.])"
    r"|(?P<int>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]++)?(?P<dec>\.[0-9]++)?(?(int)|(?(dec)|(?!)))(?P<exp>[eE][-+]?[0-9]{1,3}(?![0-9]))?"
    r")(?P<pct>\s?(?:%|percent\b))?"
)
_OPERATORS = "*/^×·÷"
_GAP = " \t\n\r,;|"


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of an answer that holds the final answer."""

    text: str
    marked: bool
    """A marker with two ends names it; it must hold one answer and nothing else."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a text."""

    value: Fraction
    text: str
    percent: bool = False


def clean(text: str) -> str:
    """One spelling for minus signs, thin spaces and LaTeX's separators; Markdown's bold marks taken off."""
    text = _CLEANER.sub(lambda m: _CLEAN[m[0]], text)
    return _BOLD.sub(r"\2", text) if "*" in text else text


def final_piece(text: str) -> Piece | None:
    """The part that rules 1 and 2 choose; None if there is no marker."""
    markers = list(_MARKER.finditer(text))
    if not markers:
        return None
    last = _outermost(text, markers)
    piece, end = _after(text, last)
    later = text[end:].rstrip().partition("\n")[2]
    line = later.rpartition("\n")[2].strip()
    if _is_bare(line) and not _CLOSES.match(line):
        return Piece(line, False)
    return Piece(piece, last.lastgroup != "said")


def _outermost(text: str, markers: list[re.Match[str]]) -> re.Match[str]:
    """The last marker, or the box that it is a part of."""
    last = markers[-1]
    if last.lastgroup in ("said", "hash"):
        box = next((m for m in reversed(markers) if m.lastgroup == "box"), last)
        piece, end = _after(text, box)
        if piece and box.start() < last.start() < end:
            return box
    return last


def _after(text: str, marker: re.Match[str]) -> tuple[str, int]:
    """What a marker names, and where that ends."""
    start = marker.end()
    if marker.lastgroup == "box":
        depth = 1
        for brace in re.finditer(r"\\?[{}]", text[start:]):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return text[start : start + brace.start()].strip(), start + brace.end()
        return "", len(text)
    if marker.lastgroup == "tag":
        end = text.lower().find("</answer>", start)
        return (text[start:end].strip(), end + 9) if end >= 0 else ("", len(text))
    piece = text[start:].lstrip(" \t*:") if marker.lastgroup == "said" else text[start:].lstrip(" \t")
    offset = len(text) - len(piece)
    if marker.lastgroup == "said" and piece.startswith(("\n", "\r")):
        piece = piece.lstrip()
        offset = len(text) - len(piece)
    line = _TAG_ENDS.split(piece.split("\n", 1)[0], maxsplit=1)[0]
    return line.strip(" \t\r*").removesuffix("."), offset + len(line)


def _is_bare(line: str) -> bool:
    """True for a line that is a number or a formula and says nothing else."""
    words = re.sub(r"\\[A-Za-z]+", " ", line)
    return any(c.isalnum() for c in words) and not re.search(r"[A-Za-z]{3}", words)


def last_line(text: str) -> str:
    """The last line that is not blank, without Markdown marks and a final full stop."""
    return text.rstrip().rpartition("\n")[2].strip()


def final_number(text: str) -> Number | str:
    """The number that an answer gives, or the reason why it gives none."""
    text = clean(text)
    piece = final_piece(text)
    where = text if piece is None or not piece.text else piece.text
    if piece is not None and not piece.text:
        return "nothing follows the answer's marker"
    if piece is not None and piece.marked and "=" in where:
        where = where.rpartition("=")[2]
    found = list(_NUMBER.finditer(where))
    if not found:
        return "the answer holds no number"
    if _is_listed(where, found):
        return LISTING
    sign, operand = _before(where, found[-1].start())
    if operand:
        return UNFINISHED
    number = _read(found[-1], sign)
    if number is None:
        return "the last number is too long"
    if piece is not None and piece.marked and len({_plain(m[0]) for m in found}) > 1:
        return "the marked answer holds several numbers"
    return number


def _plain(text: str) -> str:
    return text.replace(",", "").strip()


def _is_listed(text: str, found: list[re.Match[str]]) -> bool:
    tight, row = True, 1
    for earlier, later in zip(found[-2::-1], found[:0:-1], strict=True):
        gap = text[earlier.end() : later.start()]
        tight = tight and not gap.strip(_GAP)
        if len(gap) > 8 or "=" in gap:
            return False
        row += 1
        if (tight and row >= LISTED) or row >= _LOOSELY_LISTED:
            return True
    return False


def _before(text: str, start: int) -> tuple[int, bool]:
    """The sign of the number at a position, and whether it is an operand of an expression."""
    head = text[max(0, start - 40) : start].rstrip("$€£¥({ \t") if start else ""
    spaced = start > 0 and text[start - 1] in " \t"
    if not head:
        return 1, False
    if head[-1] in _OPERATORS or head.endswith(("\\times", "\\cdot", "\\div")):
        return 1, True
    if head[-1] not in "+-":
        return 1, False
    sign = -1 if head[-1] == "-" else 1
    before = head[:-1].rstrip(" \t")
    if before and (before[-1].isdigit() or before[-1] in ")]}"):
        return 1, True
    if spaced and (not before or before[-1] not in "=("):
        return 1, False  # a bullet or a dash
    return sign, False


def _read(match: re.Match[str], sign: int) -> Number | None:
    percent = match["pct"] is not None
    text = ("-" if sign < 0 else "") + match[0].strip()
    if match["fd"] or match["d"]:
        top, bottom = int(match["fn"] or match["n"]), int(match["fd"] or match["d"])
        if bottom == 0:
            return None
        return Number(sign * (int(match["whole"] or 0) + Fraction(top, bottom)), text, percent)
    if len(text) > MAX_DIGITS:
        return None
    digits = f"{(match['int'] or '0').replace(',', '')}{match['dec'] or ''}{match['exp'] or ''}"
    return Number(sign * Fraction(digits), text, percent)
