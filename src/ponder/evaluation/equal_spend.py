"""Strategies at equal spend: what a majority vote would have reached for the same tokens, paired by problem."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ponder.evaluation.intervals import Floats, mean_in_bounds
from ponder.types import Estimate


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


def at_equal_spend(correct_P: Floats, tokens_P: Floats, yardstick: Yardstick, chosen_of: int = 1) -> Compared:
    """Compare at the same mean tokens a problem, with an interval over problems (95 %).

    How many samples of majority the strategy's tokens buy is an estimate too. Its error is carried over by the slope
    of majority's curve there (the delta method): each problem counts with what it adds to the difference of accuracies
    less what its tokens add to the samples bought. The mean of these has Gaffke's interval (`mean_in_bounds`).
    `chosen_of`: see `Estimate.chosen_of`. Raises `ValueError` for sides of different problems.
    """
    count = len(correct_P)
    if not len(tokens_P) == len(yardstick.tokens_P) == len(yardstick.accuracy_PK) == count:
        raise ValueError("both sides need the same problems")
    counts_K, one_sample = yardstick.counts_K, float(np.mean(yardstick.tokens_P))
    samples = float(np.mean(tokens_P)) / one_sample
    at = float(np.clip(samples, counts_K[0], counts_K[-1]))
    above = int(np.clip(np.searchsorted(counts_K, at), min(1, len(counts_K) - 1), len(counts_K) - 1))
    below = max(above - 1, 0)
    width = max(1, int(counts_K[above] - counts_K[below]))
    part = (at - counts_K[below]) / width
    majority_P = (1 - part) * yardstick.accuracy_PK[:, below] + part * yardstick.accuracy_PK[:, above]
    # Beyond the samples that were drawn the curve is taken as flat.
    slope = 0.0
    if counts_K[0] < samples < counts_K[-1]:
        slope = float(np.mean(yardstick.accuracy_PK[:, above] - yardstick.accuracy_PK[:, below])) / width
    bought_P = (tokens_P - samples * yardstick.tokens_P) / one_sample
    gain_P = correct_P - majority_P - slope * bought_P
    low, high = min(-1.0, float(gain_P.min())), max(1.0, float(gain_P.max()))
    difference = mean_in_bounds(gain_P, low, high, method="paired, Gaffke", chosen_of=chosen_of)
    return Compared(samples, float(np.mean(majority_P)), difference, int(counts_K[-1]))
