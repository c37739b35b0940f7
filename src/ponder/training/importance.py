"""Importance weights: how a loss corrects for a sampler whose numbers differ from the trainer's.

The ratio of a token is its probability under the trainer's policy before the step over that under the sampler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Importance = Literal["truncated", "masked", "sequence"]


def weights(old_K: Tensor, sampler_K: Tensor, row_K: Tensor, cap: float, kind: Importance) -> Tensor:
    """A weight for each of K tokens, from their log-probabilities and the number of each token's sample.

    - `truncated`: min(ratio, cap) (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
      Training"; Ionides 2008).
    - `masked`: the ratio, and 0 outside of 1/cap to cap (IcePop, Ling Team 2025, arXiv:2510.18855).
    - `sequence`: min(product of the ratios of the sample, cap) for each of its tokens (Liu et al. 2025, "When Speed
      Kills Stability"). A sample's tokens must be neighbours.
    """
    import torch

    log_K = old_K - sampler_K
    if kind == "truncated":
        return log_K.exp().clamp(max=cap)
    if kind == "masked":
        ratio_K = log_K.exp()
        return ratio_K * ((ratio_K >= 1 / cap) & (ratio_K <= cap))
    _, place_K = torch.unique_consecutive(row_K, return_inverse=True)
    total_S = torch.zeros(int(place_K[-1]) + 1, dtype=log_K.dtype, device=log_K.device).index_add_(0, place_K, log_K)
    return total_S.exp().clamp(max=cap)[place_K]
