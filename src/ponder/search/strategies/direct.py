"""One sample, or several that are all kept."""

from __future__ import annotations

from dataclasses import dataclass

from ponder.errors import UserError
from ponder.protocols import SearchContext
from ponder.search.sampling import Sampling, check_sampling
from ponder.types import Problem, SamplingParams


@dataclass(frozen=True)
class Direct:
    """Sample and take the first response as it comes; cost n × max_tokens.

    The trace holds all `n` samples: groups for reinforcement learning and pools for pass@k are made with it.
    A truncated first response abstains.
    """

    n: int = 1
    """Samples; the first is the outcome."""
    temperature: float = 1.0
    """0 is greedy."""
    max_tokens: int = 512
    """Most tokens of a response, thought and answer."""
    top_p: float = 1.0
    """Sample from the likeliest ids that make up this share of the probability; 1 is off."""
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    """0 is off."""
    stop: tuple[str, ...] = ()
    """Stop strings."""

    def __post_init__(self) -> None:
        check_sampling(self.n, self.temperature, self.top_p, self.top_k, self.min_p)
        if self.max_tokens < 1:
            raise UserError(f"max_tokens = {self.max_tokens}: give at least 1")

    def start(self, problem: Problem, context: SearchContext) -> Sampling:
        params = SamplingParams(
            self.max_tokens, self.temperature, self.top_p, self.top_k, self.min_p, stop=tuple(self.stop)
        )
        return Sampling(problem, context, params, self.n)
