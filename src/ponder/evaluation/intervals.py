"""95 % intervals. Problems are the units: samples of one problem are not independent of each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ponder.types import Estimate

Floats = NDArray[np.float64]

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
RESAMPLES = 10_000
MIN_SEEDS = 5
"""Fewer seeds than this are shown as points and not ranked."""
_CELLS = 2_000_000
"""Most resampled values held in memory at once."""
_FEW = 64
"""Up to so many distinct values, a resample is drawn as their counts: the same distribution, much cheaper."""


def _check_counts(k: int, n: int) -> None:
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"{k} of {n}: give 0 ≤ k ≤ n and n ≥ 1")


def wilson(k: int, n: int) -> Estimate:
    """A share k / n with Wilson's score interval (Wilson 1927, J. Am. Stat. Assoc. 22): never empty, within [0, 1]."""
    _check_counts(k, n)
    p, z2 = k / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = 0.0 if k == 0 else max(0.0, centre - half)
    high = 1.0 if k == n else min(1.0, centre + half)
    return Estimate(p, low, high, n, "wilson")


def clopper_pearson(k: int, n: int) -> Estimate:
    """A share k / n with the exact interval (Clopper and Pearson 1934, Biometrika 26): covers at least 95 %."""
    _check_counts(k, n)
    low = 0.0 if k == 0 else _bisect(lambda p: _upper_tail(k, n, p) < 0.025)
    high = 1.0 if k == n else _bisect(lambda p: 1.0 - _upper_tail(k + 1, n, p) > 0.025)
    return Estimate(k / n, low, high, n, "clopper-pearson")


def _bisect(below: Callable[[float], bool]) -> float:
    """The point in (0, 1) up to which `below` holds."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if below(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _upper_tail(k: int, n: int, p: float) -> float:
    """P(X ≥ k) of a binomial."""
    if k > n:
        return 0.0
    log_p, log_q, top = math.log(p), math.log1p(-p), math.lgamma(n + 1)
    terms = (
        math.exp(top - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * log_p + (n - i) * log_q)
        for i in range(k, n + 1)
    )
    return min(1.0, math.fsum(terms))


def _units(values: ArrayLike) -> Floats:
    units = np.asarray(values, dtype=np.float64)
    if units.ndim != 1:
        raise ValueError(f"values have the shape {units.shape}: give one number per problem")
    units = units[~np.isnan(units)]
    if not units.size:
        raise ValueError("no values: there is nothing to estimate")
    return units


def _resampled_means(units: Floats, seed: int, resamples: int) -> Floats:
    rng = np.random.default_rng(seed)
    distinct, counts = np.unique(units, return_counts=True)
    if len(distinct) <= _FEW:
        drawn = rng.multinomial(units.size, counts / units.size, size=resamples)
        return drawn @ distinct / units.size
    rows = max(1, _CELLS // units.size)
    means = [
        units[rng.integers(0, units.size, (min(rows, resamples - i), units.size))].mean(axis=1)
        for i in range(0, resamples, rows)
    ]
    return np.concatenate(means)


def bootstrap_mean(values_P: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """The mean over problems with a percentile bootstrap interval (Efron 1979, Ann. Stat. 7).

    NaN marks a problem that is left out. The same seed gives the same interval. Raises `ValueError` if none is left.
    """
    units = _units(values_P)
    low, high = np.percentile(_resampled_means(units, seed, resamples), [2.5, 97.5])
    mean = float(units.mean())
    # Rounding of sums in another order must not put the mean outside.
    return Estimate(mean, min(float(low), mean), max(float(high), mean), units.size, "bootstrap over problems")


def bootstrap_clustered(values_PG: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """The mean over problems × samples; whole problems are resampled, each weighs the same. NaN is left out."""
    values = np.asarray(values_PG, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"values have the shape {values.shape}: give problems × samples")
    seen = ~np.isnan(values)
    counts = seen.sum(axis=1)
    means = np.where(counts > 0, np.where(seen, values, 0.0).sum(axis=1) / np.maximum(counts, 1), np.nan)
    return bootstrap_mean(means, seed, resamples)


def mean_of_problems(values_P: ArrayLike, seed: int = 0) -> Estimate:
    """The mean of values in [0, 1], one per problem: Wilson's interval where all are 0 or 1, else the bootstrap."""
    units = _units(values_P)
    # Exact formulas leave 0 and 1 a rounding error away.
    whole = np.round(units)
    if np.all(np.abs(units - whole) < 1e-9) and np.all((whole == 0.0) | (whole == 1.0)):
        return wilson(int(whole.sum()), units.size)
    return bootstrap_mean(units, seed)


def paired_difference(a_P: ArrayLike, b_P: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean of a − b over the same problems in the same order, with a bootstrap interval over problems.

    A problem that is NaN in either is left out of both.
    """
    a, b = np.asarray(a_P, dtype=np.float64), np.asarray(b_P, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape} are not pairs")
    estimate = bootstrap_mean(a - b, seed, resamples)
    return Estimate(estimate.value, estimate.low, estimate.high, estimate.n, "paired bootstrap over problems")


def mcnemar(a_P: ArrayLike, b_P: ArrayLike) -> float:
    """Exact two-sided p-value that a and b (1 or 0 on the same problems) are equally often right.

    A sign test on the problems where they differ (McNemar 1947, Psychometrika 12). 1.0 if they never differ.
    """
    a, b = np.asarray(a_P, dtype=np.float64), np.asarray(b_P, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape} are not pairs")
    kept = ~(np.isnan(a) | np.isnan(b))
    a, b = a[kept], b[kept]
    if not np.all(np.isin(a, (0.0, 1.0)) & np.isin(b, (0.0, 1.0))):
        raise ValueError("McNemar's test needs 0 or 1 for each problem")
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    n, least = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(least + 1))
    # Integers of any size: the quotient is taken before it becomes a float.
    return min(1.0, 2 * tail / 2**n)


def over_seeds(values_SP: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """A training claim: values of the same problems from several training seeds (seeds × problems, or one per seed).

    Seeds are resampled first, then problems. With fewer than `MIN_SEEDS` seeds there is no interval: low and high are
    the smallest and the largest seed, and the method says so; such results are not ranked. `n` is the seeds.
    """
    values = np.asarray(values_SP, dtype=np.float64)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or not values.size or np.isnan(values).any():
        raise ValueError("give one row of numbers per seed, without gaps")
    seeds, problems = values.shape
    means = values.mean(axis=1)
    mean = float(means.mean())
    if seeds < MIN_SEEDS:
        method = f"{seeds} seed{'s' * (seeds != 1)}: points, no interval (fewer than {MIN_SEEDS})"
        return Estimate(mean, float(means.min()), float(means.max()), seeds, method)
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    weights = np.full(problems, 1.0 / problems)
    for i in range(resamples):
        rows = rng.integers(0, seeds, seeds)
        drawn[i] = values[rows].mean(axis=0) @ rng.multinomial(problems, weights) / problems
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(mean, min(float(low), mean), max(float(high), mean), seeds, "bootstrap over seeds, then problems")
