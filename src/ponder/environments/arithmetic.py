"""Arithmetic: sums, differences, products and nested expressions of whole numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from random import Random
from typing import Any

from ponder.environments._expressions import Tree, Value, apply, evaluate, write
from ponder.environments._fewshot import Style, few_shot_prompt
from ponder.environments.base import Item, Procedural, split_of, stable_int
from ponder.environments.recognising import QUESTION
from ponder.errors import UserError
from ponder.types import Gold, Problem, Split, Verdict
from ponder.verifiers.answers import VerifierAnswers
from ponder.verifiers.numeric import Numeric

_ASKED = re.compile(
    r"(?:what is|what's|calculate|compute|how much is)? ?(?P<expression>[-−0-9(][-+*/×÷−() 0-9]{2,199}?) ?=? ?[?.]?",
    re.IGNORECASE,
)
_ENUMERATED = 100_000
"""Two-operand problems up to this number are listed, so that both splits are free of repeats."""


@dataclass(frozen=True)
class Arithmetic(Procedural):
    """Sums, differences, products and nested expressions; difficulty by digits, operands and depth.

    Problems with the same operands and the same result (12+34 and 34+12) are always in the same split. With two
    operands and few digits every problem there is gets listed, and the splits are finite: sums of two 2-digit numbers
    are 8,100 problems, about 810 of them for testing. There is no checker: one could simply calculate, and a search
    with it would measure nothing.
    """

    seed: int = 0
    """Seed of the problems' order; the splits are the same for every seed."""
    digits: int = 2
    """Most digits of an operand."""
    min_digits: int | None = None
    """Fewest digits of an operand; None is the same as `digits`. One digit means 0 to 9, two mean 10 to 99."""
    min_operands: int = 2
    """Fewest operands of an expression."""
    max_operands: int = 3
    """Most operands of an expression (at most 16)."""
    operations: str = "+-*"
    """Operations, some of + - *."""
    nesting: int = 1
    """Most parentheses inside one another; 0 is none."""
    max_result: int = 9999
    """Largest result, of every step too."""
    negative: bool = False
    """Allow results below zero, of steps too (down to -max_result)."""
    spaces: bool = False
    """Write `12 + 34` rather than `12+34`."""
    template: str = "What is {expression}?"
    """The question."""
    instructions: str = ""
    """Added after the question, on a line of its own."""
    few_shot: int = 0
    """Worked examples before the question, from the training split, the same for every problem."""
    few_shot_style: Style = "chat"
    """Examples as chat turns (`chat`) or as plain text to be continued (`text`)."""

    name = "arithmetic"
    answers = VerifierAnswers(Numeric())

    def __post_init__(self) -> None:
        lowest = self.digits if self.min_digits is None else self.min_digits
        if not 1 <= lowest <= self.digits <= 12:
            raise UserError("digits and min_digits must be between 1 and 12, min_digits not above digits")
        if not 2 <= self.min_operands <= self.max_operands <= 16:
            raise UserError("min_operands and max_operands must be between 2 and 16, the first not above the second")
        if not self.operations or set(self.operations) - set("+-*"):
            raise UserError(f"operations must be some of + - *, not {self.operations!r}")
        if self.nesting < 0 or self.max_result < 0 or not 0 <= self.few_shot <= 64:
            raise UserError("nesting and max_result must not be negative, and few_shot must be from 0 to 64")
        if "{expression}" not in self.template:
            raise UserError("template must contain {expression}")
        self.problem("train", 0)  # options that leave no problem fail here, not in the middle of a run

    @property
    def _range(self) -> tuple[int, int]:
        lowest = self.digits if self.min_digits is None else self.min_digits
        return (0 if lowest == 1 else 10 ** (lowest - 1)), 10**self.digits - 1

    def enumerate_all(self) -> list[tuple[str, Any]] | None:
        low, high = self._range
        if self.max_operands > 2 or (high - low + 1) ** 2 * len(self.operations) > _ENUMERATED:
            return None
        span = range(low, high + 1)
        every = ((op, a, b) for op in dict.fromkeys(self.operations) for a in span for b in span)
        return [(_key([a, b], v), ((op, a, b), v)) for op, a, b in every if (v := self._step(op, a, b)) is not None]

    def draw(self, rng: Random) -> tuple[str, tuple[Tree, int]]:
        low, high = self._range
        for tries in range(20_000):
            if tries % 200 == 0:  # keep the number while it may work, or long expressions would become rare
                operands = rng.randint(self.min_operands, self.max_operands)
            pool: list[tuple[int, Tree]] = [(n, n) for n in (rng.randint(low, high) for _ in range(operands))]
            numbers = [n for n, _ in pool]
            while len(pool) > 1:
                # Neighbours are joined in any order, which gives every shape of nesting.
                i = rng.randrange(len(pool) - 1)
                (a, left), (b, right) = pool[i : i + 2]
                op = self.operations[rng.randrange(len(self.operations))]
                value = self._step(op, a, b)
                if value is None:
                    break
                pool[i : i + 2] = [(value, (op, left, right))]
            value, tree = pool[0]
            if len(pool) == 1 and _depth(write(tree, keep_grouping=True)) <= self.nesting:
                return _key(numbers, value), (tree, value)
        raise UserError("arithmetic: no expression fits these options; widen max_result or nesting")

    def _step(self, op: str, a: int, b: int) -> int | None:
        value: Value = apply(op, a, b)
        low = -self.max_result if self.negative else 0
        return value if isinstance(value, int) and low <= value <= self.max_result else None

    def item(self, drawn: tuple[Tree, int], split: Split, index: int) -> Item:
        tree, value = drawn
        question = self._question(tree)
        text = write(tree, keep_grouping=True)
        operands = sum(text.count(op) for op in "+-*") + 1
        return Item(
            few_shot_prompt(question, self._examples(question), self.few_shot_style),
            Gold(value, {"expression": text}),
            {"expression": text, "question": question},
            {"family": "arithmetic", "operands": operands, "depth": _depth(text)},
        )

    def _question(self, tree: Tree) -> str:
        text = write(tree, keep_grouping=True, space=" " if self.spaces else "")
        question = self.template.replace("{expression}", text)
        return f"{question}\n{self.instructions}" if self.instructions else question

    def _examples(self, question: str) -> list[tuple[str, str]]:
        """Training problems other than the one that is asked."""
        found: dict[str, str] = {}
        rng = Random(stable_int(self.name, "examples", self.seed))
        for tries in count():
            if len(found) >= self.few_shot:
                break
            if tries > 10_000:
                raise UserError(f"arithmetic: too few different problems for few_shot = {self.few_shot}")
            key, (tree, value) = self.draw(rng)
            example = self._question(tree)
            if split_of(key) == "train" and example != question:
                found[example] = str(value)
        return list(found.items())

    def recognise(self, question: str) -> Problem | None:
        """`What is 17 * (23 + 4)?`, `17 + 25 =`: an expression whose value follows from what is asked."""
        found = _ASKED.fullmatch(" ".join(question.split()))
        if found is None:
            return None
        expression = found["expression"].replace("×", "*").replace("÷", "/").replace("−", "-").strip()
        if not any(op in expression for op in "+-*/"):
            return None
        try:
            evaluate(expression)
        except ValueError:
            return None
        return Problem(QUESTION, question, {"expression": expression, "question": question})

    def verdict(self, problem: Problem, answer: str) -> Verdict:
        if problem.id == QUESTION:
            return Numeric()(Fraction(evaluate(problem.public["expression"])[0]), answer)
        return Numeric()(self.gold(problem).answer, answer)


def _key(operands: list[int], value: int) -> str:
    return f"{sorted(operands)}={value}"


def _depth(text: str) -> int:
    depth = deepest = 0
    for c in text:
        depth += (c == "(") - (c == ")")
        deepest = max(deepest, depth)
    return deepest
