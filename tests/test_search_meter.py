import asyncio
import contextlib
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mocks import MockEngine, MockEnvironment, showing

from ponder.budget.meter import Meter, Prices, clamp
from ponder.budget.streams import Pieces
from ponder.errors import BudgetExceeded, Retryable, UserError
from ponder.protocols import Ask, Generate, Receipt
from ponder.search import solve
from ponder.search.asking import Asking
from ponder.types import Budget, Delta, Outcome, Request, Response, SamplingParams, Spend, Thinking


def request(max_tokens: int = 10, n: int = 1, prompt: str = "12345") -> Request:
    return Request(prompt, SamplingParams(max_tokens), n)


def babble(request: Request, rng: random.Random) -> str:
    return "x" * rng.randint(0, 40)


def idle(meter: Meter) -> bool:
    return meter.idle


calls = st.lists(
    st.tuples(
        st.integers(0, 12),  # prompt
        st.integers(1, 40),  # max_tokens
        st.integers(1, 4),  # n
        st.integers(0, 3),  # delay, in turns of the loop
        st.sampled_from(["fine", "fine", "fine", "fails", "cancelled", "streamed"]),
        st.integers(1, 8),  # minimum
        st.integers(0, 8),  # answer
        st.booleans(),  # which child
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(
    calls,
    st.integers(0, 400) | st.none(),
    st.integers(0, 400) | st.none(),
    st.floats(0, 0.01) | st.none(),
    st.integers(0, 9),
)
def test_never_above_any_budget_whatever_lengths_failures_and_cancellations(calls, outer, inner, dollars, seed):
    prices = Prices(prompt=3.0, output=15.0)

    async def run():
        top = Meter(Budget(tokens=outer, dollars=dollars), prices=prices)
        children = [Meter(Budget(tokens=inner), parent=top), Meter(parent=top)]
        rng = random.Random(seed)

        def fail(number, sent):
            return ConnectionError("dropped") if sent.metadata["fate"] == "fails" else None

        engine = MockEngine(babble, fail=fail, delay=lambda sent: sent.metadata["delay"] * 1e-5)

        async def one(prompt, most, n, delay, fate, minimum, answer, first):
            sent = Request("p" * prompt, SamplingParams(most, seed=rng.random()), n, "", {"fate": fate, "delay": delay})
            on_delta = showing(lambda d: None) if fate == "streamed" else None
            with contextlib.suppress(BudgetExceeded, ConnectionError):
                await children[first].generate(
                    engine, sent, minimum=min(minimum, most), answer=answer, on_delta=on_delta
                )

        tasks = []
        for call in calls:
            tasks.append((asyncio.create_task(one(*call)), call[4]))
            if rng.random() < 0.5:
                await asyncio.sleep(0)
        for task, fate in tasks:
            if fate == "cancelled":
                task.cancel()
        await asyncio.wait_for(asyncio.gather(*(t for t, _ in tasks), return_exceptions=True), 20)
        for meter in (top, *children):
            assert idle(meter)
            if meter.budget.tokens is not None:
                assert meter.spend.tokens <= meter.budget.tokens
            if meter.budget.dollars is not None:
                assert meter.spend.dollars <= meter.budget.dollars + 1e-9
        # What is booked is what was used, discarded branches too, and it adds up.
        assert top.spend.tokens == engine.used.tokens
        assert top.spend.tokens == sum(c.spend.tokens for c in children)
        assert top.spend.dollars == pytest.approx(prices.dollars(engine.used))

    asyncio.run(run())


def test_a_call_that_cannot_fit_is_refused_with_the_numbers_and_nothing_is_sent():
    engine = MockEngine()
    meter = Meter(Budget(tokens=5))
    with pytest.raises(BudgetExceeded, match=r"5 of the budget's 5 tokens are left.* at least 6 tokens .*prompt of 5"):
        asyncio.run(meter.generate(engine, request()))
    assert engine.calls == 0
    assert meter.spend == Spend()


def test_a_tight_budget_gives_fewer_samples_before_shorter_ones():
    engine = MockEngine("x" * 100)
    completions = asyncio.run(Meter(Budget(tokens=50)).generate(engine, request(10, n=8)))
    assert [len(c.ids) for c in completions] == [10, 10, 10]
    (only,) = asyncio.run(Meter(Budget(tokens=12)).generate(engine, request(10, n=8)))
    assert len(only.ids) == 7


def test_the_answer_keeps_its_share_when_a_thought_is_cut():
    params = SamplingParams(30, thinking=Thinking(20, min_tokens=15, extend="Wait"))
    cut = clamp(Request("p", params), 22).params
    assert (cut.max_tokens, cut.thinking.max_tokens, cut.thinking.min_tokens) == (22, 12, 12)
    with pytest.raises(BudgetExceeded):
        asyncio.run(Meter(Budget(tokens=10)).generate(MockEngine(), Request("p", params), minimum=10))


def test_room_is_left_for_a_second_call_that_ends_the_response():
    engine = MockEngine("x" * 100)
    meter = Meter(Budget(tokens=100))
    (thought,) = asyncio.run(meter.generate(engine, request(90), answer=8))
    used = len(thought.ids)
    assert used == (100 - 8) // 2 - 5
    asyncio.run(meter.generate(engine, request(used + 8), minimum=used + 8))
    assert meter.spend.tokens <= 100


def test_a_call_waits_for_what_others_may_give_back_rather_than_being_cut():
    async def run():
        engine = MockEngine("xx", delay=0.01)
        meter = Meter(Budget(tokens=40))
        return await asyncio.gather(*(meter.generate(engine, request(15)) for _ in range(4))), engine

    results, engine = asyncio.run(run())
    assert all(c.finish_reason == "stop" for (c,) in results)
    assert engine.peak == 2


def test_a_waiting_call_that_is_cancelled_passes_its_turn_on():
    async def run():
        engine = MockEngine("xx", delay=0.01)
        meter = Meter(Budget(tokens=40))
        tasks = [asyncio.create_task(meter.generate(engine, request(30))) for _ in range(3)]
        await asyncio.sleep(0.005)
        tasks[1].cancel()
        await asyncio.wait_for(asyncio.gather(tasks[0], tasks[2]), 5)
        assert idle(meter)

    asyncio.run(run())


def test_what_the_outer_budget_refuses_leaves_the_inner_one_untouched():
    async def run():
        outer = Meter(Budget(tokens=20))
        inner = Meter(Budget(tokens=1000), parent=outer)
        with pytest.raises(BudgetExceeded, match="20 of the budget's 20 tokens"):
            await inner.generate(MockEngine(), request(30), minimum=16)
        assert idle(inner)
        assert idle(outer)
        await inner.generate(MockEngine("</think>1"), request(10))
        assert inner.spend.tokens == outer.spend.tokens == 8
        assert inner.left.tokens == outer.left.tokens == 12

    asyncio.run(run())


def test_time_runs_out_on_a_call_in_flight_and_the_next_is_not_sent():
    async def run():
        engine = MockEngine("xxxx", delay=30)
        meter = Meter(Budget(seconds=0.05))
        started = time.perf_counter()
        for _ in range(2):
            with pytest.raises(BudgetExceeded, match=r"0\.05 seconds"):
                await meter.generate(engine, request())
        assert time.perf_counter() - started < 1
        assert (engine.calls, engine.cancelled, engine.in_flight) == (1, 1, 0)

    asyncio.run(run())


def test_the_tightest_of_nested_deadlines_holds_and_an_engines_own_timeout_is_not_the_meters():
    now = [0.0]
    outer = Meter(Budget(seconds=5), clock=lambda: now[0])
    now[0] = 3.0
    inner = Meter(Budget(seconds=4), parent=outer)
    assert inner.seconds_left == 2.0
    now[0] = 5.0
    with pytest.raises(BudgetExceeded, match="5 seconds"):
        asyncio.run(inner.generate(MockEngine(), request()))
    engine = MockEngine(fail=lambda number, sent: TimeoutError("the endpoint is slow"))
    with pytest.raises(TimeoutError, match="endpoint"):
        asyncio.run(Meter(Budget(seconds=5)).generate(engine, request()))


@pytest.mark.parametrize("budget", [Budget(), Budget(tokens=100)])
def test_a_failed_call_that_says_nothing_of_its_cost_is_booked_at_its_worst(budget):
    engine = MockEngine(fail=lambda number, sent: ConnectionError(), tells_spend=False)
    meter = Meter(budget)
    with pytest.raises(ConnectionError):
        asyncio.run(meter.generate(engine, request(10, n=2)))
    assert meter.spend.tokens == 2 * (5 + 10)


@pytest.mark.parametrize(("tokens", "sent"), [(16, 1), (31, 2), (400, 3)])
def test_a_call_that_used_up_its_reservation_is_reserved_again_as_often_as_there_is_room(tokens, sent):
    engine = MockEngine("x" * 40, fail=lambda call, request: Retryable("broke off", 3) if call < 2 else None)
    meter = Meter(Budget(tokens=tokens))
    call = meter.generate(engine, request(10, prompt="12345"))
    if sent < 3:
        with pytest.raises(Retryable, match=r"^broke off, and \d+ of the budget's \d+ tokens are left"):
            asyncio.run(call)
    else:
        assert asyncio.run(call)[0].text == "x" * 10
    assert (engine.calls, [r.params.max_tokens for r in engine.requests]) == (sent, [10] * sent)
    assert meter.spend.tokens == engine.used.tokens <= tokens
    assert idle(meter)


def test_a_call_is_tried_no_more_often_than_its_engine_says():
    engine = MockEngine(fail=lambda call, request: Retryable("broke off", 3))
    with pytest.raises(Retryable, match="broke off, 4 reservations in a row"):
        asyncio.run(Meter().generate(engine, request()))
    assert engine.calls == 4


@given(
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=6),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=6),
    st.booleans(),
)
def test_a_stream_that_begins_again_is_passed_on_once(first, other, same):
    """Whatever the pieces: what is passed on never repeats, and is the whole text where both say the same."""
    passed = []
    pieces = Pieces(showing(lambda delta: passed.append(delta.text)))
    second = ["".join(first), *other] if same else other

    async def go():
        for text in first:
            await pieces(Delta(0, text))
        pieces.again()
        for text in second:
            await pieces(Delta(0, text))

    asyncio.run(go())
    before, whole, after = "".join(first), "".join(passed), "".join(second)
    assert whole.startswith(before)
    if after.startswith(before):
        assert whole == after
    else:
        assert whole == before


@pytest.mark.parametrize("tells", [False, True])
def test_the_receipt_of_a_metered_call_has_what_was_booked_for_all_its_attempts(tells):
    engine = MockEngine("x" * 40, fail=lambda n, r: Retryable("broke off", 3) if n < 2 else None, tells_spend=tells)
    meter, receipt = Meter(prices=Prices(1.0, 2.0)), Receipt()
    completions = asyncio.run(meter.generate(engine, request(10), receipt=receipt))
    assert engine.calls == 3
    assert (receipt.spend, receipt.completions) == (meter.spend, completions)
    assert meter.spend.dollars > 0


def test_the_next_piece_of_a_call_is_asked_for_when_its_reader_has_taken_the_last():
    async def run():
        engine, taken = MockEngine("x" * 40), []

        async def read(delta):
            sent = engine.sent
            taken.append(delta)
            for _ in range(5):
                await asyncio.sleep(0)
            assert engine.sent == sent

        await Meter().generate(engine, request(20), on_delta=read)
        assert engine.sent == 20
        assert "".join(d.text for d in taken) == "x" * 20

    asyncio.run(run())


def test_what_was_used_before_counts_against_the_seconds():
    now = [100.0]
    meter = Meter(Budget(seconds=5), passed=4.0, clock=lambda: now[0])
    assert (meter.seconds_left, meter.elapsed) == (1.0, 4.0)
    now[0] += 2.5
    assert (meter.seconds_left, meter.elapsed) == (0.0, 6.5)
    engine = MockEngine()
    with pytest.raises(BudgetExceeded, match=r"5 seconds is used up \(4 before the search began or resumed\)"):
        asyncio.run(meter.generate(engine, request()))
    assert engine.calls == 0


def test_a_call_that_was_refused_as_bad_input_costs_nothing():
    meter = Meter(Budget(tokens=100))
    with pytest.raises(UserError, match="context"):
        asyncio.run(meter.generate(MockEngine(context=8), request()))
    assert meter.spend == Spend()
    assert idle(meter)


def test_a_readers_own_bad_input_costs_the_worst_case_where_the_engine_tells_nothing():
    class Silent(MockEngine):
        async def stream(self, request, receipt=None):
            async with contextlib.aclosing(super().stream(request)) as deltas:
                async for delta in deltas:
                    yield delta

    def refuse(delta):
        raise UserError("not this")

    meter = Meter(Budget(tokens=100))
    with pytest.raises(UserError, match="not this"):
        asyncio.run(meter.generate(Silent("abc"), request(), on_delta=showing(refuse)))
    assert meter.spend.tokens == 15
    assert idle(meter)


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (Budget(tokens=-1), "-1 tokens"),
        (Budget(seconds=float("nan")), "nan seconds"),
        (Budget(dollars=float("inf")), "inf dollars"),
        (Budget(tokens=10.5), "whole number"),
        (Budget(tokens=True), "True tokens"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(budget, reason):
    with pytest.raises(UserError, match=reason):
        Meter(budget)


def test_dollars_are_reserved_and_booked_at_the_models_prices():
    prices = Prices(prompt=1.0, output=10.0, cached=0.1)
    assert prices.dollars(Spend(1_000_000, 1_000_000, 1_000_000, 1_000_000)) == pytest.approx(21.1)
    engine = MockEngine("x" * 100)
    meter = Meter(Budget(dollars=100e-6), prices=prices)
    (cut,) = asyncio.run(meter.generate(engine, request(50)))
    assert len(cut.ids) == 9  # 5 prompt tokens at $1e-6, 9 at $1e-5, and a tenth would be too dear
    with pytest.raises(BudgetExceeded, match=r"\$5e-06 of the budget's \$0.0001"):
        asyncio.run(meter.generate(engine, request(50)))


def test_the_engines_error_comes_through_even_if_it_cannot_count_any_more():
    class Gone(MockEngine):
        def count_tokens(self, prompt):
            if self.calls:
                raise RuntimeError("gone too")
            return super().count_tokens(prompt)

    engine = Gone(fail=lambda number, sent: ConnectionError("gone"), tells_spend=False)
    with pytest.raises(ConnectionError, match="gone"):
        asyncio.run(Meter().generate(engine, request()))


# What is kept for the last call -------------------------------------------------------------------------------------


def test_only_a_final_call_may_take_what_is_kept_and_it_may_take_all_of_it():
    async def run():
        engine = MockEngine("x" * 100)
        meter = Meter(Budget(tokens=60))
        meter.keep(5, 10)
        (first,) = await meter.generate(engine, request(100))
        assert len(first.ids) == 60 - 15 - 5
        with pytest.raises(BudgetExceeded, match="0 of the budget's 60 tokens"):
            await meter.generate(engine, request(10))
        (last,) = await meter.generate(engine, request(10), final=True)
        assert len(last.ids) == 10
        meter.keep(0, 0)
        assert meter.spend.tokens == 60
        assert meter.idle

    asyncio.run(run())


def test_what_one_search_keeps_is_kept_from_the_others_and_from_their_last_calls():
    async def run():
        engine = MockEngine("x" * 100)
        server = Meter(Budget(tokens=50))
        one, other = Meter(parent=server), Meter(parent=server)
        one.keep(5, 10)
        other.keep(5, 5)
        (cut,) = await other.generate(engine, request(100), final=True)
        assert len(cut.ids) == 50 - 15 - 5
        other.keep(0, 0)
        await one.generate(engine, request(10), final=True)
        assert server.spend.tokens == 50

    asyncio.run(run())


def test_a_call_that_waits_resumes_when_less_is_kept():
    async def run():
        engine = MockEngine("xx", delay=0.01)
        server = Meter(Budget(tokens=40))
        keeper, caller = Meter(parent=server), Meter(parent=server)
        keeper.keep(5, 15)
        running = asyncio.create_task(caller.generate(engine, request(10)))
        waiting = asyncio.create_task(caller.generate(engine, request(10)))
        await asyncio.sleep(0)
        assert engine.calls == 1
        keeper.keep(0, 0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert engine.calls == 2
        await asyncio.gather(running, waiting)

    asyncio.run(run())


class Keeping(Asking):
    """Keeps room for a last call that it never makes."""

    def __init__(self, problem, context):
        super().__init__(problem, context)
        self.push(Ask(0, Generate(Request(problem.prompt, SamplingParams(10)))))

    def told(self, ask_id, answer):
        self.answer = answer

    def reserve(self):
        return 10, 20

    def outcome(self, spend, stop):
        return Outcome(Response(None), None, self.tree.trace(), spend, stop)


class KeepingStrategy:
    def start(self, problem, context):
        return Keeping(problem, context)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_search_that_is_over_keeps_nothing_from_others(cancelled):
    async def run():
        server = Meter(Budget(tokens=1000))
        problem = MockEnvironment().problem("test", 1)
        task = asyncio.create_task(solve(KeepingStrategy(), problem, MockEngine("x", delay=0.01), parent=server))
        await asyncio.sleep(0)
        if cancelled:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled() == cancelled
        assert server.idle

    asyncio.run(run())
