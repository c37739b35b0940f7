"""95 % intervals. Problems are the units: samples of one problem are not independent of each other.

Problems are taken as drawn from a larger set of problems, and their samples from the model. No interval rests on a
normal distribution of what is bounded, and none resamples: where few problems differ, or few can be solved, a
resample cannot show what was not drawn, and the bootstrap's intervals miss the truth far more often than 1 time in 20
(`docs/results/coverage.md`; the same command measures these intervals).

- `clopper_pearson`: a share of problems, exact.
- `mean_in_bounds`: a mean of values with known bounds (Gaffke 2005), of which the exact interval is the case 0 or 1.
  `mean_of_problems` takes the one that fits; `paired_difference` is the same for a − b in [−1, 1].
- `mean_unbounded`: a mean without known bounds, such as tokens. It says so where the data cannot carry an interval.
- `over_seeds`: training seeds as well as problems.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ponder.evaluation.distributions import beta_cdf, normal_quantile, student_quantile
from ponder.types import Estimate

Floats = NDArray[np.float64]

ALPHA = 0.05
"""The chance that an interval misses the truth."""
MIN_SEEDS = 5
"""Fewer seeds than this are shown as points and not ranked."""
MIN_UNBOUNDED = 10
"""Fewer problems than this carry no interval of a mean without bounds."""
MIN_DIFFERENT = 5
"""Nor do problems of which fewer than this differ from the commonest value: what is rare was hardly seen."""
OF_PROBLEMS = "Clopper-Pearson for one sample a problem, Gaffke for several"
"""The methods of `mean_of_problems`."""
WIDE = 0.5
"""An interval of accuracies or their differences that is wider than this says that it has too few problems."""
_ROUNDING = 1e-9
"""Exact formulas leave a bound a rounding error away."""


def clopper_pearson(k: int, n: int, chosen_of: int = 1) -> Estimate:
    """A share k / n with the exact interval (Clopper and Pearson 1934, Biometrika 26): covers at least 95 %.

    `chosen_of`: see `Estimate.chosen_of`. Raises `ValueError` unless 0 ≤ k ≤ n and n ≥ 1.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"{k} of {n}: give 0 ≤ k ≤ n and n ≥ 1")
    tail = ALPHA / chosen_of / 2
    low = 0.0 if k == 0 else _bisect(lambda p: beta_cdf(k, n - k + 1, p) < tail)
    high = 1.0 if k == n else _bisect(lambda p: beta_cdf(k + 1, n - k, p) < 1.0 - tail)
    return _said(Estimate(k / n, low, high, n, "clopper-pearson", chosen_of), 0.0, 1.0)


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


def _units(values: ArrayLike) -> Floats:
    """One number per problem, without those that were left out (NaN)."""
    units = np.asarray(values, dtype=np.float64)
    if units.ndim != 1:
        raise ValueError(f"values have the shape {units.shape}: give one number per problem")
    units = units[~np.isnan(units)]
    if not units.size:
        raise ValueError("no values: there is nothing to estimate")
    if not np.isfinite(units).all():
        raise ValueError("a value is infinite: its mean is no number")
    return units


def mean_in_bounds(
    values_P: ArrayLike, low: float = 0.0, high: float = 1.0, *, method: str = "Gaffke", chosen_of: int = 1
) -> Estimate:
    """The mean over problems of values that cannot lie outside [low, high], with Gaffke's interval.

    The interval is never empty, even if all values are equal: what was not seen may still lie at either bound. NaN
    marks a problem that is left out. With Dirichlet(1, …, 1) weights on the values and on one further value at `low`
    (at `high` for the upper end), the limit is the quantile of the weighted mean. For values of 0 and 1 that is
    Clopper and Pearson's interval; for others no distribution is known that it covers less often than it says, though
    that is proved for special cases alone (Gaffke 2005, Math. Methods Stat. 14, 451-467; Learned-Miller and Thomas
    2019, arXiv:1905.06208; Phan et al. 2021, arXiv:2106.03163). Raises `ValueError` for values outside the bounds.
    """
    units = _units(values_P)
    slack = _ROUNDING * (high - low)
    if units.min() < low - slack or units.max() > high + slack:
        raise ValueError(f"values from {units.min():g} to {units.max():g} are not within [{low:g}, {high:g}]")
    units = np.clip(units, low, high)
    down, up = gaffke(units, low, high, ALPHA / chosen_of / 2)
    mean = float(units.mean())
    return _said(Estimate(mean, min(down, mean), max(up, mean), units.size, method, chosen_of), low, high)


def gaffke(values_P: Floats, low: float, high: float, tail: float = ALPHA / 2) -> tuple[float, float]:
    """Gaffke's lower and upper limit, each missed with a chance of at most `tail`.

    The distribution of the weighted mean is the saddlepoint approximation r* (Lugannani and Rice 1980, Adv. Appl.
    Prob. 12; Barndorff-Nielsen 1990, J. R. Stat. Soc. B 52). Its limits are at most 3 % of their distance further out
    than the exact ones, and less the more values there are.
    """
    # Row 0 for the lower limit, row 1 mirrored for the upper one; column 0 is the further value at the bound.
    x = np.zeros((2, values_P.size + 1))
    x[0, 1:], x[1, 1:] = values_P - low, high - values_P
    scale = x.max(axis=1, keepdims=True)
    inside = scale[:, 0] > 0
    x /= np.where(scale > 0, scale, 1.0)
    target, count = normal_quantile(tail), x.shape[1]
    # The tail is tilted to have its mean at c: with u the tilt, Σ (x − c) / (1 + u x) = 0. Bisection on log u.
    start, end = np.full(2, -12.0), np.full(2, 50.0)
    for _ in range(32):
        middle = (start + end) / 2
        u = np.exp(middle)[:, None]
        weights = 1.0 / (1.0 + u * x)
        c = (weights * x).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
        cumulant = np.log(weights).sum(axis=1) + count * np.log1p(u * c)[:, 0]
        curvature = np.square((x - c) * weights).sum(axis=1)
        r = -np.sqrt(np.maximum(-2.0 * cumulant, 1e-300))
        slope = -u[:, 0] * np.sqrt(np.maximum(curvature, 1e-300))
        above = r + np.log(np.maximum(slope / r, 1e-300)) / r > target
        start, end = np.where(above, middle, start), np.where(above, end, middle)
    limits = np.where(inside, c[:, 0] * scale[:, 0], 0.0)
    return low + float(limits[0]), high - float(limits[1])


def mean_of_problems(values_P: ArrayLike, chosen_of: int = 1) -> Estimate:
    """The mean of values in [0, 1], one per problem: the exact interval where all are 0 or 1, else Gaffke's.

    NaN marks a problem that is left out. `chosen_of`: see `Estimate.chosen_of`.
    """
    units = _units(values_P)
    whole = np.round(units)
    if np.all(np.abs(units - whole) < _ROUNDING) and np.all((whole == 0.0) | (whole == 1.0)):
        return clopper_pearson(int(whole.sum()), units.size, chosen_of)
    return mean_in_bounds(units, chosen_of=chosen_of)


def differences(a_P: ArrayLike, b_P: ArrayLike) -> Floats:
    """a − b by problem; NaN where either is. Raises `ValueError` if they are not pairs."""
    a, b = np.asarray(a_P, dtype=np.float64), np.asarray(b_P, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape} are not pairs")
    return np.asarray(a - b)


def paired_difference(a_P: ArrayLike, b_P: ArrayLike) -> Estimate:
    """Mean of a − b over the same problems in the same order, for accuracies in [0, 1]: Gaffke's interval in [−1, 1].

    A problem that is NaN in either is left out of both. For what has no bounds take `mean_unbounded` of `differences`.
    """
    return mean_in_bounds(differences(a_P, b_P), -1.0, 1.0, method="paired, Gaffke")


def mean_unbounded(values_P: ArrayLike) -> Estimate:
    """The mean over problems of values without known bounds, such as tokens; NaN marks a problem that is left out.

    The wider of Student's t and Hall's transformed t, which corrects for skewness (Hall 1992, J. R. Stat. Soc. B 54),
    on either side. There is no interval (low and high are NaN, and `method` says why and how many problems could carry
    one) for fewer than `MIN_UNBOUNDED` problems or if fewer than `MIN_DIFFERENT` differ from the commonest value.
    What is both rare and far out cannot be bounded by any method.
    """
    units = _units(values_P)
    n, mean = units.size, float(units.mean())
    different = n - int(np.unique(units, return_counts=True)[1].max())
    if n < MIN_UNBOUNDED:
        return _none(mean, n, f"{_count(n)}, {MIN_UNBOUNDED} can carry one")
    if different < MIN_DIFFERENT:
        if not different:
            return _none(mean, n, f"all {_count(n)} have the same value, {MIN_DIFFERENT} that differ can carry one")
        many = math.ceil(MIN_DIFFERENT * n / different)
        return _none(mean, n, f"all but {different} of {_count(n)} have the same value, about {many:,} can carry one")
    spread = units - mean
    error = float(units.std(ddof=1)) / math.sqrt(n)
    skew = float(np.mean(spread**3)) / (error * math.sqrt(n)) ** 3
    t = student_quantile(1.0 - ALPHA / 2, n - 1)
    low = mean - error * max(t, _hall(t, skew, n))
    high = mean - error * min(-t, _hall(-t, skew, n))
    return Estimate(mean, low, high, n, "t and Hall's t")


def _hall(t: float, skew: float, n: int) -> float:
    """The t-value whose transformation, free of skewness, is `t` (Hall 1992, eq. 2.5)."""
    a = skew / math.sqrt(n)
    if abs(a) < 1e-6:
        return t
    return 3.0 / a * float(np.cbrt(1.0 + a * (t - a / 6.0)) - 1.0)


def _count(n: int) -> str:
    return f"{n:,} problem{'s' * (n != 1)}"


def _none(mean: float, n: int, why: str) -> Estimate:
    return Estimate(mean, math.nan, math.nan, n, f"no interval: {why}")


def too_few(width: float, n: int, low: float = 0.0, high: float = 1.0) -> str:
    """A sentence where `n` problems give an interval so wide that it says little, else an empty text."""
    if width <= WIDE:
        return ""
    # At the largest possible variance.
    many = math.ceil((normal_quantile(1 - ALPHA / 2) * (high - low) / 2 / 0.1) ** 2)
    return f"{_count(n)}: too few to say much, {many} give ±10 points"


def _said(estimate: Estimate, low: float, high: float) -> Estimate:
    few = too_few(estimate.high - estimate.low, estimate.n, low, high)
    return dataclasses.replace(estimate, method=f"{estimate.method}; {few}") if few else estimate


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


def over_seeds(values_SP: ArrayLike) -> Estimate:
    """A training claim: values of the same problems from several training seeds (seeds × problems, or one per seed).

    The error of the seeds (Student's t on their means) and that of the problems (for accuracies in [0, 1] Gaffke's,
    else `mean_unbounded`'s) are squared and added on either side (Zou and Donner 2008, Stat. Med. 27), which counts
    the noise that they share twice. With fewer than `MIN_SEEDS` seeds there is no interval (low and high are NaN):
    the method holds the smallest and the largest seed, and such results are not ranked. `n` is the seeds.
    """
    values = np.asarray(values_SP, dtype=np.float64)
    alone = values.ndim == 1
    if alone:
        values = values[:, None]
    if values.ndim != 2 or not values.size or np.isnan(values).any():
        raise ValueError("give one row of numbers per seed, without gaps")
    seeds = len(values)
    means = values.mean(axis=1)
    mean = float(means.mean())
    if seeds < MIN_SEEDS:
        count = f"{seeds} seed{'s' * (seeds != 1)}"
        return _none(mean, seeds, f"{count} from {means.min():.4g} to {means.max():.4g}, {MIN_SEEDS} can carry one")
    of_seeds = student_quantile(1.0 - ALPHA / 2, seeds - 1) * float(means.std(ddof=1)) / math.sqrt(seeds)
    if alone:
        if not of_seeds:
            return _none(mean, seeds, f"all {seeds} seeds have the same value, give each seed's values by problem")
        return Estimate(mean, mean - of_seeds, mean + of_seeds, seeds, "t over seeds")
    bounded = values.min() >= 0.0 and values.max() <= 1.0
    problems = (mean_of_problems if bounded else mean_unbounded)(values.mean(axis=0))
    if math.isnan(problems.low):
        return _none(mean, seeds, problems.method.removeprefix("no interval: "))
    low, high = (math.hypot(of_seeds, mean - limit) for limit in (problems.low, problems.high))
    method = f"t over seeds, {problems.method.partition(';')[0]} over problems"
    if bounded:
        return Estimate(mean, max(0.0, mean - low), min(1.0, mean + high), seeds, method)
    return Estimate(mean, mean - low, mean + high, seeds, method)
