"""The loss of GRPO: PPO's clip against the old policy, and a KL penalty to the reference model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ponder.errors import UserError
from ponder.training.losses.base import BaseLoss, LossInput, LossOutput


@dataclass(frozen=True)
class Grpo(BaseLoss):
    """Clipped loss with a KL penalty, the mean over each sequence (GRPO, Shao et al. 2024, arXiv:2402.03300, eq. 3).

    The ratio is against the policy before the step's first update, as the trainer computes it. The KL divergence from
    the reference model, with which the run began, is estimated per token without bias (eq. 4; Schulman's k3). With
    `importance_cap` each token is weighted by its bounded probability ratio between old policy and sampler.
    """

    clip: float = 0.2
    """The ratio is clipped to the range from 1 - clip to 1 + clip."""
    kl: float = 0.04
    """Weight of the KL divergence (the paper's beta)."""

    needs_old: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    takes_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.clip < math.inf:
            raise UserError(f"clip = {self.clip}: give more than 0")
        if not 0 <= self.kl < math.inf:
            raise UserError(f"kl = {self.kl}: give 0 or more")

    def __call__(self, tokens: LossInput) -> LossOutput:
        import torch

        old_N, reference_N = tokens.old_logprobs_N, tokens.reference_logprobs_N
        assert old_N is not None, "needs_old"
        assert reference_N is not None, "needs_reference"
        ratio_N = torch.exp(tokens.logprobs_N - old_N)
        plain_N = ratio_N * tokens.advantages_N
        clipped_N = ratio_N.clamp(1 - self.clip, 1 + self.clip) * tokens.advantages_N
        gain_N = torch.minimum(plain_N, clipped_N)
        if tokens.weights_N is not None:
            gain_N = gain_N * tokens.weights_N
        less_N = reference_N - tokens.logprobs_N
        kl_N = less_N.exp() - less_N - 1
        _, place_N, count_S = torch.unique_consecutive(tokens.row_N, return_inverse=True, return_counts=True)
        mean = ((self.kl * kl_N - gain_N) / count_S[place_N]).sum()
        return LossOutput(mean, "sequences", {"clipped": (clipped_N < plain_N).sum(), "kl": kl_N.detach().sum()})
