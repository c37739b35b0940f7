"""Budget forcing: a thought of a given length."""

from __future__ import annotations

from dataclasses import dataclass

from ponder.protocols import SearchContext
from ponder.search.sampling import Sampling, ThoughtBudget, check_sampling
from ponder.types import Problem, SamplingParams


@dataclass(frozen=True)
class BudgetForcing:
    """Think for a given number of tokens (s1, arXiv:2501.19393); cost n × (thought_tokens + answer_tokens).

    After `thought_tokens` tokens the end of thought is forced and the answer is sampled from the tokens kept for it, so
    that a response is never truncated inside its thought. Up to `min_thought_tokens`, an end of thought is
    replaced by `extend` (s1's "Wait"). Muennighoff et al. 2025, §3.1.

    An engine that bounds thoughts does this in one call. One that can only continue a response needs a second call,
    which reads prompt and thought once more: 2 × (prompt + thought) + answer. The trace holds all `n` samples, the
    first is the outcome.
    """

    thought_tokens: int
    """Most tokens of thought."""
    answer_tokens: int = 16
    """Tokens kept for the end-of-thought marker and the answer."""
    min_thought_tokens: int = 0
    """Fewest tokens of thought; needs `extend`."""
    extend: str = ""
    """What replaces an end of thought that comes too early."""
    n: int = 1
    """Samples; the first is the outcome."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Sample from the likeliest ids that make up this share of the probability; 1 is off."""
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    """0 is off."""

    def __post_init__(self) -> None:
        check_sampling(self.n, self.temperature, self.top_p, self.top_k, self.min_p)
        self._budget()

    def _budget(self) -> ThoughtBudget:
        return ThoughtBudget(self.thought_tokens, self.answer_tokens, self.min_thought_tokens, self.extend)

    def start(self, problem: Problem, context: SearchContext) -> Sampling:
        budget = self._budget()
        params = SamplingParams(budget.max_tokens, self.temperature, self.top_p, self.top_k, self.min_p)
        return Sampling(problem, context, params, self.n, budget)
