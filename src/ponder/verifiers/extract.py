"""Finding the final answer in the text after the thought.

The rules, the same for every verifier:

1. A *marker* names the answer: `\\boxed{…}`, `#### …`, `<answer>…</answer>`, or a sentence such as `The answer is …` or
   `Answer: …`. Of several markers the last one counts, but boxes with only commas between them are one list. A sentence
   or `####` inside a box is part of what the box names. A sentence that denies (`The answer is not …`) is no marker.
2. A last line that is nothing but a number or a formula counts as a later answer than any marker before it. The line
   in which a box or a tag ends is not one, nor is that in which the formula around it ends: what follows there
   (`$\\boxed{5}$ cm`) goes with the answer.
3. Without a marker: for numbers the last number of the text, for other answers its last line.
4. A number that is only part of a list of numbers, or an operand of an expression whose value is not given, is no
   answer. Neither is a number that is denied (`not 18`), nor digits inside a word (`x18`).
5. A text that runs on into a new question, as base models do, ends there: what follows a line such as `Question: …`,
   `### Problem 2` or `Human: …` is left out if an answer stands before it, and what follows the marker of an ended turn
   (`<|im_end|>`, `</s>`) always.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from ponder.verifiers.grammar import Quantity
from ponder.verifiers.notation import formula, plain
from ponder.verifiers.parts import SEVERAL, SYMBOLIC
from ponder.verifiers.quantity import negated, refuted, scan

LISTED = 5
"""This many numbers in a row, with only commas or spaces between them, are a list and not an answer."""
_LOOSELY_LISTED = 30
"""This many numbers with only a few characters, and no `=`, between them are a list too."""
LISTING = "the answer lists numbers instead of giving one"
DENIED = "the answer only says what it is not"

_MARKER = re.compile(
    r"(?P<box>\\(?:boxed|fbox)\s{0,3}\{)|(?P<hash>####)|(?P<tag><answer>)"
    r"|(?P<bare>\\f?boxed\s{0,3}(?=[-+]?\s?(?:\.?[0-9]|\\[A-Za-z{]|[A-Za-z](?![A-Za-z])|\([^\s)])))"
    r"|(?P<said>\b(?:answers?|ans)\b[^\n.:=]{0,60}?(?:\b(?:is|are)\b:?|:|=))(?!\s{0,3}(?:not|never)\b)",
    re.IGNORECASE,
)
_TAG_ENDS = re.compile("</answer>", re.IGNORECASE)
_CLOSES = re.compile(r"\\[\])]|\$\$(?!.*\$\$)")
"""A line that begins with the end of a formula from the lines before."""
_BOLD = re.compile(
    r"(?<![\w)*])(?:\*\*(?=[^\s*])([^\n]{1,500}?)(?<=[^\s*])\*\*|\*(?=[^\s*])([^*\n]{1,500}?)(?<=[^\s*])\*)(?![\w(*])"
)
_FENCE = re.compile(r"^[ \t]*```\w{0,20}[ \t]*$", re.MULTILINE)
_UNDERSCORED = re.compile(r"(?<!\w)__([^_\n]{1,500})__(?!\w)")
REASON = re.compile(r",?\s+(?:because|since|as|which|given|where)\b|\s+\(|;")
_HEDGE = re.compile(
    r"[\s$,(.;]*\b(?:or|and/or|maybe|perhaps|possibly|alternatively|it (?:may|might|could) be)\b[\s$,]*"
    r"(?:(?:maybe|perhaps|possibly|it is|it's|(?:it )?(?:may|might|could) be)\b[\s$]*)?",
    re.IGNORECASE,
)
_RANGE = re.compile(r"[\s$,]*(?:,|\b(?:and|to|through)\b)[\s$]*", re.IGNORECASE)
_BETWEEN = re.compile(r"\b(?:between|either|both)[\s$]*$", re.IGNORECASE)
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|ne)\b|!=")
_BETWEEN_BOXES = re.compile(r"(?:[\s$,;&]|\\[()\[\],;! ]|\\q?quad|\\text\s?\{\s*(?:and|or)\s*\}|\band\b|\bor\b)*")
_NEW_QUESTION = re.compile(
    r"^[ \t]*(?:[#*>\[]{1,4}[ \t]*)?(?:(?:next|new|another|user|follow-?up|bonus|extra|second|similar)[ \t]+)?(?:"
    r"(?:question|problem|exercise|task|prompt|q|human|user|instructions?|input|example(?=[ \t]*[0-9]))"
    r"[ \t]?(?:[#(]?[0-9]{1,4}\)?|statement)?[ \t]*[*\]]{0,2}:"
    r"|(?:question|problem|exercise|example|q)[ \t]?#?[0-9]{1,4}[ \t]*[*\]]{0,2}(?:[.)](?=[\s*])|[ \t]*$)"
    r"|(?:question|problem|exercise)(?:\]|[ \t]*$)|(?:user|human|assistant)[ \t]*$|<(?:question|problem)>"
    r"|(?<=[#*][ \t])(?:question|problem|exercise|instruction|input)[ \t*]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_TURN = (
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|eom_id|begin_of_text|end_of_text|start_header_id|user|human|assistant"
    r"|system|end.of.sentence|begin.of.sentence)\|>|<(?:start|end)_of_turn>|<[be]os>|\[/?INST\]|</s>(?=\s*(?:\Z|<|\[))"
)
_USER = re.compile(r"\[INST\]|<\|(?:user|human|system)\|>", re.IGNORECASE)
_USER_NAME = re.compile(r"(?:user|human|system)\b", re.IGNORECASE)
_REPLY = re.compile(
    r"\[/INST\]|<\|assistant\|>|<\|im_start\|>\s*assistant\b|<start_of_turn>\s*model\b"
    r"|assistant\s*<\|end_header_id\|>",
    re.IGNORECASE,
)
_TURN_ENDS = re.compile(_TURN, re.IGNORECASE)
_TURN_BEGINS = re.compile(rf"\s*(?:(?:{_TURN}|<\|end_header_id\|>|<s>)\s*(?:assistant\b|model\b)?\s*)+", re.IGNORECASE)
_BARE_ENDS = re.compile(r"\$|\n|\\[)\]]|\\f?boxed|[.;](?:\s|\Z)")
"""Where a box without braces ends: `$\\boxed 5$`."""
_LINE = 1_000
_SENTENCE = re.compile(r"\n|[.!?] ")
_BULLETED = re.compile(r"^[ \t]*- ", re.MULTILINE)
_WIDE = 8
"""More characters than this between two numbers end a list."""
_NEAR = 240
"""Characters from the end of an answer without a marker that are enough where they hold more than one number."""
_GAP = " \t\n\r,;|"
_TAIL = 1_500
"""Characters from the end of an answer without a marker that are read first."""


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
    """`notation.plain` without Markdown's marks of bold text and code, up to where a new question begins (rule 5)."""
    text = plain(text)
    text = _FENCE.sub("", text) if "```" in text else text
    text = _BOLD.sub(lambda m: m[1] or m[2], text) if "*" in text else text
    text = _UNDERSCORED.sub(r"\1", text) if "__" in text else text
    return first_exchange(text)


def first_exchange(text: str) -> str:
    """A text up to where it runs on into a new question.

    All of it where the first such line has no answer before it: then the text itself is laid out in questions.
    """
    if "<" in text or "[" in text:
        text = _first_turn(text)
    found = _NEW_QUESTION.search(text)
    if found is None or not text[: found.start()].strip():
        return text
    before = text[: found.start()]
    piece = final_piece(before)
    return before if (piece is not None and piece.text) or _is_bare(last_line(before)) else text


def _first_turn(text: str) -> str:
    """The model's first turn, without markers; where the text begins by repeating a user's turn, the one after it."""
    begun = _TURN_BEGINS.match(text)
    rest = text if begun is None else text[begun.end() :]
    if begun is not None and (_USER.search(begun[0]) or _USER_NAME.match(rest)):
        replied = _REPLY.search(rest)
        if replied is None:
            return text
        rest = rest[replied.end() :]
    ended = _TURN_ENDS.search(rest)
    return rest if ended is None else rest[: ended.start()]


def final_piece(text: str) -> Piece | None:
    """The part that rules 1 and 2 choose; None if there is no marker."""
    markers = list(_MARKER.finditer(text))
    if not markers:
        return None
    last = _outermost(text, markers)
    piece, end = _after(text, last)
    if last.lastgroup in ("box", "bare"):
        piece = _row_of_boxes(text, markers, last, piece)
    later = text[end:].rstrip().partition("\n")[2]
    line = later.rpartition("\n")[2].strip()
    if _is_bare(line) and not _CLOSES.match(line):
        return Piece(line, False)
    return Piece(piece, last.lastgroup != "said")


def _row_of_boxes(text: str, markers: list[re.Match[str]], last: re.Match[str], piece: str) -> str:
    """What the boxes before hold too, if they stand in a row with the last one: `\\boxed{3}, \\boxed{5}`."""
    pieces, start = [piece], last.start()
    for marker in reversed(markers[: markers.index(last)]):
        if marker.lastgroup not in ("box", "bare"):
            continue
        before, end = _after(text, marker)
        if (
            end > start
            or start - end > 40
            or not _BETWEEN_BOXES.fullmatch(text[end:start])
            or "\n\n" in text[end:start]
        ):
            break
        pieces.append(before)
        start = marker.start()
    if len(set(pieces)) == 1 or "" in pieces:
        return piece
    return ", ".join(reversed(pieces))


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
    if marker.lastgroup == "bare":
        piece = _BARE_ENDS.split(text[start : start + _LINE], maxsplit=1)[0]
        return piece.strip().removesuffix("."), start + len(piece)
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
    if not any(c.isalnum() for c in words) or re.search(r"[A-Za-z]{3}", words):
        return False
    # `It is so.` has no long word either, and is no formula.
    return len(words.split()) == 1 or re.search(r"[^A-Za-z\s.,;:!?'\"]", line) is not None


def last_line(text: str) -> str:
    """The last line that is not blank."""
    return text.rstrip().rpartition("\n")[2].strip()


def final_number(text: str) -> Number | str:
    """The number that an answer gives, or the reason why it gives none."""
    text = clean(text)
    piece = final_piece(text)
    if piece is not None and not piece.text:
        return "nothing follows the answer's marker"
    marked = piece is not None and piece.marked
    if piece is None:
        where, found = _near(text[-_TAIL:])
        if not found and len(text) > _TAIL:
            where = formula(text)
            found = scan(where)
    else:
        said = "" if marked else REASON.split(piece.text, maxsplit=1)[0]
        where = formula(said if any(map(str.isdigit, said)) else piece.text)
        if marked:
            where = re.split(r"=|\\approx", where)[-1]
            if _INEQUALITY.search(where):
                return SYMBOLIC
        found = scan(where, marked)
    if not found:
        return "the answer holds no number"
    if _is_listed(where, found):
        return LISTING
    found = [q for q in found[-_TAIL:] if not negated(where, q.start) and not refuted(where, q.end)]
    if not found:
        return DENIED
    last = found[-1]
    if last.value is None or last.reason:
        return last.reason
    if len(found) > 1 and found[-2].value != last.value and _is_hedged(where, found[-2], last, piece is not None):
        return "the answer names several numbers"
    if marked and len({(q.value, q.percent) for q in found}) > 1:
        return "the marked answer holds several numbers"
    text = last.text.strip("{}") if last.text.startswith("{") else last.text
    return Number(last.value, text, last.percent)


def _near(text: str) -> tuple[str, list[Quantity]]:
    """A text as a formula, and its expressions; of its last sentences alone where they show what all of it would."""
    begins = _SENTENCE.search(text, max(0, len(text) - _NEAR))
    if len(text) > _NEAR and begins is not None and not _BULLETED.search(text):
        where = formula(text[begins.end() :])
        found = scan(where)
        gaps = [where[a.end : b.start] for a, b in pairwise(found)]
        # A wide gap ends a list, so that what stands before it cannot matter.
        ends = any(len(g) > _WIDE or "=" in g for g in gaps)
        if ends and not negated(where, found[-1].start) and not refuted(where, found[-1].end):
            return where, found
    where = formula(text)
    return where, scan(where)


def _is_hedged(text: str, earlier: Quantity, last: Quantity, said: bool) -> bool:
    """Whether the last two numbers are alternatives: `3 or 4`, `between 3 and 4`; after a marker `3 to 4` too."""
    gap = text[earlier.end : last.start]
    if len(gap) > 30:
        return False
    if _RANGE.fullmatch(gap) is not None:
        return said or _BETWEEN.search(text[max(0, earlier.start - 12) : earlier.start]) is not None
    return _HEDGE.fullmatch(gap) is not None


def only_number(text: str) -> Number | None:
    """The number of a text that holds exactly one, as a gold does; a marker may name it. None for any other text."""
    text = clean(text)
    piece = final_piece(text)
    found = scan(formula(text if piece is None else piece.text).rpartition("=")[2], True)
    if len(found) != 1 or found[0].value is None or found[0].reason:
        return None
    return Number(found[0].value, found[0].text, found[0].percent)


def _is_listed(text: str, found: list[Quantity]) -> bool:
    tight, row = True, 1
    if found[-1].atoms >= LISTED and found[-1].reason == SEVERAL:
        return True
    for earlier, later in zip(found[-2::-1], found[:0:-1], strict=True):
        gap = text[earlier.end : later.start]
        tight = tight and not gap.strip(_GAP)
        if len(gap) > _WIDE or "=" in gap:
            return False
        row += 1
        if (tight and row >= LISTED) or row >= _LOOSELY_LISTED:
            return True
    return False
