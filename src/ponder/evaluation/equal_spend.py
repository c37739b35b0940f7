"""Strategies at equal spend: what a majority vote would have reached for the same tokens, paired by problem."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ponder.types import Estimate

Floats = NDArray[np.float64]
RESAMPLES = 4_000


@dataclass(frozen=True)
class Yardstick:
    """Majority over k samples of each problem, at some k."""

    counts_K: NDArray[np.int64]
    """Samples, rising from 1."""
    accuracy_PK: Floats
    """Expected over draws."""
    tokens_P: Floats
    """Of one sample, mean over the problem's samples."""


@dataclass(frozen=True)
class Compared:
    """A strategy compared with majority at the same tokens."""

    samples: float
    """Of majority for these tokens; less than 1 where they do not buy one."""
    majority: float
    """Its accuracy there: interpolated linearly between counts of samples; below one sample that of one, beyond those
    drawn that of all."""
    difference: Estimate
    """Of accuracies, the strategy's minus majority's."""
    most: int
    """Samples that were drawn of each problem."""

    @property
    def within(self) -> bool:
        """False where majority's accuracy is not measured but extrapolated."""
        return 1 - 1e-9 <= self.samples <= self.most + 1e-9


def counts_up_to(most: int, limit: int = 64) -> NDArray[np.int64]:
    """1 to `most`, or at most about `limit` of them, denser at the beginning."""
    if most <= limit:
        return np.arange(1, most + 1)
    return np.unique(np.concatenate([[1, most], np.geomspace(1, most, limit).round().astype(np.int64)]))


def at_equal_spend(
    correct_P: Floats, tokens_P: Floats, yardstick: Yardstick, seed: int = 0, resamples: int = RESAMPLES
) -> Compared:
    """Compare at the same mean tokens a problem, with a percentile bootstrap over problems (95 %).

    Each resample draws problems for both sides and computes again how many samples of majority the strategy's
    tokens buy, so the interval covers the spend's error too. Raises `ValueError` for sides of different problems.
    """
    count = len(correct_P)
    if not len(tokens_P) == len(yardstick.tokens_P) == len(yardstick.accuracy_PK) == count:
        raise ValueError("both sides need the same problems")
    rng = np.random.default_rng(seed)
    drawn_RP = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count
    weights_RP = np.vstack([np.full(count, 1 / count), drawn_RP])
    samples_R = (weights_RP @ tokens_P) / (weights_RP @ yardstick.tokens_P)
    curve_RK, counts_K = weights_RP @ yardstick.accuracy_PK, yardstick.counts_K
    at_R = np.clip(samples_R, counts_K[0], counts_K[-1])
    above_R = np.clip(np.searchsorted(counts_K, at_R), min(1, len(counts_K) - 1), len(counts_K) - 1)
    below_R = np.maximum(above_R - 1, 0)
    width_R = np.maximum(counts_K[above_R] - counts_K[below_R], 1)
    part_R, rows_R = (at_R - counts_K[below_R]) / width_R, np.arange(len(at_R))
    majority_R = curve_RK[rows_R, below_R] * (1 - part_R) + curve_RK[rows_R, above_R] * part_R
    gain_R = weights_RP @ correct_P - majority_R
    low, high = np.quantile(gain_R[1:], [0.025, 0.975])
    method = f"bootstrap over problems, {resamples:,} resamples"
    difference = Estimate(float(gain_R[0]), float(low), float(high), count, method)
    return Compared(float(samples_R[0]), float(majority_R[0]), difference, int(counts_K[-1]))
