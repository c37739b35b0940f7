"""Which runs a viewer shows: those that were named, and those in named folders."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ponder import figures
from ponder.errors import UserError
from ponder.evaluation.compare import compare
from ponder.runs.files import plain, read_json
from ponder.runs.run import read_manifest
from ponder.viewing.watched import Watched

DEEPEST = 3
"""Levels below a folder where runs are looked for."""
DEFAULT = "runs"


class Catalog:
    """The runs of a viewer, by number; a folder's new runs join while it is open.

    Raises `UserError` if a named run is none or of another version, or if a folder holds no run.
    """

    def __init__(self, names: Sequence[str], on_error: Callable[[str], None] | None = None) -> None:
        self.runs: list[Watched] = []
        self.chosen = bool(names)
        """The runs were named, so they are shown at once."""
        self._on_error = on_error
        self._folders: list[Path] = []
        self._known: set[Path] = set()
        self._compared: dict[tuple[int, int], tuple[tuple[str, str], dict[str, Any]]] = {}
        self._lock = threading.Lock()
        for name in names or [DEFAULT]:
            self._take(Path(name), named=bool(names))
        if not self.runs:
            raise UserError(f"{', '.join(names)}: holds no run that this version of ponder reads")

    def _take(self, path: Path, named: bool) -> None:
        if (path / "manifest.json").exists() or (named and not path.is_dir()):
            read_manifest(path)
            self._add(path)
            return
        if not path.is_dir() or not list(below(path)):
            if named:
                raise UserError(f"{path}: not a run directory (no manifest.json), and no folder of runs")
            raise UserError(f"there is no run in {path}/: name run directories, as in: ponder view RUN")
        self._folders.append(path)
        self.chosen = False
        self.look()

    def _add(self, path: Path) -> None:
        real = path.resolve()
        if real not in self._known:
            self._known.add(real)
            self.runs.append(Watched(path, str(path), on_error=self._on_error))

    def look(self) -> None:
        """Find the new runs of the folders. Those of another version are left out."""
        with self._lock:
            for folder in self._folders:
                for path in below(folder):
                    try:
                        read_manifest(path)
                    except UserError:
                        continue
                    self._add(path)

    def listed(self) -> dict[str, Any]:
        """The list of runs, without reading their rows."""
        self.look()
        found = []
        for run in self.runs:
            try:
                run.manifest, run.error = read_manifest(run.path), ""
            except UserError as error:
                run.error = run.error or str(error)
            evaluation = run.evaluation().get("evaluation") or {}
            found.append({**run.facts(), "accuracy": evaluation.get("accuracy")})
        return {"runs": found, "chosen": self.chosen, "labels": figures.labels()}

    def compare(self, a: int, b: int) -> dict[str, Any]:
        """`evaluation.compare` of two runs as JSON, or the sentence why they cannot be compared."""
        first, second = self.runs[a], self.runs[b]
        first.refresh()
        second.refresh()
        state = tuple(f"{r.generation} {len(r.rows)} {r.manifest.get('status')} {r.error}" for r in (first, second))
        held = self._compared.get((a, b))
        if held is None or held[0] != state:
            under_way = [r for r in (first, second) if r.manifest.get("status") == "running" and not r.evaluation()]
            try:
                if under_way:
                    raise UserError(f"{under_way[0].name} is under way: the difference is shown when it is done")
                found = plain(compare(first.path, second.path).to_json())
            except (UserError, OSError) as error:
                found = {"error": str(error)}
            held = self._compared[a, b] = ((state[0], state[1]), found)
        return held[1]


def below(folder: Path, deepest: int = DEEPEST) -> list[Path]:
    """Run directories in a folder, newest first; links are not followed."""
    found: list[Path] = []
    _walk(folder, deepest, found)
    return sorted(found, key=_started, reverse=True)


def _walk(folder: Path, left: int, found: list[Path]) -> None:
    try:
        inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink() and p.name[:1] != ".")
    except OSError:
        return
    for path in inside:
        if (path / "manifest.json").exists():
            found.append(path)
        elif left > 1:
            _walk(path, left - 1, found)


def _started(path: Path) -> str:
    try:
        return str(read_json(path / "manifest.json").get("start"))
    except (UserError, AttributeError):
        return ""
