"""Next-token training on batches with a mask: the loop under `ponder train pretrain` and `ponder train sft`.

Leaves out gradient accumulation (a batch is what fits), mixed precision and several devices. The schedule is
warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395): the stable phase ends by itself when the validation loss no
longer improves, or at `max_tokens`; then the rate falls linearly to zero over `decay` of the tokens seen so far. With a
number of `steps` instead, the last of them are the decay, and the validation loss is only measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
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

MAX_TOKENS = 20_000_000
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
    """Steps of linear warm-up; at most a tenth of a fixed number of steps."""
    max_tokens: int | None = None
    """Most tokens before the decay begins, padding included (default: 20 million, where there are no fixed steps)."""
    decay: float = 0.25
    """Tokens of the decay as a share of those before it."""
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
    """Tokens seen when the decay began."""


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
    """The learning rate of the next step; 0 when the decay is over, or all `steps` are done."""
    rate = peak(config)
    warmup = config.warmup_steps if steps is None else min(config.warmup_steps, max(1, steps // 10))
    if state.step < warmup:
        return rate * (state.step + 1) / warmup
    if steps is not None:
        length = steps - round(steps / (1 + config.decay))
        return rate * max(0.0, min(1.0, (steps - state.step) / max(1, length)))
    if state.decay_from is None:
        return rate
    span = max(1.0, config.decay * state.decay_from)
    return rate * max(0.0, 1.0 - (state.tokens - state.decay_from) / span)


def peak(config: LMConfig) -> float:
    """The rate of the stable phase."""
    assert config.learning_rate is not None, "the default is by the model's size (training.rates)"
    return config.learning_rate


def eval_every(config: LMConfig, steps: int | None = None) -> int:
    """Steps between measurements of the validation loss: five measurements or more, from five steps on."""
    if steps is None:
        steps = round(most_tokens(config) * (1 + config.decay) / config.batch_tokens)
    return min(config.eval_every, max(1, steps // 5))


def held_out_tokens(config: LMConfig, steps: int | None = None) -> int:
    """Most tokens to measure on, so that it costs at most `SHARE` of the training between two measurements.

    A forward pass takes a third of forward and backward.
    """
    return int(SHARE * 3 * eval_every(config, steps) * config.batch_tokens)


def most_tokens(config: LMConfig) -> int:
    """Tokens before the decay, where there are no fixed steps."""
    return MAX_TOKENS if config.max_tokens is None else config.max_tokens


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
    """Train until the decay is over, or for `steps` (or until an interrupt asks to stop); `state` is updated.

    With an `epoch` no batch holds rows of two of them. Without `held_out` rows nothing is validated, and `steps` must
    be given. `on_step` gets each step's metrics: loss, rate, gradient norm, tokens/s, and `validation_loss` where it
    was measured. Raises `TrainingDiverged` with the step if the loss is not finite; the step is not taken.
    """
    module = model.module
    stream: Iterator[tuple[Position, Batch]] = batches(
        source, state.position, config.batch_tokens, model.pad_id, epoch=epoch
    )
    limit, every = most_tokens(config), eval_every(config, steps)
    while not (interrupt and interrupt.requested):
        rate = rate_at(config, state, steps)
        if (state.decay_from is not None and rate <= 0) or (steps is not None and state.step >= steps):
            break
        began = time.perf_counter()
        position, batch = next(stream)
        made = time.perf_counter()
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
        state.position = position
        seconds = time.perf_counter() - began
        row: dict[str, Any] = {
            "step": state.step,
            "tokens": state.tokens,
            "loss": float(loss.detach()) / targets,
            "learning_rate": rate,
            "gradient_norm": norm,
            "seconds": seconds,
            "seconds_data": made - began,
            "tokens_per_second": batch.ids_BT.numel() / seconds,
        }
        ended = rate_at(config, state, steps) <= 0 if state.decay_from is not None else state.step == steps
        if held_out and (state.step % every == 0 or ended):
            row["validation_loss"] = held = mean_loss(module, held_out)
            if held < state.best * (1 - config.min_gain):
                state.best, state.stale = held, 0
            else:
                state.stale += 1
        if steps is None and state.decay_from is None and (state.stale >= config.patience or state.tokens >= limit):
            state.decay_from = state.tokens
            row["decay_began"] = True
        on_step(state, row)
