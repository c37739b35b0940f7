"""The group-mean baseline without a division by the standard deviation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ponder.training.credit import Credit
from ponder.training.rollouts import Group, has_signal


@dataclass(frozen=True)
class MeanOnly:
    """Reward minus the group's mean (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783, eq. 5).

    GRPO's division by the group's standard deviation gives easy and hard problems more weight; leaving it out does not.
    """

    def __call__(self, groups: Sequence[Group]) -> list[list[Credit]]:
        """One value for all sampled ids of a sample.

        A sample without a reward (judge error) counts neither in the mean nor in the loss. A group whose rewards are
        all equal is skipped: the rewards themselves are compared, since their rounded mean may equal none of them. Of
        any other group all judged samples are trained on, also one whose reward is the mean (there is none where
        rewards are 0 or 1).
        """
        return [self._group(group) for group in groups]

    def _group(self, group: Group) -> list[Credit]:
        if not has_signal(group):
            return [Credit.none(s) for s in group.samples]
        rewards = [s.reward for s in group.samples if s.reward is not None]
        mean = math.fsum(rewards) / len(rewards)
        return [Credit.none(s) if s.reward is None else Credit.of_sample(s, s.reward - mean) for s in group.samples]
