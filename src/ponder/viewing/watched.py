"""A run that is looked at: its rows, its metrics and its facts, kept up with by byte offset while it is written.

Leaves out locks between processes: writers append whole lines, so that what ends with a line end is complete.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ponder import figures
from ponder.errors import UserError
from ponder.reading import loads
from ponder.runs.files import plain, read_json
from ponder.runs.run import read_manifest
from ponder.viewing import rows

MOST_BAD = 3
"""Lines that cannot be read and are named."""
SHOWN_CONFIGS = ("config.toml", "rl.toml")


class _Head(msgspec.Struct):
    """The summary in `evaluation.json`, without its rows."""

    accuracy: dict[str, Any]
    mean_tokens_per_search: dict[str, Any] | None = None
    mean_response_tokens_per_search: dict[str, Any] | None = None
    mean_tokens: dict[str, Any] | None = None
    """Its name in older versions."""
    no_answer: float | None = None
    samples: int | None = None


def _evaluation(path: Path) -> dict[str, Any]:
    try:
        found = msgspec.to_builtins(msgspec.json.decode(path.read_bytes(), type=_Head))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {"evaluation_error": f"{path}: not the result of an evaluation that this version of ponder reads"}
    known = {key: value for key, value in found.items() if value is not None}
    return {"evaluation": figures.current(known, "evaluation")}


@dataclass
class Tail:
    """The lines of a growing file. A file that was replaced or cut begins again."""

    path: Path
    offset: int = 0
    inode: int | None = None

    def changed(self) -> bool:
        """Whether what was read before is no longer in the file."""
        if self.inode is None:
            return False
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return True
        return found.st_ino != self.inode or found.st_size < self.offset

    def restart(self) -> None:
        self.offset, self.inode = 0, None

    def new(self) -> Iterator[tuple[int, bytes]]:
        """Place and bytes of each whole line since the last call; none if there is no file."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            self.inode = os.fstat(file.fileno()).st_ino
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                start, self.offset = self.offset, self.offset + len(line)
                if line.strip():
                    yield start, line


@dataclass
class Watched:
    """One run. `refresh` reads what is new; what had been read stays when the run is deleted."""

    path: Path
    name: str
    generation: str = ""
    """Changes when rows were taken back: a page then drops what it holds."""
    manifest: dict[str, Any] = field(default_factory=dict)
    rows: list[rows.Row] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    """Place and length of each row's line."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    """Sentences about lines that could not be read."""
    unread: int = 0
    """How many there are."""
    error: str = ""
    """Why the run cannot be read now; empty if it can."""
    on_error: Callable[[str], None] | None = None
    _evaluation: tuple[tuple[int, int], dict[str, Any]] | None = None
    """What `evaluation.json` held, and when it was written."""
    _tails: dict[str, Tail] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._tails = {name: Tail(self.path / name) for name in ("rollouts.jsonl", "metrics.jsonl")}
        self._restart()

    def _restart(self) -> None:
        # Of another process too, so that a page outlives a restart of its server.
        self.generation = str(time.time_ns())
        self.rows, self.spans, self.metrics, self.bad, self.unread = [], [], [], [], 0
        for tail in self._tails.values():
            tail.restart()

    def file(self, name: str) -> Path:
        """A file of the run. Raises `UserError` for a link that leads out of it: only the run is shown."""
        path = self.path / name
        if path.is_symlink() and not path.resolve().is_relative_to(self.path.resolve()):
            raise UserError(f"{path}: is a link that leads out of the run, and is not read")
        return path

    def refresh(self) -> None:
        """Read what is new. Never raises for a run that has gone or cannot be read: `error` says so."""
        with self._lock:
            try:
                self._refresh()
                found = ""
            except UserError as error:
                found = str(error)
            except OSError as error:
                found = f"{error.filename or self.path}: cannot be read: {error.strerror or error}"
            if found and found != self.error and self.on_error is not None:
                self.on_error(found)
            self.error = found

    def _refresh(self) -> None:
        if self.manifest and not (self.path / "manifest.json").exists():
            held = f"its {len(self.rows):,} rows are" if self.rows else "its facts are"
            raise UserError(f"{self.path}: was deleted while it was viewed; {held} what had been read before")
        self.manifest = read_manifest(self.path)
        for name in (*self._tails, "manifest.json"):
            self.file(name)
        if any(tail.changed() for tail in self._tails.values()):
            self._restart()
        for place, line in self._tails["rollouts.jsonl"].new():
            try:
                self.rows.append(rows.row(line))
            except UserError as error:
                self._refuse(f"{self.path / 'rollouts.jsonl'}: the line at byte {place:,} {error}")
            else:
                self.spans.append((place, len(line)))
        for place, line in self._tails["metrics.jsonl"].new():
            try:
                found = loads(line)
            except ValueError:
                found = None
            if isinstance(found, dict):
                self.metrics.append(plain(found))
            else:
                self._refuse(f"{self.path / 'metrics.jsonl'}: the line at byte {place:,} is not a JSON object")

    def _refuse(self, sentence: str) -> None:
        self.unread += 1
        if len(self.bad) < MOST_BAD:
            self.bad.append(sentence)

    # What a page asks for -------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """The run in the list of runs."""
        m = self.manifest
        return {
            "name": self.name,
            "status": m.get("status", "unknown"),
            "command": m.get("command") or [],
            "start": m.get("start"),
            "end": m.get("end"),
            "error": self.error,
            "notes": [*self.bad, *([f"{self.unread} lines could not be read"] if self.unread > len(self.bad) else [])],
        }

    def state(self, generation: str = "", after: int = 0, metrics_after: int = 0) -> dict[str, Any]:
        """All that is new to a page that holds so many rows and metrics of a generation."""
        with self._lock:
            self.refresh()
            if generation != self.generation:
                after = metrics_after = 0
            return {
                **self.facts(),
                "generation": self.generation,
                "after": after,
                "rows": [row.cells for row in self.rows[after:]],
                "metrics_after": metrics_after,
                "metrics": self.metrics[metrics_after:],
                **self._results(),
            }

    def evaluation(self) -> dict[str, Any]:
        """`evaluation`, or `evaluation_error` where it cannot be read; neither where the run has none."""
        path = self.path / "evaluation.json"
        try:
            facts = self.file("evaluation.json").stat()
            stamp = (facts.st_mtime_ns, facts.st_size)
            if self._evaluation is None or self._evaluation[0] != stamp:
                # With all its rows it can be large, so it is not read again for every question.
                self._evaluation = (stamp, _evaluation(path))
        except FileNotFoundError:
            return {}
        except UserError as error:
            return {"evaluation_error": str(error)}
        except OSError as error:
            return {"evaluation_error": f"{path}: cannot be read: {error.strerror or error}"}
        return self._evaluation[1]

    def _results(self) -> dict[str, Any]:
        if self.error:
            return {}
        found = dict(self.evaluation())
        try:
            curves = read_json(self.file("curves.json"))
            found["train"] = [p for p in curves["train"] if isinstance(p["step"], int | float)]
        except (UserError, KeyError, TypeError):
            pass
        return found

    def about(self) -> dict[str, Any]:
        """Manifest and configs, for reading."""
        configs = {}
        for name in SHOWN_CONFIGS:
            try:
                configs[name] = self.file(name).read_text(encoding="utf-8", errors="replace")
            except UserError as error:
                configs[name] = str(error)
            except OSError:
                continue
        return {"manifest": self.manifest, "configs": configs}

    def lines(self, generation: str, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The whole of some rows. Raises `UserError` if the run has changed or gone since they were listed."""
        with self._lock:
            self.refresh()
            if self.error:
                raise UserError(self.error)
            if generation != self.generation or not all(0 <= n < len(self.spans) for n in numbers):
                raise UserError(f"{self.path}: was written anew while it was viewed; the list is being read again")
            found = []
            with self.file("rollouts.jsonl").open("rb") as file:
                for n in numbers:
                    place, length = self.spans[n]
                    file.seek(place)
                    try:
                        found.append(rows.full(file.read(length)))
                    except (ValueError, OverflowError) as error:
                        where = f"{self.path / 'rollouts.jsonl'}: the line at byte {place:,}"
                        raise UserError(f"{where} cannot be read: {error}") from None
            return found

    def search(self, query: str) -> list[int]:
        """The rows that hold a text, whatever its case."""
        with self._lock:
            wanted = query.lower()
            return [i for i, row in enumerate(self.rows) if wanted in row.text]
