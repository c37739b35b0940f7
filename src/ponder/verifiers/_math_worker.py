"""What `math` does inside a worker process: math-verify, without its own time limits (they need SIGALRM)."""

from __future__ import annotations

import logging
import re
from typing import Any

from math_verify import parse, verify

logging.disable(logging.CRITICAL)
_PROSE = re.compile(r"[A-Za-z]{4}")
_PLAIN_NAMES = re.compile(r"(?<![A-Za-z\\])(pi|infty|theta)(?![A-Za-z])")
_COMMAND = re.compile(r"\\[A-Za-z]+")


def readings(text: str, marked: bool) -> list[Any]:
    """A text as math-verify reads it; in dollar signs where it is a formula and has none."""
    formula = "$" not in text and "\\(" not in text and "\\[" not in text and "\\boxed" not in text
    if formula and (marked or not _PROSE.search(_COMMAND.sub(" ", text))):
        text = text.replace("**", "^")
        text = "$" + _PLAIN_NAMES.sub(r"\\\1", text) + "$"
    return parse(text, parsing_timeout=None)


def equal(gold: str, answer: str, marked: bool) -> str:
    """`correct`, `wrong`, or `unread` for an answer in which there is nothing mathematical.

    Raises `ValueError` if the gold cannot be read.
    """
    golds = readings(gold, True)
    if not golds:
        raise ValueError(f"math-verify cannot read the gold {gold[:60]!r}")
    answers = readings(answer, marked)
    if not answers:
        return "unread"
    # The order matters: the gold comes first (an equation or an interval is simplified on the gold's terms).
    return "correct" if verify(golds, answers, timeout_seconds=None) else "wrong"


readings("$\\frac{1}{2}$", True)  # compile the grammar now, before any time limit runs
