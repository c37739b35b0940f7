"""Accuracy against test-time compute: thinking longer (`ladder`) and sampling more (`parallel`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np

from ponder.budget.meter import Meter
from ponder.environments.judging import judge
from ponder.errors import Unsupported, UserError
from ponder.evaluation.curves import ParallelPoint, SequentialPoint
from ponder.evaluation.estimators import Floats, best_of_k, pass_at_k
from ponder.evaluation.evaluate import CONCURRENCY, Faults, Plan, each, evaluate, failed
from ponder.evaluation.intervals import mean_of_problems
from ponder.evaluation.results import Evaluation, Progress
from ponder.protocols import Checker, Engine, Environment, Feedback, Strategy
from ponder.search.runner import solve
from ponder.search.trace import samples as samples_of
from ponder.search.trace import spent_tokens
from ponder.types import Node, Problem, Spend, VerdictKind


@dataclass(frozen=True, slots=True)
class Ladder:
    """The same problems at several thought budgets."""

    points: tuple[SequentialPoint, ...]
    evaluations: tuple[Evaluation, ...]
    """One per point, for paired comparisons and sample texts."""


def sequential_point(budget_tokens: int, evaluation: Evaluation) -> SequentialPoint:
    """An evaluation as a point of the sequential curve."""
    accuracy = evaluation.accuracy
    return SequentialPoint(
        budget_tokens=budget_tokens,
        mean_response_tokens_per_search=evaluation.mean_response_tokens_per_search.value,
        accuracy=accuracy.value,
        low=accuracy.low,
        high=accuracy.high,
        no_answer=evaluation.no_answer,
        n=accuracy.n,
    )


def _with(strategy: Strategy, field: str, value: int) -> Any:
    names: list[str] = [f.name for f in dataclasses.fields(strategy)] if dataclasses.is_dataclass(strategy) else []
    if field not in names:
        raise UserError(f"{type(strategy).__name__} has no option {field}, which this curve varies")
    return dataclasses.replace(strategy, **{field: value})  # type: ignore[type-var]


async def ladder(
    strategy: Strategy,
    environment: Environment,
    engine: Engine,
    problems: Sequence[Problem],
    budgets: Sequence[int],
    plan: Plan = Plan(),  # noqa: B008  (frozen)
    *,
    on_progress: Callable[[Progress], None] | None = None,
    parent: Meter | None = None,
) -> Ladder:
    """Evaluate at each thought budget in `budgets` (rising), the option `thought_tokens` of the strategy.

    Same problems and seeds at every rung. Raises what `evaluate` raises, and `UserError` if the strategy has no such
    option or the budgets do not rise.
    """
    if not budgets or any(b <= a for a, b in pairwise(budgets)):
        raise UserError(f"the rungs of a ladder must rise, and are {list(budgets)}")
    points, evaluations = [], []
    for rung in budgets:
        evaluation = await evaluate(
            _with(strategy, "thought_tokens", rung),
            environment,
            engine,
            problems,
            dataclasses.replace(plan, label=f"{rung} tokens of thought"),
            on_progress=on_progress,
            parent=parent,
        )
        points.append(sequential_point(rung, evaluation))
        evaluations.append(evaluation)
    return Ladder(tuple(points), tuple(evaluations))


@dataclass(frozen=True, slots=True)
class Pool:
    """n samples of each problem, judged and checked. Arrays are problems × samples, NaN where there is none."""

    ids: tuple[str, ...]
    correct_PG: Floats
    """1 or 0 by the judge."""
    rank_PG: Floats | None
    """What the checker makes of it: 2 to 3 accepted, below 1 rejected, between them unchecked, -inf without answer."""
    tokens_PG: Floats
    """Response tokens."""
    kinds: dict[str, int]
    spend: Spend
    seconds: float
    weights_version: int


@dataclass(frozen=True, slots=True)
class Parallel:
    """One pool of samples and the curve that follows from it."""

    points: tuple[ParallelPoint, ...]
    pool: Pool


async def parallel(
    strategy: Strategy,
    environment: Environment,
    engine: Engine,
    problems: Sequence[Problem],
    *,
    n: int | None = None,
    counts: Sequence[int] | None = None,
    seed: int = 0,
    concurrency: int = CONCURRENCY,
    on_progress: Callable[[Progress], None] | None = None,
    parent: Meter | None = None,
) -> Parallel:
    """Sample each problem n times (the strategy's option `n`) and derive every point at `counts` from that one pool.

    `counts` is 1, 2, 4, … n if it is not given. Accuracy is the best of k by the environment's checker, coverage is
    pass@k by the judge, both expectations over all draws of k from the pool; intervals are over problems. The search
    itself is given no checker. `Progress` counts problems. Raises what `evaluate` raises.
    """
    pool = await sample_pool(
        strategy if n is None else _with(strategy, "n", n),
        environment,
        engine,
        problems,
        seed=seed,
        concurrency=concurrency,
        on_progress=on_progress,
        parent=parent,
    )
    return Parallel(parallel_points(pool, counts), pool)


def parallel_points(pool: Pool, counts: Sequence[int] | None = None) -> tuple[ParallelPoint, ...]:
    """The points of the parallel curve that a pool gives. Raises `UserError` for counts beyond the pool."""
    most = pool.correct_PG.shape[1]
    if counts is None:
        counts = sorted({*(2**i for i in range(most.bit_length())), most})
    if any(not 1 <= k <= most for k in counts):
        raise UserError(f"counts {list(counts)}: the pool has {most} samples a problem")
    judged = ~np.isnan(pool.correct_PG)
    n_P, correct_P = judged.sum(axis=1), np.nansum(pool.correct_PG, axis=1)
    tokens = np.nanmean(np.nanmean(np.where(judged, pool.tokens_PG, np.nan)[n_P > 0], axis=1))
    points = []
    for k in sorted(counts):
        enough = n_P >= k
        if not enough.any():
            raise UserError(f"no problem has {k} samples that could be judged; sample more, or ask for fewer")
        coverage = mean_of_problems(pass_at_k(n_P[enough], correct_P[enough], k))
        best = None
        if pool.rank_PG is not None:
            best = mean_of_problems(best_of_k(pool.correct_PG[enough], pool.rank_PG[enough], k))
        points.append(
            ParallelPoint(
                samples=k,
                mean_response_tokens_per_search=float(k * tokens),
                accuracy=best.value if best else None,
                coverage=coverage.value,
                low=best.low if best else None,
                high=best.high if best else None,
                n=coverage.n,
                coverage_low=coverage.low,
                coverage_high=coverage.high,
            )
        )
    return tuple(points)


async def sample_pool(
    strategy: Strategy,
    environment: Environment,
    engine: Engine,
    problems: Sequence[Problem],
    *,
    seed: int = 0,
    concurrency: int = CONCURRENCY,
    on_progress: Callable[[Progress], None] | None = None,
    parent: Meter | None = None,
) -> Pool:
    """Run the strategy once per problem, judge and check every sample in its trace."""
    if not problems:
        raise UserError("there are no problems to evaluate")
    checker, slow = environment.feedback.checker, environment.feedback.slow
    turns = Feedback(episode=environment.feedback.episode)
    meter = Meter(parent=parent)
    faults = Faults(len(problems))
    results: list[list[tuple[float, float, float, VerdictKind]]] = [[] for _ in problems]
    started = perf_counter()
    done = correct = 0

    async def one(number: int) -> None:
        nonlocal done, correct
        correct += await judged(number)
        done += 1
        if on_progress is not None:
            elapsed, spent = perf_counter() - started, meter.spend.response_tokens
            on_progress(Progress(done, len(problems), correct, faults.count, spent, elapsed, "samples"))

    async def judged(number: int) -> bool:
        """Sample a problem and judge the samples; true if one is correct."""
        problem = problems[number]
        try:
            outcome = await solve(strategy, problem, engine, feedback=turns, seed=seed, parent=meter)
        except Unsupported:
            raise
        except UserError as error:
            faults.add(error)
            return False
        if failed(outcome) and not outcome.trace.nodes:
            faults.add(f"the engine failed: {outcome.reason}")
            return False
        for node in samples_of(outcome.trace):
            verdict = await judge(environment, problem, node.response)
            masked = verdict.kind is VerdictKind.JUDGE_ERROR
            rank = np.nan if checker is None else await _rank(checker, problem, node, meter, slow)
            tokens = spent_tokens(outcome.trace, node)
            results[number].append((np.nan if masked else float(verdict.correct), rank, tokens, verdict.kind))
        kinds = [r[3] for r in results[number]]
        if VerdictKind.JUDGE_ERROR in kinds:
            faults.add(f"the judge failed on {problem.id}")
        return VerdictKind.CORRECT in kinds

    await each(len(problems), one, concurrency)
    most = max(len(r) for r in results)
    arrays = np.full((3, len(problems), most), np.nan)
    kinds: dict[str, int] = {}
    for p, samples in enumerate(results):
        for g, (right, rank, tokens, kind) in enumerate(samples):
            arrays[:, p, g] = right, rank, tokens
            kinds[kind.value] = kinds.get(kind.value, 0) + 1
    return Pool(
        ids=tuple(p.id for p in problems),
        correct_PG=arrays[0],
        rank_PG=None if checker is None else arrays[1],
        tokens_PG=arrays[2],
        kinds=kinds,
        spend=meter.spend,
        seconds=perf_counter() - started,
        weights_version=engine.weights_version,
    )


async def _rank(checker: Checker, problem: Problem, node: Node, meter: Meter, slow: bool) -> float:
    """The order that `best_of_n` ranks by: accepted, unchecked, rejected; then the checker's reward."""
    if node.response.answer is None:
        return -np.inf
    try:
        verdict = await meter.check(checker, problem, node.response, slow=slow)
    except Exception:
        return 1.5
    if verdict.reward is None:
        return 1.5
    return 2.0 + verdict.reward if verdict.correct else min(verdict.reward, 1.0)
