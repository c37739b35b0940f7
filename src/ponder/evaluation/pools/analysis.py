"""What strategies reach on a recorded pool: accuracy against tokens at a ladder of budgets, coverage, paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from ponder import registry
from ponder.config import parse_options
from ponder.engines.recorded import RecordedRow
from ponder.errors import UserError, nearest
from ponder.evaluation.equal_spend import Compared, Yardstick, at_equal_spend, counts_up_to
from ponder.evaluation.estimators import pass_at_k
from ponder.evaluation.intervals import mcnemar, mean_of_problems, paired_difference
from ponder.evaluation.pools import live
from ponder.evaluation.pools.adaptive import Adaptive
from ponder.evaluation.pools.formulas import (
    ORDERS,
    BestOfK,
    By,
    Direct,
    Majority,
    PoolStrategy,
    Reached,
    Weighted,
    recorded,
)
from ponder.evaluation.pools.judging import Disagreement, JudgedPool, JudgedProblem
from ponder.protocols import Checker
from ponder.types import Estimate, to_json

NAMES = ("direct", "majority", "best_of_n", "weighted", "adaptive")
"""Strategies that are computed and not run; `live:NAME` runs the one of the registry."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """pass@k: whether any of k samples is right, which no strategy can exceed."""

    k: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Point:
    """A strategy at one budget."""

    budget: int
    """Most samples of a problem."""
    mean_samples_per_search: float
    mean_response_tokens_per_search: float
    """Every sample counted."""
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Pair:
    """Two strategies on the same problems, each at its largest budget."""

    a: str
    b: str
    difference: float
    """Expected accuracy of a − b; the interval is of pairs, over problems."""
    low: float
    high: float
    p: float
    """McNemar's exact test of their decisions on the samples in recorded order (ties to the first)."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The point with the highest value of several: it is the highest by luck too, so the value is optimistic."""

    strategy: str
    budget: int
    estimate: Estimate
    """Widened, so that it holds whichever point is chosen (`Estimate.chosen_of`)."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What strategies reached on a pool."""

    n: int
    """Problems."""
    coverage: tuple[Coverage, ...]
    strategies: Mapping[str, tuple[Point, ...]]
    paired: tuple[Pair, ...]
    disagreements: tuple[Disagreement, ...]
    errors: Mapping[str, float]
    """Largest standard error of an accuracy from drawing orders at random (Monte Carlo); 0 where it is exact."""
    equal_spend: Mapping[str, tuple[Compared | None, ...]]
    """Each point of each strategy compared with majority at the same tokens; None at a budget of 1."""
    highest: Chosen | None
    """The point with the highest accuracy; None if there is but one."""
    highest_gain: Chosen | None
    """The point with the largest difference from majority at the same tokens; None if there are not several."""

    def to_json(self) -> dict[str, Any]:
        """`{"n", "coverage", "strategies", "paired", "disagreements", "highest", "highest_gain"}`."""
        names = ("n", "coverage", "strategies", "paired", "disagreements", "highest", "highest_gain")
        return {name: to_json(getattr(self, name)) for name in names}


def ladder(rows: Sequence[RecordedRow], counts: Sequence[int] | None = None) -> tuple[int, ...]:
    """1, 2, 4, … and the fewest samples that a problem was recorded with; or `counts`, checked against that.

    So that every point is of the same problems. Raises `UserError` for counts that the pool does not reach.
    """
    fewest = min(rows, key=lambda row: len(row.samples))
    most = len(fewest.samples)
    if counts is None:
        return tuple(sorted({*(2**i for i in range(most.bit_length())), most}))
    for k in counts:
        if not 1 <= k <= most:
            raise UserError(
                f"--budgets {k}: give 1 to {most}, the samples that problem {fewest.id!r} has (--at-least leaves "
                "problems with fewer samples out)"
            )
    return tuple(sorted(set(counts)))


def defaults(rows: Sequence[RecordedRow], checker: Checker | None = None) -> tuple[str, ...]:
    """The strategies that a pool has recorded enough for."""
    checked = () if checker is None else ("best_of_n:checker",)
    scored = [f"{name}:{by}" for by in recorded(rows) for name in ("best_of_n", "weighted")]
    return ("direct", "majority", *checked, *scored, "adaptive")


def full_name(spec: str, strategy: PoolStrategy) -> str:
    """The name of a strategy with what it ranks by, where the spec leaves that open: `best_of_n:checker`."""
    return f"{spec}:{strategy.by}" if isinstance(strategy, BestOfK | Weighted) and ":" not in spec else spec


def build(
    spec: str, rows: Sequence[RecordedRow], *, checker: Checker | None = None, seed: int = 0, orders: int | None = None
) -> PoolStrategy:
    """A strategy by name: one of `NAMES`, with what it ranks by after a colon, or one of the registry, run.

    `best_of_n:checker`, `best_of_n:score`, `weighted:logprob`, `adaptive:beta`, `adaptive:dirichlet:0.9`,
    `adaptive:esc:4`; options of one that is run follow its name, as in `live:best_of_n:temperature=0.5+top_k=20`.
    `rows` are those that will be judged: they say what can be ranked by where the name does not. Raises `UserError` for
    an unknown name, rule or option, or a number out of range.
    """
    head, _, rest = spec.partition(":")
    name = registry.canonical(head)
    if name in ("direct", "majority"):
        if rest:
            raise UserError(f"{spec}: {name} takes nothing after the colon")
        return Direct() if name == "direct" else Majority()
    if name in ("best_of_n", "weighted"):
        by = _by(spec, rest, rows, checker if name == "best_of_n" else None)
        return BestOfK(by, checker) if name == "best_of_n" else Weighted(by, seed, orders or ORDERS)
    if name == "adaptive":
        rule, _, limit = rest.partition(":")
        rule = rule or "beta"
        try:
            number = float(limit) if limit else (4.0 if rule == "esc" else 0.95)
        except ValueError:
            raise UserError(f"{spec}: {limit!r} is not a number") from None
        return Adaptive(rule, number, seed, orders or ORDERS)  # type: ignore[arg-type]
    run = rest if name == "live" else spec
    known = {*NAMES, *registry.names("search.strategies")}
    plain = registry.canonical(run.partition(":")[0])
    if not run or (plain not in known and not plain.endswith(".py") and "/" not in plain):
        raise UserError(f"unknown strategy {spec!r}{nearest(plain, known)}")
    named, _, last = run.rpartition(":")
    if named and "=" in last:
        try:
            strategy = registry.build("search.strategies", named, parse_options(last.split("+")))
        except ValueError as error:
            raise error if isinstance(error, UserError) else UserError(f"{spec}: {error}") from None
    else:
        strategy = registry.build("search.strategies", run)
    return live.Live(strategy, spec, checker, seed, live.ORDERS if orders is None else orders)


def _by(spec: str, given: str, rows: Sequence[RecordedRow], checker: Checker | None) -> By:
    """What is ranked by: as given, else as the strategy itself chooses in a search."""
    best, by = registry.canonical(spec.partition(":")[0]) == "best_of_n", registry.canonical(given)
    words: dict[str, By] = {"score": "score", "scorer": "score", "logprob": "logprob", "mean_logprob": "logprob"}
    words |= {"checker": "checker"} if best else {}
    if by in words:
        return words[by]
    if by:
        raise UserError(f"{spec}: give {'checker, ' * best}score or logprob after the colon")
    if checker is not None:
        return "checker"
    known = recorded(rows)
    if not known:
        raise UserError(f"{spec} needs a 'score' or 'mean_logprob' and no sample of the pool has one; leave it out")
    return known[0] if best else known[-1]


def replay(pool: JudgedPool, strategies: Mapping[str, PoolStrategy], counts: Sequence[int] | None = None) -> Replayed:
    """Compare strategies on a judged pool. A problem with too few judged samples for a budget is left out of it.

    Raises `UserError` for counts beyond the pool and what the strategies raise.
    """
    rungs = ladder([p.row for p in pool.problems], counts)
    problems = pool.problems
    points: dict[str, tuple[Point, ...]] = {}
    errors: dict[str, float] = {}
    last: dict[str, tuple[list[float], list[float]]] = {}
    equal: dict[str, tuple[Compared | None, ...]] = {}
    stick: Yardstick | None = None
    all_reached: dict[str, list[Reached]] = {}
    for name, strategy in strategies.items():
        budgets = strategy.counts(rungs)
        reached = all_reached[name] = strategy.reach(problems, budgets)
        points[name] = tuple(_point(reached, i, k) for i, k in enumerate(budgets))
        variance = np.array([r.variance_K for r in reached])
        errors[name] = float(np.sqrt(variance.sum(axis=0)).max() / len(reached))
        if not isinstance(strategy, Direct | Majority):
            stick = stick or _yardstick(problems, rungs[-1])
            equal[name] = tuple(_equal(reached, i, stick) if k > 1 else None for i, k in enumerate(budgets))
        last[name] = [float(r.accuracy_K[-1]) for r in reached], [r.decision for r in reached]
    pairs = []
    for a, b in combinations(strategies, 2):
        difference = paired_difference(last[a][0], last[b][0])
        p = mcnemar(last[a][1], last[b][1])
        pairs.append(Pair(a, b, difference.value, difference.low, difference.high, p))
    n = sum(p.n > 0 for p in problems)
    coverage = tuple(_coverage(problems, k) for k in rungs)
    highest = _highest({(s, i): p.accuracy for s, ps in points.items() for i, p in enumerate(ps)})
    gain = _highest({(s, i): c.difference.value for s, cs in equal.items() for i, c in enumerate(cs) if c is not None})
    chosen = chosen_gain = None
    if highest is not None:
        name, i, of = highest
        accuracy = mean_of_problems([r.accuracy_K[i] for r in all_reached[name]], of)
        chosen = Chosen(name, points[name][i].budget, accuracy)
    if gain is not None and stick is not None:
        name, i, of = gain
        best = _equal(all_reached[name], i, stick, of)
        chosen_gain = None if best is None else Chosen(name, points[name][i].budget, best.difference)
    return Replayed(n, coverage, points, tuple(pairs), pool.disagreements, errors, equal, chosen, chosen_gain)


def _highest(values: Mapping[tuple[str, int], float]) -> tuple[str, int, int] | None:
    """The strategy and point with the highest value, the first of equal ones, and of how many it is chosen."""
    if len(values) < 2:
        return None
    name, i = max(values, key=lambda at: values[at])
    return name, i, len(values)


def _coverage(problems: Sequence[JudgedProblem], k: int) -> Coverage:
    enough = [p for p in problems if p.n >= k]
    if not enough:
        raise UserError(f"--budgets {k}: no problem has so many samples that could be judged; give fewer")
    n, correct = [p.n for p in enough], [p.correct_G.sum() for p in enough]
    value = mean_of_problems(pass_at_k(n, correct, k))
    return Coverage(k, value.value, value.low, value.high)


def _point(reached: Sequence[Reached], i: int, k: int) -> Point:
    accuracy = mean_of_problems([r.accuracy_K[i] for r in reached])
    samples, tokens = (float(np.nanmean([getattr(r, name)[i] for r in reached])) for name in ("samples_K", "tokens_K"))
    return Point(k, samples, tokens, accuracy.value, accuracy.low, accuracy.high)


def _yardstick(problems: Sequence[JudgedProblem], most: int) -> Yardstick:
    """Majority at every count of samples; NaN for a problem that has fewer than `most`."""
    counts = counts_up_to(most)
    reached = Majority().reach(problems, counts.tolist())
    tokens = [p.tokens_G.mean() if p.n >= most else np.nan for p in problems]
    return Yardstick(counts, np.stack([r.accuracy_K for r in reached]), np.array(tokens))


def _equal(reached: Sequence[Reached], i: int, stick: Yardstick, chosen_of: int = 1) -> Compared | None:
    """A strategy at its budget `i` against majority, on the problems that have all samples; None if there are none."""
    accuracy, tokens = (np.array([getattr(r, name)[i] for r in reached]) for name in ("accuracy_K", "tokens_K"))
    here = np.isfinite(accuracy) & np.isfinite(stick.tokens_P)
    if not here.any() or not stick.tokens_P[here].any():
        return None
    same = Yardstick(stick.counts_K, stick.accuracy_PK[here], stick.tokens_P[here])
    return at_equal_spend(accuracy[here], tokens[here], same, chosen_of)
