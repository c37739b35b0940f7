"""Which of several numbers is the largest or the smallest."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ponder.training.corpus.base import Example


@dataclass(frozen=True)
class Compare:
    """Which of several numbers is the largest or the smallest."""

    def example(self, rng: random.Random) -> Example:
        numbers = rng.sample(range(100), rng.randint(2, 5))
        largest = rng.random() < 0.5
        word = "largest" if largest else "smallest"
        best, steps = numbers[0], [str(numbers[0])]
        for n in numbers[1:]:
            steps.append(f"{n}{'>' if n > best else '<'}{best}")
            best = max(best, n) if largest else min(best, n)
        return Example(f"Which is {word}: {' '.join(map(str, numbers))}?", ",".join(steps) + "!", str(best))
