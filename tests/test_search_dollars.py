"""The meter's dollars and seconds, in virtual time."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mocks import MockEngine, MockEnvironment, showing
from virtual_time import run as run_virtually

from ponder.budget.meter import Meter, Prices
from ponder.budget.prices import PriceList
from ponder.engines.simulated import Simulated
from ponder.errors import BudgetExceeded, UserError
from ponder.protocols import Ask, Feedback, Group, Hold, Score
from ponder.scorers.base import BaseScorer
from ponder.search import runner, solve
from ponder.search.asking import Asking
from ponder.search.strategies.best_of_n import BestOfN
from ponder.types import Budget, Capabilities, FinishReason, Outcome, Request, Response, SamplingParams, StopReason


def request(max_tokens: int = 10, n: int = 1, prompt: str = "12345") -> Request:
    return Request(prompt, SamplingParams(max_tokens), n)


# Dollars ---------------------------------------------------------------------------------------------------------


def named(name, **options):
    return Simulated(**options).open(name)


def test_prices_belong_to_the_engine_that_is_called():
    async def run():
        small, big = named("small"), named("big")
        prices = PriceList({"small": Prices(1.0, 2.0), "big": Prices(10.0, 20.0)})
        meter = Meter(Budget(dollars=1.0), prices=prices)
        spends = [(await meter.generate(e, request(50)))[0].spend for e in (small, big)]
        expected = prices.models["small"].dollars(spends[0]) + prices.models["big"].dollars(spends[1])
        assert meter.spend.dollars == pytest.approx(expected)
        same = Meter(prices=Prices(1.0, 1.0))  # an explicit price is everybody's
        await same.generate(big, request(50))
        assert same.spend.dollars == pytest.approx(spends[1].tokens * 1e-6)

    run_virtually(run())


def test_a_dollar_budget_without_prices_is_refused_in_a_sentence_before_anything_is_sent():
    engine = named("nobody/knows-it")
    with pytest.raises(UserError, match=r"prices of 'nobody/knows-it'.*PONDER_PRICES"):
        run_virtually(Meter(Budget(dollars=1.0)).generate(engine, request()))
    problem = MockEnvironment().problem("test", 1)
    free = {"small": Prices()}
    with pytest.raises(UserError, match="nobody/knows-it"):
        run_virtually(
            solve(
                BestOfN(),
                problem,
                named("small"),
                others={"big": engine},
                budget=Budget(dollars=1.0),
                parent=Meter(prices=PriceList(free)),
            )
        )
    assert engine.calls == 0
    # Without a limit in dollars no prices are needed.
    run_virtually(Meter(Budget(tokens=100)).generate(engine, request()))


def test_what_is_free_may_be_called_with_no_dollars_at_all():
    meter = Meter(Budget(dollars=0.0), prices=Prices())
    run_virtually(meter.generate(named("free"), request()))
    with pytest.raises(BudgetExceeded, match=r"\$0 of the budget's \$0 are left.* \$6e-06$"):
        run_virtually(Meter(Budget(dollars=0.0), prices=Prices(1.0, 1.0)).generate(named("dear"), request()))


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0, 20),
    st.floats(0, 20),
    st.floats(0, 20) | st.none(),
    st.integers(0, 60),
    st.booleans(),
    st.floats(1e-6, 2e-3),
    st.integers(1, 3),
)
def test_a_given_prefix_is_within_the_worst_case_whether_prompts_are_dearer_or_responses(
    prompt, output, cached, begun, by_ids, dollars, n
):
    prices = Prices(prompt, output, cached)
    engine = named("any")
    prefix = (ord("."),) * begun if by_ids else "." * begun
    meter = Meter(Budget(dollars=dollars), prices=prices)
    with contextlib.suppress(BudgetExceeded):
        run_virtually(meter.generate(engine, Request("p" * 20, SamplingParams(begun + 40), n, prefix)))
    assert meter.spend.dollars <= dollars + 1e-11
    assert meter.spend.dollars == pytest.approx(prices.dollars(engine.used))


def test_hours_of_a_machine_are_billed_by_what_was_used_and_shared():
    async def run():
        engine = named("local", tokens_per_second=100, steps=1)
        meter = Meter(Budget(dollars=1.0), prices=Prices(per_hour=3600.0), clock=asyncio.get_running_loop().time)
        children = [Meter(parent=meter) for _ in range(4)]
        await asyncio.gather(*(c.generate(engine, request(50)) for c in children))
        assert engine.peak == 4
        return meter, children, asyncio.get_running_loop().time()

    meter, children, seconds = run_virtually(run())
    assert meter.spend.dollars == pytest.approx(seconds) == pytest.approx(0.5)  # 50 tokens at 100 a second
    assert [c.spend.dollars for c in children] == pytest.approx([seconds / 4] * 4)


class Silent(MockEngine):
    """Says nothing of the machine's time."""


def test_machine_time_that_its_engine_does_not_report_is_shared_among_calls_in_flight():
    async def run():
        engine = Silent("x", delay=2.0)
        meter = Meter(prices=Prices(per_hour=3600.0), clock=asyncio.get_running_loop().time)
        await asyncio.gather(*(meter.generate(engine, request()) for _ in range(5)))
        await asyncio.sleep(100)
        await meter.generate(engine, request())
        return meter

    assert run_virtually(run()).spend.dollars == pytest.approx(4.0)


def test_an_hourly_price_turns_dollars_into_a_deadline_grace_included():
    async def run(grace):
        loop = asyncio.get_running_loop()
        engine = named("local", tokens_per_second=10, grace=grace)
        meter = Meter(Budget(dollars=2.0), prices=Prices(per_hour=3600.0), clock=loop.time)
        with pytest.raises(BudgetExceeded, match=r"time of local at \$3600 per hour") as caught:
            await meter.generate(engine, request(1000))
        assert loop.time() == pytest.approx(2.0)
        assert meter.spend.dollars == pytest.approx(2.0)
        assert meter.spend.dollars <= 2.0 + 1e-9
        assert len(caught.value.completions) == 1
        with pytest.raises(BudgetExceeded, match=r"of the budget's \$2 are left.*\$3600 per hour"):
            await meter.generate(engine, request(1000))
        assert (engine.calls, meter.idle) == (1, True)

    for grace in (0.0, 0.25):
        run_virtually(run(grace))


def test_time_in_which_nothing_runs_costs_nothing():
    async def run():
        loop = asyncio.get_running_loop()
        engine = named("local", tokens_per_second=10)
        meter = Meter(Budget(dollars=3.0), prices=Prices(per_hour=3600.0), clock=loop.time)
        for _ in range(2):
            await meter.generate(engine, request(10))
            await asyncio.sleep(1000)
        assert meter.spend.dollars == pytest.approx(2.0)

    run_virtually(run())


@pytest.mark.parametrize("expected", [False, True])
def test_a_second_machine_that_was_not_expected_waits_until_the_first_is_done(expected):
    async def run():
        loop = asyncio.get_running_loop()
        one, two = (named(name, tokens_per_second=10, steps=4) for name in ("one", "two"))
        meter = Meter(Budget(dollars=10.0), prices=Prices(per_hour=3600.0), clock=loop.time)
        meter.expect(one, *([two] if expected else []))

        async def call(engine, tokens):
            with contextlib.suppress(BudgetExceeded):
                await meter.generate(engine, request(tokens))
            return loop.time()

        ends = await asyncio.gather(call(one, 20), call(two, 20))
        assert meter.spend.dollars == pytest.approx(4.0)
        assert meter.idle
        return ends

    assert run_virtually(run()) == pytest.approx([2.0, 2.0] if expected else [2.0, 4.0])


# Seconds ---------------------------------------------------------------------------------------------------------


def test_what_was_sampled_of_a_call_that_ran_out_of_time_is_reported_and_booked():
    async def run(on_delta):
        loop = asyncio.get_running_loop()
        engine = named("slow", tokens_per_second=10)
        meter = Meter(Budget(seconds=3), clock=loop.time)
        with pytest.raises(BudgetExceeded, match="3 seconds") as caught:
            await meter.generate(engine, request(1000, n=2), on_delta=on_delta)
        assert [len(c.ids) for c in caught.value.completions] == [30, 30]
        assert meter.spend.tokens == engine.used.tokens == 2 * (5 + 30)
        assert loop.time() == 3

    for on_delta in (None, showing(lambda delta: None)):
        run_virtually(run(on_delta))


def test_a_search_that_ran_out_of_time_shows_what_was_cut_short_and_it_never_wins():
    async def run():
        loop = asyncio.get_running_loop()
        engine = named("slow", tokens_per_second=115, n=False, step_spread=40.0)
        problem = MockEnvironment().problem("test", 1)
        parent = Meter(Budget(seconds=3.0), clock=loop.time)
        outcome = await solve(BestOfN(n=6, max_tokens=2000), problem, engine, parent=parent, seed=1)
        assert loop.time() == 3
        return outcome, engine

    outcome, engine = run_virtually(run())
    assert outcome.stop is StopReason.BUDGET
    cut = [n for n in outcome.trace.nodes if n.completion.finish_reason is FinishReason.CANCELLED]
    whole = [n for n in outcome.trace.nodes if n.completion.finish_reason is FinishReason.STOP]
    assert cut
    assert whole
    assert len(cut) + len(whole) == 6
    assert all("3 seconds" in n.note and n.response.answer is None for n in cut)
    assert outcome.chosen in {n.id for n in whole}
    assert sum(n.completion.spend.tokens for n in outcome.trace.nodes) == outcome.spend.tokens == engine.used.tokens


def test_a_stream_whose_reader_fails_is_booked_at_what_was_sampled():
    async def run():
        engine = named("any", tokens_per_second=100)
        meter = Meter(Budget(tokens=5000))

        async def broken(delta):
            raise RuntimeError("the reader broke")

        with pytest.raises(RuntimeError, match="reader"):
            await meter.generate(engine, request(1000), on_delta=broken)
        assert meter.spend.tokens == engine.used.tokens < 100
        assert meter.idle

    run_virtually(run())


class Waiting(Asking):
    """Asks for one thing that is no sample, and tells what became of it."""

    def __init__(self, problem, context, work):
        super().__init__(problem, context)
        self.push(Ask(0, work))

    def told(self, ask_id, answer):
        self.answer = answer

    def outcome(self, spend, stop):
        return Outcome(Response(str(self.answer)), None, self.tree.trace(), spend, stop)


@dataclass(frozen=True)
class Wait:
    work: Any

    def start(self, problem, context):
        return Waiting(problem, context, self.work)


@pytest.mark.parametrize("work", [Group(()), Hold((1, 2)), Score(())])
def test_no_kind_of_work_runs_beyond_the_seconds(work, monkeypatch):
    async def slow_group(answers, problem, responses, slow):
        await asyncio.sleep(10)

    class SlowHolder(MockEngine):
        @contextlib.asynccontextmanager
        async def hold(self, ids):
            await asyncio.sleep(10)
            yield

    class SlowScorer(BaseScorer):
        async def score(self, problem, responses, engine):
            await asyncio.sleep(10)
            return ()

    monkeypatch.setattr(runner, "group", slow_group)

    async def run():
        loop = asyncio.get_running_loop()
        engine = SlowHolder(capabilities=Capabilities(leases=True))
        parent = Meter(Budget(seconds=2.0), clock=loop.time)
        problem = MockEnvironment().problem("test", 1)
        outcome = await solve(Wait(work), problem, engine, parent=parent, feedback=Feedback(scorer=SlowScorer()))
        assert loop.time() == 2.0
        return outcome

    outcome = run_virtually(run())
    assert outcome.stop is StopReason.BUDGET
    assert "2 seconds" in outcome.reason
