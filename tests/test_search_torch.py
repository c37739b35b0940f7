"""The strategies on the real engine: what the mock promises, torch keeps."""

import asyncio
import dataclasses

import pytest

pytest.importorskip("torch")

from engine_fixture import make_model, only_letters
from mocks import showing

from ponder.engines.torch import TorchEngine
from ponder.evaluation.testtime import ladder, parallel
from ponder.registry import build
from ponder.search import solve, stream
from ponder.search.strategies.best_of_n import BestOfN
from ponder.search.strategies.budget_forcing import BudgetForcing
from ponder.search.strategies.direct import Direct
from ponder.search.trace import samples
from ponder.types import Budget, StopReason


@pytest.fixture(scope="module")
def model():
    return make_model(3)


@pytest.fixture(scope="module")
def countdown():
    return build("environments", "countdown")


def on_engine(model, use):
    async def run():
        engine = TorchEngine(model)
        try:
            return await use(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def test_a_thought_bounded_in_one_call_and_by_two_calls_is_the_same(countdown):
    problem = countdown.problem("test", 0)
    strategy = BudgetForcing(12, answer_tokens=8, temperature=0.0)

    async def both(engine):
        one = await solve(strategy, problem, engine)
        engine.capabilities = dataclasses.replace(engine.capabilities, thinking=False)
        return one, await solve(strategy, problem, engine)

    # Letters spell out their ids, so that the second call reads the thought as it was sampled.
    one, two = on_engine(only_letters(make_model(3)), both)
    (a,), (b,) = samples(one.trace), samples(two.trace)
    assert a.completion.ids == b.completion.ids
    assert a.response == b.response
    assert len(two.trace.nodes) == 2
    assert b.completion.text.startswith(two.trace.nodes[0].completion.text)


def test_streaming_shows_the_response_that_is_returned(model, countdown):
    problem = countdown.problem("test", 1)

    async def streamed(engine):
        pieces = []
        outcome = await solve(BestOfN(n=3, thought_tokens=20), problem, engine, on_delta=showing(pieces.append))
        plain = await solve(BestOfN(n=3, thought_tokens=20), problem, engine)
        return "".join(p.text for p in pieces), outcome, plain

    text, outcome, plain = on_engine(model, streamed)
    assert text == outcome.trace.nodes[0].completion.text
    assert [n.completion.ids for n in outcome.trace.nodes] == [n.completion.ids for n in plain.trace.nodes]


def test_a_slow_reader_holds_up_neither_the_engine_nor_another_search(model, countdown):
    problem = countdown.problem("test", 1)

    async def concurrent(engine):
        async with stream(BestOfN(n=3, max_tokens=40), problem, engine, seed=1) as slow:
            first = await anext(slow)
            async with asyncio.timeout(20):
                other = await solve(BestOfN(n=3, max_tokens=40), problem, engine, seed=2)
                while engine.running:
                    await asyncio.sleep(0.001)
            text = first.text + "".join([d.text async for d in slow])
            return text, await slow.outcome(), other

    text, outcome, other = on_engine(model, concurrent)
    assert text == outcome.trace.nodes[0].completion.text
    assert len(outcome.trace.nodes) == len(other.trace.nodes) == 3


def test_a_token_budget_holds_on_the_real_engine(model, countdown):
    async def tight(engine):
        problem = countdown.problem("test", 2)
        prompt = engine.count_tokens(problem.prompt)
        whole = prompt + 30
        outcomes = [
            await solve(Direct(n=8, max_tokens=30), problem, engine, budget=Budget(tokens=tokens))
            for tokens in (0, prompt, prompt + 1, 2 * whole, 3 * whole + 7, 8 * whole)
        ]
        return prompt, whole, outcomes

    prompt, whole, outcomes = on_engine(model, tight)
    limits = (0, prompt, prompt + 1, 2 * whole, 3 * whole + 7, 8 * whole)
    assert all(o.spend.tokens <= limit for o, limit in zip(outcomes, limits, strict=True))
    assert [len(o.trace.nodes) > 0 for o in outcomes] == [False, False, True, True, True, True]
    assert [o.stop for o in outcomes[:3]] == [StopReason.BUDGET] * 3
    assert (outcomes[-1].stop, len(outcomes[-1].trace.nodes)) == (StopReason.FINISHED, 8)


def test_both_test_time_curves_run_on_countdown(model, countdown):
    problems = [countdown.problem("test", i) for i in range(12)]

    async def curves(engine):
        rungs = await ladder(BudgetForcing(1), countdown, engine, problems, [4, 16])
        return rungs, await parallel(BudgetForcing(8), countdown, engine, problems, n=4)

    rungs, pool = on_engine(model, curves)
    assert all(
        e.mean_response_tokens_per_search.value <= b + 16 for e, b in zip(rungs.evaluations, (4, 16), strict=True)
    )
    assert [p.samples for p in pool.points] == [1, 2, 4]
    # Countdown's checker is exact.
    assert all(p.accuracy == pytest.approx(p.coverage) for p in pool.points)
    assert pool.pool.tokens_PG.shape == (12, 4)
