"""The group-mean baseline without a division by the standard deviation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ponder.training.rollouts import Rollouts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MeanOnly:
    """Reward minus the group's mean (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783, eq. 5).

    GRPO's division by the group's standard deviation weighs easy and hard problems up; leaving it out does not.
    """

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """Advantages, shape B T: the same for each trained token of a sample, 0 elsewhere.

        A sample without a reward (judge error) counts neither in the mean nor in the loss.
        """
        import torch

        judged_B = ~rollouts.rewards_B.isnan()
        rewards_B = rollouts.rewards_B.nan_to_num(0.0)
        groups = int(rollouts.group_B.max()) + 1
        total_P = torch.zeros(groups).index_add(0, rollouts.group_B, rewards_B)
        count_P = torch.zeros(groups).index_add(0, rollouts.group_B, judged_B.float())
        mean_B = (total_P / count_P.clamp(min=1.0))[rollouts.group_B]
        advantage_B = (rewards_B - mean_B) * judged_B
        return advantage_B.unsqueeze(1) * rollouts.mask_BT
