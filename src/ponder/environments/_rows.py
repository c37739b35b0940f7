"""Environments whose problems are rows of files: reading them, and splits that share no prompt."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ponder.environments.base import SingleTurn, check_address, stable_int
from ponder.errors import UserError
from ponder.types import Gold, Message, Problem, Prompt, Split


@dataclass(frozen=True, slots=True)
class Row:
    """One row: where it stands, what it asks, and the right answer."""

    source: str
    """`FILE:LINE`."""
    prompt: Prompt
    gold: Gold


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSON Lines file (`.gz` too); blank lines are passed over.

    Raises `UserError` for a file that is missing, empty or not UTF-8, and for a bad line, with its number.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, name a file in it' if path.is_dir() else 'no such file'}")
    number = 0
    found = False
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.strip():
                    continue
                row = _object(line, path, number)
                found = True
                yield number, row
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read after line {number}: {error}") from None
    if not found:
        raise UserError(f"{path}: is empty; it must hold one JSON object a line")


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: line {number} is not UTF-8: {error.reason} at its byte {error.start + 1}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: line {number} is not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}: line {number} is not a JSON object but {type(row).__name__}")
    return row


def take(row: dict[str, Any], field: str, where: str) -> Any:
    """A field of a row. Raises `UserError` that names the line and the fields there are."""
    if field not in row:
        raise UserError(f"{where} has no field {field!r}; its fields: {', '.join(map(repr, row)) or 'none'}")
    return row[field]


def key_of(prompt: Prompt) -> str:
    """What a prompt asks, for telling duplicates: case and spaces do not count."""
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


def read_prompt(value: Any, where: str) -> Prompt:
    """A prompt from JSON: text, or a list of messages `{"role", "content"}`. Raises `UserError`."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value:
        messages = []
        for turn in value:
            role = turn.get("role") if isinstance(turn, dict) else None
            if role not in ("system", "user", "assistant", "tool") or not isinstance(turn.get("content"), str):
                break
            messages.append(Message(role, turn["content"]))
        else:
            return tuple(messages)
    raise UserError(f"{where}: the prompt must be text, or a list of objects with role and content")
