"""Counting a letter in a word, one letter at a time."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from ponder.training.corpus.base import Example


@dataclass(frozen=True)
class Letters:
    """Counting a letter in a word, one letter at a time."""

    def example(self, rng: random.Random) -> Example:
        alphabet = rng.sample(string.ascii_lowercase, rng.randint(2, 6))
        word = "".join(rng.choices(alphabet, k=rng.randint(2, 10)))
        letter = rng.choice(alphabet)
        count, thought = 0, ""
        for c in word:
            count += c == letter
            thought += f"{c}{count}"
        return Example(f"How many {letter} in {word}?", thought + "!", str(count))
