"""Do the samples that were timed carry the trainer's log-probabilities? Asked of the trainer's own forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ponder.models.base import LoadedModel
from ponder.training.batch import token_batch
from ponder.training.credit import Credit
from ponder.training.forward import row_logprobs
from ponder.training.rollouts import Group, judged_group
from ponder.types import (
    Completion,
    Node,
    Outcome,
    Problem,
    Response,
    Spend,
    StopReason,
    Trace,
    Verdict,
    VerdictKind,
)

MOST_SAMPLED = 2048
"""Most sampled tokens whose distributions are made at once."""


@torch.no_grad()
def agreement(model: LoadedModel, groups: Sequence[Sequence[Completion]]) -> dict[str, Any]:
    """Largest and mean |log-probability of the sampler - of the trainer|, over every sampled token at temperature 1."""
    judged = [_group(completions) for completions in groups]
    batch = token_batch(judged, [[Credit.of_sample(s, 1.0) for s in g.samples] for g in judged])
    worst, total, tokens = 0.0, 0.0, 0
    for rows in _parts(batch.trained_B.tolist()):
        trainer_N = row_logprobs(model, batch, rows, 1.0).logprobs_N.float()
        sampler_N = batch.logprobs_N[batch.trained(rows)[0]].to(trainer_N.device)
        difference_N = (trainer_N - sampler_N).abs()
        worst = max(worst, float(difference_N.max()))
        total += float(difference_N.sum())
        tokens += difference_N.numel()
    return {"max": worst, "mean": total / max(1, tokens), "tokens": tokens}


def _group(completions: Sequence[Completion]) -> Group:
    nodes = tuple(Node(i, None, c, Response(None)) for i, c in enumerate(completions))
    outcome = Outcome(Response(None), None, Trace("timed", nodes), Spend(), StopReason.FINISHED)
    return judged_group(Problem("timed", ""), outcome, {n.id: Verdict(VerdictKind.WRONG, 0.0, "") for n in nodes})


def _parts(sampled: Sequence[int]) -> Iterator[torch.Tensor]:
    """Consecutive rows with at most `MOST_SAMPLED` sampled tokens together, or one row."""
    start = 0
    while start < len(sampled):
        end = start + 1
        while end < len(sampled) and sum(sampled[start : end + 1]) <= MOST_SAMPLED:
            end += 1
        yield torch.arange(start, end)
        start = end
