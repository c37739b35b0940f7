"""Running a search: a loop over `ask` and `tell`; engine, checker and scorer are called through the meter."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ponder import outside, show
from ponder.budget.caller import MeteredEngine
from ponder.budget.meter import Meter
from ponder.budget.streams import Reader
from ponder.errors import BudgetExceeded, CallCancelled, CallFailed, PartFailed, TooLong, Unsupported, UserError
from ponder.protocols import (
    Act,
    Ask,
    Check,
    Engine,
    Environment,
    Feedback,
    Generate,
    Group,
    Hold,
    Receipt,
    Release,
    Score,
    Scorer,
    Search,
    SearchContext,
    Strategy,
    Turn,
    TurnPlayer,
)
from ponder.search.clusters import TextAnswers, group
from ponder.search.episodes import Episodes
from ponder.search.journal import Journal
from ponder.search.leading import Leader
from ponder.search.solving import Solving
from ponder.types import Budget, Completion, Delta, Outcome, Problem, Response, Spend, StopReason

if TYPE_CHECKING:
    from ponder.protocols import PrefixHolder


async def solve(
    strategy: Strategy,
    problem: Problem,
    engine: Engine,
    *,
    feedback: Feedback | Environment | None = None,
    budget: Budget = Budget(),  # noqa: B008  (frozen)
    seed: int = 0,
    others: Mapping[str, Engine] | None = None,
    parent: Meter | None = None,
    journal: Journal | None = None,
    on_delta: Reader | None = None,
) -> Outcome:
    """Solve one problem with a strategy under a budget (and under the budget of `parent`, if there is one).

    `feedback` is what the search may ask besides the model: checker, scorer, how answers are compared for votes. An
    environment gives its own; None is nothing, and votes compare answers as text. `seed` is the run's;
    the strategy derives each sample's from it. `others` are further engines that the strategy may ask for by name.
    `on_delta` is awaited with the pieces of the leading response as they are sampled (the first sample of the first
    call, then of the next one to start, one at a time; an empty piece says that the one so far was cut off and another
    begins), and its call waits until it has taken one; `stream` is for readers that ask for the next piece themselves.
    The seconds of `budget` count from when its first call is worked on, not while an engine keeps that in its queue
    behind the calls of other searches.
    `journal` is written as answers come and, if it holds some already, resumed from there; what it spent, and the
    seconds that it ran, count against `budget`.

    A failure is told to the search, which continues with what it has: the outcome then stops with `BUDGET` or
    `FAILED`, with the best so far and the reason. Prices are those of `parent` (`Meter(prices=…)`; default:
    `budget.prices.load()`). Raises `UserError` if the very first call was refused as bad input
    (a prompt longer than the context), `Unsupported` if the strategy cannot run on this engine, or
    the scorer calls one that is not there.
    Raises what `on_delta` raises. This, and cancelling the task that awaits this, cancels everything that it started;
    what was spent is on `journal` and `parent`.
    """
    if feedback is None or not isinstance(feedback, Feedback):
        feedback = Feedback() if feedback is None else feedback.feedback
    engines = {"": engine, **(others or {})}
    who = outside.whose(strategy, "strategy")
    search = begin(strategy, problem, engine, feedback, seed, others)
    meter = Meter(budget, parent=parent, passed=0.0 if journal is None else journal.seconds, waits=True)
    meter.expect(*engines.values())
    calls = _Calls(problem, engines, meter, feedback, on_delta)
    tasks: dict[int, asyncio.Task[None]] = {}
    told: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
    heard = False
    asked: dict[int, Ask] = {}
    if journal is not None:
        journal.check(strategy, problem, seed)
        meter.add(journal.spend)

    async def run(ask: Ask) -> None:
        told.put_nowait((ask.id, await calls.attempt(ask)))

    def tell(ask_id: int, answer: Any) -> None:
        nonlocal heard
        if isinstance(answer, _ReaderFailed):
            raise answer.error
        if not heard and isinstance(answer, UserError):
            raise answer
        heard = heard or not isinstance(answer, Exception)
        if journal is not None and not isinstance(answer, Exception):
            journal.note(asked[ask_id], answer)
        outside.call(who, search.tell, ask_id, answer)

    try:
        while not search.done:
            meter.keep(*search.reserve())
            asks = outside.call(who, search.ask)
            if not all(isinstance(ask, Ask) for ask in asks):
                raise PartFailed(f"{who} asked for what is no Ask: {show.short(asks)}")
            asked.update((ask.id, ask) for ask in asks)
            before = [] if journal is None else [ask for ask in asks if journal.holds(ask)]
            if journal is not None and before:
                for ask in before:
                    tell(ask.id, journal.answers[ask.id])
                asks = [ask for ask in asks if ask not in before]
            if len(asks) == 1 and not tasks and not before:
                batch = [(asks[0].id, await calls.attempt(asks[0]))]
            else:
                for ask in asks:
                    tasks[ask.id] = asyncio.create_task(run(ask))
                if before:
                    continue
                if not tasks:
                    break
                batch = [await told.get()]
                while not told.empty():
                    batch.append(told.get_nowait())
                batch.sort(key=lambda pair: pair[0])
            for ask_id, answer in batch:
                tasks.pop(ask_id, None)
                tell(ask_id, answer)
            for ask_id in search.unwanted():
                if ask_id in tasks:
                    tasks[ask_id].cancel()
    finally:
        await _cancel(tasks)
        await calls.release()
        meter.keep(0, 0)
        late = [told.get_nowait() for _ in range(told.qsize())]
        if journal is not None:
            journal.spend, journal.seconds = meter.spend, meter.elapsed
            for ask_id, answer in late:
                if not isinstance(answer, Exception):
                    journal.note(asked[ask_id], answer)
    for ask_id, answer in late:
        if isinstance(answer, _ReaderFailed):
            raise answer.error
        search.tell(ask_id, answer)
    for ask_id, task in tasks.items():
        if task.cancelled():
            search.tell(ask_id, CallCancelled(calls.sampled(ask_id)))
    outcome = outside.call(who, search.outcome, meter.spend, calls.stop)
    if not isinstance(outcome, Outcome):
        raise PartFailed(f"{who} gave a {type(outcome).__name__}, not an Outcome")
    return _explained(outcome, calls.reason, meter)


def begin(
    strategy: Strategy,
    problem: Problem,
    engine: Engine,
    feedback: Feedback,
    seed: int = 0,
    others: Mapping[str, Engine] | None = None,
) -> Search:
    """Start the search of a problem; nothing is sent to an engine.

    Raises `Unsupported` if the strategy cannot run with these engines, or the scorer calls one that is not there;
    `PartFailed` if the strategy fails.
    """
    _check_scorer(feedback.scorer, {"": engine, **(others or {})})
    check_turns(strategy, feedback, problem)
    context = SearchContext(
        engine.info,
        engine.capabilities,
        seed,
        feedback.checker is not None,
        feedback.scorer is not None,
        {name: (e.info, e.capabilities) for name, e in (others or {}).items()},
        turns=feedback.episode is not None,
    )
    who = outside.whose(strategy, "strategy")
    search = outside.call(who, strategy.start, problem, context)
    missing = [n for n in ("ask", "tell", "unwanted", "reserve", "done", "outcome") if not hasattr(type(search), n)]
    if missing:
        at = outside.defined(strategy.start)
        raise PartFailed(f"{who}: start{at} gave a {type(search).__name__}, which has no {', '.join(missing)}")
    return search


def check_turns(strategy: Strategy, feedback: Feedback, problem: Problem) -> None:
    """Raises `Unsupported` for a conversation with a strategy that plays no turns: before anything is spent."""
    if feedback.episode is not None and not (isinstance(strategy, TurnPlayer) and strategy.plays_turns):
        raise Unsupported(
            f"{problem.id} is a conversation of several turns, and {type(strategy).__name__} gives one response: use "
            "the strategy turns"
        )


def _check_scorer(scorer: Scorer | None, engines: Mapping[str, Engine]) -> None:
    """Raises `Unsupported` if a scorer calls an engine that is not there: before anything is spent."""
    if scorer is not None and scorer.engine is not None and scorer.engine not in engines:
        there = ", ".join(name for name in engines if name) or "none"
        raise Unsupported(
            f"the scorer calls an engine {scorer.engine!r} and there is none of this name (others: {there}); give it "
            "(--others NAME=MODEL), or let the scorer call the search's own"
        )


def _explained(outcome: Outcome, failure: str, meter: Meter) -> Outcome:
    """The outcome with what went wrong in its reason; first, where that is why there is no answer."""
    cut = bool(meter.shortened) and outcome.stop is StopReason.FINISHED
    stop = StopReason.BUDGET if cut else outcome.stop
    if outcome.response.answer is not None:
        reasons = [outcome.reason, failure, meter.shortened if cut else ""]
    elif outcome.trace.nodes:
        reasons = [meter.shortened if stop is StopReason.BUDGET else "", failure, outcome.reason]
    else:
        reasons = [failure or outcome.reason]
    reason = "; ".join(filter(None, reasons))
    return dataclasses.replace(outcome, stop=stop, reason=reason, outer=meter.outer, seconds=meter.elapsed)


def stream(strategy: Strategy, problem: Problem, engine: Engine, **options: Any) -> Solving:
    """Solve, for a reader that asks for the pieces of the leading response; options as in `solve`.

    The search begins with the first piece that is asked for. See `Solving`.
    """
    return Solving(lambda reader: solve(strategy, problem, engine, on_delta=reader, **options))


async def _cancel(tasks: Mapping[int, asyncio.Task[None]]) -> None:
    """Cancel what runs and wait for it."""
    for task in tasks.values():
        task.cancel()
    if tasks:
        await asyncio.wait(tasks.values())


class _ReaderFailed(Exception):
    """The reader of the pieces raised this: no failure of the engine."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _apart(reader: Reader) -> Reader:
    """The reader, what it raises kept apart from what the engine raises."""

    async def read(delta: Delta) -> None:
        try:
            await reader(delta)
        except Exception as error:
            raise _ReaderFailed(error) from error

    return read


class _Calls:
    """Does what a search asks; remembers the first failure."""

    def __init__(
        self,
        problem: Problem,
        engines: Mapping[str, Engine],
        meter: Meter,
        feedback: Feedback,
        on_delta: Reader | None,
    ) -> None:
        self._problem = problem
        self._engines = engines
        self._meter = meter
        self._feedback = feedback
        self._answers = feedback.answers or TextAnswers()
        self._episodes = None if feedback.episode is None else Episodes(problem, feedback.episode)
        owner = getattr(feedback.episode, "__self__", None)
        self._environment = "the environment" if owner is None else outside.whose(owner, "environment")
        self._leader = None if on_delta is None else Leader(_apart(on_delta))
        self._receipts: dict[int, Receipt] = {}
        """Of calls that did not succeed."""
        self._leases: dict[int, contextlib.AsyncExitStack] = {}
        self.stop = StopReason.FINISHED
        self.reason = ""

    async def attempt(self, ask: Ask) -> Any:
        """The answer of an ask, or the exception that it failed with."""
        work = ask.work
        try:
            match work:
                case Generate():
                    return await self._generate(ask.id, work)
                case Check(response):
                    checker, slow = self._feedback.checker, self._feedback.slow
                    if checker is None:
                        raise Unsupported("the search asks for a checker and there is none")
                    return await self._meter.check(checker, self._problem, response, slow=slow)
                case Score(responses):
                    return await self._score(responses)
                case Group(responses):
                    async with self._meter.clocked():
                        return await group(self._answers, self._problem, responses, self._feedback.slow)
                case Act(responses):
                    return await self._act(responses)
                case Hold(ids):
                    return await self._hold(ask.id, ids)
                case Release(held):
                    await self._leases.pop(held).aclose()
                    return None
        except _ReaderFailed as error:
            return error
        except BudgetExceeded as error:
            if self.stop is StopReason.FINISHED:
                self.stop = StopReason.BUDGET
            self.reason = self.reason or str(error)
            return error
        except BaseException as error:
            failure = outside.failure(error)
            # Without its checker, scorer, votes or a lease a search continues; without its engine it has failed. A
            # prompt that grew too long is not a failure of the engine.
            if isinstance(work, Generate) and isinstance(failure, TooLong):
                self.reason = self.reason or str(failure)
            elif isinstance(work, Act):
                self.stop = StopReason.FAILED
                self.reason = f"{self._environment} failed: {outside.sentence(failure)}"
            elif isinstance(work, Generate):
                self.stop = StopReason.FAILED
                self.reason = outside.sentence(failure)
                if (sampled := self.sampled(ask.id)) and not isinstance(failure, UserError):
                    failed = CallFailed(self.reason, sampled)
                    failed.__cause__ = failure
                    return failed
            else:
                part = _PARTS[type(work)]
                self.reason = self.reason or f"the {part} failed: {outside.sentence(failure)}"
            return failure

    def sampled(self, ask_id: int) -> tuple[Completion, ...]:
        """What a call that did not succeed had sampled, as far as its engine reports it."""
        receipt = self._receipts.get(ask_id)
        return () if receipt is None else receipt.completions

    async def _generate(self, ask_id: int, work: Generate) -> tuple[Completion, ...]:
        engine = self._engines.get(work.engine)
        if engine is None:
            raise Unsupported(f"the search asks for an engine {work.engine!r} and there is none of this name")
        leader = self._leader
        on_delta = leader.follow(work.request) if leader is not None else None
        receipt = self._receipts[ask_id] = Receipt()
        try:
            completions = await self._meter.generate(
                engine,
                work.request,
                minimum=work.minimum,
                answer=work.answer_reserve,
                final=work.final,
                on_delta=on_delta,
                receipt=receipt,
            )
        finally:
            if on_delta is not None and leader is not None:
                leader.leave()
        del self._receipts[ask_id]
        return completions

    async def _score(self, responses: tuple[Response, ...]) -> Sequence[float]:
        scorer = self._feedback.scorer
        if scorer is None:
            raise Unsupported("the search asks for a scorer and there is none")
        if scorer.engine is None:
            return await self._meter.score(scorer, self._problem, responses)
        async with MeteredEngine(self._meter, self._engines[scorer.engine]) as engine:
            return await self._meter.score(scorer, self._problem, responses, engine)

    async def _act(self, responses: tuple[Response, ...]) -> Turn:
        if self._episodes is None:
            raise Unsupported("the search gives responses to an environment of one turn")
        async with self._meter.clocked():
            started = time.perf_counter()
            try:
                return await self._episodes.turn(responses)
            finally:
                self._meter.add(Spend(seconds=time.perf_counter() - started))

    async def _hold(self, ask_id: int, ids: tuple[int, ...]) -> None:
        engine = self._engines[""]
        if not engine.capabilities.leases:
            raise Unsupported(f"the engine of {engine.info.name} keeps no prefixes")
        stack = contextlib.AsyncExitStack()
        async with self._meter.clocked():
            await stack.enter_async_context(cast("PrefixHolder", engine).hold(ids))
        self._leases[ask_id] = stack

    async def release(self) -> None:
        """End every lease and close every episode that is left."""
        try:
            while self._leases:
                await self._leases.popitem()[1].aclose()
        finally:
            if self._episodes is not None:
                await self._episodes.close()


_PARTS = {Check: "checker", Score: "scorer", Group: "comparison of answers", Hold: "lease", Release: "lease"}
