"""The clipped token-level policy loss with a higher upper clip."""

from __future__ import annotations

from dataclasses import dataclass

from ponder.training.losses.base import BaseLoss, LossInput, LossOutput


@dataclass(frozen=True)
class Dapo(BaseLoss):
    """Token-level, globally normalised clipped loss with clip-higher (DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 8).

    The ratio is against the policy that sampled; the lower and the upper clip are separate, so that unlikely tokens can
    grow. The clip itself is PPO's (Schulman et al. 2017, arXiv:1707.06347, eq. 7).
    """

    clip_low: float = 0.2
    """The ratio is clipped at 1 - clip_low from below."""
    clip_high: float = 0.28
    """The ratio is clipped at 1 + clip_high from above."""

    def __call__(self, tokens: LossInput) -> LossOutput:
        import torch

        ratio_N = torch.exp(tokens.logprobs_N - tokens.sampler_logprobs_N)
        plain_N = ratio_N * tokens.advantages_N
        clipped_N = ratio_N.clamp(1 - self.clip_low, 1 + self.clip_high) * tokens.advantages_N
        removed = (clipped_N < plain_N).sum()
        return LossOutput(-torch.minimum(plain_N, clipped_N).sum(), "tokens", {"clipped": removed})
