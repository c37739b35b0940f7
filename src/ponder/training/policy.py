"""One policy-gradient update: micro-batches, loss, step.

The loss is divided by the token count of the whole batch of the optimiser step: the tokens that are trained on, so
rows without a signal (advantage 0) are in neither sum.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ponder.errors import TrainingDiverged
from ponder.training.forward import micro_batches
from ponder.training.losses.base import LossInput, PolicyLoss
from ponder.training.optim import clip_gradients, step
from ponder.training.rollouts import Rollouts

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """What one update was like; means are over trained tokens."""

    tokens: int
    """Trained tokens (targets)."""
    computed_tokens: int
    """Ids that went through the network, prompts and padding included."""
    loss: float
    entropy: float
    """Of the trainer's distribution, nats."""
    mismatch_mean: float
    """Mean |log-probability of the trainer − of the sampler|."""
    mismatch_max: float
    mismatch_k3: float
    """Schulman's k3 estimate of KL(sampler ‖ trainer): mean of r − 1 − log r."""
    clipped: float
    """Share of tokens whose gradient the clip removed."""
    gradient_norm: float
    seconds: float


def update(
    model: LoadedModel,
    optimiser: torch.optim.Optimizer,
    loss: PolicyLoss,
    rollouts: Rollouts,
    advantages_BT: Tensor,
    *,
    temperature: float,
    max_grad_norm: float,
    micro_tokens: int,
    gradient_checkpointing: bool = False,
) -> UpdateStats:
    """Take one optimiser step on the rows whose advantage is not zero everywhere.

    Raises `TrainingDiverged` before the weights are touched if loss or gradient is not finite.
    """
    began = time.perf_counter()
    device = model.device
    mask_BT = rollouts.mask_BT & (advantages_BT != 0)
    rows_B = mask_BT.any(dim=1).nonzero().squeeze(1)
    total = int(rollouts.mask_BT[rows_B].sum())
    if total == 0:
        return UpdateStats(0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, time.perf_counter() - began)
    optimiser.zero_grad(set_to_none=True)
    sums = dict.fromkeys(("loss", "entropy", "difference", "k3"), 0.0)
    computed, clipped, worst = 0, 0, 0.0
    for new in micro_batches(
        model,
        rollouts,
        rows_B,
        temperature,
        tokens=micro_tokens,
        gradient_checkpointing=gradient_checkpointing,
    ):
        rows, logprobs_N = new.rows, new.logprobs_N
        chosen_BT = rollouts.mask_BT[rows]
        sampler_N = rollouts.logprobs_BT[rows][chosen_BT].to(device)
        row_N = rows.unsqueeze(1).expand_as(chosen_BT)[chosen_BT].to(device)
        advantages_N = advantages_BT[rows][chosen_BT].to(device)
        out = loss(LossInput(logprobs_N, sampler_N, advantages_N, row_N))
        (out.sum / total).backward()
        with torch.no_grad():
            ratio = logprobs_N - sampler_N
            sums["loss"] += float(out.sum)
            sums["entropy"] += float(new.entropy_N.sum())
            sums["difference"] += float(ratio.abs().sum())
            sums["k3"] += float((ratio.exp() - 1 - ratio).sum())
            worst = max(worst, float(ratio.abs().max()))
        clipped += out.clipped
        computed += new.computed
    norm = clip_gradients(model.module, max_grad_norm)
    if not (math.isfinite(norm) and math.isfinite(sums["loss"])):
        raise TrainingDiverged(f"the loss is {sums['loss'] / total} and the gradient norm {norm}")
    step(optimiser)
    return UpdateStats(
        tokens=total,
        computed_tokens=computed,
        loss=sums["loss"] / total,
        entropy=sums["entropy"] / total,
        mismatch_mean=sums["difference"] / total,
        mismatch_max=worst,
        mismatch_k3=sums["k3"] / total,
        clipped=clipped / total,
        gradient_norm=norm,
        seconds=time.perf_counter() - began,
    )
