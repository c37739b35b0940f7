"""Arithmetic chains: one operation at a time, large products in parts."""

from __future__ import annotations

import functools
import random
import re
from dataclasses import dataclass, field

from ponder.environments.arithmetic import Arithmetic as ArithmeticEnvironment
from ponder.training.corpus.base import Example, cut_somewhere

TOKENS = re.compile(r"\d+|[-+*()]")


def product_steps(a: int, b: int) -> list[str]:
    """How to multiply on paper: at once if one factor is small, else tens and units separately."""
    if (a <= 9 and b <= 99) or (b <= 9 and a <= 99):
        return [f"{a}*{b}={a * b}"]
    tens, units = b // 10 * 10, b % 10
    if tens == 0 or units == 0:
        return [f"{a}*{b // 10}={a * (b // 10)}", f"{a}*{b}={a * b}"] if units == 0 and tens else [f"{a}*{b}={a * b}"]
    return [
        f"{a}*{tens // 10}={a * tens // 10}",
        f"{a}*{tens}={a * tens}",
        f"{a}*{units}={a * units}",
        f"{a * tens}+{a * units}={a * b}",
    ]


def steps(expression: str) -> tuple[list[str], int]:
    """Evaluate `+ - *` and parentheses one operation at a time; return the equations and the value."""
    words = TOKENS.findall(expression)
    written: list[str] = []
    position = 0

    def atom() -> int:
        nonlocal position
        word = words[position]
        position += 1
        if word == "(":
            value = total()
            position += 1
            return value
        return int(word)

    def term() -> int:
        nonlocal position
        value = atom()
        while position < len(words) and words[position] == "*":
            position += 1
            right = atom()
            written.extend(product_steps(value, right))
            value *= right
        return value

    def total() -> int:
        nonlocal position
        value = term()
        while position < len(words) and words[position] in "+-":
            sign = words[position]
            position += 1
            right = term()
            result = value + right if sign == "+" else value - right
            written.append(f"{value}{sign}{right}={result}")
            value = result
        return value

    value = total()
    return written, value


@functools.cache
def _environments() -> tuple[ArithmeticEnvironment, ...]:
    return (
        ArithmeticEnvironment(),
        ArithmeticEnvironment(max_operands=2, operations="+-"),
        ArithmeticEnvironment(digits=1, max_operands=4),
    )


@dataclass(frozen=True)
class Arithmetic:
    """Sums, differences, products and nested expressions of the environment's train split."""

    cut: float = 0.1
    """Share of chains with a forced end; the answer is the true one all the same (done in the head)."""
    environments: tuple[ArithmeticEnvironment, ...] = field(default_factory=_environments)

    def example(self, rng: random.Random) -> Example:
        environment = rng.choice(self.environments)
        problem = environment.problem("train", rng.randrange(environment.size("train") or 1 << 40))
        answer = str(environment.gold(problem).answer)
        prompt = str(problem.prompt)
        written, _ = steps(problem.public["expression"])
        thought = ",".join(written) + "!"
        if rng.random() < self.cut:
            return Example(prompt, cut_somewhere(rng, re.findall(r"\d+|.", thought)), answer, cut=True)
        return Example(prompt, thought, answer)
