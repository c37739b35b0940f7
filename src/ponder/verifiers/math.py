"""Mathematical equivalence, by `math-verify` in processes that can be killed."""

from __future__ import annotations

import functools
import importlib.util
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ponder.errors import MissingExtra, PonderError, UserError
from ponder.types import Verdict, VerdictKind
from ponder.verifiers.base import clip, too_long, verdict
from ponder.verifiers.extract import LISTING, UNFINISHED, Number, clean, final_number, final_piece, last_line
from ponder.verifiers.processes import Result, shared

_EQUAL = "ponder.verifiers._math_worker:equal"
_TAIL = 2_000
"""Characters from the end of an answer without a marker that math-verify searches."""
_LOOSE = re.compile(r"\\left|\\right|\\[,;!: ]|[\s$]|\.$")
_WHOLE_NUMBER = re.compile(r"[-+]?[0-9][0-9,]*|[-+]?[0-9]{1,30}/[0-9]{1,30}")
_ONE_NUMBER = re.compile(r"[-+]?(?:(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]+)?|\.[0-9]+|[0-9]{1,30}/[0-9]{1,30})")
_KINDS = {"timeout": VerdictKind.TIMEOUT, "memory": VerdictKind.MEMORY, "error": VerdictKind.ERROR}


@dataclass(frozen=True)
class Math:
    """The final answer is mathematically equal to the gold (LaTeX or plain), by math-verify.

    Equal texts and equal whole numbers or fractions are decided at once; everything else in a worker process that is
    killed when it overruns. Where the answer is found is said in `verifiers.extract`; without a marker math-verify
    looks for the last formula. If the gold can be judged in the same limits and the answer cannot, the fault is the
    answer's (`timeout`, `memory`, `error`); if the gold cannot, it is a `judge_error`.
    """

    seconds: float = 5.0
    """Longest that one comparison may take, in seconds of processor time from when it starts."""
    memory_mb: int = 1024
    """Most memory of a worker process, in MiB."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 600 or not 256 <= self.memory_mb <= 1 << 20:
            raise UserError("seconds must be above 0 and at most 600, memory_mb at least 256")
        if importlib.util.find_spec("math_verify") is None:
            raise MissingExtra("the verifier 'math'", "math")

    def __call__(self, gold: Any, answer: str) -> Verdict:
        """Raises `UserError` if the gold is empty."""
        self.check_gold(gold)
        wanted = str(gold).strip()
        long = too_long(answer)
        if long is not None:
            return long
        answer = answer.encode("utf-8", "replace").decode("utf-8").replace("\x00", " ").strip()
        piece = final_piece(answer)
        given = answer if piece is None else piece.text
        if not any(c.isalnum() for c in given):
            where = "the answer" if piece is None else "what the answer's marker names"
            return verdict(VerdictKind.NO_ANSWER, f"{where} holds no letter and no digit")
        if _is_list(given) and not _is_list(wanted):
            return verdict(VerdictKind.NO_ANSWER, LISTING)
        if piece is None and _number(wanted) is not None and final_number(given) == UNFINISHED:
            return verdict(VerdictKind.NO_ANSWER, UNFINISHED)  # math-verify would read only its last number
        quick = _compare(wanted, given)
        if quick is not None:
            return _judged(quick, given, wanted)
        marked = piece is not None
        return self._in_worker(wanted, given if marked else given[-_TAIL:], marked)

    def check_gold(self, gold: Any) -> None:
        """Raises `UserError` if the gold is empty; whether math-verify can read it shows when it is judged."""
        if not str(gold).strip():
            raise UserError("the gold is empty")

    slow = True
    """Comparing waits for a worker process."""

    def read(self, answer: str) -> str | None:
        """What the answer's marker names, or its last line; None if that holds nothing mathematical.

        A number in one spelling for equal numbers.
        """
        if too_long(answer) is not None:
            return None
        answer = answer.encode("utf-8", "replace").decode("utf-8").replace("\x00", " ").strip()
        piece = final_piece(answer)
        given = last_line(answer) if piece is None else piece.text
        if not any(c.isalnum() for c in given) or _is_list(given):
            return None
        if piece is None and final_number(given) == UNFINISHED:
            return None
        number = _number(given)
        return clip(given, 300) if number is None else str(number)

    def same(self, a: str, b: str) -> bool:
        """Whether two answers that `read` gave are mathematically equal; False if that cannot be decided in time."""
        quick = _compare(a, b)
        return self._in_worker(a, b, False).correct if quick is None else quick

    def _in_worker(self, gold: str, given: str, marked: bool) -> Verdict:
        try:
            result = self._call(gold, given, marked)
            if result.kind != "ok":
                fault = _gold_fault(self, gold)
                if fault:
                    return verdict(VerdictKind.JUDGE_ERROR, f"the gold {gold!r} cannot be judged: {fault}")
                return verdict(_KINDS[result.kind], f"comparing {given[:80]!r}: {result.reason}")
        except PonderError as error:
            return verdict(VerdictKind.JUDGE_ERROR, str(error))
        if result.value == "unread":
            return verdict(VerdictKind.NO_ANSWER, "the answer holds nothing mathematical")
        return _judged(result.value == "correct", given, gold)

    def _call(self, gold: str, given: str, marked: bool) -> Result:
        return shared(self.memory_mb << 20).call(_EQUAL, [gold, given, marked], self.seconds)


@functools.lru_cache(maxsize=4096)
def _gold_fault(verifier: Math, gold: str) -> str:
    """Why the gold cannot be compared with itself and with a simple number; empty if it can."""
    same, other = verifier._call(gold, gold, True), verifier._call(gold, "1", True)
    for result in (same, other):
        if result.kind != "ok":
            return result.reason
    return "" if same.value == "correct" else "math-verify does not find it equal to itself"


def _judged(correct: bool, given: str, gold: str) -> Verdict:
    short = given if len(given) <= 80 else "…" + given[-80:]
    if correct:
        return verdict(VerdictKind.CORRECT, f"{short} is right", _canonical(given))
    return verdict(VerdictKind.WRONG, f"{short} is not {gold}", _canonical(given))


def _canonical(text: str) -> str:
    """A spelling for votes: equal texts and equal numbers have the same."""
    number = _number(text)
    return _loose(text) if number is None else str(number)


def _is_list(text: str) -> bool:
    return final_number(text) == LISTING


def _loose(text: str) -> str:
    return _LOOSE.sub("", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))


def _compare(gold: str, given: str) -> bool | None:
    """Decide without a process: True for the same text or number, False for different whole numbers or fractions."""
    if _loose(gold) == _loose(given):
        return True
    wanted, number = _number(gold), _number(given)
    if wanted is None or number is None:
        return None
    if wanted == number:
        return True
    return False if all(_WHOLE_NUMBER.fullmatch(_loose(clean(t))) for t in (gold, given)) else None


def _number(text: str) -> Fraction | None:
    """The number that a text is, if it is nothing else (no unit, no percent sign, no list)."""
    text = _loose(clean(text))
    if len(text) > 200 or not _ONE_NUMBER.fullmatch(text):
        return None
    number = final_number(text)
    return number.value if isinstance(number, Number) else None
