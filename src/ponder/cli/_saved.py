"""A search of `ponder solve` as a file: its options, its journal, and what opening its engines has cost."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ponder.cli._common import value_of
from ponder.config import from_mapping, to_mapping
from ponder.errors import UserError
from ponder.runs.files import read_json, write_atomic
from ponder.search.journal import Journal
from ponder.types import Spend, to_json

FORMAT = "ponder-search-1"
FREE = (
    *("budget_tokens", "budget_seconds", "budget_dollars"),
    *("save", "continue_", "json", "device", "kv_memory", "threads"),
)
"""Fields that may differ when a search is resumed."""


def command(path: str, limits: Mapping[str, float], *, used_up: bool = False) -> str:
    """What resumes a saved search: its budgets are not in the file, so they are in the command."""
    flags = "".join(f" {flag} {'MORE' if used_up else f'{limit:.15g}'}" for flag, limit in limits.items())
    return f"ponder solve --continue {shlex.quote(path)}{flags}"


@dataclass(frozen=True)
class Saved:
    """What the file holds."""

    path: str
    config: Any
    """The `SolveConfig` that the search was started with, the question filled in."""
    journal: Journal
    opening: Spend = dataclasses.field(default_factory=Spend)
    """Spent on opening the engines, in all processes so far."""
    known: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What was found out about the engines' endpoints, by model."""

    @classmethod
    def of(cls, config: Any, question: str, journal: Journal, opening: Spend, known: dict[str, Any]) -> Saved:
        """A search as it is now; budgets are not part of it."""
        free = {f.name: f.default for f in dataclasses.fields(config) if f.name in FREE}
        return cls("", dataclasses.replace(config, question=question, **free), journal, opening, known)

    def write(self, path: str) -> None:
        """Write atomically: to a temporary file that is renamed."""
        values = {
            "format": FORMAT,
            "config": to_mapping(self.config),
            "journal": self.journal.to_json(),
            "opening": to_json(self.opening),
            "known": self.known,
        }
        write_atomic(Path(path), (json.dumps(values) + "\n").encode())

    def refuse_changed(self, config: Any) -> None:
        """Raises `UserError` for a flag that would make it another search."""
        for field in dataclasses.fields(config):
            mine, theirs = getattr(config, field.name), getattr(self.config, field.name)
            if field.name not in (*FREE, "prices") and mine != theirs:
                flag = "the question" if field.name == "question" else f"--{field.name.replace('_', '-')}"
                raise UserError(
                    f"--continue {self.path}: {flag} is {mine!r}, and the search was started with {theirs!r}; leave "
                    "it out, or start a new search"
                )


def read(args: list[str], config: type) -> Saved | None:
    """The search that `--continue FILE` names. Raises `UserError` if the file does not hold one."""
    path = value_of(args, "--continue")
    if path is None:
        return None
    values = read_json(Path(path))
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path}: not a search that ponder solve --save wrote ({FORMAT})")
    try:
        journal = Journal.from_json(values.get("journal"))
        opening = msgspec.convert(values.get("opening", {}), Spend)
        known = msgspec.convert(values.get("known", {}), dict[str, Any])
    except (UserError, msgspec.ValidationError) as error:
        raise UserError(f"{path}: {error}") from None
    return Saved(path, from_mapping(config, values.get("config") or {}, where=path), journal, opening, known)
