"""Running a search: a loop over `ask` and `tell`; engine, checker and scorer are called through the meter."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from ponder.errors import BudgetExceeded, Unsupported, UserError
from ponder.protocols import Ask, Checker, Engine, Scorer, SearchContext, Strategy
from ponder.search.meter import Meter, Prices
from ponder.types import Budget, Delta, Outcome, Problem, Request, StopReason


async def solve(
    strategy: Strategy,
    problem: Problem,
    engine: Engine,
    *,
    budget: Budget = Budget(),  # noqa: B008  (frozen)
    seed: int = 0,
    checker: Checker | None = None,
    scorer: Scorer | None = None,
    parent: Meter | None = None,
    prices: Prices | None = None,
    on_delta: Callable[[Delta], None] | None = None,
) -> Outcome:
    """Solve one problem with a strategy under a budget (and under the budget of `parent`, if there is one).

    `seed` is the run's; the strategy derives each sample's from it. `on_delta` gets the pieces of the leading
    response as they are sampled: the first sample of the first call, then of the next one to start, one at a time.

    What fails is told to the search, which goes on with what it has: the outcome then stops with `BUDGET` or
    `FAILED`, with the best so far and the reason. Raises `UserError` if the very first call was refused as bad input
    (a prompt longer than the context), `Unsupported` if the strategy does not go with this engine.
    Cancelling the task that awaits this cancels everything that it started.
    """
    context = SearchContext(engine.info, engine.capabilities, seed, checker is not None, scorer is not None)
    search = strategy.start(problem, context)
    meter = Meter(budget, prices=prices, parent=parent)
    calls = _Calls(problem, engine, meter, checker, scorer, on_delta)
    heard = False
    tasks: dict[int, asyncio.Task[None]] = {}
    answers: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    async def run(ask: Ask) -> None:
        answers.put_nowait((ask.id, await calls.attempt(ask)))

    try:
        while not search.done:
            asks = search.ask()
            if len(asks) == 1 and not tasks:
                batch = [(asks[0].id, await calls.attempt(asks[0]))]
            else:
                for ask in asks:
                    tasks[ask.id] = asyncio.create_task(run(ask))
                if not tasks:
                    break
                batch = [await answers.get()]
                while not answers.empty():
                    batch.append(answers.get_nowait())
                batch.sort(key=lambda pair: pair[0])
            for ask_id, answer in batch:
                tasks.pop(ask_id, None)
                if not heard and isinstance(answer, UserError):
                    raise answer
                heard = heard or not isinstance(answer, Exception)
                search.tell(ask_id, answer)
    finally:
        await _cancel(tuple(tasks.values()))
    outcome = search.outcome(meter.spend, calls.stop)
    if calls.reason:
        outcome = dataclasses.replace(outcome, reason="; ".join(filter(None, (outcome.reason, calls.reason))))
    return outcome


async def _cancel(tasks: tuple[asyncio.Task[None], ...]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.gather(*tasks, return_exceptions=True)


class _Calls:
    """Does what a search asks; remembers the first thing that went wrong."""

    def __init__(
        self,
        problem: Problem,
        engine: Engine,
        meter: Meter,
        checker: Checker | None,
        scorer: Scorer | None,
        on_delta: Callable[[Delta], None] | None,
    ) -> None:
        self._problem = problem
        self._engine = engine
        self._meter = meter
        self._checker = checker
        self._scorer = scorer
        self._leader = None if on_delta is None else _Leader(on_delta)
        self.stop = StopReason.FINISHED
        self.reason = ""

    async def attempt(self, ask: Ask) -> Any:
        """The answer of an ask, or the exception that it failed with."""
        try:
            return await self._call(ask)
        except BudgetExceeded as error:
            if self.stop is StopReason.FINISHED:
                self.stop = StopReason.BUDGET
            self.reason = self.reason or str(error)
            return error
        except Exception as error:
            # Without its checker or scorer a search goes on; without its engine it has failed.
            if ask.request is not None:
                self.stop = StopReason.FAILED
                self.reason = _sentence(error)
            else:
                part = "checker" if ask.check is not None else "scorer"
                self.reason = self.reason or f"the {part} failed: {_sentence(error)}"
            return error

    async def _call(self, ask: Ask) -> Any:
        if ask.request is not None:
            on_delta = self._leader.follow(ask.request) if self._leader is not None else None
            try:
                return await self._meter.generate(
                    self._engine, ask.request, minimum=ask.minimum, answer=ask.answer_reserve, on_delta=on_delta
                )
            finally:
                if on_delta is not None and self._leader is not None:
                    self._leader.busy = False
        if ask.check is not None:
            if self._checker is None:
                raise Unsupported("the search asks for a checker and there is none")
            return await self._meter.check(self._checker, self._problem, ask.check)
        if ask.score is not None:
            if self._scorer is None:
                raise Unsupported("the search asks for a scorer and there is none")
            return await self._meter.score(self._scorer, self._problem, ask.score)
        raise ValueError(f"ask {ask.id} asks for nothing")


class _Leader:
    """Passes on the first sample of one call at a time. A call that continues a response shows only what is new."""

    def __init__(self, on_delta: Callable[[Delta], None]) -> None:
        self._on_delta = on_delta
        self._shown = ""
        self._text = ""
        self._prefix = ""
        self.busy = False

    def follow(self, request: Request) -> Callable[[Delta], None] | None:
        """Where the pieces of this call go; None if another call leads, or it continues a response not shown."""
        if self.busy or (request.prefix and not request.prefix.startswith(self._shown)):
            return None
        self.busy = True
        self._text, self._prefix = "", request.prefix
        if not request.prefix:
            self._shown = ""
        return self._pass_on

    def _pass_on(self, delta: Delta) -> None:
        if delta.sample != 0:
            return
        self._text += delta.text
        if not self._prefix:
            self._shown += delta.text
            self._on_delta(delta)
            return
        # Engines differ in whether the prefix is part of what they stream.
        if self._prefix.startswith(self._text) and delta.completion is None:
            return
        whole = self._text if self._text.startswith(self._prefix) else self._prefix + self._text
        new, self._shown = whole[len(self._shown) :], whole
        self._on_delta(dataclasses.replace(delta, text=new))


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".rstrip(": ")
