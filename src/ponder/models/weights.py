"""Tensors and folders on disk: safetensors only, a checksum per file, a folder that appears whole or not at all.

A checkpoint is data, never code: nothing here reads or writes pickles. `publish` writes to a temporary folder and
renames it, so that a full disk, a crash or Ctrl-C leaves the old folder. `checksums.json` holds the SHA-256 of each
file; readers of the folder verify it first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder import reading
from ponder.errors import PonderError, UserError

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUMS = "checksums.json"


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def all_finite(weights: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    import torch

    # A sum is not finite if a value is not; only then every value is looked at, which takes twenty times as long.
    return bool(torch.isfinite(weights.sum(dtype=torch.float32))) or bool(torch.isfinite(weights).all())


def write_checksums(folder: str | Path) -> None:
    """Write `checksums.json` for every file in the folder and below it."""
    folder = Path(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / CHECKSUMS)
    sums = {p.relative_to(folder).as_posix(): sha256(p) for p in files}
    write_json(folder / CHECKSUMS, {"algorithm": "sha256", "files": sums})


def verify_checksums(folder: str | Path) -> bool:
    """Compare each file with `checksums.json`; False if the folder has none.

    Raises `UserError` that names the first file that is missing or differs.
    """
    folder = Path(folder)
    path = folder / CHECKSUMS
    if not path.is_file():
        return False
    files = read_json(path).get("files")
    if not isinstance(files, dict):
        raise UserError(f"{path}: no table 'files' in it; copy the folder again, or delete this file to skip the check")
    for name, wanted in files.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file} is missing although {CHECKSUMS} lists it: copy the whole folder again")
        if sha256(file) != wanted:
            raise UserError(
                f"{file} is corrupt (its checksum differs from {CHECKSUMS}): "
                "copy the folder again from its source, or take another checkpoint"
            )
    return True


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object. Raises `UserError` that names the file and the line."""
    value = reading.json_value(Path(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__} where a JSON object belongs")
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON for people and programs: indented, UTF-8."""
    Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file. Tensors that share memory are each written in full."""
    import safetensors
    import safetensors.torch

    # A copy each, since safetensors refuses views and shared storage.
    plain = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    try:
        safetensors.torch.save_file(plain, str(path), metadata={"format": "pt", **(metadata or {})})
    except safetensors.SafetensorError as error:
        if _full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise PonderError(f"{path}: cannot be written: {error}") from None
    # The library makes it readable only to the owner.
    Path(path).chmod(0o666 & ~_umask())


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU. Raises `UserError` if it is missing, truncated or something else."""
    import safetensors

    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            # Cloned: the library maps the file, and a file that changes while mapped kills the process.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}): copy it again from its source") from None


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def publish(folder: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Give an empty folder to write into; it is synced and renamed to `folder` when the block ends without error.

    On any error it is removed and what was at `folder` is untouched. Raises `UserError` if `folder` exists and
    `replace` is false, `PonderError` if the disk is full.
    """
    folder = Path(folder)
    if not replace and folder.exists():
        raise UserError(f"{folder} exists already: choose another folder, or remove it first")
    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = _beside(folder, "part")
        partial.chmod(0o777 & ~_umask())
        yield partial
        _sync(partial)
        _take_name(partial, folder)
        handle = os.open(folder.parent, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    except OSError as error:
        raise _sentence(folder, error) from None
    except Exception as error:
        if _full(error):  # libraries in Rust raise their own types
            raise _sentence(folder, OSError(errno.ENOSPC, "")) from None
        raise
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _beside(folder: Path, what: str) -> Path:
    """A new folder beside one; its name says of what process it is (`runs.files.clean` removes what a kill left)."""
    return Path(tempfile.mkdtemp(prefix=f".{folder.name}.{os.getpid()}.", suffix=f".{what}", dir=folder.parent))


def _take_name(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.rename(folder)
        return
    old = _beside(folder, "old")
    folder.rename(old / folder.name)
    try:
        partial.rename(folder)
    except BaseException:  # an interrupt must not lose the old folder either
        (old / folder.name).rename(folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _full(error: Exception) -> bool:
    return f"os error {errno.ENOSPC}" in str(error)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sentence(folder: Path, error: OSError) -> PonderError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return PonderError(
            f"{folder}: the disk is full; nothing was written and what was there before is untouched: "
            "free some space or choose another folder"
        )
    return UserError(f"{folder}: cannot be written: {error.strerror or error}: choose another folder")
