"""Linear equations in one unknown, by undoing and by a check."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ponder.training.corpus.base import Example


@dataclass(frozen=True)
class Equation:
    """Linear equations in one unknown, by undoing and by a check."""

    def example(self, rng: random.Random) -> Example:
        a, x = rng.randint(1, 9), rng.randint(0, 10)
        b = rng.randint(0, 99 - a * x)
        total = a * x + b
        left = "x" if a == 1 else f"{a}*x"
        steps = [f"{total}-{b}={a * x}"]
        if a > 1:
            steps += [f"{a * x}/{a}={x}", f"{a}*{x}={a * x}"]
        steps.append(f"{a * x}+{b}={total}")
        return Example(f"Solve {left}+{b}={total}.", ",".join(steps) + "!", str(x))
