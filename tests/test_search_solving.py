"""A search that is read piece by piece, on demand, however slow its reader."""

import asyncio
import time

import pytest
from mocks import MockEngine, MockEnvironment, doubler, showing

from ponder import sync
from ponder.budget.meter import Meter
from ponder.engines.simulated import Simulated
from ponder.errors import PonderError, UserError
from ponder.search.journal import Journal
from ponder.search.leading import Leader
from ponder.search.runner import solve, stream
from ponder.search.strategies.best_of_n import BestOfN
from ponder.search.strategies.budget_forcing import BudgetForcing
from ponder.search.strategies.direct import Direct
from ponder.types import Budget, Delta, FinishReason, Request, SamplingParams, StopReason

ENV = MockEnvironment()
PROBLEM = ENV.problem("test", 3)


def test_the_pieces_make_up_the_response_and_then_comes_the_outcome_of_a_plain_search():
    async def go(strategy):
        async with stream(strategy, PROBLEM, MockEngine(doubler(1.0)), feedback=ENV) as solving:
            text = "".join([delta.text async for delta in solving])
            outcome = await solving.outcome()
            assert outcome is await solving.outcome()
        return text, outcome, await solve(strategy, PROBLEM, MockEngine(doubler(1.0)), feedback=ENV)

    for strategy in (Direct(), BestOfN(n=3), BudgetForcing(5)):
        text, outcome, plain = asyncio.run(go(strategy))
        assert text == outcome.trace.nodes[0].completion.text
        assert (outcome.trace, outcome.response, outcome.stop) == (plain.trace, plain.response, plain.stop)


def test_an_outcome_can_be_had_without_reading_and_a_search_that_is_not_read_waits():
    async def go():
        engine = MockEngine("." * 40 + "</think>7")
        async with stream(Direct(), PROBLEM, engine) as solving:
            await anext(solving)
            for _ in range(100):
                await asyncio.sleep(0)
            # One that was read, one that waits, and one that its reader is being asked to take.
            assert engine.sent <= 3
            return engine, await solving.outcome()

    engine, outcome = asyncio.run(go())
    assert engine.sent == 43
    assert outcome.response.answer == "7"


@pytest.mark.parametrize("waits", [False, True])
def test_closing_it_early_ends_all_that_it_started_and_what_it_spent_is_known(waits):
    async def go():
        engine, meter, journal = MockEngine("." * 500, delay=0.5), Meter(Budget(tokens=5000)), Journal()
        async with stream(BestOfN(n=4), PROBLEM, engine, parent=meter, journal=journal) as solving:
            async for _ in solving:
                break
            if waits:
                await asyncio.sleep(0.01)
        assert engine.in_flight == 0
        assert engine.cancelled >= 1
        assert meter.idle
        assert [d async for d in solving] == []
        with pytest.raises(PonderError, match="closed before its end"):
            await solving.outcome()
        await solving.aclose()
        return engine, meter, journal

    engine, meter, journal = asyncio.run(go())
    assert 0 < meter.spend.tokens == engine.used.tokens == journal.spend.tokens < 1000


def test_one_that_was_never_begun_costs_nothing():
    async def go():
        engine = MockEngine()
        solving = stream(Direct(), PROBLEM, engine)
        await solving.aclose()
        with pytest.raises(PonderError, match="before it began"):
            await anext(solving)
        assert engine.calls == 0

    asyncio.run(go())


def test_what_the_search_raises_reaches_its_reader():
    async def go():
        async with stream(Direct(), PROBLEM, MockEngine(context=20)) as solving:
            with pytest.raises(UserError, match="context of 20"):
                await anext(solving)
            with pytest.raises(UserError, match="context of 20"):
                await solving.outcome()

    asyncio.run(go())


def test_the_seconds_of_a_budget_keep_running_while_a_reader_is_slow():
    async def go():
        engine = MockEngine("." * 500)
        async with stream(Direct(), PROBLEM, engine, budget=Budget(seconds=0.05)) as solving:
            await anext(solving)
            await asyncio.sleep(0.2)
            outcome = await solving.outcome()
        assert engine.cancelled == 1
        return outcome

    outcome = asyncio.run(go())
    assert outcome.stop is StopReason.BUDGET
    assert "0.05 seconds" in outcome.reason


def test_a_slow_reader_does_not_hold_up_another_search():
    async def go():
        engine = MockEngine("." * 20 + "</think>7")
        async with stream(Direct(), PROBLEM, engine) as slow:
            await anext(slow)
            async with stream(Direct(), PROBLEM, engine) as quick:
                async with asyncio.timeout(5):
                    outcome = await quick.outcome()
            assert engine.in_flight == 1
            assert outcome.trace == (await slow.outcome()).trace

    asyncio.run(go())


def test_synchronous_code_reads_it_too_and_ends_it_by_leaving_the_loop():
    engine, meter = MockEngine("." * 100, delay=0.1), Meter()
    for number, delta in enumerate(sync.iterate(stream(Direct(), PROBLEM, engine, parent=meter))):
        assert delta.text == "."
        if number == 3:
            break
    started = time.monotonic()
    while engine.in_flight and time.monotonic() - started < 5:
        time.sleep(0.001)
    assert engine.cancelled == 1
    assert 0 < meter.spend.sampled_tokens == engine.used.sampled_tokens < 100


def test_an_empty_piece_says_that_another_response_begins_where_one_was_cut_off():
    async def go():
        pieces, request = [], Request("p", SamplingParams(9))
        leader = Leader(showing(pieces.append))
        for text, completion in (("ab", None), ("cd", "whole"), ("ef", None)):
            read = leader.follow(request)
            assert leader.follow(request) is None  # one at a time
            await read(Delta(0, text, (), completion))
            leader.leave()
        return [d.text for d in pieces]

    assert asyncio.run(go()) == ["ab", "", "cd", "ef"]


def test_what_a_failed_call_had_sampled_is_in_the_trace():
    async def go():
        engine = Simulated(failure_rate=1.0, tokens_per_second=1e5).open()
        return engine, await solve(Direct(max_tokens=500), PROBLEM, engine, seed=1)

    engine, outcome = asyncio.run(go())
    assert outcome.stop is StopReason.FAILED
    [node] = outcome.trace.nodes
    assert node.completion.finish_reason is FinishReason.CANCELLED
    assert node.completion.spend.tokens == outcome.spend.tokens == engine.used.tokens
