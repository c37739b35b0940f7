"""When voting may stop: the posterior probability that the answer which leads now has the most support of all.

Aggarwal et al. 2023 (Adaptive-Consistency), arXiv:2305.11860, §3: the votes are draws from an unknown distribution
over answers with a uniform prior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache


@lru_cache(maxsize=65536)
def beta(first: int, second: int) -> float:
    """P(p > 1/2) for p ~ Beta(first + 1, second + 1): the leader against the runner-up, all others left out.

    Exact: the Beta tail at 1/2 is a binomial one, P(Binomial(first + second + 1, 1/2) ≤ first).
    """
    trials = first + second + 1
    return sum(math.comb(trials, k) for k in range(first + 1)) / 2**trials


def dirichlet(votes: Sequence[int]) -> float:
    """P(p_1 is the largest) for p ~ Dirichlet(votes + 1), the leader's votes first: against all answers seen.

    A single answer is compared with one that was not seen. With two answers this is `beta`.
    """
    leader, *others = votes
    return _dirichlet(leader, tuple(sorted(others or [0], reverse=True)))


@lru_cache(maxsize=65536)
def _dirichlet(leader: int, others: tuple[int, ...]) -> float:
    # p_1 is the largest exactly if X_1 is, for independent X_i ~ Gamma(votes_i + 1): ∫ f_1(x) Π F_i(x) dx.
    import numpy as np

    shape = leader + 1
    x = np.linspace(0.0, shape + 12.0 * math.sqrt(shape) + 24.0, 2049)[1:]
    density = np.exp(leader * np.log(x) - x - math.lgamma(shape))
    # F of Gamma(m + 1) at x is 1 − e^−x Σ_{k ≤ m} x^k / k!.
    k = np.arange(max(others) + 1)
    log_factorial = np.array([math.lgamma(i + 1) for i in k])
    survival = np.cumsum(np.exp(k[:, None] * np.log(x) - x - log_factorial[:, None]), axis=0)
    for votes in others:
        density = density * np.clip(1.0 - survival[votes], 0.0, 1.0)
    # Simpson; at 0 the integrand is 0, since there no F is above it.
    y = np.concatenate([[0.0], density])
    total = y[0] + y[-1] + 4 * y[1:-1:2].sum() + 2 * y[2:-1:2].sum()
    return float(min(1.0, (x[1] - x[0]) / 3 * total))
