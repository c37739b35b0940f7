"""Countdown chains: random tries, each computed correctly, then (mostly) one that works."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Any

from ponder.environments.countdown import Countdown as CountdownEnvironment
from ponder.training.corpus.base import Example, cut_somewhere

Step = tuple[int, str, int, int]
"""a, operation, b, result."""


def apply(a: int, operation: str, b: int) -> int | None:
    """The result of a step, or None if it leaves 0 to 99."""
    result = a + b if operation == "+" else a - b if operation == "-" else a * b
    return result if 0 <= result <= 99 else None


def random_try(rng: random.Random, numbers: list[int], operations: str) -> list[Step]:
    """Combine random pairs with random operations until one number is left."""
    left, steps = list(numbers), []
    while len(left) > 1:
        a, b = left.pop(rng.randrange(len(left))), left.pop(rng.randrange(len(left)))
        choices = [(x, o, y, r) for x, y in ((a, b), (b, a)) for o in operations if (r := apply(x, o, y)) is not None]
        step = rng.choice(choices)
        steps.append(step)
        left.append(step[3])
    return steps


def expression(steps: list[Step]) -> str:
    """The last value as one expression: each result stands for its parenthesised step."""
    available: list[tuple[int, str]] = []
    text = ""
    for a, operation, b, result in steps:
        left, right = _take(available, a), _take(available, b)
        text = f"{left}{operation}{right}"
        available.append((result, f"({text})"))
    return text


def _take(available: list[tuple[int, str]], value: int) -> str:
    """A computed result of this value if there is one (the latest), else the number itself."""
    for i in range(len(available) - 1, -1, -1):
        if available[i][0] == value:
            return available.pop(i)[1]
    return str(value)


def written(steps: list[Step]) -> str:
    return ",".join(f"{a}{o}{b}={r}" for a, o, b, r in steps)


@dataclass(frozen=True)
class Countdown:
    """Countdown problems of the environment's train split, with chains of random tries."""

    solved_at: float = 0.25
    """Chance that a try is the one that works."""
    longest: int = 20
    """Most tries of a chain."""
    dropped: float = 0.15
    """Chance that a try is dropped before its last step."""
    given_up: float = 0.02
    """Share of chains that end without a solution, with a guess."""
    cut: float = 0.25
    """Share of chains with a forced end at a random place, with a guess unless solved by then."""
    environment: CountdownEnvironment = field(default_factory=CountdownEnvironment)

    def example(self, rng: random.Random) -> Example:
        problem = self.environment.problem("train", rng.randrange(1 << 40))
        public: Any = problem.public
        numbers, target, operations = list(public["numbers"]), public["target"], public["operations"]
        solution = [tuple(s) for s in self.environment.gold(problem).metadata["steps"]]
        tries: list[str] = []
        last = solution
        while len(tries) < self.longest and rng.random() > self.solved_at:
            last = random_try(rng, numbers, operations)
            if last[-1][3] == target:
                break
            kept = last[: rng.randint(1, len(last) - 1)] if rng.random() < self.dropped else last
            tries.append(written(kept) + ";")
        else:
            last = solution
        if tries and rng.random() < self.given_up:
            guess = random_try(rng, numbers, operations)
            return Example(str(problem.prompt), "".join(tries)[:-1] + "?", expression(guess))
        thought = "".join(tries) + written(last) + "!"
        if rng.random() < self.cut:
            part = cut_somewhere(rng, re.findall(r"\d+|.", thought))
            guess = random_try(rng, numbers, operations)
            return Example(str(problem.prompt), part, expression(guess), cut=True)
        return Example(str(problem.prompt), thought, expression(last))
