"""What kind of run a directory holds, by the config that each verb writes."""

from __future__ import annotations

import shlex
from pathlib import Path

from ponder.config import load_toml, verb_of
from ponder.errors import UserError
from ponder.runs.run import read_manifest


def kind_of(path: Path) -> str | None:
    """The verb that a run is of, such as `train rl`; None for one of another program, or without a whole config.

    Raises `UserError` if the directory holds no run.
    """
    read_manifest(path)
    try:
        return verb_of(load_toml(path / "config.toml"))
    except UserError:
        return None


def refuse_other(path: Path, verb: str) -> None:
    """Raises `UserError` for a directory that holds no run, or a run of another verb: it says how to resume that."""
    kind = kind_of(path)
    if kind is not None and kind != verb:
        raise UserError(
            f"{path}: is a run of ponder {kind}, not of ponder {verb}; resume it with: {resuming(path, kind)}"
        )


def resuming(path: Path, kind: str) -> str:
    """The command that resumes a run."""
    place = shlex.quote(str(path))
    if kind == "eval":
        return f"ponder eval --resume --out {place}"
    return f"ponder {kind} --config {place}/config.toml --resume"
