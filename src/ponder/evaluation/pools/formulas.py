"""What strategies would have reached on a recorded pool, without running them: by formula or over many drawing orders.

A strategy at budget k sees k samples of a problem, drawn without replacement. Ties go to what was drawn first; over all
orders that is each of the tied equally often, sample by sample. Its *decision* is what it does with the first samples
as they were recorded: 1 or 0 per problem, for McNemar's test, which cannot take the expectations.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ponder.engines.recorded import RecordedRow
from ponder.errors import UserError
from ponder.evaluation.estimators import Floats, best_of_k, majority_of_k
from ponder.evaluation.pools.judging import JudgedProblem
from ponder.protocols import Checker
from ponder.search.confidence import check_rank, usable
from ponder.search.seeds import derive
from ponder.types import Problem, Response, Verdict

By = Literal["checker", "score", "logprob"]
Ints = NDArray[np.int64]
ENUMERATE = 2_000
"""Up to so many draws of k samples, a weighted vote is exact over all of them."""
ORDERS = 256
"""Random orders of drawing where there is no formula."""


@dataclass(frozen=True, slots=True)
class Reached:
    """What a strategy reaches on one problem, at each budget (`_K`). NaN where the problem has too few samples."""

    accuracy_K: Floats
    """Expected over draws."""
    samples_K: Floats
    tokens_K: Floats
    """Response tokens."""
    decision: float
    """1 or 0, at the largest budget and in recorded order."""
    variance_K: Floats
    """Of the estimate, over random orders (Monte Carlo); 0 where it is exact."""


class PoolStrategy(Protocol):
    """A strategy over a pool."""

    def check(self, rows: Sequence[RecordedRow]) -> None:
        """Raises `UserError` if the pool has not recorded what it needs. Nothing needs to be judged yet."""
        ...

    def counts(self, ladder: Sequence[int]) -> Sequence[int]:
        """The budgets of a ladder, in samples, at which its result differs."""
        ...

    def reach(self, problems: Sequence[JudgedProblem], counts: Sequence[int]) -> list[Reached]:
        """One result per problem. Raises `UserError` if the pool did not record what the strategy ranks by."""
        ...


class AtEachBudget:
    """A strategy that works with every pool and differs at every budget."""

    def check(self, rows: Sequence[RecordedRow]) -> None:
        """It works with every pool."""

    def counts(self, ladder: Sequence[int]) -> Sequence[int]:
        return tuple(ladder)


class OneByOne(AtEachBudget):
    """Its problems are computed one by one."""

    def reach(self, problems: Sequence[JudgedProblem], counts: Sequence[int]) -> list[Reached]:
        return [self.one(p, counts) for p in problems]

    def one(self, problem: JudgedProblem, counts: Sequence[int]) -> Reached:
        raise NotImplementedError


@dataclass(frozen=True)
class Direct(OneByOne):
    """The first sample."""

    def counts(self, ladder: Sequence[int]) -> Sequence[int]:
        return (1,)

    def one(self, problem: JudgedProblem, counts: Sequence[int]) -> Reached:
        if not problem.n:
            return nothing(counts)
        return _exact(problem, counts, [problem.correct_G.mean()] * len(counts), problem.correct_G[0])


@dataclass(frozen=True)
class Majority(OneByOne):
    """A vote over answers (Wang et al. 2022, arXiv:2203.11171): exact over all draws (`majority_of_k`)."""

    def one(self, problem: JudgedProblem, counts: Sequence[int]) -> Reached:
        fit = [k for k in counts if k <= problem.n]
        cluster, correct = problem.cluster_G, problem.correct_G
        sizes = [int((cluster == j).sum()) for j in range(cluster.max(initial=-1) + 1)]
        gains = [float(correct[cluster == j].mean()) for j in range(len(sizes))]
        accuracy = majority_of_k(sizes, gains, problem.n, fit) if fit else np.zeros(0)
        return _exact(problem, counts, accuracy, _vote(problem, np.ones(problem.n), max(counts)))


@dataclass(frozen=True)
class BestOfK(AtEachBudget):
    """The response that ranks highest, as `best_of_n` takes it in a search: exact over all draws (`best_of_k`).

    By the environment's checker, by score or by mean log-probability. Responses without an answer never win; one
    without a score (or log-probability) ranks below all that have one. Where the checker fails on every response of a
    problem, score or log-probability decides there.
    """

    by: By
    checker: Checker | None = None
    """The environment's, for `by = "checker"`."""

    def check(self, rows: Sequence[RecordedRow]) -> None:
        _check_recorded(rows, self.by, self.checker)

    def reach(self, problems: Sequence[JudgedProblem], counts: Sequence[int]) -> list[Reached]:
        self.check([p.row for p in problems])
        most = max(p.n for p in problems)
        ranks = [self._rank(p) for p in problems]
        # NaN is a sample that is not there.
        correct_PG, rank_PG = np.full((2, len(problems), most), np.nan)
        for i, (p, rank) in enumerate(zip(problems, ranks, strict=True)):
            correct_PG[i, : p.n], rank_PG[i, : p.n] = p.correct_G, rank
        accuracy_PK = np.stack([best_of_k(correct_PG, rank_PG, k) for k in counts if k <= most], axis=1)
        return [
            _exact(p, counts, row[[k <= p.n for k in counts[: len(row)]]], _first_best(p, rank[: max(counts)]))
            for p, rank, row in zip(problems, ranks, accuracy_PK, strict=True)
        ]

    def _rank(self, problem: JudgedProblem) -> Floats:
        return np.where(problem.answered_G, self._values(problem), -np.inf)

    def _values(self, problem: JudgedProblem) -> Floats:
        if self.by != "checker":
            return _ranked(problem, self.by)
        checks = [_checked(self.checker, problem.problem, r) if r.answered else None for r in problem.responses]
        if any(map(usable, checks)):
            keys = [check_rank(check) for check in checks]
            order = {key: float(place) for place, key in enumerate(sorted(set(keys)))}
            return np.array([order[key] for key in keys])
        by = next(iter(recorded([problem.row])), None)
        return np.zeros(problem.n) if by is None else _ranked(problem, by)


def _ranked(problem: JudgedProblem, by: By) -> Floats:
    """Scores or log-probabilities, what was not recorded below all others."""
    value = _values(problem, by)
    return np.where(np.isnan(value), np.nanmin(value, initial=0.0) - 1.0, value)


def _checked(checker: Checker | None, problem: Problem, response: Response) -> Verdict | None:
    """The checker's verdict; None where it fails, as in a search."""
    assert checker is not None
    try:
        return checker(problem, response)
    except Exception:
        return None


def _first_best(problem: JudgedProblem, rank: Floats) -> float:
    """Whether the best of the first samples as recorded is right."""
    return float(problem.correct_G[int(rank.argmax())]) if len(rank) and rank.max() > -np.inf else 0.0


@dataclass(frozen=True)
class Weighted(AtEachBudget):
    """A vote weighted by score (Li et al. 2022, arXiv:2206.02336) or by probability per token, exp(mean logprob).

    Scores below 0 are no weights: exp(score − highest of the problem) is taken then, for all problems. A response
    without a weight counts nothing; if nothing of what was drawn has a weight, every vote counts 1. Exact where there
    are at most `ENUMERATE` draws of k samples, else over `orders` random ones.
    """

    by: By
    seed: int = 0
    orders: int = ORDERS

    def check(self, rows: Sequence[RecordedRow]) -> None:
        _check_recorded(rows, self.by)

    def reach(self, problems: Sequence[JudgedProblem], counts: Sequence[int]) -> list[Reached]:
        self.check([p.row for p in problems])
        below = self.by == "logprob" or any(np.nanmin(p.score_G, initial=0.0) < 0 for p in problems)
        return [self._one(p, counts, below) for p in problems]

    def _one(self, problem: JudgedProblem, counts: Sequence[int], below: bool) -> Reached:
        value = _values(problem, self.by)
        if below:
            highest = 0.0 if self.by == "logprob" else np.nanmax(value, initial=-np.inf)
            value = np.exp(value - highest)
        weight = np.nan_to_num(value)
        accuracy, variance = [], []
        orders: Ints | None = None
        for k in (k for k in counts if k <= problem.n):
            exact = math.comb(problem.n, k) <= ENUMERATE
            if not exact and orders is None:
                orders = orders_of(problem, self.seed, self.orders)
            drawn = _subsets(problem.n, k) if exact or orders is None else orders[:, :k]
            gains = _weighted_votes(problem, weight, drawn)
            accuracy.append(float(gains.mean()))
            variance.append(0.0 if exact else float(gains.var(ddof=1) / len(gains)))
        reached = _exact(problem, counts, accuracy, _vote(problem, weight, max(counts)))
        return dataclasses.replace(reached, variance_K=padded(variance, counts))


def _exact(
    problem: JudgedProblem, counts: Sequence[int], accuracy: Sequence[float] | Floats, decision: float
) -> Reached:
    """A result of a strategy that takes all k samples; `accuracy` is of the budgets that it has samples for."""
    samples = np.where(np.array(counts) <= problem.n, counts, np.nan)
    mean = problem.tokens_G.mean() if problem.n else np.nan
    zero = np.zeros(len(counts))
    return Reached(padded(accuracy, counts), samples, samples * mean, float(decision) if problem.n else np.nan, zero)


def nothing(counts: Sequence[int]) -> Reached:
    """The result for a problem without samples."""
    none = np.full(len(counts), np.nan)
    return Reached(none, none, none, np.nan, np.zeros(len(counts)))


def padded(values: Sequence[float] | Floats, counts: Sequence[int]) -> Floats:
    """Values of the first budgets (they rise), NaN for those that the problem has too few samples for."""
    return np.concatenate([np.asarray(values, dtype=np.float64), np.full(len(counts) - len(values), np.nan)])


FIELDS: Mapping[By, str] = {"score": "score", "logprob": "mean_logprob"}
"""What a sample is ranked by, as its field in a pool."""


def recorded(rows: Sequence[RecordedRow]) -> list[By]:
    """What some sample can be ranked by."""
    return [by for by, field in FIELDS.items() if any(getattr(s, field) is not None for r in rows for s in r.samples)]


def _check_recorded(rows: Sequence[RecordedRow], by: By, checker: Checker | None = None) -> None:
    if by == "checker":
        if checker is None:
            raise UserError("a checker is the environment's: give --environment, one that has a checker")
        return
    if by not in recorded(rows):
        field = FIELDS[by]
        raise UserError(f"no sample of the pool has a {field!r}; leave out the strategies by {by}")


def _values(problem: JudgedProblem, by: By) -> Floats:
    return problem.score_G if by == "score" else problem.logprob_G


def _vote(problem: JudgedProblem, weight: Floats, k: int) -> float:
    """Whether a weighted vote over the first k samples as recorded is right; ties to the first."""
    cluster, weight = problem.cluster_G[:k], weight[:k]
    voting = cluster >= 0
    if not voting.any():
        return 0.0
    if not (weight[voting] > 0).any():
        weight = np.ones(len(weight))
    sums = {j: math.fsum(weight[cluster == j]) for j in dict.fromkeys(cluster[voting].tolist())}
    most = max(sums.values())
    leader = next(j for j, s in sums.items() if s >= most * (1 - 1e-12))
    return float(problem.correct_G[int((cluster == leader).argmax())])


def _weighted_votes(problem: JudgedProblem, weight: Floats, drawn: Ints) -> Floats:
    """For each draw (rows of sample indices) the expected gain: the mean over the samples of the leading clusters."""
    clusters = int(problem.cluster_G.max(initial=-1)) + 1
    if not clusters:
        return np.zeros(len(drawn))
    member = problem.cluster_G[:, None] == np.arange(clusters)
    gains = np.empty(len(drawn))
    rows = max(1, 2_000_000 // (drawn.shape[1] * clusters))
    for i in range(0, len(drawn), rows):
        chosen = drawn[i : i + rows]
        votes = member[chosen].sum(axis=1)
        sums = (member * weight[:, None])[chosen].sum(axis=1)
        unweighted = sums.max(axis=1) <= 0
        sums[unweighted] = votes[unweighted]
        leads = (sums >= sums.max(axis=1, keepdims=True) * (1 - 1e-12)) & (votes > 0)
        right = (member * problem.correct_G[:, None])[chosen].sum(axis=1)
        gains[i : i + rows] = (right * leads).sum(axis=1) / np.maximum((votes * leads).sum(axis=1), 1)
    return gains


@functools.lru_cache(maxsize=256)
def _subsets(n: int, k: int) -> Ints:
    return np.array(list(itertools.combinations(range(n), k)), dtype=np.int64)


def orders_of(problem: JudgedProblem, seed: int, count: int) -> Ints:
    """Orders of drawing (rows): all of them if there are at most `count`, else random ones, the same for every use."""
    n = problem.n
    if n <= 12 and math.factorial(n) <= count:
        return np.array(list(itertools.permutations(range(n))), dtype=np.int64)
    rng = np.random.default_rng(derive(seed, problem.row.id, 0))
    return rng.permuted(np.tile(np.arange(n), (count, 1)), axis=1)
