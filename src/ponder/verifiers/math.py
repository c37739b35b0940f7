"""Mathematical equivalence: numbers, lists and text at once, formulas by sympy in processes that can be killed."""

from __future__ import annotations

import functools
import importlib.util
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ponder.errors import MissingExtra, PonderError, UserError
from ponder.types import Verdict, VerdictKind
from ponder.verifiers.base import clip, shown, too_long, verdict
from ponder.verifiers.extract import LISTING, REASON, clean, final_number, final_piece, last_line
from ponder.verifiers.grammar import Quantity
from ponder.verifiers.notation import formula
from ponder.verifiers.parts import SYMBOLIC, UNFINISHED, written
from ponder.verifiers.processes import Result, shared
from ponder.verifiers.quantity import exact, negated, refuted, scan
from ponder.verifiers.structure import matches, read
from ponder.verifiers.units import unit

_EQUAL = "ponder.verifiers._math_worker:equal"
MAX_FORMULA = 5_000
"""Characters; a longer formula is an `output_limit` verdict and is not read."""
_TAIL = 2_000
"""Characters from the end of a text in which a formula is looked for."""
_FORMULA = re.compile(r"\$\$(.{1,999}?)\$\$|\$([^$\n]{1,999}?)\$|\\\((.{1,999}?)\\\)|\\\[(.{1,999}?)\\\]", re.DOTALL)
_JOINS = re.compile(r"[\s,;.:]*(?:\b(?:and|or)\b)?[\s,;.]*")
_SOLUTIONS = re.compile(
    r"\b(?:solutions|roots|zeros|values|numbers|answers)\b[^.:=]{0,60}?\bare:?\s+"
    r"((?:[^\sA-Za-z]{1,30}(?:\s+(?:and|or))?(?:\s+|[.]?\Z)){2,})\Z",
    re.IGNORECASE,
)
"""`The solutions are 1, 2 and 3.`"""
_COMMANDS = re.compile(r"\\text[a-z]{0,2}\s?\{[^{}]*\}|\\(?:begin|end)\s?\{[a-z]+\*?\}|\\[A-Za-z]+")
_LEAD = re.compile(r"\A(?:(?:the |final )*answer(?: is)?:? |\\approx |= ?)(?=\S)", re.IGNORECASE)
_REMARK = re.compile(r"(?<=[0-9}]) \([A-Za-z]{3,}[A-Za-z ]*\)\Z")
"""`5 (five)`."""
_WORDS = re.compile(r"[A-Za-z][A-Za-z'-]*(?: [A-Za-z][A-Za-z'-]*)*")
_NAMES = frozenset(("sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt"))
_KINDS = {"timeout": VerdictKind.TIMEOUT, "memory": VerdictKind.MEMORY, "error": VerdictKind.ERROR}


class _Undecided(Exception):
    """Only sympy can tell."""


@dataclass(frozen=True)
class Math:
    """The final answer is mathematically equal to the gold (LaTeX or plain).

    Numbers are compared exactly, whatever their magnitude: `0.333` is not 1/3. A decimal of six or more digits that is
    rightly rounded from an irrational gold is equal to it. Lists without brackets and sets have no order, tuples have;
    intervals equal their inequalities; a base (`101_2`) is a part of the value; a unit that only one side has is
    ignored. Where the answer is found is said in `verifiers.extract`; without a marker the last formula counts.

    Numbers, lists of them and words are decided at once; everything else in a worker process that is killed when it
    overruns. If the gold can be judged in the same limits and the answer cannot, the fault is the answer's (`timeout`,
    `memory`, `error`); if the gold cannot, it is a `judge_error`.
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
        wanted = spelt(shown(gold, 100_000))
        long = too_long(answer)
        if long is not None:
            return long
        given, why = _final(answer, wanted)
        if given is None:
            return verdict(VerdictKind.NO_ANSWER, why)
        if len(given) > MAX_FORMULA:
            return verdict(VerdictKind.OUTPUT_LIMIT, f"the formula is longer than {MAX_FORMULA} characters")
        quick = _compare(wanted, given)
        if quick is not None:
            return _judged(quick, given, wanted)
        return self._in_worker(wanted, given)

    def check_gold(self, gold: Any) -> None:
        """Raises `UserError` if the gold is empty."""
        if not spelt(shown(gold, 100_000)):
            raise UserError("the gold is empty")

    slow = True
    """Comparing waits for a worker process."""

    def read(self, answer: str) -> str | None:
        """What the answer's marker names, its last formula, or its last line; None if that holds nothing mathematical.

        A number in one spelling for equal numbers.
        """
        given = _final(answer, None)[0] if too_long(answer) is None else None
        return None if given is None or len(given) > MAX_FORMULA else _canonical(given)

    def same(self, a: str, b: str) -> bool:
        """Whether two answers that `read` gave are mathematically equal; False if that cannot be decided in time."""
        a, b = spelt(a), spelt(b)
        quick = _compare(a, b)
        return self._in_worker(a, b).correct if quick is None else quick

    def _in_worker(self, gold: str, given: str) -> Verdict:
        try:
            result = self._call(gold, given)
            if result.kind != "ok":
                fault = _gold_fault(self, gold)
                if fault:
                    return verdict(VerdictKind.JUDGE_ERROR, f"the gold {gold!r} cannot be judged: {fault}")
                return verdict(_KINDS[result.kind], f"comparing {given[:80]!r}: {result.reason}")
        except PonderError as error:
            return verdict(VerdictKind.JUDGE_ERROR, str(error))
        return _judged(result.value == "correct", given, gold)

    def _call(self, gold: str, given: str) -> Result:
        return shared(self.memory_mb << 20).call(_EQUAL, [gold, given], self.seconds)


@functools.lru_cache(maxsize=4096)
def _gold_fault(verifier: Math, gold: str) -> str:
    """Why the gold cannot be compared with a simple number; empty if it can."""
    result = verifier._call(gold, "1")
    return "" if result.kind == "ok" else result.reason


def spelt(text: str) -> str:
    """A formula in one spelling, without what surrounds it: dollar signs, spaces, a full stop."""
    text = formula(text).strip()
    while text[:1] == "$" or (text[-1:] in ("$", ".") and not text.endswith("..")):
        text = text.removeprefix("$").removesuffix("$").removesuffix(".").strip()
    return " ".join(text.split())


def _final(answer: str, wanted: str | None) -> tuple[str | None, str]:
    """The final answer as `spelt`, or why there is none. What is looked for may depend on what is `wanted`."""
    text = clean(answer).strip()
    piece, number = final_piece(text), None
    if piece is not None:
        given = piece.text if piece.marked else _formulas(piece.text) or _said(piece.text)
        where = "what the answer's marker names"
    else:
        where = "the answer"
        number = final_number(text[-_TAIL:])
        given = _unmarked(text, wanted is None or _is_text(wanted))
        if number == UNFINISHED and (exact(wanted) is not None if wanted is not None else not _is_symbolic(given)):
            return None, UNFINISHED
    given = _LEAD.sub("", _REMARK.sub("", spelt(given)))
    if not any(c.isalnum() for c in given):
        return None, f"{where} holds no letter and no digit"
    if len(given) > MAX_FORMULA:
        return given, ""
    listed = number == LISTING or final_number(given) == LISTING
    if listed and (wanted is None or final_number(wanted) != LISTING):
        return None, LISTING
    return given, ""


def _is_symbolic(text: str) -> bool:
    """Whether a formula holds variables, so that it may be an answer as it stands: `y = 2 x + 3`."""
    return any(q.reason == SYMBOLIC for q in scan(spelt(text[-_TAIL:]), True))


def _formulas(text: str) -> str:
    """The formulas of a sentence: a list if nothing but commas is between them, else the last one; "" if none."""
    text = text[-_TAIL:]
    found = list(_FORMULA.finditer(text))
    if not found:
        return ""
    texts = [next(g for g in m.groups() if g is not None) for m in found]
    between = [text[a.end() : b.start()] for a, b in pairwise(found)]
    if len(found) > 1 and all(_JOINS.fullmatch(b) for b in between):
        return ", ".join(texts)
    allowed = [
        t for t, m in zip(texts, found, strict=True) if not negated(text, m.start()) and not refuted(text, m.end())
    ]
    return allowed[-1] if allowed else ""


def _said(text: str) -> str:
    return REASON.split(text, maxsplit=1)[0]


def _unmarked(text: str, words: bool) -> str:
    """The last formula of a text without a marker, its last line if that is one, else its last number."""
    line = last_line(text)
    bare = re.search(r"[A-Za-z]{4}", _COMMANDS.sub(" ", line)) is None
    if bare and "$" not in line and _FORMULA.search(line[-_TAIL:]) is None:
        return line
    found = _formulas(text)
    if found:
        return found
    if words and _WORDS.fullmatch(line.strip(" .*")):
        return line.strip(" .*")
    named = _SOLUTIONS.search(line[-_TAIL:])
    if named is not None:
        return named[1]
    spelled = formula(text[-_TAIL:])
    numbers: list[Quantity] = [
        q for q in scan(spelled) if not negated(spelled, q.start) and not refuted(spelled, q.end)
    ]
    return numbers[-1].text if numbers else ""


def _judged(correct: bool, given: str, gold: str) -> Verdict:
    short = given if len(given) <= 80 else "…" + given[-80:]
    if correct:
        return verdict(VerdictKind.CORRECT, f"{short} is right", _canonical(given))
    return verdict(VerdictKind.WRONG, f"{short} is not {gold}", _canonical(given))


def _canonical(text: str) -> str:
    """A spelling for votes: equal numbers have the same."""
    number = exact(text)
    if number is None or number.value is None or number.percent or number.unit:
        return clip(text, 300)
    return clip(written(number.value), 300)


def _compare(gold: str, given: str) -> bool | None:
    """Decide without a process; None where only sympy can tell."""
    try:
        return matches(read(gold), read(given), _scalars_equal)
    except _Undecided:
        return None


def _scalars_equal(gold: str, given: str) -> bool:
    if "".join(gold.split()) == "".join(given.split()) and not re.search(r"[0-9] +[0-9]", f"{gold} {given}"):
        return True
    if gold == given:
        return True
    a, b = exact(gold), exact(given)
    if a is not None and b is not None:
        return _quantities_equal(a, b)
    words = [_is_text(t) for t in (gold, given)]
    if all(words):
        return gold.casefold() == given.casefold()
    if any(words):
        return False
    raise _Undecided


def _is_text(text: str) -> bool:
    """Whether a text is words and not a product of variables."""
    words = re.split("[ -]", text)
    return _WORDS.fullmatch(text) is not None and any(len(w) > 2 for w in words) and not set(words) & _NAMES


def _quantities_equal(a: Quantity, b: Quantity) -> bool:
    if a.unit and b.unit and unit(a.unit) != unit(b.unit):
        return False
    assert a.value is not None
    assert b.value is not None
    if a.percent == b.percent:
        return a.value == b.value
    part, whole = (a.value, b.value) if a.percent else (b.value, a.value)
    return whole in (part, part / 100)
