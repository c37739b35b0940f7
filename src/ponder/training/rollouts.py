"""What RL trains on: groups of judged samples, as token arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ponder.types import Completion, FinishReason, Problem, Response, Verdict

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sample:
    """One judged response to one problem."""

    problem: Problem
    completion: Completion
    response: Response
    verdict: Verdict

    @property
    def truncated(self) -> bool:
        return self.completion.finish_reason is not FinishReason.STOP


@dataclass(frozen=True)
class Rollouts:
    """Samples as right-padded arrays; what advantage estimators read."""

    ids_BT: Tensor
    mask_BT: Tensor
    """True where an id was sampled and may be trained on."""
    logprobs_BT: Tensor
    """The sampler's log-probability of each sampled id; 0 elsewhere."""
    rewards_B: Tensor
    """In [0, 1]; NaN where the judge failed: such a sample has no part in anything."""
    group_B: Tensor
    """Number of the problem that a sample belongs to."""
    lengths_B: Tensor
    """Ids of prompt and response."""
    prompt_lengths_B: Tensor
    """Ids of the prompt, the same ones for all samples of a group."""

    def __len__(self) -> int:
        return self.ids_BT.shape[0]

    def select(self, rows: Sequence[int]) -> Rollouts:
        """Some of the samples."""
        rows = list(rows)
        return Rollouts(
            self.ids_BT[rows],
            self.mask_BT[rows],
            self.logprobs_BT[rows],
            self.rewards_B[rows],
            self.group_B[rows],
            self.lengths_B[rows],
            self.prompt_lengths_B[rows],
        )


def to_rollouts(groups: Sequence[Sequence[Sample]], pad_id: int, *, mask_truncated: bool) -> Rollouts:
    """Arrays of groups of samples.

    With `mask_truncated` a truncated response keeps its place in the group's mean but none of its tokens is trained on
    (DAPO's overlong filtering, arXiv:2503.14476 §3.4).
    """
    import torch

    samples = [s for g in groups for s in g]
    transcripts = [s.completion.transcript for s in samples]
    rows, length = len(samples), max(len(t.ids) for t in transcripts)
    ids = np.full((rows, length), pad_id, dtype=np.int64)
    mask = np.zeros((rows, length), dtype=bool)
    logprobs = np.zeros((rows, length), dtype=np.float32)
    for i, (sample, transcript) in enumerate(zip(samples, transcripts, strict=True)):
        n = len(transcript.ids)
        ids[i, :n] = transcript.ids
        if not (mask_truncated and sample.truncated):
            mask[i, :n] = transcript.loss_mask
        logprobs[i, :n] = transcript.logprobs
    rewards = [math.nan if s.verdict.reward is None else s.verdict.reward for s in samples]
    group = [p for p, g in enumerate(groups) for _ in g]
    return Rollouts(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.from_numpy(logprobs),
        torch.tensor(rewards, dtype=torch.float32),
        torch.tensor(group),
        torch.tensor([len(t.ids) for t in transcripts]),
        torch.tensor([len(s.completion.prompt_ids) for s in samples]),
    )
