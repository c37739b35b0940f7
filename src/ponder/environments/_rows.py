"""Environments whose problems are rows of files: their fields, and splits that share no prompt.

The split belongs to the row. It is what the row itself says (a field `split`), or follows from a hash of the row as it
stands in the file: no option that changes how a row is asked or judged moves it to the other side.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ponder.environments.base import SingleTurn, check_address, stable_int
from ponder.errors import UserError
from ponder.types import Gold, Problem, Prompt, Split
from ponder.verifiers.base import clip


@dataclass(frozen=True, slots=True)
class Row:
    """One row: where it stands, what it asks, and the right answer."""

    source: str
    """`FILE:LINE`."""
    prompt: Prompt
    """As it is in the file."""
    gold: Gold
    mark: int
    """A hash of the whole row (`mark_of`)."""
    split: Split | None = None
    """What the row says itself."""


def mark_of(row: dict[str, Any]) -> int:
    """A hash of all that a row holds, in whatever order its fields are written."""
    return stable_int("split", json.dumps(row, sort_keys=True, default=str))


def split_in(row: dict[str, Any], field: str, where: str) -> Split | None:
    """What a row's own field says; None if it has none. Raises `UserError` for another word than train and test."""
    if not field or field not in row:
        return None
    said = row[field].strip().casefold() if isinstance(row[field], str) else None
    if said == "train":
        return "train"
    if said == "test":
        return "test"
    raise UserError(f"{where}: the field {field!r} holds {clip(repr(row[field]), 60)}: it must be train or test")


def take(row: dict[str, Any], field: str, where: str) -> Any:
    """A field of a row. Raises `UserError` that names the line and the fields there are."""
    if field not in row:
        raise UserError(f"{where} has no field {field!r}; its fields: {', '.join(map(repr, row)) or 'none'}")
    return row[field]


def key_of(prompt: Prompt) -> str:
    """What a prompt asks, for telling duplicates: case and spaces are ignored."""
    text = prompt if isinstance(prompt, str) else "\x1e".join(f"{m.role}:{m.content}" for m in prompt)
    return " ".join(text.split()).casefold()


def divide(rows: Sequence[Row], share: float | None, path: str, instead: str) -> tuple[list[Row], list[Row]]:
    """Training and test rows, as the rows say themselves; else the share of them that come first by their hash.

    Rows with one prompt are on one side, and each side has one prompt at least, unless the share (default: 0.1) is 0
    or 1. Rows that are added to a file may move the border between the sides, and with it a few rows of one side.

    Raises `UserError` if only some rows say their split, if a share is given as well, or if there is one prompt alone;
    `instead` says what to do then.
    """
    if any(r.split for r in rows):
        silent = next((r for r in rows if r.split is None), None)
        if silent is not None:
            said = next(r for r in rows if r.split)
            raise UserError(
                f"{path}: {said.source} says its split and {silent.source} does not: every row must say it, or none"
            )
        if share is not None:
            raise UserError(f"{path}: the rows say their split themselves: leave test_share out")
        return [r for r in rows if r.split == "train"], [r for r in rows if r.split == "test"]
    share = 0.1 if share is None else share
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key_of(row.prompt), []).append(row)
    ranked = sorted(groups, key=lambda key: (min(r.mark for r in groups[key]), key))
    count = round(share * len(ranked))
    if 0 < share < 1:
        if len(ranked) < 2:
            raise UserError(
                f"{path}: one question cannot be divided into training and test problems: give more, or {instead}"
            )
        count = min(max(1, count), len(ranked) - 1)
    tests = set(ranked[:count])
    train = [r for r in rows if key_of(r.prompt) not in tests]
    return train, [r for r in rows if key_of(r.prompt) in tests]


def refuse_split(rows: Iterable[Row], other: Split, why: str) -> None:
    """Raises `UserError` for a row that says it is of the other split than the one that its file is for."""
    for row in rows:
        if row.split == other:
            raise UserError(f"{row.source} says that it is of the {other} split, and {why}: leave it out there")


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
