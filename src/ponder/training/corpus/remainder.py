"""Remainders by the nearest multiple, found by trying."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ponder.training.corpus.base import Example


@dataclass(frozen=True)
class Remainder:
    """Remainders by the nearest multiple, found by trying."""

    def example(self, rng: random.Random) -> Example:
        divisor, number = rng.randint(2, 12), rng.randint(1, 99)
        quotient = number // divisor
        tries: list[str] = []
        while rng.random() < 0.5 and len(tries) < 4:
            guess = rng.randint(0, 99 // divisor)
            if guess == quotient:
                break
            tries.append(f"{guess}*{divisor}={guess * divisor};")
        found = f"{quotient}*{divisor}={quotient * divisor},{number}-{quotient * divisor}={number % divisor}!"
        return Example(f"What is {number} mod {divisor}?", "".join(tries) + found, str(number % divisor))
