"""AdamW with the groups and the schedule that all loops share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def adamw(
    module: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); vectors (norms, biases) are not decayed."""
    import torch

    matrices = [p for p in module.parameters() if p.requires_grad and p.dim() >= 2]
    vectors = [p for p in module.parameters() if p.requires_grad and p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=betas, fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def step(optimiser: torch.optim.Optimizer) -> None:
    """Take a step, gradients and moments laid out in memory as their weights are.

    The fused AdamW walks over raw memory: where a moment was read from a file, or a weight changed its layout after the
    moments were made (engines do that), it would silently pair numbers of different places.
    """
    import torch

    for group in optimiser.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and weight.grad.stride() != weight.stride():
                weight.grad = torch.empty_like(weight).copy_(weight.grad)
            moments = optimiser.state.get(weight, {})
            for key, moment in moments.items():
                if moment.shape == weight.shape and moment.stride() != weight.stride():
                    moments[key] = torch.empty_like(weight, dtype=moment.dtype).copy_(moment)
    optimiser.step()


def clip_gradients(module: nn.Module, limit: float) -> float:
    """Scale gradients to a norm of at most `limit` (0: never); return the norm before."""
    import torch

    found = [p for p in module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in found if p.grad is not None])
    size = float(norm)
    if 0 < limit < size < math.inf:  # else a pass over all gradients would multiply them by 1
        torch.nn.utils.clip_grads_with_norm_(found, limit, norm)
    return size
