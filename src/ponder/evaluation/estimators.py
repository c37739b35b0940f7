"""Exact estimates from a pool of samples: what the best of k of them would give, without drawing."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_CELLS = 4_000_000
"""Most comparisons held in memory at once."""


def _all_within(part: ArrayLike, whole: ArrayLike, k: int) -> Floats:
    """Chance that k draws without replacement from `whole` all fall into `part` of it: C(part, k) / C(whole, k)."""
    part, whole = np.broadcast_arrays(np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64))
    chance = np.ones(part.shape)
    for i in range(k):
        chance *= np.clip(part - i, 0.0, None) / (whole - i)
    return chance


def pass_at_k(n: int | ArrayLike, correct_P: ArrayLike, k: int) -> Floats:
    """Unbiased chance per problem that at least one of k samples is correct: 1 − C(n−c, k) / C(n, k).

    `n` samples were drawn per problem (one number or one per problem), `correct_P` of them correct. As a product, so
    that no factorial overflows. Chen et al. 2021, arXiv:2107.03374, eq. 1. Raises `ValueError` unless
    1 ≤ k ≤ n and 0 ≤ c ≤ n.
    """
    correct = np.asarray(correct_P, dtype=np.float64)
    total = np.broadcast_to(np.asarray(n, dtype=np.float64), correct.shape)
    if k < 1 or np.any(total < k):
        raise ValueError(f"k = {k}: give 1 to n ({int(total.min()) if total.size else 0})")
    if np.any(correct < 0) or np.any(correct > total):
        raise ValueError("a problem has fewer than 0 or more than n correct samples")
    return 1.0 - _all_within(total - correct, total, k)


def best_of_k(correct_PG: ArrayLike, rank_PG: ArrayLike, k: int) -> Floats:
    """Expected accuracy per problem of keeping the highest-ranked of k samples drawn without replacement.

    `correct_PG` is 1 or 0, NaN for a sample that could not be judged (left out as if never drawn); `rank_PG` is what a
    checker or scorer says, higher is better, ties broken uniformly, -inf for a response that may not win (no answer);
    if no sample may win, the problem is lost. NaN for a problem with fewer than k judged samples.

    Exact: a sample with g samples ranked above it and s ranked like it (itself included) wins with
    [C(n−g, k) − C(n−g−s, k)] / C(n, k) / s. With a checker that is exact this is `pass_at_k`.
    """
    correct = np.asarray(correct_PG, dtype=np.float64)
    rank = np.asarray(rank_PG, dtype=np.float64)
    if correct.ndim != 2 or rank.shape != correct.shape:
        raise ValueError(
            f"correct and rank are {correct.shape} and {rank.shape}: give two arrays of problems × samples"
        )
    if np.any(np.isnan(rank) & ~np.isnan(correct)):
        raise ValueError("a rank is not a number")
    if not 1 <= k <= correct.shape[1]:
        raise ValueError(f"k = {k}: give 1 to the number of samples ({correct.shape[1]})")
    rows = max(1, _CELLS // correct.shape[1] ** 2)
    parts = [_best_of_k(correct[i : i + rows], rank[i : i + rows], k) for i in range(0, len(correct), rows)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _best_of_k(correct: Floats, rank: Floats, k: int) -> Floats:
    judged = ~np.isnan(correct)
    n = judged.sum(axis=1)
    other = judged[:, None, :]
    above = ((rank[:, None, :] > rank[:, :, None]) & other).sum(axis=2)
    alike = ((rank[:, None, :] == rank[:, :, None]) & other).sum(axis=2)
    enough = n >= k
    whole = np.where(enough, n, k)[:, None]
    wins = (_all_within(n[:, None] - above, whole, k) - _all_within(n[:, None] - above - alike, whole, k)) / np.maximum(
        alike, 1
    )
    gain = np.where(judged & (rank > -np.inf), wins * np.nan_to_num(correct), 0.0).sum(axis=1)
    return np.where(enough, gain, np.nan)
