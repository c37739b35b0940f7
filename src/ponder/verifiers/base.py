"""What verifiers share. A verifier is a dataclass with options, called with a gold and an answer's text.

    Numeric(absolute=0.01)(18, "The answer is $18.")  ->  Verdict(correct, 1.0, …)

The text is what follows the thought; truncated and unclosed responses never get here (`environments.base.guarded`).
A gold that cannot be read raises `UserError`, which the environment turns into a `judge_error`. For votes a verifier
may also read an answer without a gold (`read`) and say whether two that it read are `same`: see `verifiers.answers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ponder import outside
from ponder.errors import PartFailed
from ponder.types import Problem, Verdict, VerdictKind

MAX_ANSWER = 100_000
"""Characters; a longer answer is an `output_limit` verdict and is not read."""


_ECHOES = 4
"""A prompt that an answer begins with is stripped this many times at most."""


class Verifier(Protocol):
    """From gold and answer to a verdict."""

    def __call__(self, gold: Any, answer: str) -> Verdict: ...


def verdict(kind: VerdictKind, reason: str, answer: str | None = None, reward: float | None = None) -> Verdict:
    """A verdict with the usual reward of its kind: 1 for correct, None for a judge error, else 0.

    Reason and answer are cut to a readable length and made printable (no lone surrogates, no NUL).
    """
    if reward is None and kind is not VerdictKind.JUDGE_ERROR:
        reward = 1.0 if kind is VerdictKind.CORRECT else 0.0
    return Verdict(kind, reward, clip(reason, 300), None if answer is None else clip(answer, 300))


def clip(text: str, most: int) -> str:
    """Text that can be printed and written to any file, cut to a length."""
    if len(text) > most:
        text = text[: most - 1] + "…"
    if text.isascii() and text.isprintable():
        return text
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "␀")


def shown(gold: Any, most: int = 60) -> str:
    """A gold, cut to a length that fits into a sentence."""
    try:
        return clip(str(gold), most)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "an integer of thousands of digits"


def any_of(verifier: Verifier, golds: Sequence[Any], answer: str) -> Verdict:
    """The verdict on an answer where several golds are right: the best of those with each gold.

    A judge error with one gold counts only if no other gold makes the answer right.
    """
    found: list[Verdict] = []
    for gold in golds:
        found.append(verifier(gold, answer))
        if not isinstance(found[-1], Verdict):
            who, at = outside.whose(verifier, "verifier"), outside.defined(type(verifier).__call__)
            raise PartFailed(f"{who} gave a {type(found[-1]).__name__}, not a Verdict{at}")
        if found[-1].correct:
            return found[-1]
    return next((v for v in found if v.kind is VerdictKind.JUDGE_ERROR), found[0])


def too_long(answer: str) -> Verdict | None:
    """The verdict on an answer that is too long to read; None if it is not."""
    if len(answer) <= MAX_ANSWER:
        return None
    return verdict(VerdictKind.OUTPUT_LIMIT, f"the answer is longer than {MAX_ANSWER} characters")


def answer_text(problem: Problem, answer: str) -> str:
    """An answer stripped, and without the prompt that it may begin with: one that is echoed is no answer.

    Where the prompt holds more than the question (worked examples), the problem's public data may hold the `question`
    by itself.
    """
    answer = answer.strip()
    prompt = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1].content
    for echo in (prompt, problem.public.get("question")):
        for _ in range(_ECHOES):
            if isinstance(echo, str) and echo.strip() and answer.startswith(echo.strip()):
                answer = answer[len(echo.strip()) :].strip()
    return answer
