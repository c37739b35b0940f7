"""Do the samples that were timed carry the trainer's log-probabilities? Asked of the trainer's own forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ponder.models.base import LoadedModel
from ponder.training.forward import row_logprobs
from ponder.training.policy import micro_batches
from ponder.training.rollouts import Sample, to_rollouts
from ponder.types import Completion, Problem, Response, Verdict, VerdictKind

MICRO_TOKENS = 4096


@torch.no_grad()
def agreement(model: LoadedModel, groups: Sequence[Sequence[Completion]]) -> dict[str, Any]:
    """Largest and mean |log-probability of the sampler - of the trainer|, over every sampled token at temperature 1."""
    problem, verdict = Problem("timed", ""), Verdict(VerdictKind.WRONG, 0.0, "")
    samples = [[Sample(problem, c, Response(None), verdict) for c in group] for group in groups]
    rollouts = to_rollouts(samples, model.pad_id, mask_truncated=False)
    worst, total, tokens = 0.0, 0.0, 0
    for rows in micro_batches(rollouts, torch.arange(len(rollouts)), MICRO_TOKENS):
        trainer_N = row_logprobs(model, rollouts, rows, 1.0).logprobs_N.float()
        sampler_N = rollouts.logprobs_BT[rows][rollouts.mask_BT[rows]].to(trainer_N.device)
        difference_N = (trainer_N - sampler_N).abs()
        worst = max(worst, float(difference_N.max()))
        total += float(difference_N.sum())
        tokens += difference_N.numel()
    return {"max": worst, "mean": total / max(1, tokens), "tokens": tokens}
