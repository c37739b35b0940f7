"""Evaluating a strategy on problems: search, then judge with the gold, then count."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from ponder.budget.meter import Meter
from ponder.environments.judging import judge
from ponder.environments.loading import refuse_same_ids
from ponder.errors import PonderError, Unsupported, UserError
from ponder.evaluation.results import Earlier, Evaluation, Judged, Progress, Searched, row, summarise, unjudged
from ponder.protocols import Engine, Environment, Feedback, Strategy
from ponder.search.runner import solve
from ponder.search.seeds import derive
from ponder.search.trace import samples as samples_of
from ponder.search.trace import with_verdicts
from ponder.sync import gather_all
from ponder.types import (
    Budget,
    Outcome,
    Problem,
    Response,
    Spend,
    StopReason,
    Trace,
    Verdict,
    VerdictKind,
)

CONCURRENCY = 512
"""Searches in flight at once; the engine batches them as it can. Those that are being judged do not count."""
MASKED_SHARE, MASKED_COUNT = 0.05, 5
"""More infrastructure errors than both of these stop an evaluation."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How an evaluation is run."""

    samples: int = 1
    """Searches of each problem, each with its own seed."""
    seed: int = 0
    budget: Budget = Budget()  # noqa: RUF009  (frozen)
    """Of each search."""
    concurrency: int = CONCURRENCY
    """Searches in flight at once."""
    keep_texts: int | None = None
    """The texts of the first so many problems' responses are in the rows; None is of all."""
    label: str = ""
    """What progress is reported as."""


def _check(concurrency: int) -> None:
    if concurrency < 1:
        raise UserError(f"concurrency = {concurrency}: give at least 1")


async def each(count: int, work: Callable[[int], Awaitable[None]], concurrency: int) -> None:
    """Do `work(0)` to `work(count - 1)`, `concurrency` at once; the first failure cancels the rest and is raised."""
    _check(concurrency)
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    await gather_all(worker() for _ in range(min(concurrency, count)))


class Faults:
    """Counts infrastructure errors and stops when there are too many to trust the rest."""

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
            raise PonderError(unjudged(self.count, self._total, self._first))


def failed(outcome: Outcome) -> bool:
    """True if the engine failed and there is no answer: nothing that the model did can be judged."""
    return outcome.stop is StopReason.FAILED and outcome.response.answer is None


async def evaluate(
    strategy: Strategy,
    environment: Environment,
    engine: Engine,
    problems: Sequence[Problem],
    plan: Plan = Plan(),
    *,
    feedback: Feedback | None = None,
    others: Mapping[str, Engine] | None = None,
    parent: Meter | None = None,
    earlier: Earlier = Earlier(),  # noqa: B008  (frozen)
    on_progress: Callable[[Progress], None] | None = None,
    on_search: Callable[[Searched], None] | None = None,
) -> Evaluation:
    """Run a strategy on problems, `plan.samples` times each, and judge what it chose.

    `plan.budget` is for each search; `parent` is the budget of all of them, with the prices. `feedback` is what the
    searches may ask (default: the environment's own). `on_search` gets each search as it ends; its trace is not kept
    (with it, every whole response of the trace is judged, unless the environment says `slow_judge`). `earlier` are
    results of the same evaluation that need not be run again, and what opening the engines has cost (an engine may
    serve several evaluations: the caller that opened it says which of them pays).

    The result does not depend on the order in which searches finish. Infrastructure errors (a judge or an engine
    that failed) are left out of the shares and counted; more than 5 and 5 % raise `PonderError`. A search that its
    budget refused abstains, and says why; `PonderError` if all were refused. Raises `UserError` for no problems
    and for two of the same id, `Unsupported` if the strategy does not work with the engine.
    """
    if not problems:
        raise UserError("there are no problems to evaluate")
    refuse_same_ids(problems)
    samples, seed = plan.samples, plan.seed
    if samples < 1:
        raise UserError(f"samples = {samples}: give at least 1")
    if feedback is None:
        feedback = environment.feedback
    seeds = [seed if s == 0 else derive(seed, "samples of an evaluation", s) for s in range(samples)]
    total = len(problems) * samples
    meter = Meter(parent=parent)
    faults = Faults(total)
    results: dict[tuple[int, int], Judged] = dict(earlier.results)
    pending = [(i, s) for i in range(len(problems)) for s in range(samples) if (i, s) not in results]
    spent = sum((r.spend for r in results.values()), earlier.lost + earlier.opening)
    correct = sum(r.verdict.correct for r in results.values())
    masked = 0
    started = time.perf_counter()

    async def search(problem: Problem, sample: int) -> tuple[Outcome, str | UserError]:
        """What a search found, or what kept it from starting."""
        try:
            outcome = await solve(
                strategy,
                problem,
                engine,
                feedback=feedback,
                budget=plan.budget,
                seed=seeds[sample],
                others=others,
                parent=meter,
            )
        except Unsupported:
            raise
        except UserError as error:
            reason = str(error)
            return Outcome(Response(None), None, Trace(problem.id), Spend(), StopReason.FAILED, reason=reason), error
        return outcome, ""

    async def one(number: int) -> None:
        nonlocal correct, masked
        index, sample = pending[number]
        problem = problems[index]
        async with room:
            outcome, error = await search(problem, sample)
            ended = time.perf_counter()
        await _give_way()
        verdict = await _verdict(environment, problem, outcome)
        if verdict.kind is VerdictKind.JUDGE_ERROR:
            faults.add(error or verdict.reason)
        starved = outcome.stop is StopReason.BUDGET and outcome.outer
        judged = Judged(verdict, outcome.response.text, outcome.spend, outcome.stop, starved, outcome.seconds)
        if on_search is not None:
            verdicts = await _samples(environment, problem, outcome, verdict)
            outcome = dataclasses.replace(outcome, trace=with_verdicts(outcome.trace, verdicts))
            at = earlier.seconds + ended - started
            on_search(Searched(index, sample, problem, outcome, judged, at))
        if plan.keep_texts is not None and index >= plan.keep_texts:
            judged = dataclasses.replace(judged, text="")
        results[index, sample] = judged
        correct += verdict.correct
        # Not `faults.count`: those beyond the limit are in no result.
        masked += verdict.kind is VerdictKind.JUDGE_ERROR
        if on_progress is not None:
            now, mine = time.perf_counter() - started, meter.spend
            tokens = mine.response_tokens
            on_progress(Progress(len(results), total, correct, masked, tokens, now, plan.label, spent + mine))

    _check(plan.concurrency)
    room = asyncio.Semaphore(plan.concurrency)
    # As many again may be judged and written, so that the engine does not wait for that.
    await each(len(pending), one, 2 * plan.concurrency)
    assert len(results) == total
    if all(r.refused for r in results.values()):
        what = "no question" if earlier.opening.tokens else "nothing"
        raise PonderError(f"{what} was sent, as the budget is too small: {results[0, 0].verdict.reason}; give more")
    ordered = [[results[i, s] for s in range(samples)] for i in range(len(problems))]
    rows = tuple(row(p, of) for p, of in zip(problems, ordered, strict=True))
    seconds = earlier.seconds + earlier.opening.seconds + time.perf_counter() - started
    at_once, version = min(plan.concurrency, total), engine.weights_version
    return summarise(rows, ordered, samples, earlier.lost, earlier.opening, seconds, at_once, seed, version)


async def _give_way() -> None:
    """Let the search that replaces a finished one be sent before the finished one is judged on this loop."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


_TURNS = 3
"""Turns of the event loop that this takes: the search wakes up, its calls start as tasks, the engine gets them."""


async def _verdict(environment: Environment, problem: Problem, outcome: Outcome) -> Verdict:
    """The judge's verdict on what a search chose; where nothing can be judged, it says why."""
    if failed(outcome):
        return Verdict(VerdictKind.JUDGE_ERROR, None, f"the engine failed: {outcome.reason}")
    if outcome.stop is StopReason.BUDGET and outcome.response.answer is None and not outcome.trace.nodes:
        return Verdict(VerdictKind.NO_ANSWER, 0.0, outcome.reason)
    return await judge(environment, problem, outcome.response)


async def _samples(environment: Environment, problem: Problem, outcome: Outcome, chosen: Verdict) -> dict[int, Verdict]:
    """Verdicts by node: on the chosen response, and on all others where judging is quick."""
    verdicts = {} if outcome.chosen is None else {outcome.chosen: chosen}
    if not environment.slow_judge:
        for node in samples_of(outcome.trace):
            if node.id not in verdicts:
                verdicts[node.id] = await judge(environment, problem, node.response)
    return verdicts
