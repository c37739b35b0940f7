"""Votes over a recorded pool that stop when they are decided, over many orders of drawing."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ponder.errors import UserError
from ponder.evaluation.estimators import Floats, leader_beats_all, leader_beats_second
from ponder.evaluation.pools_judging import JudgedProblem
from ponder.evaluation.pools_strategies import ORDERS, Ints, Reached, nothing, orders_of, padded


@dataclass(frozen=True)
class Adaptive:
    """A vote that stops when it is decided, at k samples at the latest, over random orders of drawing.

    `beta`: the leader beats the second answer with a chance of `limit` (Aggarwal et al. 2023, arXiv:2305.11860);
    `dirichlet`: it beats all others; `esc`: a window of `limit` samples in a row gave one answer (Li et al. 2024,
    arXiv:2401.10480). Few enough samples are drawn in every order there is, and that is exact.
    """

    rule: Literal["beta", "dirichlet", "esc"] = "beta"
    limit: float = 0.95
    seed: int = 0
    orders: int = ORDERS

    def __post_init__(self) -> None:
        if self.rule not in ("beta", "dirichlet", "esc"):
            raise UserError(f"adaptive:{self.rule}: the rule is beta, dirichlet or esc")
        if self.rule == "esc" and not (self.limit >= 2 and self.limit == int(self.limit)):
            raise UserError(f"adaptive:esc:{self.limit:g}: a window is a whole number of samples, at least 2")
        if self.rule != "esc" and not 0.5 < self.limit < 1.0:
            raise UserError(f"adaptive:{self.rule}:{self.limit:g}: the chance is above 0.5 and below 1")

    def counts(self, ladder: Sequence[int]) -> Sequence[int]:
        return tuple(ladder)

    def reach(self, problems: Sequence[JudgedProblem], counts: Sequence[int]) -> list[Reached]:
        return [self._one(p, counts) for p in problems]

    def _one(self, problem: JudgedProblem, counts: Sequence[int]) -> Reached:
        fit = np.array([k for k in counts if k <= problem.n], dtype=np.int64)
        if not len(fit):
            return nothing(counts)
        drawn = orders_of(problem, self.seed, self.orders)
        right, stop = self._run(problem, np.concatenate([drawn, np.arange(problem.n)[None, :]]))
        recorded = right[-1, min(int(stop[-1]), max(counts), problem.n) - 1]
        orders, right, stop = drawn, right[:-1], stop[:-1]
        tokens = problem.tokens_G[orders].cumsum(axis=1)
        rows = np.arange(len(orders))[:, None]
        used = np.minimum(stop[:, None], fit)
        gains = right[rows, used - 1]
        exact = len(orders) == math.factorial(problem.n)
        variance = np.zeros(len(fit)) if exact else gains.var(axis=0, ddof=1) / len(gains)
        return Reached(
            padded(gains.mean(axis=0), counts),
            padded(used.mean(axis=0), counts),
            padded(tokens[rows, used - 1].mean(axis=0), counts),
            float(recorded),
            padded(variance, counts),
        )

    def _run(self, problem: JudgedProblem, orders: Ints) -> tuple[Floats, Ints]:
        """Whether the leader is right after each sample, per order, and after how many samples the rule stops."""
        count, n = orders.shape
        rows = np.arange(count)
        parties = int(problem.party_G.max(initial=-1)) + 2
        votes = np.zeros((count, parties), dtype=np.int64)
        first = np.full((count, parties), n, dtype=np.int64)
        right = np.zeros((count, n))
        stop = np.full(count, n, dtype=np.int64)
        window = max(1, int(self.limit))
        for i in range(n):
            party = problem.party_G[orders[:, i]]
            # Those that abstain vote for the last party, which is never looked at.
            votes[rows, party] += 1
            first[rows, party] = np.minimum(first[rows, party], i)
            standing = votes[:, :-1]
            if parties == 1:
                continue
            leader = (standing * (n + 1) - first[:, :-1]).argmax(axis=1)
            some = standing[rows, leader] > 0
            speaker = orders[rows, np.minimum(first[rows, leader], n - 1)]
            right[:, i] = np.where(some, problem.correct_G[speaker], 0.0)
            running = np.flatnonzero(some & (stop == n))
            if self.rule != "esc":
                over = self._decided(standing[running])
            elif (i + 1) % window == 0:
                block = problem.party_G[orders[running, i + 1 - window : i + 1]]
                over = (block == block[:, :1]).all(axis=1) & (block[:, 0] >= 0)
            else:
                continue
            stop[running[over]] = i + 1
        return right, stop

    def _decided(self, standing: Ints) -> NDArray[np.bool_]:
        ranked = -np.sort(-standing, axis=1)
        if self.rule == "beta":
            second = ranked[:, 1] if ranked.shape[1] > 1 else np.zeros(len(ranked), dtype=np.int64)
            return _table(int(standing.sum(axis=1).max(initial=0)), self.limit)[ranked[:, 0], second]
        return np.array([leader_beats_all(tuple(v for v in r if v)) >= self.limit for r in ranked.tolist()], dtype=bool)


@functools.lru_cache(maxsize=1024)
def _table(most: int, limit: float) -> NDArray[np.bool_]:
    """Whether the Beta rule stops, by the votes of the first and of the second answer."""
    votes = range(most + 1)
    return np.array([[b <= a and leader_beats_second(a, b) >= limit for b in votes] for a in votes], dtype=bool)
