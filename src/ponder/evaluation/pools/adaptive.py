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
from ponder.evaluation.estimators import Floats
from ponder.evaluation.pools.formulas import ORDERS, Ints, OneByOne, Reached, nothing, orders_of, padded
from ponder.evaluation.pools.judging import JudgedProblem
from ponder.search.stopping import beta, dirichlet


@dataclass(frozen=True)
class Adaptive(OneByOne):
    """A vote that stops when it is decided, at k samples at the latest, over random orders of drawing.

    `beta`: the leader beats the second answer with a chance of `limit` (Aggarwal et al. 2023, arXiv:2305.11860);
    `dirichlet`: it beats all others; `esc`: a window of `limit` samples in a row agreed (Li et al. 2024,
    arXiv:2401.10480). With few enough samples all orders are drawn, and the result is exact.
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

    def one(self, problem: JudgedProblem, counts: Sequence[int]) -> Reached:
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
        clusters = int(problem.cluster_G.max(initial=-1)) + 1
        if not clusters:
            return np.zeros(orders.shape), np.full(len(orders), problem.n, dtype=np.int64)
        rows = max(1, _CELLS // (problem.n * clusters))
        parts = [self._some(problem, orders[i : i + rows], clusters) for i in range(0, len(orders), rows)]
        return np.concatenate([right for right, _ in parts]), np.concatenate([stop for _, stop in parts])

    def _some(self, problem: JudgedProblem, orders: Ints, clusters: int) -> tuple[Floats, Ints]:
        """`_run` for some of the orders (`_O`), over all samples (`_G`) and clusters (`_C`) at once."""
        n = problem.n
        cluster_OG = problem.cluster_G[orders]
        member_OGC = cluster_OG[:, :, None] == np.arange(clusters)
        votes_OGC = member_OGC.cumsum(axis=1, dtype=np.int32)
        first_OC = np.where(votes_OGC[:, -1] > 0, member_OGC.argmax(axis=1), n)
        # Of answers with as many votes the one that came first leads.
        leader_OG = (votes_OGC * np.int32(n + 1) - first_OC[:, None, :].astype(np.int32)).argmax(axis=2)
        most_OG = np.take_along_axis(votes_OGC, leader_OG[:, :, None], axis=2)[:, :, 0]
        representative_OC = np.take_along_axis(orders, np.minimum(first_OC, n - 1), axis=1)
        representative_OG = np.take_along_axis(representative_OC, leader_OG, axis=1)
        right_OG = np.where(most_OG > 0, problem.correct_G[representative_OG], 0.0)
        over_OG = (most_OG > 0) & (self._agreed(cluster_OG) if self.rule == "esc" else self._decided(votes_OGC))
        return right_OG, np.where(over_OG.any(axis=1), over_OG.argmax(axis=1) + 1, n)

    def _agreed(self, cluster_OG: Ints) -> NDArray[np.bool_]:
        """Where a window ends whose samples all gave one answer."""
        window, (orders, n) = int(self.limit), cluster_OG.shape
        over_OG = np.zeros((orders, n), dtype=bool)
        blocks = cluster_OG[:, : n // window * window].reshape(orders, -1, window)
        over_OG[:, window - 1 :: window] = (blocks == blocks[:, :, :1]).all(axis=2) & (blocks[:, :, 0] >= 0)
        return over_OG

    def _decided(self, votes_OGC: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Where the leader stays with a chance of `limit`."""
        ranked_OGC = -np.sort(-votes_OGC, axis=2)
        first_OG = ranked_OGC[:, :, 0]
        second_OG = ranked_OGC[:, :, 1] if ranked_OGC.shape[2] > 1 else np.zeros_like(first_OG)
        stays = _chances(int(first_OG.max()))
        beats_second_OG = stays[first_OG, second_OG]
        if self.rule == "beta":
            return beats_second_OG >= self.limit
        # The leader beats all at most as often as it beats the second, and fails at most as often as it fails to beat
        # each of them: between these bounds alone the integral is needed, and only up to where it is sure to stop.
        open_OG = (first_OG > 0) & (beats_second_OG >= self.limit - _MARGIN)
        ranked_SC = ranked_OGC[open_OG]
        fails = np.where(np.arange(len(stays)) > 0, 1.0 - stays, 0.0)
        least_S = beats_second_OG[open_OG] - fails[ranked_SC[:, :1], ranked_SC[:, 2:]].sum(axis=1)
        over_OG = np.zeros(open_OG.shape, dtype=bool)
        over_OG[open_OG] = least_S >= self.limit + _MARGIN
        open_OG &= ~np.logical_or.accumulate(over_OG, axis=1)
        states = [tuple(filter(None, state)) for state in ranked_OGC[open_OG].tolist()]
        stop = {state: dirichlet(state) >= self.limit for state in set(states)}
        over_OG[open_OG] = [stop[state] for state in states]
        return over_OG


_CELLS = 2_000_000
"""Most votes held in memory at once."""
_MARGIN = 1e-6
"""A generous bound of the integral's error."""


@functools.lru_cache(maxsize=8)
def _chances(most: int) -> Floats:
    """The chance of the Beta rule, by the votes of the first and of the second answer (at most those of the first)."""
    votes = range(most + 1)
    return np.array([[beta(a, min(a, b)) for b in votes] for a in votes])
