"""What a family of procedural text is, and how families are mixed.

A family writes chains that think aloud, as a person would on paper: a try is equations separated by `,`; `;` drops a
try and begins the next; `!` says that it worked; `?` gives up. The chain is followed by the answer. Nothing in a chain
knows more than a person who computes correctly and searches at random: no look-ahead, no memory of what was tried.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ponder import registry
from ponder.errors import UserError


@dataclass(frozen=True, slots=True)
class Example:
    """One worked problem."""

    prompt: str
    thought: str
    answer: str
    cut: bool = False
    """The end of the thought was forced: its end marker is not trained on."""


class Family(Protocol):
    """Writes examples; all randomness comes from `rng`."""

    def example(self, rng: random.Random) -> Example: ...


@dataclass(frozen=True)
class Mixture:
    """Families with their shares; draws example `index` of a seed, the same each time."""

    families: tuple[Family, ...]
    names: tuple[str, ...]
    shares: tuple[float, ...]
    seed: int

    def example(self, index: int) -> tuple[str, Example]:
        """The family's name and the example at an index."""
        rng = random.Random(self.seed * 1_000_003 + index)
        which = rng.choices(range(len(self.families)), weights=self.shares)[0]
        return self.names[which], self.families[which].example(rng)


def mixture(shares: Sequence[str], seed: int) -> Mixture:
    """Build a mixture from words like `countdown=0.5`; a bare name has share 1.

    Raises `UserError` for an unknown family or a share that is not a positive number.
    """
    families, names, weights = [], [], []
    for word in shares:
        name, _, share = word.partition("=")
        try:
            weight = float(share or 1.0)
        except ValueError:
            weight = -1.0
        if not weight > 0:
            raise UserError(f"families: {word!r}: the share must be a positive number, as in {name}=0.5")
        families.append(registry.build("training.corpus", name))
        names.append(name)
        weights.append(weight)
    if not families:
        raise UserError("families: name at least one")
    return Mixture(tuple(families), tuple(names), tuple(weights), seed)


def cut_somewhere(rng: random.Random, pieces: Sequence[str]) -> str:
    """The first part of a chain, cut after a random token-like piece."""
    return "".join(pieces[: rng.randint(1, max(1, len(pieces) - 1))])
