"""The record that a policy loss is a function of, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Divisor = Literal["tokens", "sequences"] | float
_ROW = """
step reward verdicts length truncated groups groups_without_signal groups_replaced signal rounds entropy loss
mismatch_mean mismatch_max mismatch_k3 effective_samples gradient_norm learning_rate response_tokens
sampled_tokens trained_tokens computed_tokens flops total_flops total_sampled_tokens peak_memory_bytes
staleness_max weights_version seconds seconds_sample seconds_train seconds_publish sampled_tokens_per_second
trained_tokens_per_second
"""
RESERVED = frozenset(_ROW.split())
"""Metrics of the trainer: what a loss measures has other names."""


@dataclass(frozen=True, slots=True)
class LossInput:
    """The trained tokens of a micro-batch, flat. A sample's tokens are neighbours and all in one micro-batch."""

    logprobs_N: Tensor
    """Of the trainer, with gradient."""
    sampler_logprobs_N: Tensor
    """Of the policy that sampled them, as the sampler computed them."""
    advantages_N: Tensor
    row_N: Tensor
    """Number of the sample, for losses that treat a sequence as one."""
    old_logprobs_N: Tensor | None = None
    """Of the policy before this step's first update, as the trainer computes them. Where a loss `needs_old`."""
    reference_logprobs_N: Tensor | None = None
    """Of the model that the run began with. Where a loss `needs_reference`."""
    weights_N: Tensor | None = None
    """Importance weights (`training.importance`) for a loss that `takes_weights` (config: importance_cap): they correct
    for a sampler whose numbers differ from the trainer's."""
    staleness_N: Tensor | None = None
    """The trainer's version minus that of the weights that sampled the token: 0 where they are the same."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A sum over the tokens of a micro-batch, which the trainer divides.

    The divisor is counted over the whole batch of the optimiser step, so that neither micro-batches nor their order
    change the gradient.
    """

    sum: Tensor
    per: Divisor = "tokens"
    """By the number of trained tokens, by that of samples with a trained token, or by a constant."""
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    """Sums over tokens by name, for the log, which shows them per token; not one of `RESERVED`."""


class PolicyLoss(Protocol):
    """A frozen dataclass whose fields are its options. It declares what it needs and gets nothing else."""

    needs_old: ClassVar[bool]
    needs_reference: ClassVar[bool]
    takes_weights: ClassVar[bool]
    """Multiplies each token's gain by its importance weight. A loss that does not `needs_old` takes its ratio against
    the sampler itself, which corrects for it too."""

    def __call__(self, tokens: LossInput) -> LossOutput: ...


class BaseLoss:
    """A loss that needs nothing more than the log-probabilities of sampler and trainer."""

    needs_old: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = False
