"""Seconds are a hard limit of each search, counted from when it is worked on, with many in flight too."""

from __future__ import annotations

import asyncio
import time

import pytest
import virtual_time
from engine_fixture import make_model, opened, request
from test_engine_lifecycle import LONG, slow, until

from ponder.engines.simulated import Simulated
from ponder.engines.torch import worker as worker_module
from ponder.environments.loading import first_problems
from ponder.errors import OutOfTime
from ponder.evaluation.evaluate import Plan, evaluate
from ponder.evaluation.results import Searched
from ponder.protocols import Receipt
from ponder.registry import build
from ponder.search import Meter
from ponder.search.runner import solve
from ponder.search.strategies.best_of_n import BestOfN
from ponder.search.strategies.direct import Direct
from ponder.types import Budget, Problem, Request, SamplingParams, StopReason

SECONDS = 0.05


@pytest.mark.parametrize("concurrency", [1, 32])
@pytest.mark.parametrize("strategy", [Direct(max_tokens=200), BestOfN(n=2, max_tokens=200)], ids=["one", "two"])
def test_every_search_in_flight_gets_its_seconds_and_no_more(strategy, concurrency) -> None:
    environment = build("environments", "countdown")
    problems = first_problems(environment, "test", 4 if concurrency == 1 else 32)
    found: list[Searched] = []

    async def main() -> float:
        async with opened(slow(make_model(end=False), 0.005)) as engine:
            plan = Plan(budget=Budget(seconds=SECONDS), concurrency=concurrency)
            await evaluate(strategy, environment, engine, problems, plan, on_search=found.append)
            return engine.grace

    grace = asyncio.run(main())
    assert len(found) == len(problems)
    for one in found:
        assert one.outcome.stop is StopReason.BUDGET
        assert SECONDS <= one.judged.seconds <= SECONDS + grace
        assert one.outcome.seconds == one.judged.seconds
        assert one.judged.spend.sampled_tokens > 0


def test_the_simulated_engine_keeps_to_the_second() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        engine = Simulated(steps=50, tokens_per_second=100, grace=0.25).open("simulated")
        for seconds in (0.05, 1.0):
            meter = Meter(clock=loop.time)
            budget = Budget(seconds=seconds)
            outcome = await solve(Direct(max_tokens=2000), Problem("a", "?"), engine, budget=budget, parent=meter)
            assert outcome.stop is StopReason.BUDGET
            assert outcome.seconds == pytest.approx(seconds + 0.25)
            assert outcome.spend.sampled_tokens == pytest.approx(100 * (seconds + 0.25), abs=1)

    virtual_time.run(main())


def test_seconds_do_not_pass_in_the_queue_but_those_of_all_searches_do() -> None:
    async def main() -> None:
        async with opened(slow(make_model(end=False), 0.005), max_rows=1) as engine:
            searches = [
                solve(Direct(max_tokens=200), Problem(str(i), "x" * 20), engine, budget=Budget(seconds=0.1))
                for i in range(4)
            ]
            began = time.monotonic()
            outcomes = await asyncio.gather(*searches)
            assert time.monotonic() - began >= 0.4  # one after the other
            assert all(o.spend.sampled_tokens > 0 for o in outcomes)
            assert all(o.seconds <= 0.1 + engine.grace for o in outcomes)
            total = Meter(Budget(seconds=0.1))
            searches = [solve(Direct(max_tokens=200), Problem(str(i), "?"), engine, parent=total) for i in range(4)]
            outcomes = await asyncio.gather(*searches)
            assert [o.outer for o in outcomes] == [True] * 4
            assert total.elapsed <= 0.1 + engine.grace

    asyncio.run(main())


def timed(seconds: float) -> Receipt:
    """A receipt whose seconds run from its beginning."""
    started: list[float] = []

    def left() -> float:
        return seconds - (time.monotonic() - started[0]) if started else seconds

    return Receipt(begin=lambda: None if started else started.append(time.monotonic()), left=left)


def test_the_engine_ends_late_rows_itself_where_the_loop_is_busy() -> None:
    async def main() -> None:
        async with opened(slow(make_model(end=False), 0.005)) as engine:
            receipt = timed(0.1)
            task = asyncio.create_task(engine.generate(request(1, LONG, n=3), receipt))
            await until(lambda: engine.running == 3)
            time.sleep(0.5)  # nothing can be cancelled meanwhile
            assert engine.running == 0
            with pytest.raises(OutOfTime):
                await task
            assert receipt.spend is not None
            assert receipt.spend.sampled_tokens == sum(len(c.ids) for c in receipt.completions) > 0
            assert len((await engine.generate(request(2, 4)))[0].ids) == 4

    asyncio.run(main())


def test_a_long_prompt_is_computed_in_parts_that_fit_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[int] = []

    async def main() -> None:
        async with opened(make_model(end=False)) as engine:
            pool = engine._batch.pool
            assert pool is not None
            work = pool.work

            def slowly(most: int) -> int:
                count = work(most)
                parts.append(count)
                time.sleep(0.002 * count)  # 500 ids a second
                return count

            monkeypatch.setattr(pool, "work", slowly)
            receipt = timed(0.2)
            with pytest.raises(OutOfTime):
                await engine.generate(Request(tuple(range(1, 241)), SamplingParams(8)), receipt)
            assert receipt.spend is not None
            assert 0 < receipt.spend.prompt_tokens < 240

    asyncio.run(main())
    assert parts[0] == worker_module.FIRST_CHUNK
    assert max(parts[1:]) <= 32


def test_calls_that_are_cancelled_together_all_keep_what_they_sampled() -> None:
    async def main() -> None:
        async with opened(slow(make_model(end=False), 0.005)) as engine:
            receipts = [Receipt() for _ in range(6)]
            tasks = [asyncio.create_task(engine.generate(request(i, LONG), r)) for i, r in enumerate(receipts)]
            await until(lambda: engine.running == 6)
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for receipt in receipts:
                assert receipt.spend is not None
                assert receipt.spend.sampled_tokens == len(receipt.completions[0].ids) > 0

    asyncio.run(main())
