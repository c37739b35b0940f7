"""Environments whose problems are rows of files: their fields, and splits that share no prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ponder.environments.base import SingleTurn, check_address, stable_int
from ponder.errors import UserError
from ponder.types import Gold, Problem, Prompt, Split


@dataclass(frozen=True, slots=True)
class Row:
    """One row: where it stands, what it asks, and the right answer."""

    source: str
    """`FILE:LINE`."""
    prompt: Prompt
    gold: Gold


def take(row: dict[str, Any], field: str, where: str) -> Any:
    """A field of a row. Raises `UserError` that names the line and the fields there are."""
    if field not in row:
        raise UserError(f"{where} has no field {field!r}; its fields: {', '.join(map(repr, row)) or 'none'}")
    return row[field]


def key_of(prompt: Prompt) -> str:
    """What a prompt asks, for telling duplicates: case and spaces are ignored."""
    text = prompt if isinstance(prompt, str) else "\x1e".join(f"{m.role}:{m.content}" for m in prompt)
    return " ".join(text.split()).casefold()


def split_by_hash(rows: Iterable[Row], test_share: float) -> tuple[list[Row], list[Row]]:
    """Training and test rows; the same prompt always falls on the same side, whatever else the file holds."""
    train: list[Row] = []
    test: list[Row] = []
    for row in rows:
        is_test = stable_int("split", key_of(row.prompt)) % 1_000_000 < test_share * 1_000_000
        (test if is_test else train).append(row)
    return train, test


class Rows(SingleTurn):
    """Base of environments over rows; a subclass calls `_keep` when it is made."""

    def _keep(self, train: Sequence[Row], test: Sequence[Row], seed: int) -> None:
        """Hold the rows in an order that the seed gives.

        Training rows whose prompt is a test row's are left out, and so are repeats of one prompt with one gold.
        """
        tests = {key_of(r.prompt) for r in test}
        kept = {"train": _unique(r for r in train if key_of(r.prompt) not in tests), "test": _unique(test)}
        for split, rows in kept.items():
            Random(stable_int(self.name, seed, split)).shuffle(rows)
        self.__dict__["_splits"] = kept

    def size(self, split: Split) -> int:
        return len(self.__dict__["_splits"][split])

    def row(self, split: Split, index: int) -> Row:
        """Raises `IndexError` past the end."""
        check_address(split, index)
        rows = self.__dict__["_splits"][split]
        if index >= len(rows):
            raise IndexError(f"{self.name} has {len(rows)} {split} problems, there is no index {index}")
        return rows[index]

    def gold(self, problem: Problem) -> Gold:
        return self.row(*self.address(problem)).gold


def _unique(rows: Iterable[Row]) -> list[Row]:
    seen: dict[tuple[str, str], Row] = {}
    for row in rows:
        seen.setdefault((key_of(row.prompt), json.dumps(row.gold.answer, default=str)), row)
    return list(seen.values())
