"""The runs of `ponder train pretrain` and `ponder train sft`: config, run directory, checkpoints, progress."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder import config as configs
from ponder.errors import TrainingDiverged, UserError
from ponder.models.host import reuse_freed_memory
from ponder.models.load import load
from ponder.models.save import save
from ponder.runs import trackers
from ponder.runs.progress import Progress
from ponder.runs.run import Run
from ponder.training import checkpoint, lm
from ponder.training.corpus.base import mixture
from ponder.training.data import Batch, ProceduralChats, ProceduralText, RowSource, Transcripts
from ponder.training.interrupt import Interrupt, Interrupted

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel

FAMILIES = (
    "countdown=0.5",
    "arithmetic=0.2",
    "compare=0.04",
    "sort=0.05",
    "remainder=0.05",
    "equation=0.05",
    "sequence=0.04",
    "letters=0.04",
    "reverse=0.03",
)


@dataclass(frozen=True)
class PretrainConfig:
    """Make a base model from random weights, on procedural text."""

    out: str = "runs/pretrain"
    """Run directory to make."""
    families: tuple[str, ...] = FAMILIES
    """Families of text with their shares, as NAME=SHARE."""
    length: int = 256
    """Ids of a packed row."""
    fit: lm.LMConfig = field(
        default_factory=lambda: lm.LMConfig(learning_rate=3e-3, batch_tokens=8192, max_tokens=4_000_000)
    )
    """How to fit."""
    seed: int = 0
    """Seed of weights and text."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    track: str = ""
    """Trackers that get every row of metrics too: tensorboard, trackio, wandb or mlflow, several as tensorboard,wandb.
    They write to files of the run; nothing is sent anywhere unless the tool's own settings say so (WANDB_MODE=online,
    MLFLOW_TRACKING_URI)."""
    resume: bool = False
    """Continue the run in `out` from its last checkpoint."""

    def __post_init__(self) -> None:
        _check(self, "length", "checkpoint_every")


@dataclass(frozen=True)
class SFTConfig:
    """Fine-tune a model on chats: procedural ones, or the prompts and responses of a file."""

    model: str = "ponder-tiny"
    """Folder, GGUF file, hub id, run directory or built-in name of the model to start from."""
    out: str = "runs/sft"
    """Run directory to make."""
    data: str = ""
    """JSONL of `prompt` and `response` (or `ids` and `mask`) rows; empty for procedural chats."""
    raw_prompts: bool = False
    """Take plain-text prompts of `data` as they are, without the chat template (for few-shot text)."""
    families: tuple[str, ...] = FAMILIES
    """Families of procedural chats with their shares, as NAME=SHARE."""
    longest: int = 512
    """Rows of more ids are skipped."""
    held_out: float = 0.05
    """Share of the rows of `data` that is kept for validation."""
    fit: lm.LMConfig = field(
        default_factory=lambda: lm.LMConfig(batch_tokens=8192, max_tokens=20_000_000, eval_every=100, patience=8)
    )
    """How to fit."""
    seed: int = 0
    """Seed of the text and its order."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    track: str = ""
    """Trackers that get every row of metrics too: tensorboard, trackio, wandb or mlflow, several as tensorboard,wandb.
    They write to files of the run; nothing is sent anywhere unless the tool's own settings say so (WANDB_MODE=online,
    MLFLOW_TRACKING_URI)."""
    resume: bool = False
    """Continue the run in `out` from its last checkpoint."""

    def __post_init__(self) -> None:
        _check(self, "longest", "checkpoint_every")
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out = {self.held_out}: give a share between 0 and 1")
        if self.raw_prompts and not self.data:
            raise UserError("raw_prompts is for the prompts of a file, and procedural chats have none: give --data")


HELD_OUT_ROWS = 512


def _check(config: PretrainConfig | SFTConfig, *positive: str) -> None:
    for name in positive:
        if getattr(config, name) < (2 if name in ("length", "longest") else 1):
            raise UserError(f"{name} = {getattr(config, name)}: give more")
    if config.seed < 0:
        raise UserError(f"seed = {config.seed}: give 0 or more")


def pretrain(config: PretrainConfig) -> Path:
    """Run `ponder train pretrain`; returns the folder of the finished model."""
    from ponder.models.tiny import new_model

    trackers.names(config.track)
    model = new_model(config.seed)
    if config.length > model.info.context:
        raise UserError(f"length: {config.length} is more than the model's context of {model.info.context} tokens")
    text = ProceduralText(mixture(config.families, config.seed), model, config.length)
    other = ProceduralText(mixture(config.families, config.seed + 500_009), model, config.length)
    return _run(config, model, text, _held_out(other, model), "ponder train pretrain")


def sft(config: SFTConfig) -> Path:
    """Run `ponder train sft`; returns the folder of the finished model."""
    trackers.names(config.track)
    model = load(config.model)
    if config.raw_prompts:
        model.take_plain_prompts()
    if config.longest > model.info.context:
        raise UserError(f"longest: {config.longest} is more than the model's context of {model.info.context} tokens")
    source: RowSource
    if config.data:
        rows = Transcripts.read(config.data, model, config.seed, config.longest)
        count = max(1, round(config.held_out * len(rows.items)))
        if count >= len(rows.items):
            raise UserError(f"{config.data}: {len(rows.items)} rows are too few to hold {count} out for validation")
        source = Transcripts(rows.items[count:], config.seed)
        held_out = _fixed(Transcripts(rows.items[:count], 0), count, model)
    else:
        if model.thought is None:
            raise UserError(f"{config.model} has no thought markers for procedural chats; give --data FILE.jsonl")
        source = ProceduralChats(mixture(config.families, config.seed), model, config.longest)
        held_out = _held_out(
            ProceduralChats(mixture(config.families, config.seed + 500_009), model, config.longest), model
        )
    return _run(config, model, source, held_out, "ponder train sft")


def _held_out(source: RowSource, model: LoadedModel) -> list[Batch]:
    return _fixed(source, HELD_OUT_ROWS, model)


def _fixed(source: RowSource, count: int, model: LoadedModel) -> list[Batch]:
    from ponder.training.data import collate

    rows = sorted((row for _, row in islice(source.rows(0), count)), key=lambda r: len(r.ids))
    return [collate(rows[i : i + 32], model.pad_id) for i in range(0, len(rows), 32)]


def _run(
    config: PretrainConfig | SFTConfig, model: LoadedModel, source: RowSource, held_out: Sequence[Batch], verb: str
) -> Path:
    reuse_freed_memory()
    state = lm.LMState()
    optimiser = lm.make_optimiser(model.module, config.fit)
    if config.resume:
        run = Run.open(config.out)
        saved = checkpoint.last(run.checkpoints)
        if saved is not None:
            model.module.load_state_dict(load(str(saved.model)).module.state_dict())
            saved.restore_optimiser(optimiser)
            state = configs.from_mapping(lm.LMState, saved.state["loop"], where=str(saved.path))
            state.best = state.best if math.isfinite(state.best) else math.inf
        else:  # killed before its first checkpoint
            run.note(model=model.facts())
        run.truncate_after(state.step)
    else:
        run = Run.create(config.out, configs.to_toml(dataclasses.replace(config, resume=False)), config.seed)
        run.note(model=model.facts())

    settings = configs.to_mapping(config)
    run.track(config.track, settings, lambda text: print(text, file=sys.stderr), resumed=config.resume)

    def keep() -> checkpoint.Checkpoint:
        loop = dataclasses.asdict(state)
        loop["best"] = min(loop["best"], 1e30)  # JSON has no infinity
        return checkpoint.write(run.checkpoints, model, optimiser, {"step": state.step, "loop": loop})

    def on_step(now: lm.LMState, row: dict[str, Any]) -> None:
        run.log(row)
        progress.update(
            now.tokens,
            loss=row["loss"],
            validation=row.get("validation_loss"),
            tokens_per_s=row["tokens_per_second"],
            phase="decay" if now.decay_from is not None else None,
        )
        if "validation_loss" in row:
            progress.note(f"step {now.step}: validation loss {row['validation_loss']:.4f}")
        if now.step % config.checkpoint_every == 0:
            keep()

    total = config.fit.max_tokens * (1 + config.fit.decay)
    with run, Interrupt() as interrupt, Progress(verb, total, unit="tokens") as progress:
        try:
            lm.train(
                model, source, held_out, config.fit, state, optimiser=optimiser, on_step=on_step, interrupt=interrupt
            )
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{error}; {checkpoint.last_name(run.checkpoints)}") from None
        saved = keep()
        if interrupt.requested:
            run.finish("interrupted")
            raise Interrupted(
                f"stopped at step {state.step}; continue with: {verb} --config {run.config_path} --resume"
            )
        final = run.path / "model"
        save(model, final, replace=True)
        run.write_json(
            "summary.json",
            {
                "steps": state.step,
                "tokens": state.tokens,
                "validation_loss": lm.mean_loss(model.module, held_out),
                "checkpoint": str(saved.path),
            },
        )
    return final
