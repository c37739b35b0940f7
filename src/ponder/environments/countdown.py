"""Countdown: reach a target from given numbers, as in the television game (TinyZero, 2025, made it an RL task)."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from random import Random

from ponder.environments._countdown_steps import progress
from ponder.environments._expressions import Tree, Value, canonical, evaluate, write
from ponder.environments.base import Item, Procedural, guarded
from ponder.environments.recognising import QUESTION
from ponder.errors import UserError
from ponder.protocols import Checker
from ponder.scorers.base import BaseScorer
from ponder.types import Gold, Problem, Response, Split, Verdict, VerdictKind
from ponder.verifiers.base import MAX_ANSWER, answer_text, verdict
from ponder.verifiers.extract import final_piece, first_exchange
from ponder.verifiers.notation import plain

_PLAIN = re.compile(r"[-+*/() \t=0-9]{1,200}")
_CANDIDATE = re.compile(r"[-(0-9][-+*/() \t=0-9^]*")
_SPELLINGS = {
    "×": "*",
    "·": "*",
    "⋅": "*",
    "∗": "*",
    "✕": "*",
    "−": "-",
    "–": "-",
    "÷": "/",
    "\\times": "*",
    "\\cdot": "*",
    "\\div": "/",
    "\\left": "",
    "\\right": "",
}
_ASKED = re.compile(
    r"(?:make|reach|get) (?P<target>[0-9]{1,6}) (?:from|with|using|out of)(?: the numbers)?:? "
    r"(?P<numbers>[0-9]{1,6}(?:(?:,? and |, ?| )[0-9]{1,6})+)[.!?]?",
    re.IGNORECASE,
)
_WORDS = (
    "mod|modulo|pi|sqrt|squared|cubed|times|plus|minus|over|factorial|percent|choose|log|ln|exp|sin|cos|tan|abs|floor"
    "|ceil|round|twice|double|half|negative|(?:root|log|half|factorial|square|negative)\\s+of"
)
_BEFORE = re.compile(
    rf"(?:[\w.,√!%^&|~<≠≈+*/\\}}\]]|(?<!answer)>|[0-9]:|[A-Za-z0-9)]\s*[-+*/^]\s*|\b(?:not|{_WORDS})\s+|[≠≈<>√]\s+|!=\s*|\\(?!f?boxed|math|text|quad)[a-z]+\s*[({{]?)\Z"
)
_AFTER = re.compile(
    rf"\s*(?:[-+*/^]\s*[({{\[]?\s*(?:[A-Za-z]\b|\\?(?:{_WORDS})\b|[√\\])|[+*/^]\s*\S"
    rf"|[!≠≈>√%^²³|&~]|<(?!/answer>)|\\(?!\)|\]|[,;! ]|quad)"
    rf"|(?:is|does|do|was)?\s*(?:not\b|n't)|(?:is|was|looks)\s+(?:wrong|incorrect|false)|isn't|doesn't|(?:{_WORDS})\b)|[\w{{]|[.,]\d"
)
"""What makes an expression a part of something else: `8*2!`, `8*2 + a`, `√8*2`, `3.8*2`, `8*2 ≠ 16`."""
_TIMES = re.compile(r"(?<=[0-9)])( ?)[xX]( ?)(?=[0-9(])")
_BULLET = re.compile(r"(?:[-*\u2022]|[0-9]{1,2}[.)]) (?=[-(0-9 ])")
_BOLD = re.compile(r"\*\*([^\n]{1,300}?)\*\*(?![(\d])")
_SPELLING = re.compile("|".join(re.escape(s) for s in sorted(_SPELLINGS, key=len, reverse=True)))


class Expressions:
    """Countdown answers for votes: expressions that do the same with the same numbers are one answer."""

    def extract(self, problem: Problem, response: Response) -> str | None:
        answer = answer_text(problem, response.answer or "")
        try:
            candidate = _candidate(answer, problem.public["target"]) if len(answer) <= MAX_ANSWER else None
        except ValueError:
            return None
        if candidate is None:
            return None
        text = max(candidate.split("="), key=len)
        try:
            return canonical(text)
        except ValueError:
            return "".join(text[:200].split()) or None

    def same(self, a: str, b: str) -> bool:
        return a == b


@dataclass(frozen=True)
class Countdown(Procedural):
    """Reach a target from given numbers with + - * (judge and checker).

    Every problem has a solution that uses all its numbers, found when it was made; an answer may leave numbers out.
    The answer is one expression that uses each number at most once. The last expression of the answer counts; a number
    after it is taken for its value, and any other number than the target for a different answer.

    Two problems with the same numbers in another order, and the same target, are the same problem: never one for
    training and one for testing. With the default options there are about 50,000, of which a tenth are for testing.
    """

    seed: int = 0
    """Seed of the problems' order; the splits are the same for every seed."""
    min_numbers: int = 3
    """Fewest given numbers."""
    max_numbers: int = 4
    """Most given numbers (at most 8)."""
    smallest: int = 1
    """Smallest given number."""
    largest: int = 12
    """Largest given number."""
    min_target: int = 10
    """Smallest target."""
    max_target: int = 99
    """Largest target; results of steps stay between 0 and this too."""
    operations: str = "+-*"
    """Allowed operations, of + - * /; a division must come out even in the made solution."""
    template: str = "Make {target} from {numbers}."
    """The question; the numbers are joined by spaces."""
    instructions: str = ""
    """Added after the question, on a line of its own."""

    name = "countdown"
    answers = Expressions()

    def __post_init__(self) -> None:
        if not 2 <= self.min_numbers <= self.max_numbers <= 8:
            raise UserError("min_numbers and max_numbers must be between 2 and 8, the first not above the second")
        if not 0 <= self.smallest <= self.largest <= 10**6:
            raise UserError("smallest and largest must be between 0 and 1000000, the first not above the second")
        if not 0 <= self.min_target <= self.max_target <= 10**6:
            raise UserError("min_target and max_target must be between 0 and 1000000, the first not above the second")
        if not self.operations or set(self.operations) - set("+-*/"):
            raise UserError(f"operations must be some of + - * /, not {self.operations!r}")
        for part in ("{target}", "{numbers}"):
            if part not in self.template:
                raise UserError(f"template must contain {part}")
        self.problem("train", 0)  # options that leave no problem fail here, not in the middle of a run

    def draw(self, rng: Random) -> tuple[str, tuple[list[int], int, Tree, list[list[int | str]]]]:
        for tries in range(20_000):
            if tries % 200 == 0:  # keep the count while it may work, or three numbers would come up more than four
                count = self.min_numbers + int(rng.random() * (self.max_numbers - self.min_numbers + 1))
            numbers, target, tree, steps = self._try(rng, count)
            if tree is not None:
                return f"{sorted(numbers)}={target}", (numbers, target, tree, steps)
        raise UserError("countdown: no problem has these numbers, targets and operations; widen their ranges")

    def _try(self, rng: Random, count: int) -> tuple[list[int], int, Tree | None, list[list[int | str]]]:
        random = rng.random
        span = self.largest - self.smallest + 1
        numbers = [self.smallest + int(random() * span) for _ in range(count)]
        pool: list[tuple[int, Tree]] = [(n, n) for n in numbers]
        steps: list[list[int | str]] = []
        while len(pool) > 1:
            a, left = pool.pop(int(random() * len(pool)))
            b, right = pool.pop(int(random() * len(pool)))
            op = self.operations[int(random() * len(self.operations))]
            if op == "+":
                c = a + b
            elif op == "*":
                c = a * b
            elif op == "-":
                if a < b:
                    a, left, b, right = b, right, a, left
                c = a - b
            elif b and a % b == 0:
                c = a // b
            else:
                return numbers, 0, None, steps
            if c > self.max_target:
                return numbers, 0, None, steps
            steps.append([a, op, b, c])
            pool.append((c, (op, left, right)))
        target, tree = pool[0]
        if target < self.min_target or target in numbers:
            return numbers, 0, None, steps
        return numbers, target, tree, steps

    def item(self, drawn: tuple[list[int], int, Tree, list[list[int | str]]], split: Split, index: int) -> Item:
        numbers, target, tree, steps = drawn
        prompt = self.template.replace("{target}", str(target)).replace("{numbers}", " ".join(map(str, numbers)))
        if self.instructions:
            prompt = f"{prompt}\n{self.instructions}"
        return Item(
            prompt,
            Gold(write(tree), {"steps": steps}),
            {"numbers": numbers, "target": target, "operations": self.operations},
            {"family": "countdown", "numbers": len(numbers)},
        )

    def recognise(self, question: str) -> Problem | None:
        """`Make 24 from 3 5 7 2.`, with commas and `and` too; all four operations are allowed."""
        found = _ASKED.fullmatch(" ".join(question.split()))
        if found is None:
            return None
        numbers = [int(n) for n in re.findall("[0-9]+", found["numbers"])]
        if not 2 <= len(numbers) <= 8:
            return None
        return Problem(QUESTION, question, {"numbers": numbers, "target": int(found["target"]), "operations": "+-*/"})

    def verdict(self, problem: Problem, answer: str) -> Verdict:
        return check(problem, answer)

    @property
    def checker(self) -> Checker:
        """The judge itself: arithmetic decides, no gold is needed."""
        return check_response

    @property
    def scorer(self) -> Partial:
        """Scores unfinished responses, for step-wise searches: arithmetic alone, no gold."""
        return Partial()

    def gold_response(self, problem: Problem) -> str:
        """The solution that the problem was made from, for example `(5-2)*8`."""
        return self.gold(problem).answer


@dataclass(frozen=True, slots=True)
class Partial(BaseScorer):
    """A score of Countdown responses in [0, 1], written by hand: how far the last try of the thought has come.

    With the default `lookahead` it knows whether the target is still in reach for up to 4 numbers: a search that it
    guides leaves the model nothing to find but the steps' wording. 1 looks one operation ahead, 0 none: then it knows
    right arithmetic, the numbers that are left, and how near the nearest is.
    """

    lookahead: int = 3
    """Most further operations that it tries on the numbers left."""

    def value(self, problem: Problem, response: Response) -> float:
        """Of a whole response: 1 if it is right, else 0. Of another: `_countdown_steps.progress`."""
        if response.answer is not None:
            return float(check_response(problem, response).correct)
        public = problem.public
        chain = response.text if response.thought is None else response.thought
        return progress(chain, public["numbers"], public["target"], public["operations"], self.lookahead)


def check_response(problem: Problem, response: Response) -> Verdict:
    """Check a response to a Countdown problem by arithmetic alone. Never raises."""
    return guarded(check, problem, response)


def check(problem: Problem, answer: str) -> Verdict:
    """Check an answer such as `(5-2)*8`, `(5-2)*8 = 24` or `The answer is (5-2)*8.` by arithmetic alone."""
    target = problem.public["target"]
    try:
        candidate = _candidate(answer, target)
    except ValueError as error:
        return verdict(VerdictKind.WRONG, str(error))
    if candidate is None:
        return verdict(VerdictKind.NO_ANSWER, "the answer holds no expression")
    sides = candidate.split("=")
    text = max(sides, key=len).strip() if len(sides) > 1 else candidate
    text = text.replace(" ", "") if len(text) <= 200 else text[:200]
    try:
        read = [evaluate(side) for side in sides]
    except ValueError as error:
        return verdict(VerdictKind.WRONG, f"{text[:60]!r}: {error}", text)
    for side, (value, _, _) in zip(sides, read, strict=True):
        if value != target:
            return verdict(VerdictKind.WRONG, f"{side.strip()} is {_short(value)}, not {target}", text)
    reason = ""
    for side, (_, numbers, used) in zip(sides, read, strict=True):
        reason = _misuse(numbers, used, problem)
        if not reason:
            text = side.replace(" ", "").replace("\t", "")
            return verdict(VerdictKind.CORRECT, f"{text} is {target}", text)
    return verdict(VerdictKind.WRONG, f"{text} {_misuse(read[0][1], read[0][2], problem)}", text)


def _candidate(answer: str, target: int) -> str | None:
    """The expression that counts, an equation perhaps; None if there is none.

    Raises `ValueError` if it is a part of something that is no expression.
    """
    answer = plain(answer).strip()
    answer = _BOLD.sub(r"\1", answer) if "**" in answer else answer
    if "boxed" in answer or "<answer>" in answer.lower():
        piece = final_piece(first_exchange(answer))
        answer = piece.text if piece is not None and piece.marked and _number(piece.text) is None else answer
    bullet = _BULLET.match(answer)
    answer = (answer if bullet is None else answer[bullet.end() :]).removeprefix("=").strip()
    answer = _TIMES.sub(r"\1*\2", answer) if "x" in answer or "X" in answer else answer
    if not _PLAIN.fullmatch(answer) or _number(answer) is not None:
        return final_expression(answer, target)
    return answer


def _misuse(numbers: list[int], used: str, problem: Problem) -> str:
    """Why an expression breaks the rules of the problem; empty if it does not."""
    left = list(problem.public["numbers"])
    for number in numbers:
        if number not in left:
            again = number in problem.public["numbers"]
            return f"uses {number} more often than it is given" if again else f"uses {number}, which is not given"
        left.remove(number)
    for op in used:
        if op not in problem.public["operations"]:
            return f"uses {op}, which is not allowed"
    return ""


def _short(value: Value) -> str:
    text = str(value)
    return text if len(text) <= 20 else text[:20] + "…"


def _number(text: str) -> int | None:
    """The whole number that a text is, if it is one of at most nine digits."""
    text = text.strip("() \t=")
    digits = text[1:] if text.startswith("-") else text
    return int(text) if 0 < len(digits) <= 9 and digits.isascii() and digits.isdigit() else None


def final_expression(answer: str, target: int) -> str | None:
    """The expression that an answer in prose ends with; None if it holds no number at all.

    The last expression or number counts, but numbers that only repeat the target after an expression are skipped.
    Raises `ValueError` if what counts is a part of something else, such as `8*(12-10)!`.
    """
    text = _SPELLING.sub(lambda m: _SPELLINGS[m[0]], first_exchange(answer))
    found = [m for m in _CANDIDATE.finditer(text) if any(map(str.isdigit, m[0]))]
    if not found:
        return None
    chosen, candidate = found[-1], _balanced(found[-1][0].strip())
    for match in reversed(found):
        balanced = _balanced(match[0].strip())
        if _number(balanced) != target:
            chosen, candidate = match, balanced
            break
    start = chosen.start() + chosen[0].index(candidate)
    before, after = text[max(0, start - 20) : start], text[start + len(candidate) : start + len(candidate) + 20]
    if _BEFORE.search(before) or _AFTER.match(after) or _touches(before, after):
        raise ValueError(f"{' '.join((before[-1:] + candidate[:40] + after[:8]).split())!r} is not an expression")
    return candidate


def _touches(before: str, after: str) -> bool:
    """Whether a symbol that ASCII lacks stands directly beside: `\u230a8*2\u230b`, `8*2\u00b0`; or a prime behind."""
    beside = before[-1:] + after[:1]
    if after.startswith("'") and not before.endswith("'"):
        return True
    return any(not c.isascii() and (unicodedata.category(c)[0] in "SMN" or c in "⌊⌋⌈⌉") for c in beside) or (
        after.lstrip(" \t")[:1] > "\x7f"
        and unicodedata.category(after.lstrip(" \t")[0]) == "Sm"
        and after.lstrip()[0] not in "\u2192\u21d2\u2234\u27f9"
    )


def _balanced(text: str) -> str:
    """Drop what belongs to the prose: a dash or equals sign at an end, a parenthesis around the whole sentence."""
    text = text.strip(" \t=").rstrip("- \t=")
    while text.endswith(")") and text.count(")") > text.count("("):
        text = text[:-1].rstrip()
    while text.startswith("(") and text.count("(") > text.count(")"):
        text = text[1:].lstrip()
    if text.startswith("- "):  # a bullet
        text = text[2:]
    return text
