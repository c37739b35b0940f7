"""Prompts of an exact number of tokens, the same for every side of a comparison."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ponder.models.tokenizer import Tokenizer

PROMPT_TOKENS = 43
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gita", "Hal", "Ida", "Jan", "Kai", "Lena", "Mo", "Nia", "Omar")
THINGS = ("apples", "books", "coins", "stamps", "marbles", "pencils", "shells", "cards", "buttons", "cups", "seeds")
PLACES = ("at the market", "in the garden", "on the way to school", "by the lake", "in a drawer", "at a friend's house")


def prompts(tokenizer: Tokenizer, seed: int, count: int, length: int = PROMPT_TOKENS) -> list[list[int]]:
    """`count` different prompts of `length` ids: word problems that share no beginning longer than a few tokens."""
    rng = random.Random(f"{seed}/{length}")
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        found[tuple(_prompt(tokenizer, rng, length))] = None
    return [list(ids) for ids in found]


def _prompt(tokenizer: Tokenizer, rng: random.Random, length: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < length:
        ids += tokenizer.encode(_sentences(rng))
    return ids[:length]


def _sentences(rng: random.Random) -> str:
    first, second = rng.sample(NAMES, 2)
    a, b, c = (rng.randint(2, 9_999) for _ in range(3))
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    return (
        f"{a} {thing} lie {place}. {first} takes {b} of them and {second} brings {c} more. How many {thing} are "
        f"there now, and how many does {first} have? "
    )
