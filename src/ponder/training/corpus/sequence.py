"""The next number of an arithmetic or a doubling sequence."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

from ponder.training.corpus.base import Example


@dataclass(frozen=True)
class Sequence:
    """The next number of an arithmetic or a doubling sequence."""

    def example(self, rng: random.Random) -> Example:
        length = rng.randint(3, 5)
        if rng.random() < 0.3:
            start = rng.randint(1, 99 // 2**length)
            terms = [start * 2**i for i in range(length + 1)]
            steps = [f"{start}+{start}={2 * start}", f"{terms[-2]}+{terms[-2]}={terms[-1]}"]
        else:
            difference = rng.randint(1, 12)
            start = rng.randint(0, 99 - difference * length)
            terms = [start + difference * i for i in range(length + 1)]
            steps = [f"{b}-{a}={difference}" for a, b in pairwise(terms[:-1])]
            steps.append(f"{terms[-2]}+{difference}={terms[-1]}")
        shown = " ".join(map(str, terms[:-1]))
        return Example(f"What comes next: {shown}?", ",".join(steps) + "!", str(terms[-1]))
