"""Checkpoints of a training run: weights, optimiser moments, state of the loop. Data, never code.

A checkpoint is a folder `checkpoints/step-000100/` with `model/` (a Hugging Face folder), `optimiser.safetensors` and
`state.json`; it is written to a temporary folder and renamed, so that a killed process or a full disk leaves the one
before it whole. `checksums.json` holds each file's SHA-256, which is verified when the checkpoint is read.

There is no generator state to save: samples draw from (seed, step, problem, sample index). So a resumed run equals one
that was never stopped.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder.errors import UserError
from ponder.models import weights
from ponder.models.save import save

if TYPE_CHECKING:
    import torch

    from ponder.models.base import LoadedModel

FORMAT = "ponder-checkpoint-1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk, verified."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def model(self) -> Path:
        return self.path / "model"

    def restore_optimiser(self, optimiser: torch.optim.Optimizer) -> None:
        """Put the saved moments back. Raises `UserError` if they do not fit."""
        file = self.path / "optimiser.safetensors"
        tensors = weights.read_tensors(file)
        saved = optimiser.state_dict()
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = tensor
        count = sum(len(g["params"]) for g in saved["param_groups"])
        if moments and len(moments) != count:
            raise UserError(f"{file}: holds {len(moments)} parameters, the optimiser has {count}")
        saved["state"] = moments
        optimiser.load_state_dict(saved)


def write(
    folder: Path, model: LoadedModel, optimiser: torch.optim.Optimizer, state: dict[str, Any], *, keep: int = 2
) -> Checkpoint:
    """Write `step-NNNNNN` into a run's checkpoint folder and remove all but the last `keep`.

    `state` holds `step` and whatever the loop needs to resume. Raises `PonderError` on a full disk; the earlier
    checkpoints stay.
    """
    path = folder / f"step-{int(state['step']):06d}"
    with weights.publish(path, replace=True) as beside:
        save(model, beside / "model")
        moments = {
            f"{number}.{key}": tensor
            for number, entry in optimiser.state_dict()["state"].items()
            for key, tensor in entry.items()
        }
        weights.write_tensors(beside / "optimiser.safetensors", moments)
        weights.write_json(beside / "state.json", {"format": FORMAT, **state})
        weights.write_checksums(beside)
    for old in by_step(folder)[: -max(1, keep)]:
        shutil.rmtree(old, ignore_errors=True)
    return Checkpoint(path, state)


def read(path: str | Path) -> Checkpoint:
    """Read and verify a checkpoint folder. Raises `UserError` that names the broken file."""
    path = Path(path)
    if not (path / "state.json").is_file():
        raise UserError(f"{path}: not a checkpoint (no state.json)")
    if not weights.verify_checksums(path):
        raise UserError(
            f"{path}: its {weights.CHECKSUMS} is missing, so it cannot be verified; take another checkpoint"
        )
    state = weights.read_json(path / "state.json")
    if state.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint that this version of ponder reads ({FORMAT})")
    return Checkpoint(path, state)


def last(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a run, verified: a corrupt one is an error, not a silent step back. None without any."""
    found = by_step(folder)
    return read(found[-1]) if found else None


def by_step(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest first."""
    found = (p for p in folder.glob("step-*") if p.name[5:].isdigit())
    return sorted(found, key=lambda p: int(p.name[5:]))


def last_step(folder: Path) -> int:
    """The step of the newest checkpoint, by its name; 0 if there is none."""
    found = by_step(folder)
    return int(found[-1].name[5:]) if found else 0


def resumed_at(step: int, steps: int | None) -> tuple[str, ...]:
    """Where a resumed training goes on, for the console; nothing before its first checkpoint."""
    if not step:
        return ()
    if steps is None:
        return (f"resumed after step {step:,}",)
    done = ": nothing is left to train" if step >= steps else ""
    return (f"resumed after step {step:,} of {steps:,}{done}",)


def last_name(folder: Path) -> str:
    """Names the newest checkpoint, for an error message."""
    found = by_step(folder)
    return f"the last good checkpoint is {found[-1]}" if found else "no checkpoint was written before it"
