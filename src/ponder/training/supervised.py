"""The runs of `ponder train pretrain` and `ponder train sft`: config, run directory, checkpoints, progress."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ponder import config as configs
from ponder import threads
from ponder.errors import Refusals, TrainingDiverged, UserError
from ponder.models.host import reuse_freed_memory
from ponder.models.load import load_weights, resolve
from ponder.models.save import save
from ponder.runs import trackers
from ponder.runs.kinds import refuse_other
from ponder.runs.progress import Progress
from ponder.runs.run import Run, refuse_existing
from ponder.training import checkpoint, lm, rates
from ponder.training.corpus.base import mixture
from ponder.training.data import (
    Batch,
    Epoch,
    Position,
    ProceduralChats,
    ProceduralText,
    RowSource,
    Transcripts,
    batches,
    read_rows,
    steps_of,
)
from ponder.training.interrupt import Interrupt, Interrupted
from ponder.training.start import StartOptions, trained

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
PRETRAIN_RATE = 3e-3


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
        default_factory=lambda: lm.LMConfig(learning_rate=PRETRAIN_RATE, batch_tokens=8192, max_tokens=5_000_000)
    )
    """How to fit."""
    seed: int = 0
    """Seed of weights and text."""
    threads: int | None = None
    """Threads of the processor (default: as many as there are cores)."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    track: str = ""
    """Trackers that get every row of metrics too: tensorboard, trackio, wandb or mlflow, several as tensorboard,wandb.
    They write to files of the run; nothing is sent anywhere unless the tool's own settings say so (WANDB_MODE=online,
    MLFLOW_TRACKING_URI)."""
    overwrite: bool = False
    """Replace the run that `out` holds."""
    resume: bool = False
    """Continue the run in `out` from its last checkpoint."""

    def __post_init__(self) -> None:
        _check(self, "length", "checkpoint_every")
        threads.check(self.threads)


@dataclass(frozen=True)
class SFTConfig(StartOptions):
    """Fine-tune a model on chats: procedural ones, or the prompts and responses of a file."""

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
    """Share of the rows of `data` that is kept for validation, one row at least; 0 is none."""
    epochs: float | None = None
    """Most passes over the rows of `data` (default: 3, where neither `steps` nor `fit.max_tokens` is given)."""
    steps: int | None = None
    """Most training steps; of several limits the one that comes first ends the training."""
    fit: lm.LMConfig = field(default_factory=lambda: lm.LMConfig(batch_tokens=8192, eval_every=100, patience=8))
    """How to fit."""
    seed: int = 0
    """Seed of the text and its order."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    track: str = ""
    """Trackers that get every row of metrics too: tensorboard, trackio, wandb or mlflow, several as tensorboard,wandb.
    They write to files of the run; nothing is sent anywhere unless the tool's own settings say so (WANDB_MODE=online,
    MLFLOW_TRACKING_URI)."""
    overwrite: bool = False
    """Replace the run that `out` holds."""
    resume: bool = False
    """Continue the run in `out` from its last checkpoint."""

    def __post_init__(self) -> None:
        StartOptions.__post_init__(self)
        _check(self, "longest", "checkpoint_every")
        if not 0 <= self.held_out < 1:
            raise UserError(f"held_out = {self.held_out}: give a share from 0 to below 1")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise UserError(f"epochs = {self.epochs}: give more than 0")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"steps = {self.steps}: give at least 1")
        if self.epochs is not None and not self.data:
            raise UserError("epochs are passes over the rows of a file, and procedural chats have no end: give steps")
        if self.raw_prompts and not self.data:
            raise UserError("raw_prompts is for the prompts of a file, and procedural chats have none: give --data")


HELD_OUT_ROWS = 512
EPOCHS = 3.0
"""Of a file, where nothing else says how long to train; Hugging Face's Trainer takes as many."""
FEW_STEPS = 20
"""Fewer steps than this say how to have more."""


def _check(config: PretrainConfig | SFTConfig, *positive: str) -> None:
    for name in positive:
        if getattr(config, name) < (2 if name in ("length", "longest") else 1):
            raise UserError(f"{name} = {getattr(config, name)}: give more")
    if config.seed < 0:
        raise UserError(f"seed = {config.seed}: give 0 or more")
    if config.resume and config.overwrite:
        raise UserError("resume and overwrite contradict each other: give one of them")


def _checked(config: PretrainConfig | SFTConfig) -> list[tuple[str, dict[str, Any]]]:
    """The lines of the data, if there is any, after all checks that need no model.

    Raises `UserError` that lists everything that is refused.
    """
    refused, lines = Refusals(), []
    with refused.collected():
        trackers.names(config.track)
    if not config.resume:
        with refused.collected():
            refuse_existing(config.out, config.overwrite)
    if isinstance(config, SFTConfig):
        with refused.collected():
            resolve(config.model)
    if isinstance(config, SFTConfig) and config.data:
        with refused.collected():
            lines = read_rows(config.data)
            _held_out_count(config, len(lines), "")
    else:
        with refused.collected():
            mixture(config.families, config.seed)
    refused.raise_all()
    return lines


@dataclass(frozen=True)
class Plan:
    """What is trained on, what is measured on, and for how long."""

    source: RowSource
    held_out: Sequence[Batch]
    steps: int | None = None
    """Most of them, besides `fit.max_tokens`; None: until the validation loss no longer improves, too."""
    epoch: Epoch | None = None
    notes: tuple[str, ...] = ()
    """For the console, before the first step."""
    whole: int | None = None
    """Tokens of all rows as one batch, of a file: no batch is larger."""


def pretrain(config: PretrainConfig) -> Path:
    """Run `ponder train pretrain`; returns the folder of the finished model."""
    from ponder.models.tiny import new_model

    if config.resume:
        config = _continued(config)
    _checked(config)
    threads.use(config.threads)
    model = new_model(config.seed)
    if config.length > model.info.context:
        raise UserError(f"length: {config.length} is more than the model's context of {model.info.context} tokens")
    text = ProceduralText(mixture(config.families, config.seed), model, config.length)
    other = ProceduralText(mixture(config.families, config.seed + 500_009), model, config.length)
    if config.fit.learning_rate is None:
        config = dataclasses.replace(config, fit=dataclasses.replace(config.fit, learning_rate=PRETRAIN_RATE))
    return _run(config, model, Plan(text, _held_out(other, model, config.fit)), "ponder train pretrain")


def sft(config: SFTConfig) -> Path:
    """Run `ponder train sft`; returns the folder of the finished model."""
    if config.resume:
        config = _continued(_length_of(config))
    lines = _checked(config)
    model = config.load(config.seed)
    if config.raw_prompts:
        model.take_plain_prompts()
    if config.longest > model.info.context:
        raise UserError(f"longest: {config.longest} is more than the model's context of {model.info.context} tokens")
    rate = rates.rate(config.fit.learning_rate, "sft", model.info.parameters, model.adapter is not None)
    config = dataclasses.replace(config, fit=dataclasses.replace(config.fit, learning_rate=rate.value))
    if config.data:
        if (config.epochs, config.steps, config.fit.max_tokens) == (None, None, None):
            config = dataclasses.replace(config, epochs=EPOCHS)
        plan = _file_plan(config, model, lines)
    else:
        if model.thought is None:
            raise UserError(f"{config.model} has no thought markers for procedural chats; give --data FILE.jsonl")
        source, other = (
            ProceduralChats(mixture(config.families, seed), model, config.longest)
            for seed in (config.seed, config.seed + 500_009)
        )
        plan = Plan(source, _held_out(other, model, config.fit, config.steps), config.steps)
    plan = dataclasses.replace(plan, notes=(*plan.notes, *trained(model), rate.said))
    return _run(config, model, plan, "ponder train sft")


def _held_out_count(config: SFTConfig, rows: int, left: str) -> int:
    """How many rows are for validation. Raises `UserError` if none is left for training."""
    count = max(1, round(config.held_out * rows)) if config.held_out else 0
    if count >= rows:
        number = f"{rows} row{'s are' if rows != 1 else ' is'}"
        raise UserError(
            f"{config.data}: {number} too few{left} to hold {count} out for validation; give more rows, or "
            "held_out = 0 for no validation"
        )
    return count


def _file_plan(config: SFTConfig, model: LoadedModel, lines: Sequence[tuple[str, dict[str, Any]]]) -> Plan:
    rows = Transcripts.of(lines, model, config.seed, config.longest, config.data)
    long = len(lines) - len(rows.items)
    left = f" (and {long:,} longer than {config.longest:,} tokens)" if long else ""
    count = _held_out_count(config, len(rows.items), left)
    source = Transcripts(rows.items[count:], config.seed)
    held_out = _fixed(Transcripts(rows.items[:count], 0), count, model) if count else []
    whole = len(source.items) * max(len(row.ids) for row in source.items)
    notes = [f"rows to train on: {len(source.items):,}, for validation: {count:,}"]
    if long:
        notes.append(f"warning: {long:,} rows of more than {config.longest:,} tokens are left out; longest raises that")
    if config.epochs is None:
        # No batch holds a row twice, so a small file makes small batches.
        return Plan(source, held_out, config.steps, Epoch(len(source.items)), tuple(notes), whole)
    epoch = Epoch(len(source.items), max(1, round(config.epochs * len(source.items))))
    steps = steps_of(source, config.fit.batch_tokens, epoch)
    notes.append(f"epochs: {config.epochs:g}, steps: {steps:,}, of at most {config.fit.batch_tokens:,} tokens each")
    if config.steps is not None and config.steps < steps:
        steps = config.steps
        notes.append(f"of these the first {steps:,} are trained")
    if steps < FEW_STEPS:
        notes.append("note: that is few steps; more epochs or a smaller fit.batch_tokens give more")
    return Plan(source, held_out, steps, epoch, tuple(notes), whole)


def _held_out(source: RowSource, model: LoadedModel, fit: lm.LMConfig, steps: int | None = None) -> list[Batch]:
    return _fixed(source, HELD_OUT_ROWS, model, lm.held_out_tokens(fit, steps))


def _fixed(source: RowSource, count: int, model: LoadedModel, most_tokens: float = math.inf) -> list[Batch]:
    """The first rows, of at most so many tokens; one row at least."""
    from ponder.training.data import collate

    taken = [row for _, row in islice(source.rows(0), count)]
    ends = accumulate(len(row.ids) for row in taken)
    rows = sorted(taken[: max(1, sum(end <= most_tokens for end in ends))], key=lambda r: len(r.ids))
    return [collate(rows[i : i + 32], model.pad_id) for i in range(0, len(rows), 32)]


FREE = (
    *("resume", "overwrite", "out", "device", "threads", "track", "checkpoint_every"),
    *("epochs", "steps", "fit.max_tokens"),
)
"""Fields that may differ when a run is continued."""

T = TypeVar("T", PretrainConfig, SFTConfig)


def _saved(config: T) -> T:
    """The config that the run in `out` has. Raises `UserError` if there is none, or a run of another verb."""
    refuse_other(Path(config.out), "train sft" if isinstance(config, SFTConfig) else "train pretrain")
    path = Path(config.out) / "config.toml"
    return configs.from_mapping(type(config), configs.load_toml(path), where=str(path))


def _length_of(config: SFTConfig) -> SFTConfig:
    """The config of a run that goes on; it trains for as long as the run was to where nothing else is given."""
    if (config.epochs, config.steps, config.fit.max_tokens) != (None, None, None):
        return config
    saved = _saved(config)
    fit = dataclasses.replace(config.fit, max_tokens=saved.fit.max_tokens)
    return dataclasses.replace(config, epochs=saved.epochs, steps=saved.steps, fit=fit)


def _continued(config: T) -> T:
    """The config of a run that goes on, with its learning rate where none is given.

    Raises `UserError` if the run has another config.
    """
    saved = _saved(config)
    if config.fit.learning_rate is None:
        fit = dataclasses.replace(config.fit, learning_rate=saved.fit.learning_rate)
        config = dataclasses.replace(config, fit=fit)
    configs.refuse_changed(config, Path(config.out) / "config.toml", FREE)
    return config


def _refuse_less(config: PretrainConfig | SFTConfig, state: lm.LMState, steps: int | None) -> None:
    """Raises `UserError` for a run that is to end before the point where it is."""
    tokens = lm.most_tokens(config.fit, steps)
    for wanted, done, what in ((steps, state.step, "steps"), (tokens, state.tokens, "tokens")):
        if wanted is not None and wanted < done:
            raise UserError(
                f"{what} = {wanted:,}: {config.out} has done {done:,} {what} already; train for at least as many, or "
                "begin another run with another out"
            )


def _refuse_no_step(config: PretrainConfig | SFTConfig, model: LoadedModel, plan: Plan) -> None:
    """Raises `UserError` where not even the first batch fits the limit."""
    limit = config.fit.max_tokens
    if limit is None:
        return
    _, first = next(batches(plan.source, Position(), config.fit.batch_tokens, model.pad_id, epoch=plan.epoch))
    if first.ids_BT.numel() > limit:
        raise UserError(
            f"fit.max_tokens = {limit:,}: the first batch has {first.ids_BT.numel():,} tokens; give at least as many, "
            "or a smaller fit.batch_tokens"
        )


def _run(config: PretrainConfig | SFTConfig, model: LoadedModel, plan: Plan, verb: str) -> Path:
    reuse_freed_memory()
    fit = config.fit
    if plan.whole is not None:  # how many steps a limit in tokens comes to depends on it
        fit = dataclasses.replace(fit, batch_tokens=min(fit.batch_tokens, plan.whole))
    _refuse_no_step(config, model, plan)
    state = lm.LMState()
    optimiser = lm.make_optimiser(model.module, fit)
    written = configs.to_toml(dataclasses.replace(config, resume=False, overwrite=False))
    if config.resume:
        saved = checkpoint.last(Path(config.out) / "checkpoints")
        if saved is not None:
            state = configs.from_mapping(lm.LMState, saved.state["loop"], where=str(saved.path))
            state.best = state.best if math.isfinite(state.best) else math.inf
            _refuse_less(config, state, plan.steps)
            load_weights(model, saved.model)
            saved.restore_optimiser(optimiser)
        run = Run.open(config.out)
        if saved is None:  # killed before its first checkpoint
            run.note(model=model.facts())
        run.truncate_after(state.step)
        run.write_config("config.toml", written)
    else:
        run = Run.create(config.out, written, config.seed, overwrite=config.overwrite)
        run.note(model=model.facts())

    settings = configs.to_mapping(config)
    run.track(config.track, settings, lambda text: print(text, file=sys.stderr), resumed=config.resume)

    def keep() -> checkpoint.Checkpoint:
        loop = dataclasses.asdict(state)
        loop["best"] = min(loop["best"], 1e30)  # JSON has no infinity
        return checkpoint.write(run.checkpoints, model, optimiser, {"step": state.step, "loop": loop})

    def done() -> int:
        return state.tokens if plan.steps is None else state.step

    fields: dict[str, Any] = {}

    def on_step(now: lm.LMState, row: dict[str, Any]) -> None:
        run.log(row)
        fields.update(
            loss=row["loss"],
            validation=row.get("validation_loss"),
            tokens_per_s=row["tokens_per_second"],
            phase="decay" if lm.decaying(fit, now, plan.steps) else None,
        )
        progress.update(done(), total=lm.total(fit, now, plan.steps), **fields)
        if "validation_loss" in row:
            progress.note(f"step {now.step}: validation loss {row['validation_loss']:.4f}")
        if now.step % config.checkpoint_every == 0:
            keep()

    unit = "tokens" if plan.steps is None else "steps"
    label, total = verb.removeprefix("ponder "), lm.total(fit, state, plan.steps)
    with run, Interrupt() as interrupt, Progress(label, total, unit=unit) as progress:
        began_at = checkpoint.resumed_at(state.step, plan.steps) if config.resume else ()
        for line in (*began_at, *plan.notes):
            progress.note(line)
        try:
            lm.train(
                model,
                plan.source,
                plan.held_out,
                fit,
                state,
                optimiser=optimiser,
                steps=plan.steps,
                epoch=plan.epoch,
                on_step=on_step,
                interrupt=interrupt,
            )
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{error}; {checkpoint.last_name(run.checkpoints)}") from None
        saved = keep()
        if interrupt.requested:
            run.finish("interrupted")
            command = f"{verb} --config {shlex.quote(str(run.config_path))} --resume"
            raise Interrupted(f"stopped at step {state.step}; continue with: {command}")
        progress.update(done(), total=done(), **fields)
        final = run.path / "model"
        save(model, final, replace=True)
        last = lm.mean_loss(model.module, plan.held_out) if plan.held_out else None
        first = next((r["validation_loss"] for r in run.metrics().rows if "validation_loss" in r), None)
        facts = {"Last checkpoint": str(saved.path)}
        if first is not None:
            facts["Validation loss, first and last (nats per token)"] = f"{first:.4f} and {last:.4f}"
        run.write_json(
            "summary.json",
            {
                "title": f"Fine-tuning: {config.model}" if isinstance(config, SFTConfig) else "Pretraining",
                "facts": facts,
                "steps": state.step,
                "tokens": state.tokens,
                "validation_loss": last,
                "checkpoint": str(saved.path),
            },
        )
    return final
