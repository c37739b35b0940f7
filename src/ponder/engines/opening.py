"""Opening engines by name, under a budget where that has a cost: for commands, servers, scripts and notebooks.

    with open_engine(EngineOptions("smollm2-135m", options={"exact": True})) as engine:
        ...

An engine is a part like any other: a dataclass of options with `open(model)` (`protocols.Opens`). One whose opening has
a cost has `open_within` too (`OpensWithin`): it gets what is left of the budget and what an earlier process found out.
Each function has an asynchronous twin. Nothing is printed here: the cost of opening an engine is in `Engine.opening`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ponder import registry, sync
from ponder.budget.meter import Meter
from ponder.budget.prices import PriceList
from ponder.config import Options
from ponder.errors import UserError
from ponder.protocols import Engine, Opens, OpensWithin
from ponder.types import Budget, Spend

OF_ONE_MODEL = ("adapter",)
"""Options that belong to a model, not to how an engine runs models: other models are opened without them."""


@dataclass(frozen=True)
class EngineOptions:
    """Which model, what runs it, and further models that run as it does."""

    model: str = "ponder-tiny"
    """The model, as the engine names it."""
    engine: str = "torch"
    """A name of `ponder list engines`, or PATH.py:Class."""
    options: Options = field(default_factory=dict)
    """Options of the engine."""
    others: Mapping[str, str] = field(default_factory=dict)
    """Further models, by the name that a search uses for them."""


class OpeningBudget:
    """What is left of a budget for opening engines, and what opening them has cost. Pass the same one to each."""

    def __init__(
        self,
        budget: Budget,
        prices: PriceList,
        before: Spend = Spend(),  # noqa: B008  (frozen)
        passed: float = 0.0,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        """`budget` is the one that the openings count against; `before` and `passed` (seconds) are already used of it.

        `known` is what an earlier process found out, by model: a resumed run must not see other capabilities.
        """
        self.known = dict(known or {})
        """What the engines found out about their endpoints, by model."""
        self.spend = Spend()
        """Of all engines that were opened, dollars included."""
        self._prices = prices
        self._meter = Meter(budget, prices=prices, passed=passed)
        self._meter.add(before)

    def left(self, model: str) -> tuple[int | None, float | None]:
        """Tokens and seconds for opening a model; dollars are converted to tokens at its highest price.

        Raises `UserError` if dollars are limited and its prices are not known.
        """
        left = self._meter.left
        tokens, seconds = left.tokens, left.seconds
        if left.dollars is not None:
            prices = self._prices.need(model)
            if prices.worst_token:
                paid = int(left.dollars / prices.worst_token)
                tokens = paid if tokens is None else min(tokens, paid)
            if prices.per_second:
                paid_seconds = left.dollars / prices.per_second
                seconds = paid_seconds if seconds is None else min(seconds, paid_seconds)
        return tokens, seconds

    def book(self, engine: Engine, model: str) -> None:
        """Count the cost that an engine reports for its opening, and keep what it found out."""
        self.spend += self._meter.add_opening(engine)
        if engine.known:
            self.known[model] = dict(engine.known)


def part_of(options: EngineOptions) -> Opens:
    """The part that opens the engine. Raises `UserError` for an unknown engine, an unknown option or a wrong value."""
    part = registry.build("engines", options.engine, options.options)
    if not isinstance(part, Opens):
        raise UserError(f"the engine {options.engine}: {type(part).__name__} has no method open(model) -> Engine")
    return part


def opened(options: EngineOptions, budget: OpeningBudget | None = None) -> Engine:
    """An engine that is open on its model; the caller closes it.

    Its opening cost stays within what `budget` has left, and is booked there. Do not call it on an event loop's
    thread: use `opened_async` there. Raises `UserError` for a model that cannot be opened, and as `part_of`.
    """
    engine = _opener(options, budget)()
    try:
        if budget is not None:
            budget.book(engine, options.model)
    except BaseException:
        sync.run(engine.close())
        raise
    return engine


async def opened_async(options: EngineOptions, budget: OpeningBudget | None = None) -> Engine:
    """`opened` for asynchronous code: the loop keeps running while a thread loads the model.

    If cancelled meanwhile, it ends once the engine was opened and closed.
    """
    opening = asyncio.ensure_future(asyncio.to_thread(_opener(options, budget)))
    try:
        engine = await asyncio.shield(opening)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await (await opening).close()
        raise
    try:
        if budget is not None:
            budget.book(engine, options.model)
    except BaseException:
        await engine.close()
        raise
    return engine


@contextlib.contextmanager
def open_engine(options: EngineOptions, budget: OpeningBudget | None = None) -> Iterator[Engine]:
    """`opened`, closed when the block ends."""
    engine = opened(options, budget)
    try:
        yield engine
    finally:
        sync.run(engine.close())


@contextlib.contextmanager
def open_others(options: EngineOptions, budget: OpeningBudget | None = None) -> Iterator[dict[str, Engine]]:
    """The engines of `options.others` by name, each opened with the options of the main model."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(open_engine(each, budget)) for name, each in _others(options).items()}


@contextlib.asynccontextmanager
async def open_engine_async(options: EngineOptions, budget: OpeningBudget | None = None) -> AsyncIterator[Engine]:
    """`opened_async`, closed when the block ends."""
    engine = await opened_async(options, budget)
    try:
        yield engine
    finally:
        await engine.close()


@contextlib.asynccontextmanager
async def open_others_async(
    options: EngineOptions, budget: OpeningBudget | None = None
) -> AsyncIterator[dict[str, Engine]]:
    """`open_others` for asynchronous code."""
    async with contextlib.AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(open_engine_async(each, budget))
            for name, each in _others(options).items()
        }


def _others(options: EngineOptions) -> dict[str, EngineOptions]:
    shared = {name: value for name, value in options.options.items() if name not in OF_ONE_MODEL}
    return {
        name: dataclasses.replace(options, model=model, options=shared, others={})
        for name, model in options.others.items()
    }


def _opener(options: EngineOptions, budget: OpeningBudget | None) -> Callable[[], Engine]:
    """A function that opens the engine, with the options checked and what the budget has left."""
    part = part_of(options)
    if budget is None or not isinstance(part, OpensWithin):
        return lambda: part.open(options.model)
    tokens, seconds = budget.left(options.model)
    known = budget.known.get(options.model)
    return lambda: part.open_within(options.model, tokens, seconds, known)
