"""Dequantised weights of GGUF files, kept on disk: dequantising half a billion of them takes several seconds.

A file is known by the SHA-256 digest of its bytes, and its digest by path, size and time of change, so that it is
computed once. `PONDER_CACHE` names another folder than `~/.cache/ponder`, and an empty one turns the cache off;
`PONDER_CACHE_GB` is the most that it may take (20), the least recently used file goes first. `ponder doctor` shows the
cache and `ponder doctor --clear-cache` empties it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ponder.models.weights import sha256

if TYPE_CHECKING:
    from torch import Tensor

WORTH = 1.0
"""Seconds that dequantising must take for its result to be kept."""
_INDEX = "digests.json"
_SUFFIX = ".gguf.safetensors"


@dataclass(frozen=True, slots=True)
class Kept:
    """One file of the cache."""

    path: Path
    bytes: int


def folder() -> Path | None:
    """Where the cache is; None if it is turned off."""
    named = os.environ.get("PONDER_CACHE")
    if named is not None:
        return Path(named).expanduser() if named.strip() else None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "ponder"


def kept() -> list[Kept]:
    """The files of the cache, the most recently used first."""
    where = folder()
    if where is None or not where.is_dir():
        return []
    found = []
    for path in where.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            stat = path.stat()
            found.append((stat.st_mtime, Kept(path, stat.st_size)))
    return [entry for _, entry in sorted(found, key=lambda f: -f[0])]


def clear() -> int:
    """Delete the cache; how many bytes were freed."""
    freed = 0
    for entry in kept():
        with contextlib.suppress(OSError):
            entry.path.unlink()
            freed += entry.bytes
    where = folder()
    if where is not None:
        (where / _INDEX).unlink(missing_ok=True)
    return freed


def weights(path: Path, dequantise: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The weights of a GGUF file: from the cache, or dequantised and then kept. A fault of the cache never shows."""
    where = folder()
    if where is None:
        return dequantise()
    digest = None
    try:
        digest = _digest(where, path)
        found = _read(where / f"{digest}{_SUFFIX}")
        if found is not None:
            return found
    except OSError:
        pass
    began = time.monotonic()
    state = dequantise()
    if digest is not None and time.monotonic() - began >= WORTH:
        with contextlib.suppress(OSError):
            _keep(where / f"{digest}{_SUFFIX}", state)
    return state


def _digest(where: Path, path: Path) -> str:
    """The digest of a file, from the index if the file has not changed since."""
    stat = path.stat()
    now = [stat.st_size, stat.st_mtime_ns]
    name = str(path.resolve())
    index: dict[str, list[object]] = {}
    with contextlib.suppress(OSError, ValueError):
        loaded = json.loads((where / _INDEX).read_text(encoding="utf-8"))
        index = loaded if isinstance(loaded, dict) else {}
    known = index.get(name)
    if isinstance(known, list) and known[:2] == now and len(known) == 3:
        return str(known[2])
    digest = sha256(path)
    where.mkdir(parents=True, exist_ok=True)
    partial = where / f".{_INDEX}.{os.getpid()}"
    partial.write_text(json.dumps({**index, name: [*now, digest]}), encoding="utf-8")
    os.replace(partial, where / _INDEX)
    return digest


def _read(path: Path) -> dict[str, Tensor] | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        return None
    try:
        state = load_file(path)  # mapped, and copied where it is written to
    except (SafetensorError, ValueError):
        path.unlink(missing_ok=True)
        return None
    os.utime(path)
    return state


def _keep(path: Path, state: dict[str, Tensor]) -> None:
    """Write the weights, if there is room, and delete what has not been used for longest."""
    from safetensors.torch import save_file

    size = sum(t.numel() * t.element_size() for t in state.values())
    most = most_bytes()
    if size > most or shutil.disk_usage(path.parent).free < 2 * size:
        return
    for partial in path.parent.glob(f".*{_SUFFIX}.*"):
        if time.time() - partial.stat().st_mtime > 3600:  # left by a process that was killed
            partial.unlink(missing_ok=True)
    used = size
    for entry in kept():
        used += entry.bytes
        if used > most:
            entry.path.unlink(missing_ok=True)
    partial = path.parent / f".{path.name}.{os.getpid()}"
    try:
        save_file({name: t.contiguous() for name, t in state.items()}, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def most_bytes() -> float:
    """The most that the cache may take."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(os.environ.get("PONDER_CACHE_GB", "20"))) * 1e9
    return 20e9
