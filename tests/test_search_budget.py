"""The hard budget: random searches on the simulated engine, in virtual time, against what the engines really used."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from virtual_time import run

from ponder import types as scored
from ponder.budget.prices import PriceList, Prices
from ponder.budget.streams import Reader
from ponder.engines.simulated import Simulated, SimulatedEngine
from ponder.environments.simulated import Simulated as Problems
from ponder.errors import Unfinished
from ponder.protocols import Ask, Caller, Check, Feedback, Generate, Group, Hold, Release, Score, SearchContext
from ponder.scorers.base import BaseScorer
from ponder.search import Meter, solve
from ponder.search.asking import Asking
from ponder.search.strategies.best_of_n import BestOfN
from ponder.search.strategies.budget_forcing import BudgetForcing
from ponder.search.strategies.direct import Direct
from ponder.types import (
    Budget,
    Completion,
    Delta,
    Outcome,
    Problem,
    Request,
    Response,
    SamplingParams,
    Spend,
    StopReason,
)

SEARCHES = 1_000
MANY = 10_000
CENT = 1e-9
"""Dollars that sums of floats may be off by."""
MOMENT = 1e-9
"""Seconds that sums of floats may be off by."""
ENV = Problems()


class Wandering(Asking):
    """Asks for all kinds of work at random: new samples, branches of old ones, several engines, and drops some."""

    def __init__(self, problem: Problem, context: SearchContext, asks: int) -> None:
        super().__init__(problem, context)
        self._rng = random.Random(context.seed)
        self._left = asks
        self._next = 0
        self._seen: list[Completion] = []
        self._leases: list[int] = []
        self._final = self._rng.random() < 0.5
        self._room = (len(str(problem.prompt)), self._rng.randint(5, 80)) if self._final else (0, 0)
        self._proceed()

    def _proceed(self) -> None:
        for _ in range(self._rng.randint(1, 3)):
            if self._left > 0:
                self._left -= 1
                self._ask(self._work())
        if not self._left and not self._waiting and self._final:
            self._final = False
            self._ask(Generate(Request(self.problem.prompt, SamplingParams(self._room[1])), final=True))

    def _ask(self, work: Any) -> None:
        self.push(Ask(self._next, work))
        self._next += 1

    def _work(self) -> Any:
        rng, can = self._rng, self.context.capabilities
        kind = rng.random()
        response = Response(None, None, self._seen[-1].text if self._seen else "")
        if kind < 0.08 and self.context.checker:
            return Check(response)
        if kind < 0.16 and self.context.scorer:
            return Score((response, response))
        if kind < 0.24:
            return Group((response,))
        if kind < 0.3 and can.leases:
            self._leases.append(self._next)
            return Hold((1, 2, 3))
        if kind < 0.34 and self._leases:
            return Release(self._leases.pop())
        every = [can, *(c for _, c in self.context.others.values())]
        prefix: str | tuple[int, ...] = ""
        if self._seen and rng.random() < 0.5:
            old = rng.choice(self._seen)
            prefix = (
                old.ids[: len(old.ids) // 2]
                if all(c.ids for c in every) and rng.random() < 0.5
                else old.text[: len(old.text) // 2]
            )
        most = len(prefix) + rng.randint(1, 120)
        request = Request(
            self.problem.prompt,
            SamplingParams(most, seed=rng.getrandbits(32), stop=("\n",) if rng.random() < 0.3 else ()),
            n=rng.randint(1, 4) if all(c.n for c in every) else 1,
            prefix=prefix,
        )
        others = [*self.context.others, "", ""]
        answer = rng.choice([0, 0, 10])
        return Generate(request, rng.choice(others), rng.randint(1, most), answer)

    def told(self, ask_id: int, answer: Any) -> None:
        if isinstance(answer, Exception):
            self._leases = [i for i in self._leases if i != ask_id]
            self._seen += answer.completions if isinstance(answer, Unfinished) else ()
        elif isinstance(answer, tuple) and answer and isinstance(answer[0], Completion):
            self._seen += answer
        running = [i for i in self.waiting if i not in self._leases]
        if running and self._rng.random() < 0.2:
            self.drop(self._rng.choice(running))
        self._proceed()

    def reserve(self) -> tuple[int, int]:
        return self._room if self._final else (0, 0)

    def outcome(self, spend: Spend, stop: StopReason) -> Outcome:
        return Outcome(Response(None), None, self.tree.trace(), spend, stop)


@dataclass(frozen=True)
class Wander:
    asks: int = 5

    def start(self, problem: Problem, context: SearchContext) -> Wandering:
        return Wandering(problem, context, self.asks)


def random_engine(rng: random.Random, name: str) -> SimulatedEngine:
    return Simulated(
        steps=rng.randint(1, 4),
        step_tokens=rng.choice([18, 25]),
        step_spread=rng.choice([0.0, 5.0]),
        tokens_per_second=rng.choice([0.0, 100.0, 1000.0]),
        latency=rng.choice([0.0, 0.05]),
        failure_rate=rng.choice([0.0, 0.2]),
        grace=rng.choice([0.0, 0.03]),
        n=rng.random() < 0.5,
        thinking=rng.random() < 0.5,
        ids=rng.random() < 0.8,
    ).open(name)


def random_prices(rng: random.Random) -> Prices:
    prompt, cached, output = (rng.choice([0.0, 1.0, 3.0, 15.0]) for _ in range(3))
    per_hour = rng.choice([0.0, 0.0, 2.0, 20.0, 200.0])
    if per_hour and rng.random() < 0.7:
        return Prices(per_hour=per_hour)
    return Prices(prompt, output, rng.choice([None, cached]), per_hour)


def random_budget(rng: random.Random, scale: float) -> Budget:
    return Budget(
        rng.choice([None, 0, rng.randint(1, int(1500 * scale))]) if rng.random() < 0.8 else None,
        rng.choice([None, rng.random() * scale]),
        rng.choice([None, rng.random() * 4e-3 * scale]),
    )


def reader(rng: random.Random, engines: Sequence[SimulatedEngine]) -> Reader:
    """Takes what it is shown, at once or slowly.

    At once from engines that take no time: of a machine that is paid by the hour, a call that took time by the clock
    and none by its engine's word is booked at its share of the time.
    """
    seconds = rng.choice([0.0, 0.0, 0.02])
    if not all(e.options.tokens_per_second for e in engines):
        seconds = 0.0

    async def read(delta: Delta) -> None:
        if seconds:
            await asyncio.sleep(seconds)

    return read


def random_strategy(rng: random.Random) -> Any:
    n, most = rng.randint(1, 5), rng.randint(5, 150)
    return rng.choice(
        [
            Direct(n=n, max_tokens=most),
            BestOfN(n=n, max_tokens=most),
            BestOfN(n=n, thought_tokens=most),
            BudgetForcing(most, n=n),
            BudgetForcing(most, min_thought_tokens=most // 2, extend="Wait", n=n),
            Wander(rng.randint(1, 8)),
            Wander(rng.randint(1, 8)),
        ]
    )


class Judging(BaseScorer):
    """Asks an engine about each response, all at once, in calls of random sizes; some are cut, some are refused."""

    def __init__(self, engine: str) -> None:
        self.engine = engine

    async def score(self, problem: Problem, responses: Sequence[Response], engine: Caller | None) -> list[scored.Score]:
        assert engine is not None
        can, prompt = engine.capabilities, problem.prompt
        rng = random.Random(f"{problem.id} {[r.text for r in responses]}")
        requests = [
            Request(prompt, SamplingParams(rng.randint(1, 60), seed=i), n=rng.randint(1, 3) if can.n else 1)
            for i in range(len(responses))
        ]
        assert engine.count_tokens(prompt) > 0
        calls = [engine.generate(r, minimum=rng.randint(1, r.params.max_tokens)) for r in requests]
        return [scored.Score(float(len(answer))) for answer in await asyncio.gather(*calls)]


class Outside(BaseScorer):
    """Calls no engine; costs up to 30 tokens and a tenth of a cent a response; `spent` is what it really cost."""

    def __init__(self, seed: float, spent: list[Spend]) -> None:
        self._rng, self._spent = random.Random(seed), spent
        self._fails = self._rng.random() < 0.3

    def worst(self, problem: Problem, responses: Sequence[Response]) -> Spend:
        return Spend(sampled_tokens=30 * len(responses), dollars=1e-3 * len(responses))

    async def score(self, problem: Problem, responses: Sequence[Response], engine: Caller | None) -> list[scored.Score]:
        assert engine is None
        worst = self.worst(problem, responses)
        try:
            await asyncio.sleep(self._rng.random() * 0.2)
            if self._fails:
                raise ConnectionError("no scores today")
        except BaseException:
            # It is not known what it used by then.
            self._spent.append(worst)
            raise
        spends = [Spend(sampled_tokens=self._rng.randint(0, 30), dollars=1e-3 * self._rng.random()) for _ in responses]
        self._spent += spends
        return [scored.Score(1.0, spend) for spend in spends]


def random_scorer(rng: random.Random, outside: list[Spend]) -> Any:
    return rng.choice([ENV.scorer, Judging(""), Judging("big"), Outside(rng.random(), outside)])


@dataclass
class World:
    """Searches that share engines and budgets: each within its own budget, a key's and a server's."""

    seed: int
    searches: int = 8
    meters: list[Meter] = field(default_factory=list)
    stops: list[StopReason] = field(default_factory=list)
    outside: list[Spend] = field(default_factory=list)
    """What scorers spent by themselves."""

    async def play(self) -> None:
        rng = random.Random(self.seed)
        loop = asyncio.get_running_loop()
        self.engines = [random_engine(rng, name) for name in ("small", "big")]
        self.prices = PriceList({e.info.name: random_prices(rng) for e in self.engines})
        server = Meter(random_budget(rng, self.searches), prices=self.prices, clock=loop.time)
        key = Meter(random_budget(rng, self.searches / 2), parent=server)
        self.meters = [server, key]
        self.server = server
        tasks = []
        for i in range(self.searches):
            task = asyncio.create_task(self._search(random.Random(f"{self.seed} {i}"), rng.choice([server, key])))
            if rng.random() < 0.15:
                loop.call_later(rng.random(), task.cancel)
            tasks.append(task)
            if rng.random() < 0.5:
                await asyncio.sleep(rng.random() * 0.2)
        await asyncio.gather(*tasks, return_exceptions=False)

    async def _search(self, rng: random.Random, parent: Meter) -> None:
        loop = asyncio.get_running_loop()
        own = Meter(random_budget(rng, 1.0), parent=parent)
        self.meters.append(own)
        begun = loop.time()
        with contextlib.suppress(asyncio.CancelledError):
            outcome = await solve(
                random_strategy(rng),
                ENV.problem("test", rng.randrange(1000)),
                self.engines[0],
                others={"big": self.engines[1]},
                seed=rng.getrandbits(32),
                feedback=Feedback(
                    ENV.checker if rng.random() < 0.5 else None,
                    random_scorer(rng, self.outside) if rng.random() < 0.7 else None,
                    ENV.answers,
                ),
                parent=own,
                on_delta=reader(rng, self.engines) if rng.random() < 0.3 else None,
            )
            self.stops.append(outcome.stop)
            assert outcome.spend == own.spend
        if own.deadline is not None:
            assert loop.time() <= max(begun, own.deadline) + max(e.grace for e in self.engines) + MOMENT

    def check(self) -> None:
        used = sum((e.used for e in self.engines), Spend())
        outside = sum(self.outside, Spend())
        true_dollars = sum(self.prices.need(e.info.name).dollars(e.used) for e in self.engines) + outside.dollars
        assert self.server.spend.tokens == used.tokens + outside.tokens
        assert self.server.spend.dollars == pytest.approx(true_dollars, rel=1e-9, abs=CENT)
        for engine in self.engines:
            assert (engine.in_flight, engine.held) == (0, {})
        for meter in self.meters:
            assert meter.idle
            if meter.budget.tokens is not None:
                assert meter.spend.tokens <= meter.budget.tokens
            if meter.budget.dollars is not None:
                assert meter.spend.dollars <= meter.budget.dollars + CENT


def play(searches: int, first: int = 0) -> dict[StopReason, int]:
    stops: dict[StopReason, int] = {}
    for seed in range(first, first + searches // 8):
        world = World(seed)
        try:
            run(world.play())
            world.check()
        except BaseException as error:
            error.add_note(f"World(seed={seed})")
            raise
        for stop in world.stops:
            stops[stop] = stops.get(stop, 0) + 1
    return stops


def test_random_searches_spend_not_one_token_cent_or_moment_too_much() -> None:
    """10,000 of them: `pytest -m slow tests/test_search_budget.py`."""
    stops = play(SEARCHES)
    # The draws reach every way to end.
    assert {StopReason.FINISHED, StopReason.BUDGET, StopReason.FAILED} <= set(stops)
    assert min(stops.values()) > 10


@pytest.mark.slow
def test_ten_thousand_random_searches_spend_not_one_token_cent_or_moment_too_much() -> None:
    """A minute or two: `pytest -m slow tests/test_search_budget.py`."""
    play(MANY, first=1_000_000)
