"""Reversing a word, one letter at a time."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from ponder.training.corpus.base import Example


@dataclass(frozen=True)
class Reverse:
    """Reversing a word, one letter at a time."""

    def example(self, rng: random.Random) -> Example:
        word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 10)))
        left, made, steps = word, "", []
        while left:
            made, left = made + left[-1], left[:-1]
            steps.append(made)
        return Example(f"Reverse {word}.", ",".join(steps[-2:]) + "!", word[::-1])
