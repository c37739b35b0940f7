"""`Run`: a directory that holds all that one command did, enough to resume and to repeat it.

    config.toml  config-1.toml  manifest.json  metrics.jsonl  rollouts.jsonl  checkpoints/step-000100/
    model/  curves.json  evaluation.json  summary.json  samples.json  *.png  report.md  report.html

A run is locked while a process has it open, so that two commands never write one directory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ponder.errors import UserError
from ponder.reading import refuse_nul
from ponder.runs import manifest as machine
from ponder.runs.files import (
    Lines,
    append_line,
    clean,
    disk_errors,
    keep_lines,
    mend_tail,
    read_json,
    read_lines,
    write_json,
    write_text,
)
from ponder.runs.trackers import Trackers
from ponder.show import visible

_log = logging.getLogger(__name__)

FORMAT = "ponder-run-1"
Status = Literal["running", "done", "failed", "interrupted"]
DATA = ("config.toml", "rl.toml", "manifest.json", "metrics.jsonl", "rollouts.jsonl", "curves.json", "evaluation.json")
SHOWN = (
    "summary.json",
    "samples.json",
    "report.md",
    "report.html",
    "curves.png",
    "parallel.png",
    "training.png",
    "mlflow.db",
)
FOLDERS = ("checkpoints", "model", "inspect", "tensorboard", "trackio", "wandb")
KEPT = re.compile(r"(config|rl)-\d+\.toml")
"""Configs of a run's earlier starts."""


def now() -> str:
    """This moment in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Run:
    """A run directory that is open for writing. Made by `Run.create` or `Run.open`; close it or use `with`.

    Leaving a `with` block writes the end and the status: `done`, `interrupted` on Ctrl-C, `failed` otherwise.
    """

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self._lock = lock
        self._trackers: Trackers | None = None
        self._before = 0
        """Which start of the run wrote what lies there, where it was opened to be continued."""

    @classmethod
    def create(
        cls,
        path: str | Path,
        config_toml: str,
        seed: int,
        command: Sequence[str] | None = None,
        *,
        overwrite: bool = False,
    ) -> Self:
        """Begin a run in a new or empty directory.

        `command` is the command line (default: this process's). With `overwrite` the files of an earlier run are
        removed, and so are those of one that got no further than its beginning (`holds_results`); other files of the
        directory stay. Raises `UserError` if the directory holds anything else.
        """
        path = Path(path)
        _refuse(path, overwrite)
        with disk_errors(path, "made"):
            path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        try:
            _refuse(path, overwrite)
            _clean(path)
            _clear(path)
            run = cls(path, lock)
            run._write_manifest(
                {
                    "format": FORMAT,
                    "command": list(sys.argv if command is None else command),
                    "seed": seed,
                    "status": "running",
                    "start": now(),
                    "end": None,
                    "resumed": [],
                    "versions": machine.versions(),
                    "git": machine.commit(),
                    "hardware": machine.hardware(),
                }
            )
            # After the manifest: a directory with a config alone may be a user's.
            write_text(path / "config.toml", config_toml)
        except BaseException:
            _unlock(lock)
            raise
        return run

    @classmethod
    def open(cls, path: str | Path, command: Sequence[str] | None = None) -> Self:
        """Open a run to continue it; torn last lines are cut off, with a warning, and the manifest says when.

        Raises `UserError` if the directory is no run or another process has it open.
        """
        path = Path(path)
        manifest = read_manifest(path)
        lock = _lock(path)
        try:
            _clean(path)
            for mended in (mend_tail(path / name) for name in ("metrics.jsonl", "rollouts.jsonl")):
                if mended:
                    _log.warning("warning: %s", visible(mended))
            run = cls(path, lock)
            again = {"at": now(), "command": list(sys.argv if command is None else command), "git": machine.commit()}
            again["hardware"] = machine.hardware()
            resumed = [*manifest.get("resumed", []), again]
            run._before = len(resumed)
            run._write_manifest({**manifest, "status": "running", "end": None, "resumed": resumed})
        except BaseException:
            _unlock(lock)
            raise
        return run

    @property
    def config_path(self) -> Path:
        return self.path / "config.toml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step belongs."""
        return self.checkpoints / f"step-{step:06d}"

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one step to `metrics.jsonl`. The row holds `step`. Raises `PonderError` if the disk is full."""
        append_line(self.path / "metrics.jsonl", row)
        if self._trackers is not None:
            self._trackers.log(row)

    def track(self, track: str, config: Mapping[str, Any], note: Callable[[str], None], *, resumed: bool) -> None:
        """Send what is logged to the trackers that `track` names, too (`runs.trackers`). Raises `UserError`."""
        if track:
            self._trackers = Trackers.begin(track, self.path, config, note, resumed=resumed)

    def log_rollout(self, row: Mapping[str, Any]) -> None:
        """Append one problem with its samples to `rollouts.jsonl`. The row holds `step`."""
        append_line(self.path / "rollouts.jsonl", row)

    def write_json(self, name: str, value: Any) -> Path:
        """Write `curves.json`, `summary.json`, `samples.json`, … atomically; returns the path."""
        write_json(self.path / name, value)
        return self.path / name

    def write_config(self, name: str, text: str) -> None:
        """Write a config. One with another content that an earlier start of this run wrote is kept: `config-1.toml` is
        that of the first start, `config-2.toml` that of the first resume, and so on."""
        path, file = self.path / name, Path(name)
        if self._before and path.exists():
            kept = self.path / f"{file.stem}-{self._before}{file.suffix}"
            if not kept.exists() and path.read_text(encoding="utf-8") != text:
                write_text(kept, path.read_text(encoding="utf-8"))
        write_text(path, text)

    def write_text(self, name: str, text: str) -> Path:
        write_text(self.path / name, text)
        return self.path / name

    def metrics(self) -> Lines:
        return read_lines(self.path / "metrics.jsonl")

    def rollouts(self) -> Lines:
        return read_lines(self.path / "rollouts.jsonl")

    def truncate_after(self, step: int) -> int:
        """Drop metrics and rollouts of later steps, which the checkpoint of `step` does not know; returns how many.

        A resumed run then writes them again and equals one that was never stopped.
        """
        dropped = 0
        for name in ("metrics.jsonl", "rollouts.jsonl"):
            rows = read_lines(self.path / name).rows
            kept = [r for r in rows if not isinstance(r.get("step"), int | float) or r["step"] <= step]
            if len(kept) < len(rows):
                keep_lines(self.path / name, kept)
            dropped += len(rows) - len(kept)
        return dropped

    def note(self, **facts: Any) -> None:
        """Write facts into the manifest that are known only once the run is open, such as `model`."""
        self._write_manifest({**read_manifest(self.path), **facts})

    def finish(self, status: Status, **facts: Any) -> None:
        """Write end, status and peak memory into the manifest, with any other facts, and release the lock."""
        facts = {"peak_memory_bytes": machine.peak_memory_bytes(), **facts}
        if self._trackers is not None:
            self._trackers.close(status)
        try:
            self._write_manifest({**read_manifest(self.path), "status": status, "end": now(), **facts})
        finally:
            self.close()

    def close(self) -> None:
        """Release the lock without writing to the manifest. Idempotent."""
        _unlock(self._lock)
        self._lock = None

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_json(self.path / "manifest.json", manifest)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is None:  # `finish` was called
            return
        if kind is None:
            self.finish("done")
            return
        # A full disk must not hide the error that ended the work.
        with contextlib.suppress(Exception):
            stopped = issubclass(kind, KeyboardInterrupt) or getattr(error, "exit_code", 1) == 130
            self.finish("interrupted" if stopped else "failed", error=str(error))
        self.close()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run directory. Raises `UserError` if there is none."""
    if not path.is_dir():
        raise UserError(f"{path}: no such run directory")
    if not (path / "manifest.json").exists():
        raise UserError(f"{path}: not a run directory (no manifest.json)")
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path / 'manifest.json'}: not a manifest that this version of ponder reads ({FORMAT})")
    return manifest


def refuse_existing(path: str | Path, overwrite: bool = False) -> None:
    """Raise `UserError` unless a run may begin here; makes and changes nothing, so it can be asked early."""
    path = Path(path)
    _refuse(path, overwrite)
    if path.is_dir():
        _unlock(_lock(path))


def _refuse(path: Path, overwrite: bool) -> None:
    refuse_nul(path, "out")
    with disk_errors(path, "read"):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: is a file, not a directory; choose another --out")
        if not path.exists():
            first = next(p for p in path.absolute().parents if p.exists())
            if not (first.is_dir() and os.access(first, os.W_OK | os.X_OK)):
                raise UserError(f"{path}: cannot be made in {first}; choose another --out")
            return
        if not any(not _is_left(p) for p in path.iterdir()):
            if not os.access(path, os.W_OK | os.X_OK):
                raise UserError(f"{path}: cannot be written to; choose another --out")
            return
    if not (path / "manifest.json").exists():
        raise UserError(f"{path}: exists and holds other files; choose another --out")
    read_manifest(path)
    if not overwrite and holds_results(path):
        raise UserError(
            f"{path}: already holds a run; continue it with --resume, replace it with --overwrite, or choose another "
            "--out"
        )


def holds_results(path: Path) -> bool:
    """Whether there is something to continue or to lose: a checkpoint, a model, or a line or file of results.

    A run that was refused or killed as it began has none.
    """
    files = ("metrics.jsonl", "rollouts.jsonl", "curves.json", "evaluation.json", "summary.json")
    written = any((path / name).is_file() and (path / name).stat().st_size for name in files)
    return written or (path / "model").is_dir() or any((path / "checkpoints").glob("step-*"))


def _is_left(path: Path) -> bool:
    """Whether a file is what a killed process left of a manifest."""
    return path.name.startswith(".manifest.json.") and path.name.endswith(".tmp")


def _clean(path: Path) -> None:
    """Remove what a killed process left half-written in a run directory."""
    clean(path)
    clean(path / "checkpoints")


def _clear(path: Path) -> None:
    """Remove what a run writes."""
    with disk_errors(path, "cleared"):
        for name in (*DATA, *SHOWN, *FOLDERS):
            target = path / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
        for kept in path.iterdir():
            if KEPT.fullmatch(kept.name):
                kept.unlink()


def _lock(path: Path) -> int:
    """Lock the directory itself (no lock file stays behind); the system frees it when the process ends."""
    with disk_errors(path, "opened"):
        fd = os.open(path, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows has no flock
        pass
    except BlockingIOError:
        os.close(fd)
        raise UserError(f"{path}: another process is writing this run; wait for it or choose another --out") from None
    except OSError:  # a file system without locks (some network mounts): better unlocked than not at all
        pass
    return fd


def _unlock(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
