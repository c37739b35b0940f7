"""The record that a policy loss is a function of, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossInput:
    """The trained tokens of a micro-batch, flat."""

    logprobs_N: Tensor
    """Of the trainer, with gradient."""
    sampler_logprobs_N: Tensor
    """Of the policy that sampled them."""
    advantages_N: Tensor
    row_N: Tensor
    """Number of the sample, for losses that treat a sequence as one."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A sum over tokens: the trainer divides it by the token count of the whole batch, so that neither micro-batches

    nor their order change the gradient.
    """

    sum: Tensor
    clipped: int
    """Tokens whose gradient the clip removed."""


class PolicyLoss(Protocol):
    def __call__(self, tokens: LossInput) -> LossOutput: ...
