"""What an advantage estimator must do. It is a frozen dataclass whose fields are its options (`advantage_options`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ponder.training.credit import Credit
from ponder.training.rollouts import Group


class Advantage(Protocol):
    """From the trees of a step's problems to the credit of each id."""

    def __call__(self, groups: Sequence[Group]) -> list[list[Credit]]:
        """One credit for each sample of each group.

        It decides what is trained on, up to the loss mask. A sample without a reward is left out everywhere.
        Of one that is not `trainable` the reward counts, and its ids are not trained on.
        """
        ...
