"""Next-token training on batches with a mask: the loop under `ponder train pretrain` and `ponder train sft`.

Leaves out gradient accumulation (a batch is what fits), mixed precision and several devices. The schedule is
warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395): in the last part of a training, `decay` of what came before,
the rate falls linearly to zero. `max_tokens` and a number of `steps` limit a training; the limit that comes first ends
it, and the rate follows the one that is nearer to its end. Without a number of steps the stable phase also ends when
the validation loss no longer improves; with one the loss is only measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ponder.errors import TrainingDiverged, UserError
from ponder.training.data import Batch, Epoch, Position, RowSource, batches
from ponder.training.head import summed_logprob
from ponder.training.interrupt import Interrupt
from ponder.training.optim import adamw, clip_gradients, set_rate, step
from ponder.training.recompute import recomputed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ponder.models.base import LoadedModel

MAX_TOKENS = 25_000_000
"""Where nothing else limits a training."""
SHARE = 0.15
"""Of the training: the most that measuring on generated text costs."""


@dataclass(frozen=True)
class LMConfig:
    """How to fit a model to text."""

    learning_rate: float | None = None
    """Learning rate of the stable phase of AdamW (default: by the model's size, 2e-3 for ponder-tiny; it is shown at
    the start)."""
    batch_tokens: int = 16384
    """Tokens of a batch, padding included."""
    warmup_steps: int = 50
    """Steps of linear warm-up; at most a tenth of the training."""
    max_tokens: int | None = None
    """Most tokens of the training, padding and decay included; without any limit it is 25 million."""
    decay: float = 0.25
    """Length of the decay, at the end, as a share of what comes before it."""
    eval_every: int = 50
    """Steps between measurements of the validation loss; fewer in a training so short that it would have less than
    five."""
    patience: int = 4
    """Measurements without an improvement of `min_gain` after which the decay begins."""
    min_gain: float = 0.002
    """The least relative improvement of the validation loss that counts."""
    weight_decay: float = 0.05
    """AdamW's decay of matrices."""
    beta2: float = 0.98
    """AdamW's second beta."""
    max_grad_norm: float = 1.0
    """Largest gradient norm; 0 is no limit."""
    gradient_checkpointing: bool = False
    """Recompute each layer's activations in the backward pass instead of keeping them: less memory, more time."""

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "max_tokens", "eval_every", "patience", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"fit.{name} = {value}: give more than 0")
        for name in ("warmup_steps", "decay", "min_gain", "weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"fit.{name} = {getattr(self, name)}: give 0 or more")
        if not 0 <= self.beta2 < 1:
            raise UserError(f"fit.beta2 = {self.beta2}: give a number from 0 to below 1")


@dataclass
class LMState:
    """State of a run: all that a checkpoint holds besides weights and optimiser."""

    step: int = 0
    tokens: int = 0
    position: Position = field(default_factory=Position)
    best: float = math.inf
    stale: int = 0
    decay_from: int | None = None
    """Tokens seen when the validation loss no longer improved, so that the decay began before a limit was near."""


def loss_sum(module: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Summed negative log-likelihood (nats) of the masked targets, and how many there are.

    The head runs at target positions only, and keeps nothing of the size of the vocabulary but its own gradient.
    """
    device = next(module.parameters()).device
    ids_BT, chosen_BT = batch.ids_BT.to(device), batch.mask_BT[:, 1:].to(device)
    hidden_BTD = module(ids_BT[:, :-1])
    targets_N = ids_BT[:, 1:][chosen_BT]
    return -summed_logprob(module, hidden_BTD[chosen_BT], targets_N), len(targets_N)


@torch.no_grad()
def mean_loss(module: nn.Module, held_out: Sequence[Batch]) -> float:
    """Validation loss, nats a target token."""
    total, count = 0.0, 0
    for batch in held_out:
        loss, n = loss_sum(module, batch)
        total, count = total + float(loss), count + n
    return total / count


def rate_at(config: LMConfig, state: LMState, steps: int | None = None) -> float:
    """The learning rate of the next step; 0 when a limit is reached or the decay is over."""
    rate, tokens = peak(config), most_tokens(config, steps)
    rates = [rate]
    if state.step < (warmup := _warmup(config, steps)):
        rates.append(rate * (state.step + 1) / warmup)
    if steps is not None:
        rates.append(rate * (steps - state.step) / max(1, steps - round(steps / (1 + config.decay))))
    if tokens is not None:
        rates.append(rate * (tokens - state.tokens) / max(1.0, tokens * config.decay / (1 + config.decay)))
    if state.decay_from is not None:
        rates.append(rate * (1.0 - (state.tokens - state.decay_from) / max(1.0, config.decay * state.decay_from)))
    return max(0.0, min(rates))


def decaying(config: LMConfig, state: LMState, steps: int | None = None) -> bool:
    """Whether the rate falls."""
    return state.step >= _warmup(config, steps) and rate_at(config, state, steps) < peak(config)


def total(config: LMConfig, state: LMState, steps: int | None = None) -> int:
    """Where the training will end by what is known now: in steps if their number is limited, else in tokens."""
    tokens = most_tokens(config, steps)
    if steps is not None:
        return steps if tokens is None or not state.step else min(steps, state.step * tokens // state.tokens)
    assert tokens is not None
    return tokens if state.decay_from is None else min(tokens, round(state.decay_from * (1 + config.decay)))


def _warmup(config: LMConfig, steps: int | None) -> int:
    return min(config.warmup_steps, max(1, expected_steps(config, steps) // 10))


def peak(config: LMConfig) -> float:
    """The rate of the stable phase."""
    assert config.learning_rate is not None, "the default is by the model's size (training.rates)"
    return config.learning_rate


def most_tokens(config: LMConfig, steps: int | None = None) -> int | None:
    """The limit in tokens; None where a number of steps alone limits the training."""
    return MAX_TOKENS if config.max_tokens is None and steps is None else config.max_tokens


def expected_steps(config: LMConfig, steps: int | None = None) -> int:
    """The number of steps that the limits come to, if batches are full."""
    tokens = most_tokens(config, steps)
    limits = [n for n in (steps, None if tokens is None else tokens // config.batch_tokens) if n is not None]
    return max(1, min(limits))


def eval_every(config: LMConfig, steps: int | None = None) -> int:
    """Steps between measurements of the validation loss: five measurements or more, from five steps on."""
    return min(config.eval_every, max(1, expected_steps(config, steps) // 5))


def held_out_tokens(config: LMConfig, steps: int | None = None) -> int:
    """Most tokens to measure on, so that it costs at most `SHARE` of the training between two measurements.

    A forward pass takes a third of forward and backward.
    """
    return int(SHARE * 3 * eval_every(config, steps) * config.batch_tokens)


def make_optimiser(module: nn.Module, config: LMConfig) -> torch.optim.Optimizer:
    return adamw(module, learning_rate=peak(config), weight_decay=config.weight_decay, betas=(0.9, config.beta2))


def train(
    model: LoadedModel,
    source: RowSource,
    held_out: Sequence[Batch],
    config: LMConfig,
    state: LMState,
    *,
    optimiser: torch.optim.Optimizer,
    steps: int | None = None,
    epoch: Epoch | None = None,
    on_step: Callable[[LMState, dict[str, Any]], None] = lambda state, row: None,
    interrupt: Interrupt | None = None,
) -> None:
    """Train until a limit is reached or the decay is over (or until an interrupt asks to stop); `state` is updated.

    No batch is begun that would exceed `max_tokens`. With an `epoch` no batch holds rows of two of them. Without
    `held_out` rows nothing is validated, and only the limits end the training. `on_step` gets each step's metrics:
    loss, rate, gradient norm, tokens/s, and `validation_loss` where it was measured. Raises `TrainingDiverged` with the
    step if the loss is not finite; the step is not taken.
    """
    module = model.module
    stream = batches(source, state.position, config.batch_tokens, model.pad_id, epoch=epoch)
    every, limit = eval_every(config, steps), most_tokens(config, steps)

    def goes_on() -> bool:
        return rate_at(config, state, steps) > 0 and (limit is None or state.tokens + batch.ids_BT.numel() <= limit)

    position, batch = next(stream)
    while goes_on() and not (interrupt and interrupt.requested):
        began = time.perf_counter()
        rate = rate_at(config, state, steps)
        set_rate(optimiser, rate)
        optimiser.zero_grad(set_to_none=True)
        with recomputed(module, config.gradient_checkpointing):
            loss, targets = loss_sum(module, batch)
        (loss / targets).backward()
        norm = clip_gradients(module, config.max_grad_norm)
        if not math.isfinite(norm) or not math.isfinite(float(loss.detach())):
            value = float(loss.detach()) / targets
            raise TrainingDiverged(f"step {state.step + 1}: the loss is {value} (gradient norm {norm})")
        step(optimiser)
        state.step += 1
        state.tokens += batch.ids_BT.numel()
        state.position, tokens = position, batch.ids_BT.numel()
        taken = time.perf_counter()
        position, batch = next(stream)
        seconds = time.perf_counter() - began
        row: dict[str, Any] = {
            "step": state.step,
            "tokens": state.tokens,
            "loss": float(loss.detach()) / targets,
            "learning_rate": rate,
            "gradient_norm": norm,
            "seconds": seconds,
            "seconds_data": seconds - (taken - began),
            "tokens_per_second": tokens / seconds,
        }
        if held_out and (state.step % every == 0 or not goes_on()):
            row["validation_loss"] = held = mean_loss(module, held_out)
            if held < state.best * (1 - config.min_gain):
                state.best, state.stale = held, 0
            else:
                state.stale += 1
        if steps is None and state.stale >= config.patience and not decaying(config, state):
            state.decay_from = state.tokens
        on_step(state, row)
