"""Evaluating a strategy on problems: search, then judge with the gold, then count."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ponder.errors import PonderError, Unsupported, UserError
from ponder.evaluation.intervals import bootstrap_mean, mean_of_problems
from ponder.protocols import Engine, Environment, Scorer, Strategy
from ponder.search.meter import Meter, Prices
from ponder.search.runner import solve
from ponder.search.seeds import derive
from ponder.types import (
    Budget,
    Estimate,
    Outcome,
    Problem,
    Response,
    Spend,
    StopReason,
    Verdict,
    VerdictKind,
    to_json,
)

CONCURRENCY = 512
"""Searches in flight at once; the engine batches them as it can."""
MASKED_SHARE, MASKED_COUNT = 0.05, 5
"""More failures of ours than both of these stop an evaluation."""


@dataclass(frozen=True, slots=True)
class Row:
    """What came out for one problem; the tuples have one entry per sample."""

    id: str
    correct: float | None
    """Mean over the samples that could be judged; None if none could."""
    kinds: tuple[VerdictKind, ...]
    tokens: tuple[int, ...]
    """Response tokens of everything that was generated, discarded branches too."""
    texts: tuple[str, ...]
    answers: tuple[str | None, ...]
    """As the judge extracted them."""
    reasons: tuple[str, ...]
    rewards: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an evaluation is."""

    done: int
    """Searches that are finished and judged."""
    total: int
    correct: int
    masked: int
    """Failures of ours so far."""
    response_tokens: int
    seconds: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a strategy reaches on some problems, and what it cost."""

    accuracy: Estimate
    """Share of problems solved (with several samples: mean over problems of the share of samples)."""
    no_answer: float
    """Share of judged responses without an answer."""
    mean_tokens: Estimate
    """Response tokens per sample, everything that was generated counted."""
    kinds: dict[str, int]
    """Verdicts by kind, `judge_error` (left out of the shares) too."""
    problems: int
    samples: int
    """Per problem."""
    spend: Spend
    tokens_per_correct: float | None
    """Prompt and response tokens spent for one correct response; None if there was none."""
    dollars_per_correct: float | None
    seconds: float
    """By the clock on the wall."""
    seed: int
    weights_version: str
    rows: tuple[Row, ...]
    """One per problem, in the order that they were given."""

    @property
    def correct_P(self) -> tuple[float, ...]:
        """Per problem, NaN where it was left out: what `paired_difference` takes."""
        return tuple(math.nan if r.correct is None else r.correct for r in self.rows)

    def to_json(self) -> dict[str, Any]:
        return to_json(self)


@dataclass(frozen=True, slots=True)
class _Judged:
    verdict: Verdict
    text: str
    tokens: int


async def judge(environment: Environment, problem: Problem, response: Response) -> Verdict:
    """Ask the environment's judge, on a thread if the environment says `slow_judge`."""
    if getattr(environment, "slow_judge", False):
        return await asyncio.to_thread(environment.judge, problem, response)
    return environment.judge(problem, response)


async def each(count: int, work: Callable[[int], Awaitable[None]], concurrency: int) -> None:
    """Do `work(0)` to `work(count - 1)`, so many at once; the first failure cancels the rest and is raised."""
    if concurrency < 1:
        raise UserError(f"concurrency = {concurrency}: give at least 1")
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    tasks = [asyncio.create_task(worker()) for _ in range(min(concurrency, count))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Faults:
    """Counts failures of ours and stops when there are too many to trust the rest."""

    def __init__(self, total: int) -> None:
        self._total = total
        self.count = 0
        self._first: str | UserError = ""

    def add(self, what: str | UserError) -> None:
        """Raises `PonderError` (the user's own error, if the first one was) once there are too many."""
        self._first = self._first or what
        self.count += 1
        if self.count == self._total or self.count > max(MASKED_COUNT, MASKED_SHARE * self._total):
            if isinstance(self._first, UserError):
                raise self._first
            raise PonderError(
                f"{self.count} of {self._total} responses could not be generated or judged; the first: {self._first}"
            )


def failed(outcome: Outcome) -> bool:
    """True if the engine failed before there was anything to judge."""
    return outcome.stop is StopReason.FAILED and not outcome.trace.nodes


async def evaluate(
    strategy: Strategy,
    environment: Environment,
    engine: Engine,
    problems: Sequence[Problem],
    *,
    samples: int = 1,
    seed: int = 0,
    concurrency: int = CONCURRENCY,
    on_progress: Callable[[Progress], None] | None = None,
    budget: Budget = Budget(),  # noqa: B008  (frozen)
    parent: Meter | None = None,
    prices: Prices | None = None,
    scorer: Scorer | None = None,
    label: str = "",
) -> Evaluation:
    """Run a strategy on problems, `samples` times each, and judge what it chose.

    `budget` is for each search, `parent` for all of them. The environment's checker, if it has one, is the search's.
    The result does not depend on the order in which searches finish. Failures of ours (a judge that broke, an engine
    that failed) are left out of the shares and counted; more than 5 and 5 % raise `PonderError`. Raises `UserError`
    for no problems, `Unsupported` if the strategy does not go with the engine.
    """
    if not problems:
        raise UserError("there are no problems to evaluate")
    if samples < 1:
        raise UserError(f"samples = {samples}: give at least 1")
    seeds = [seed if s == 0 else derive(seed, "samples of an evaluation", s) for s in range(samples)]
    total = len(problems) * samples
    results: list[_Judged | None] = [None] * total
    meter = Meter(parent=parent, prices=prices)
    faults = Faults(total)
    started = time.perf_counter()
    done = correct = 0

    async def one(number: int) -> None:
        nonlocal done, correct
        problem = problems[number // samples]
        try:
            outcome = await solve(
                strategy,
                problem,
                engine,
                budget=budget,
                seed=seeds[number % samples],
                checker=environment.checker,
                scorer=scorer,
                parent=meter,
            )
        except Unsupported:
            raise
        except UserError as error:
            faults.add(error)
            results[number] = _Judged(Verdict(VerdictKind.JUDGE_ERROR, None, str(error)), "", 0)
        else:
            if failed(outcome):
                verdict = Verdict(VerdictKind.JUDGE_ERROR, None, f"the engine failed: {outcome.reason}")
            else:
                verdict = await judge(environment, problem, outcome.response)
            if verdict.kind is VerdictKind.JUDGE_ERROR:
                faults.add(verdict.reason)
            correct += verdict.correct
            results[number] = _Judged(verdict, outcome.response.text, outcome.spend.response_tokens)
        done += 1
        if on_progress is not None:
            elapsed = time.perf_counter() - started
            spent = meter.spend.response_tokens
            on_progress(Progress(done, total, correct, faults.count, spent, elapsed, label))

    await each(total, one, concurrency)
    judged = [r for r in results if r is not None]
    assert len(judged) == total
    rows = tuple(_row(p, judged[i * samples : (i + 1) * samples]) for i, p in enumerate(problems))
    return _summary(rows, samples, meter.spend, time.perf_counter() - started, seed, engine.weights_version)


def _row(problem: Problem, results: Sequence[_Judged]) -> Row:
    scored = [r.verdict.correct for r in results if r.verdict.kind is not VerdictKind.JUDGE_ERROR]
    return Row(
        problem.id,
        sum(scored) / len(scored) if scored else None,
        tuple(r.verdict.kind for r in results),
        tuple(r.tokens for r in results),
        tuple(r.text for r in results),
        tuple(r.verdict.answer for r in results),
        tuple(r.verdict.reason for r in results),
        tuple(r.verdict.reward for r in results),
    )


def _summary(
    rows: tuple[Row, ...], samples: int, spend: Spend, seconds: float, seed: int, weights_version: str
) -> Evaluation:
    kinds = Counter(k for r in rows for k in r.kinds)
    correct = kinds[VerdictKind.CORRECT]
    judged = sum(kinds.values()) - kinds[VerdictKind.JUDGE_ERROR]
    scored = [math.nan if r.correct is None else r.correct for r in rows]
    tokens = [[t for t, k in zip(r.tokens, r.kinds, strict=True) if k is not VerdictKind.JUDGE_ERROR] for r in rows]
    return Evaluation(
        accuracy=mean_of_problems(scored, seed),
        no_answer=kinds[VerdictKind.NO_ANSWER] / judged,
        mean_tokens=bootstrap_mean([sum(t) / len(t) if t else math.nan for t in tokens], seed),
        kinds={k.value: kinds[k] for k in VerdictKind if kinds[k]},
        problems=len(rows),
        samples=samples,
        spend=spend,
        tokens_per_correct=spend.tokens / correct if correct else None,
        dollars_per_correct=spend.dollars / correct if correct else None,
        seconds=seconds,
        seed=seed,
        weights_version=weights_version,
        rows=rows,
    )
