"""Where an evaluation without --out is written while it runs, so that a signal or a crash loses no search.

It is a run directory like any other, `runs/eval-DATE-TIME`. One that has finished is removed, since nobody asked for
it; one that was stopped stays and can be resumed.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

RUNS = "runs"


class Scratch:
    """The directory, and whether it stays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keep = False


@contextlib.contextmanager
def scratch() -> Iterator[Scratch]:
    """An empty directory, removed at the end unless it is to be kept.

    It is one of the system's temporary directories if none can be made here.
    """
    folder = Path(RUNS)
    new = not folder.exists()
    try:
        path = _made(folder)
    except OSError:
        path, new = Path(tempfile.mkdtemp(prefix="ponder-eval-")), False
    made = Scratch(path)
    try:
        yield made
    finally:
        if not made.keep:
            shutil.rmtree(path, ignore_errors=True)
            if new:
                with contextlib.suppress(OSError):  # another process may have made a run in it
                    folder.rmdir()


def _made(folder: Path) -> Path:
    """A directory that no other process has. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"eval-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while True:
        path = folder / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
