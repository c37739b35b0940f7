"""Exact estimates from a pool of samples: what k of them would give, without drawing; and when votes are decided."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

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


MOST_VOTES = 1_000
"""Beyond so many samples of one problem the binomials of `majority_of_k` overflow."""


def majority_of_k(sizes: Sequence[int], gains: Sequence[float], n: int, counts: Sequence[int]) -> Floats:
    """Expected accuracy of a majority vote over k of n samples drawn without replacement, for each k in `counts`.

    `sizes` are the samples of each cluster (equal answers) and `gains` the share of each cluster's samples
    that is correct; what is left of `n` abstains. The cluster with the most votes wins; a tie goes to the one that was
    drawn first, which over all orders of drawing is each of them equally often. Without a vote the problem is lost.

    Exact: with m the winner's votes, the ways to draw k are the coefficient of z^k in
    Π_small (1+z)^s · Π_large [Σ_{x<m} C(s,x) z^x + u C(s,m) z^m], where large clusters have at least m samples, small
    ones and abstentions fewer, and the power of u counts those that tie. All terms are positive, so nothing cancels.
    Raises `ValueError` unless 1 ≤ k ≤ n and sizes are at least 1 and at most n together.
    """
    if n > MOST_VOTES:
        raise ValueError(f"n = {n}: at most {MOST_VOTES} samples")
    if any(not 1 <= k <= n for k in counts):
        raise ValueError(f"counts {list(counts)}: give 1 to n ({n})")
    if len(gains) != len(sizes) or any(s < 1 for s in sizes) or sum(sizes) > n:
        raise ValueError(f"clusters of {list(sizes)} samples do not go with {len(gains)} gains and n = {n}")
    clusters = tuple(sorted(zip(sizes, gains, strict=True), reverse=True))
    return np.array(_majority(clusters, n, tuple(counts)))


@functools.lru_cache(maxsize=65_536)
def _majority(clusters: tuple[tuple[int, float], ...], n: int, counts: tuple[int, ...]) -> tuple[float, ...]:
    most = max(counts, default=0)
    won = np.zeros(most + 1)
    for m in range(1, min(most, clusters[0][0] if clusters else 0) + 1):
        large = [p for p in clusters if p[0] >= m]
        small = n - sum(size for size, _ in large)
        # ways[t, x]: t clusters have m votes, x samples are drawn; gain: the same, times the gains of those t.
        ways, gain = np.zeros((2, min(len(large), most // m) + 1, most + 1))
        ways[0, : small + 1] = _binomials(small)[: most + 1]
        for size, share in large:
            chosen = _binomials(size)
            ways, gain = (
                _times(ways, chosen[:m]) + _tied(ways, chosen[m], m),
                _times(gain, chosen[:m]) + _tied(gain + share * ways, chosen[m], m),
            )
        won += (gain[1:] / np.arange(1, len(gain))[:, None]).sum(axis=0)
    return tuple(min(1.0, float(won[k] / math.comb(n, k))) for k in counts)


@functools.lru_cache(maxsize=4096)
def _binomials(n: int) -> Floats:
    """C(n, x) for x = 0 … n."""
    return np.array([float(math.comb(n, x)) for x in range(n + 1)])


def _times(ways: Floats, polynomial: Floats) -> Floats:
    """Each row times a polynomial in z."""
    return np.array([np.convolve(row, polynomial)[: len(row)] for row in ways])


def _tied(ways: Floats, factor: float, m: int) -> Floats:
    """Each row times factor · u · z^m: one more cluster has m votes."""
    product = np.zeros_like(ways)
    product[1:, m:] = factor * ways[:-1, :-m]
    return product
