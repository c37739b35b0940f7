"""Quantiles that intervals need: numpy has none, and the core install has no scipy."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist

_TINY = 1e-300


def normal_quantile(p: float) -> float:
    """The p-quantile of the standard normal distribution."""
    return NormalDist().inv_cdf(p)


def beta_cdf(a: float, b: float, x: float) -> float:
    """P(X ≤ x) of Beta(a, b): the regularised incomplete beta function, for a, b > 0.

    For whole a it is P(Y ≥ a) of a binomial Y over a + b − 1 trials with chance x. A continued fraction by Lentz's
    method (Press et al. 2007, Numerical Recipes, section 6.4), accurate to about 1e-12 up to a + b of 1e6.
    """
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    # The fraction converges quickly up to the mean; beyond it, the other tail's does.
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - beta_cdf(b, a, 1.0 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    c, d = 1.0, 1.0 / _away(1.0 - (a + b) * x / (a + 1.0))
    fraction = d
    for m in range(1, 10_000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            d = 1.0 / _away(1.0 + step * d)
            c = _away(1.0 + step / c)
            fraction *= c * d
        if abs(c * d - 1.0) < 1e-14:
            break
    return min(1.0, front * fraction / a)


def _away(value: float) -> float:
    """Not 0, since it is divided by."""
    return value if abs(value) > _TINY else _TINY


@functools.lru_cache(maxsize=1024)
def student_quantile(p: float, freedom: float) -> float:
    """The p-quantile of Student's t with `freedom` > 0 degrees of freedom, by bisection; 0.5 < p < 1."""
    low, high = 0.0, 1.0
    while _student_cdf(high, freedom) < p:
        low, high = high, 2.0 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def _student_cdf(t: float, freedom: float) -> float:
    """P(T ≤ t) for t ≥ 0."""
    return 1.0 - beta_cdf(freedom / 2.0, 0.5, freedom / (freedom + t * t)) / 2.0
