"""One policy-gradient update: micro-batches, loss, step.

A loss returns a sum and what it is divided by: trained tokens, samples with a trained token, or a constant. Both counts
are of the optimiser step's whole batch, so micro-batches change nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ponder import outside
from ponder.errors import PartFailed, TrainingDiverged, UserError
from ponder.training import importance
from ponder.training.batch import TokenBatch
from ponder.training.forward import TokenLogprobs, micro_batches
from ponder.training.importance import Importance
from ponder.training.losses.base import RESERVED, Divisor, LossInput, LossOutput, PolicyLoss
from ponder.training.optim import clip_gradients, step

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """Statistics of one update; means are over trained tokens."""

    tokens: int = 0
    """Trained tokens (targets)."""
    computed_tokens: int = 0
    """Ids that went through the network for the update, prompts and padding included."""
    loss: float = 0.0
    entropy: float = 0.0
    """Of the trainer's distribution, nats."""
    mismatch_mean: float = 0.0
    """Mean |log-probability of the trainer − of the sampler|."""
    mismatch_max: float = 0.0
    effective_samples: float = 0.0
    """Share of the tokens that would weigh as much without a mismatch: (Σ r)² / (n Σ r²) of the ratios r of trainer
    over sampler (Kong 1992)."""
    mismatch_k3: float = 0.0
    """Schulman's k3 estimate of KL(sampler ‖ trainer): mean of r − 1 − log r."""
    gradient_norm: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the loss measures, per token; empty if there was nothing to train on."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the tokens of a batch before the update, for losses that need it."""

    old_N: Tensor | None = None
    """Log-probabilities under the policy before the step's first update; None where this is the first update, so that
    its own forward pass gives them."""
    reference_N: Tensor | None = None
    """Log-probabilities under the model that the run began with."""
    importance_cap: float = 0.0
    """Bound of the importance weights old / sampler; 0 is without them."""
    importance: Importance = "truncated"
    """How they are bounded."""
    version: int = 0
    """The trainer's, before the step."""


def update(
    model: LoadedModel,
    optimiser: torch.optim.Optimizer,
    loss: PolicyLoss,
    batch: TokenBatch,
    *,
    temperature: float,
    max_grad_norm: float,
    micro_tokens: int,
    gradient_checkpointing: bool = False,
    known: Known = Known(),
) -> UpdateStats:
    """Take one optimiser step on the tokens that `batch.mask_N` marks; none if there are none.

    Raises, before the weights are touched, `UserError` for what the loss must not return and `TrainingDiverged` if loss
    or gradient is not finite.
    """
    began = time.perf_counter()
    trained_B = batch.trained_B
    rows_B = trained_B.nonzero().squeeze(1)
    total = int(trained_B.sum())
    if total == 0:
        return UpdateStats(seconds=time.perf_counter() - began)
    optimiser.zero_grad(set_to_none=True)
    sums = dict.fromkeys(("loss", "entropy", "difference", "k3", "ratios", "squares"), 0.0)
    metrics: dict[str, float] = {}
    divisor, computed, worst = 1.0, 0, 0.0
    for new in micro_batches(
        model, batch, rows_B, temperature, tokens=micro_tokens, gradient_checkpointing=gradient_checkpointing
    ):
        tokens = loss_input(batch, new, known, loss)
        out = outside.call(f"the loss {type(loss).__name__}", loss, tokens)
        if not isinstance(out, LossOutput):
            at = outside.defined(type(loss).__call__)
            raise PartFailed(f"the loss {type(loss).__name__} gave a {type(out).__name__}, not a LossOutput{at}")
        taken = sorted(RESERVED.intersection(out.metrics))
        if taken:
            raise UserError(f"loss {type(loss).__name__}: {taken[0]} is a metric of the trainer; give it another name")
        divisor = _divisor(out.per, total, len(rows_B))
        (out.sum / divisor).backward()
        with torch.no_grad():
            ratio = tokens.logprobs_N - tokens.sampler_logprobs_N
            sums["loss"] += float(out.sum)
            sums["entropy"] += float(new.entropy_N.sum())
            sums["difference"] += float(ratio.abs().sum())
            sums["k3"] += float((ratio.exp() - 1 - ratio).sum())
            sums["ratios"] += float(ratio.exp().sum())
            sums["squares"] += float((2 * ratio).exp().sum())
            worst = max(worst, float(ratio.abs().max()))
        for name, value in out.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + float(value)
        computed += new.computed
    norm = clip_gradients(model.module, max_grad_norm)
    if not (math.isfinite(norm) and math.isfinite(sums["loss"])):
        raise TrainingDiverged(f"the loss is {sums['loss'] / divisor} and the gradient norm {norm}")
    step(optimiser)
    return UpdateStats(
        tokens=total,
        computed_tokens=computed,
        loss=sums["loss"] / divisor,
        entropy=sums["entropy"] / total,
        mismatch_mean=sums["difference"] / total,
        mismatch_max=worst,
        effective_samples=sums["ratios"] ** 2 / (total * sums["squares"]) if sums["squares"] else 0.0,
        mismatch_k3=sums["k3"] / total,
        gradient_norm=norm,
        metrics={name: value / total for name, value in metrics.items()},
        seconds=time.perf_counter() - began,
    )


def loss_input(batch: TokenBatch, new: TokenLogprobs, known: Known, loss: PolicyLoss) -> LossInput:
    """What a loss reads of a micro-batch: what it declares to need, and nothing else."""
    device = new.logprobs_N.device
    at_K, row_K = (x.to(device) for x in batch.trained(new.rows))

    def chosen(values_N: Tensor) -> Tensor:
        return values_N.to(device)[at_K]

    sampler_K = chosen(batch.logprobs_N)
    old_K = new.logprobs_N.detach() if known.old_N is None else chosen(known.old_N)
    weights_K = None
    if known.importance_cap:
        weights_K = importance.weights(old_K, sampler_K, row_K, known.importance_cap, known.importance)
    return LossInput(
        new.logprobs_N,
        sampler_K,
        chosen(batch.credit_N),
        row_K,
        old_K if loss.needs_old else None,
        chosen(known.reference_N) if loss.needs_reference and known.reference_N is not None else None,
        weights_K,
        known.version - chosen(batch.version_N),
    )


def measure(model: LoadedModel, batch: TokenBatch, *, temperature: float, micro_tokens: int) -> tuple[Tensor, int]:
    """Log-probabilities of the trained tokens under the weights as they are, one per token of the batch (0 for the

    others), without a gradient; and the ids that went through the network.
    """
    logprobs_N = torch.zeros(len(batch.ids_N))
    rows_B, computed = batch.trained_B.nonzero().squeeze(1), 0
    if len(rows_B):
        with torch.no_grad():
            for new in micro_batches(model, batch, rows_B, temperature, tokens=micro_tokens):
                logprobs_N[batch.trained(new.rows)[0]] = new.logprobs_N.cpu()
                computed += new.computed
    return logprobs_N, computed


def _divisor(per: Divisor, tokens: int, sequences: int) -> float:
    counts = {"tokens": tokens, "sequences": sequences}
    if isinstance(per, str):
        if per not in counts:
            raise UserError(f"the loss is to be divided by {per!r}: give tokens, sequences or a number")
        return counts[per]
    if not 0 < per < math.inf:
        raise UserError(f"the loss is to be divided by {per}: it must be a number above 0")
    return per
