"""Sorting numbers by taking the smallest that is left."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ponder.training.corpus.base import Example


@dataclass(frozen=True)
class Sort:
    """Sorting numbers by taking the smallest that is left."""

    def example(self, rng: random.Random) -> Example:
        numbers = rng.sample(range(100), rng.randint(2, 6))
        left, steps = list(numbers), []
        for n in sorted(numbers)[:-1]:
            steps.append(f"{n}:{' '.join(str(x) for x in left if x != n)}")
            left.remove(n)
        answer = " ".join(map(str, sorted(numbers)))
        return Example(f"Sort {' '.join(map(str, numbers))}.", ",".join(steps) + "!", answer)
