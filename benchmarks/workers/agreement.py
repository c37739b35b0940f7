"""Do the samples that were timed carry the trainer's log-probabilities? Asked of the trainer's own forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ponder.models.base import LoadedModel
from ponder.training.forward import row_logprobs
from ponder.training.rollouts import Sample, to_rollouts
from ponder.types import Completion, Problem, Response, Verdict, VerdictKind

MOST_SAMPLED = 2048
"""Most sampled tokens whose distributions are made at once."""


@torch.no_grad()
def agreement(model: LoadedModel, groups: Sequence[Sequence[Completion]]) -> dict[str, Any]:
    """Largest and mean |log-probability of the sampler - of the trainer|, over every sampled token at temperature 1."""
    problem, verdict = Problem("timed", ""), Verdict(VerdictKind.WRONG, 0.0, "")
    samples = [[Sample(problem, c, Response(None), verdict) for c in group] for group in groups]
    rollouts = to_rollouts(samples, model.pad_id, mask_truncated=False)
    worst, total, tokens = 0.0, 0.0, 0
    for rows in _parts(rollouts.mask_BT.sum(dim=1).tolist()):
        trainer_N = row_logprobs(model, rollouts, rows, 1.0).logprobs_N.float()
        sampler_N = rollouts.logprobs_BT[rows][rollouts.mask_BT[rows]].to(trainer_N.device)
        difference_N = (trainer_N - sampler_N).abs()
        worst = max(worst, float(difference_N.max()))
        total += float(difference_N.sum())
        tokens += difference_N.numel()
    return {"max": worst, "mean": total / max(1, tokens), "tokens": tokens}


def _parts(sampled: Sequence[int]) -> Iterator[torch.Tensor]:
    """Consecutive rows with at most `MOST_SAMPLED` sampled tokens together, or one row."""
    start = 0
    while start < len(sampled):
        end = start + 1
        while end < len(sampled) and sum(sampled[start : end + 1]) <= MOST_SAMPLED:
            end += 1
        yield torch.arange(start, end)
        start = end
