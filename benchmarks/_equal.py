"""Strategies at equal spend: what majority would have reached for the same tokens, paired by problem."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ponder.types import Estimate

Floats = NDArray[np.float64]
RESAMPLES = 4_000


@dataclass(frozen=True)
class Yardstick:
    """Majority over k samples of each problem, k = 1, 2, … K."""

    accuracy_PK: Floats
    """Expected, exact over all draws of k of the recorded samples."""
    tokens_P: Floats
    """Of one sample, mean over the problem's samples."""


@dataclass(frozen=True)
class Compared:
    """A strategy beside majority for the same tokens."""

    samples: float
    """That majority has for these tokens; less than 1 where they do not buy one."""
    majority: float
    """Its accuracy there: between two counts of samples along the line between them, with less than one sample that of
    one, with more than were drawn that of all."""
    difference: Estimate
    """Of accuracies, the strategy's less majority's."""

    @property
    def within(self) -> bool:
        """False if majority was measured neither there nor around it."""
        return 1 <= self.samples <= self.most

    most: int = 0
    """Samples that were drawn of each problem."""


def at_equal_spend(correct_P: Floats, tokens_P: Floats, yardstick: Yardstick, seed: int = 0) -> Compared:
    """Compare at the same mean tokens a problem, with a percentile bootstrap over problems (95 %).

    Each resample draws problems for both sides and finds anew how many samples of majority the strategy's tokens buy,
    so the interval covers the spend's error too. Raises `ValueError` for sides of different problems.
    """
    count, most = yardstick.accuracy_PK.shape
    if correct_P.shape != (count,) or tokens_P.shape != (count,) or yardstick.tokens_P.shape != (count,):
        raise ValueError("both sides need the same problems")
    rng = np.random.default_rng(seed)
    weights_RP = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
    weights_RP = np.vstack([np.full(count, 1 / count), weights_RP])
    samples_R = (weights_RP @ tokens_P) / (weights_RP @ yardstick.tokens_P)
    curve_RK = weights_RP @ yardstick.accuracy_PK
    at = np.clip(samples_R, 1, most) - 1
    below = np.minimum(at.astype(np.int64), most - 1)
    above = np.minimum(below + 1, most - 1)
    rows, part = np.arange(len(at)), at - below
    majority_R = curve_RK[rows, below] * (1 - part) + curve_RK[rows, above] * part
    gain_R = weights_RP @ correct_P - majority_R
    low, high = np.quantile(gain_R[1:], [0.025, 0.975])
    method = f"bootstrap over problems, {RESAMPLES:,} resamples"
    difference = Estimate(float(gain_R[0]), float(low), float(high), count, method)
    return Compared(float(samples_R[0]), float(majority_R[0]), difference, most)
