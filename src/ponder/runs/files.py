"""Files that survive a crash: whole lines appended, JSON replaced by a rename, torn last lines skipped.

Leaves out fsync at each line: a run survives a killed process, but may lose its last second in a power failure.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ponder import jsonl, reading
from ponder.errors import PonderError, UserError
from ponder.types import to_json

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers of a disk, a quota or a file that can take no more."""


@contextlib.contextmanager
def disk_errors(path: Path, doing: str = "written") -> Iterator[None]:
    """Turn an `OSError` into one sentence: `PonderError` for a full disk, `UserError` for anything else."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise PonderError(
                f"{path}: the disk is full ({os.strerror(error.errno or 0)}); what was written before is whole: "
                "free some space and continue"
            ) from None
        raise UserError(f"{path}: cannot be {doing}: {error.strerror or error}") from None


def plain(value: Any) -> Any:
    """Plain JSON values with the numbers that JSON lacks (NaN, infinity) as None."""
    return _finite(to_json(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value


def write_atomic(path: Path, data: bytes) -> None:
    """Write a temporary file and rename it: a reader sees the old file or the new one, never a part.

    Raises `PonderError` if the disk is full (the old file stays), `UserError` if the place cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            with open(beside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


_LEFT = re.compile(r"\.(?P<name>.+?)\.(?:(?P<pid>\d+)\.)?(?:[a-z0-9_]{8}\.(?P<kind>part|old)|tmp)")
"""Names of what is written beside a file or a folder before it is renamed: `write_atomic`, `models.weights.publish`."""


def clean(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder that this process alone writes.

    Nothing of a process that still runs is touched. A folder that was moved aside and whose place is empty goes back.
    """
    for left in list(folder.iterdir()) if folder.is_dir() else ():
        found = _LEFT.fullmatch(left.name)
        if found is None or (found["pid"] is not None and psutil.pid_exists(int(found["pid"]))):
            continue
        with contextlib.suppress(OSError):
            if left.is_dir() and not left.is_symlink():
                moved = left / found["name"]
                if found["kind"] == "old" and moved.exists() and not (folder / found["name"]).exists():
                    moved.rename(folder / found["name"])
                shutil.rmtree(left)
            elif found["kind"] is None:
                left.unlink()


def write_text(path: Path, text: str) -> None:
    """`write_atomic` for text; lone surrogates, which have no UTF-8, become `?`."""
    write_atomic(path, text.encode("utf-8", "replace"))


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` for dataclasses and plain values, indented, ASCII (so that any text survives)."""
    write_atomic(path, (json.dumps(plain(value), indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Raises `UserError` that names the file if it is missing or not JSON."""
    return reading.json_value(path)


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON object as one whole line in one write; a write that fails half-way is undone.

    Raises `PonderError` if the disk is full, `UserError` if the file cannot be written.
    """
    try:
        text = json.dumps(row, allow_nan=False)
    except (TypeError, ValueError):  # not plain yet
        text = json.dumps(plain(row), allow_nan=False)
    line = (text + "\n").encode()
    with disk_errors(path):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        try:
            before = os.fstat(fd).st_size
            try:
                written = os.write(fd, line)
                if written < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, before)
                raise
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Lines:
    """What a JSON-lines file holds."""

    rows: tuple[dict[str, Any], ...] = ()
    torn: str | None = None
    """A sentence about a torn last line that was skipped; None if the file is whole."""


def read_lines(path: Path) -> Lines:
    """All of a JSON-lines file; a missing file has none. Raises `UserError` that names a line that is no object."""
    torn: list[str] = []
    rows = tuple(row for _, _, row in jsonl.objects(path, torn=torn, some=False))
    return Lines(rows, torn[0] if torn else None)


_TAIL = 1 << 16
"""Bytes that are read at once, from the end, to find the last line."""


def mend_tail(path: Path) -> str | None:
    """Cut a torn last line off (or end a whole one), so that the next append starts a new line.

    Returns a sentence about what was cut, None if nothing was.
    """
    if not path.exists():
        return None
    with disk_errors(path), open(path, "r+b") as file:
        size = start = file.seek(0, os.SEEK_END)
        tail = b""
        while start > 0 and b"\n" not in tail:
            start = max(0, start - _TAIL)
            file.seek(start)
            tail = file.read(size - start)
        tail = tail.rpartition(b"\n")[2]
        if not tail:
            return None
        try:
            jsonl.parse(tail, str(path))
        except UserError:
            file.truncate(size - len(tail))
        else:
            file.seek(size)
            file.write(b"\n")
            return None
    return f"{path}: the torn last line ({len(tail)} bytes) was cut off"


def keep_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace a JSON-lines file by these rows, atomically."""
    write_atomic(path, b"".join((json.dumps(plain(r), allow_nan=False) + "\n").encode() for r in rows))
