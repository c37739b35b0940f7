"""Endpoints that misbehave, are busy, or are left in the middle: what is retried, and that all of it is booked."""

import asyncio
import email.utils
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mocks import MockEnvironment, sample, showing
from openai_play import QUESTION, ask, faults, fresh, offline, spent
from openai_server import Behaviour, Fault, Scripted, Server

from ponder import sync
from ponder.budget.meter import Meter
from ponder.engines.openai import OpenAI
from ponder.engines.openai.faults import EndpointFailed, retry_after
from ponder.engines.openai.gate import Gate
from ponder.engines.openai.tokens import bytes_bound
from ponder.errors import EngineClosed, UserError
from ponder.protocols import Receipt
from ponder.search.runner import solve
from ponder.search.strategies.best_of_n import BestOfN
from ponder.search.strategies.budget_forcing import BudgetForcing
from ponder.search.strategies.direct import Direct
from ponder.types import Budget, FinishReason, Spend, StopReason

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    fresh(monkeypatch)


# Faults -------------------------------------------------------------------------------------------------------------

ROOM = 8 + bytes_bound(QUESTION) + 400
"""What a meter would hold for `ask(400)`."""


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=500),
        Fault("status", status=502),
        Fault("status", status=429, headers={"Retry-After": "0.01"}),
        Fault("status", status=503, headers={"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}),
        Fault("drop", 4),
        Fault("garbage", 4),
        Fault("repeat", 4, times=5),
        Fault("error", 4, message="out of memory"),
        Fault("hang", 4),
        Fault("hang"),
    ],
    ids=lambda f: f"{f.kind}{f.status if f.kind == 'status' else f.after}",
)
def test_a_fault_is_retried_and_both_attempts_are_booked_within_the_reservation(fault):
    with Server(Behaviour(faults=faults(fault), delay=0.002)) as server:
        completions = sample(offline(server, "seed", timeout=0.5, in_flight_tokens=40), ask(400))
        assert completions[0].finish_reason is FinishReason.STOP
        assert len(server.calls) == 2
        assert server.tokens() <= spent(completions).tokens <= ROOM
        assert completions[0].text == sample(offline(server, "seed"), ask(400))[0].text


def test_a_repeated_chunk_is_dropped_where_it_can_be_recognised():
    with Server(Behaviour(usage="running", faults=faults(Fault("repeat", 4)))) as server:
        engine = offline(
            server, "seed", body={"stream_options": {"continuous_usage_stats": True, "include_usage": True}}
        )
        again = sample(engine, ask())
        assert len(server.calls) == 1
        assert again[0].text == sample(offline(server, "seed"), ask())[0].text
        assert spent(again).tokens == server.calls[0].tokens


def test_a_fault_that_stays_is_a_clear_failure_with_what_was_spent_and_what_came():
    with Server(Behaviour(faults=lambda n, b: Fault("drop", 5))) as server:
        engine, receipt = offline(server, "seed", retries=2), Receipt()
        with pytest.raises(EndpointFailed, match="3 times in a row"):
            sample(engine, ask(400), receipt)
        assert len(server.calls) == 3
        assert server.tokens() <= receipt.spend.tokens <= ROOM
        assert receipt.completions[0].text.startswith("<think>")
        assert receipt.completions[0].finish_reason is FinishReason.CANCELLED


def test_retries_end_where_the_reservation_does():
    with Server(Behaviour(faults=lambda n, b: Fault("drop", 5))) as server:
        engine, receipt = offline(server, "seed", retries=50), Receipt()
        with pytest.raises(EndpointFailed, match="no room for a retry") as failed:
            sample(engine, ask(150), receipt)
        assert failed.value.attempts_left > 0
        assert server.tokens() <= receipt.spend.tokens <= ROOM - 250
        limits = [c.body["max_tokens"] for c in server.calls]
        assert limits == sorted(limits, reverse=True)
        assert 1 < len(limits) < 10


def test_a_wrong_request_is_a_user_error_in_the_endpoints_words_and_costs_nothing():
    with Server(Behaviour(context=100)) as server:
        receipt = Receipt()
        with pytest.raises(UserError, match="maximum context length is 100"):
            sample(offline(server), ask(400), receipt)
        assert receipt == Receipt(Spend())
        assert len(server.calls) == 1


def test_a_refused_key_is_named_by_its_variable_and_never_shown(caplog):
    fault = Fault("status", status=401, message="Incorrect API key provided: sk-secret")
    with Server(Behaviour(faults=lambda n, b: fault)) as server:
        with pytest.raises(UserError, match="check the key in OPENAI_API_KEY") as refused:
            sample(offline(server), ask())
        with pytest.raises(UserError, match="check the key in OPENAI_API_KEY"):
            OpenAI(server.url).open("mock")
        assert "sk-secret" not in str(refused.value) + caplog.text + repr(offline(server).endpoint.options)


def test_a_stream_that_breaks_resumes_where_it_was_for_its_reader():
    with Server(Behaviour(faults=faults(Fault("drop", 6)))) as server:
        engine = offline(server, "seed")

        async def go():
            text, completion = "", None
            async for delta in engine.stream(ask(400)):
                text, completion = text + delta.text, delta.completion
            await engine.close()
            return text, completion

        text, completion = asyncio.run(go())
        assert text == completion.text
        assert len(server.calls) == 2


def test_too_long_a_wait_is_not_waited_for():
    busy = Fault("status", status=429, headers={"Retry-After": "3600"})
    with Server(Behaviour(faults=lambda n, b: busy)) as server:
        with pytest.raises(EndpointFailed, match="3600 s"):
            sample(offline(server), ask())
        assert len(server.calls) == 1


def test_retry_after_is_read_as_seconds_milliseconds_or_a_date():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "20", "retry-after": "7"}) == pytest.approx(0.02)
    assert 25 < retry_after({"retry-after": email.utils.formatdate(time.time() + 30, usegmt=True)}) <= 30
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


# Concurrency --------------------------------------------------------------------------------------------------------


def test_never_more_calls_in_flight_than_allowed_and_all_are_served_when_it_is_busy():
    busy = Fault("status", status=429, headers={"Retry-After": "0.01"})
    with Server(Behaviour(delay=0.0005, faults=lambda n, b: busy if n in (3, 4, 5) else None)) as server:
        engine = offline(server, "seed", concurrency=4)

        async def go():
            done = await asyncio.gather(*(engine.generate(ask(seed=i)) for i in range(16)))
            await engine.close()
            return done

        done = asyncio.run(go())
        assert len(done) == 16
        assert server.peak <= 4
        assert len(server.calls) == 19
        assert sum(spent(c).tokens for c in done) == server.tokens()


def test_the_limit_halves_once_for_calls_sent_before_and_grows_back():
    async def go():
        gate = Gate(8)
        entered = [await gate.enter() for _ in range(8)]
        for at in entered:
            gate.slow_down(at, 0.0)
            gate.leave()
        halved = gate.limit
        for _ in range(100):
            await gate.enter()
            gate.leave(well=True)
        return halved, gate.limit, gate.flying

    assert asyncio.run(go()) == (4.0, 8.0, 0)


def test_a_cancelled_call_closes_its_connection_and_is_booked():
    with Server(Behaviour(delay=0.002), Scripted(Behaviour(delay=0.002), lambda m, r: ("so " * 5000, "42"))) as server:
        engine, meter = offline(server, in_flight_tokens=64), Meter(Budget(tokens=5000))

        async def go():
            came, receipt = asyncio.Event(), Receipt()
            on_delta = showing(lambda d: came.set())
            call = asyncio.create_task(meter.generate(engine, ask(4000), on_delta=on_delta, receipt=receipt))
            await came.wait()
            await asyncio.sleep(0.02)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            return receipt

        receipt = asyncio.run(go())
        server.wait_quiet()
        assert server.calls[0].hung_up
        assert server.calls[0].sampled_tokens < 1000
        assert server.tokens() <= meter.spend.tokens < 1500
        assert receipt.spend == meter.spend
        assert receipt.completions[0].finish_reason is FinishReason.CANCELLED
        assert receipt.completions[0].text.startswith("<think>so")


def test_a_slow_reader_holds_the_endpoint_back_and_what_it_may_have_sampled_meanwhile_is_booked():
    behaviour = Behaviour(context=1_000_000)
    with Server(behaviour, Scripted(behaviour, lambda m, r: ("so " * 200_000, "42"))) as server:
        engine, receipt = offline(server), Receipt()

        async def go():
            stream = engine.stream(ask(700_000), receipt)
            await anext(stream)
            sent = -1
            while sent != server.calls[0].sampled_tokens:  # until nothing more fits between it and the reader
                sent = server.calls[0].sampled_tokens
                await asyncio.sleep(0.3)
            await stream.aclose()
            return sent

        sent = asyncio.run(go())
        server.wait_quiet()
        assert sent < 300_000  # what the sockets hold
        assert server.calls[0].hung_up
        assert server.tokens() <= receipt.spend.tokens


def test_a_call_that_ends_well_settles_its_receipt_and_one_after_the_end_used_nothing():
    with Server() as server:
        engine, receipt, late = offline(server, "seed"), Receipt(), Receipt()
        completions = sample(engine, ask(400), receipt)
        assert (receipt.spend, receipt.completions) == (spent(completions), completions)
        with pytest.raises(EngineClosed):
            sample(engine, ask(400), late)
        assert late == Receipt(Spend())


@pytest.mark.parametrize("hidden", [True, False])
def test_hidden_tokens_of_a_cancelled_call_are_booked_at_the_worst_case(hidden):
    with Server(Behaviour(delay=0.002, hidden=hidden)) as server:
        # Seen thoughts, but an endpoint that may be far ahead of what has arrived.
        engine, meter = offline(server, in_flight_seconds=0.0 if hidden else 1e4), Meter(Budget(tokens=2000))

        async def go():
            await meter.generate(engine, ask(300))
            call = asyncio.create_task(meter.generate(engine, ask(300)))
            while len(server.calls) < 2:
                await asyncio.sleep(0.001)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await engine.close()

        asyncio.run(go())
        server.wait_quiet()
        first = server.calls[0]
        assert meter.spend.tokens == first.tokens + first.prompt_tokens + 300
        assert server.tokens() < meter.spend.tokens


def test_closing_ends_what_runs_and_refuses_what_comes():
    with Server(Behaviour(delay=0.01)) as server:
        engine = offline(server, concurrency=1)

        async def go():
            calls = [asyncio.create_task(engine.generate(ask(100))) for _ in range(2)]
            while not server.flying:
                await asyncio.sleep(0.001)
            await engine.close()
            await engine.close()
            ended = await asyncio.gather(*calls, return_exceptions=True)
            with pytest.raises(EngineClosed):
                await engine.generate(ask())
            return ended

        assert [type(e) for e in asyncio.run(go())] == [EngineClosed, EngineClosed]


# Under a budget -----------------------------------------------------------------------------------------------------

KINDS = [None, None, Fault("drop", 3), Fault("status", status=500), Fault("garbage", 2), Fault("status", status=429)]


def test_a_search_never_spends_more_than_its_budget_as_the_endpoint_counts():
    problems = iter(MockEnvironment(count=1000).problems("train", 1000))
    servers = {usage: Server(Behaviour(usage=usage, delay=0.0005)) for usage in ("final", "none")}
    with servers["final"], servers["none"]:
        engines = {
            (usage, many): offline(server, "seed", "logprobs", *(["n"] if many else []))
            for usage, server in servers.items()
            for many in (False, True)
        }

        @settings(max_examples=15)
        @given(
            budget=st.integers(60, 900),
            script=st.lists(st.sampled_from(KINDS), max_size=6),
            usage=st.sampled_from(["final", "none"]),
            many=st.booleans(),
        )
        def holds(budget, script, usage, many):
            server, engine = servers[usage], engines[usage, many]
            server.calls.clear()
            server.behaviour.faults = faults(*script)
            strategy = BestOfN(4, max_tokens=80)
            outcome = sync.run(solve(strategy, next(problems), engine, budget=Budget(tokens=budget)))
            server.wait_quiet()
            assert server.tokens() <= outcome.spend.tokens <= budget

        holds()
        for engine in engines.values():
            sync.run(engine.close())


def searched(strategy, problem, engine, **options):
    """The outcome of one search; the engine is closed afterwards."""

    async def go():
        try:
            return await solve(strategy, problem, engine, **options)
        finally:
            await engine.close()

    return asyncio.run(go())


ONCE = [Fault("drop", 4), Fault("garbage", 4), Fault("error", 4, message="out of memory"), Fault("hang", 4)]


@pytest.mark.parametrize("fault", ONCE, ids=lambda f: f.kind)
def test_where_a_reservation_has_no_room_for_a_retry_the_rest_of_the_budget_has(fault):
    problem = MockEnvironment().problem("train", 3)
    with Server(Behaviour(faults=faults(fault))) as server:
        # So much may have been under way that nothing of the first reservation is left.
        engine, shown = offline(server, "seed", timeout=0.3, in_flight_tokens=90), []
        options = {"budget": Budget(tokens=400), "on_delta": showing(shown.append)}
        outcome = searched(Direct(max_tokens=90), problem, engine, **options)
        server.wait_quiet()
        assert (outcome.stop, len(server.calls)) == (StopReason.FINISHED, 2)
        assert "".join(d.text for d in shown) == outcome.response.text
        assert server.tokens() <= outcome.spend.tokens <= 400
        assert server.calls[1].body["max_tokens"] == server.calls[0].body["max_tokens"]


@pytest.mark.parametrize(("budget", "calls", "said"), [(200, 1, "a call needs at least"), (None, 3, "3 reservations")])
def test_an_endpoint_that_never_recovers_is_retried_within_the_budget_and_as_often_as_allowed(budget, calls, said):
    problem = MockEnvironment().problem("train", 3)
    with Server(Behaviour(faults=lambda n, b: Fault("drop", 4))) as server:
        engine = offline(server, "seed", retries=2, in_flight_tokens=90)
        outcome = searched(Direct(max_tokens=90), problem, engine, budget=Budget(tokens=budget))
        server.wait_quiet()
        assert (outcome.stop, len(server.calls)) == (StopReason.FAILED, calls)
        assert "the connection failed" in outcome.reason
        assert said in outcome.reason
        assert server.tokens() <= outcome.spend.tokens <= (budget or 1000)
        assert [n.completion.finish_reason for n in outcome.trace.nodes] == [FinishReason.CANCELLED]


def test_a_thought_is_bounded_by_a_second_call_within_the_budget():
    problem = MockEnvironment().problem("train", 21)
    backend = Scripted(Behaviour(), lambda m, r: ("so " * 40, "42"))
    with Server(backend=backend) as server:
        engine = OpenAI(server.url, backoff=0.0).open("mock")
        before = server.tokens()

        async def go():
            strategy = BudgetForcing(12, answer_tokens=8)
            return await solve(strategy, problem, engine, budget=Budget(tokens=400))

        backend.say = lambda m, r: ("so " * 40, "42")
        outcome = asyncio.run(go())
        assert outcome.response.answer == "42"
        assert outcome.spend.tokens == server.tokens() - before <= 400


def test_a_budget_too_small_for_the_prompt_sends_nothing():
    problem = MockEnvironment().problem("train", 3)
    with Server() as server:
        engine = offline(server, "seed")
        outcome = asyncio.run(solve(BestOfN(2), problem, engine, budget=Budget(tokens=5)))
        assert outcome.stop is StopReason.BUDGET
        assert "5 of the budget's 5 tokens" in outcome.reason
        assert not server.calls
