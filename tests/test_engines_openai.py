"""The engine of OpenAI-compatible endpoints, with the real client, against a server on localhost that counts itself."""

import asyncio
import email.utils
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mocks import MockEnvironment
from openai_server import Behaviour, Fault, Scripted, Server, solver, tokens

from ponder import registry
from ponder.engines.openai import OpenAI
from ponder.engines.openai.faults import EndpointFailed, retry_after
from ponder.engines.openai.gate import Gate
from ponder.engines.openai.probe import forget
from ponder.engines.openai.tokens import Counter, apportion, bytes_bound
from ponder.errors import EngineClosed, Unsupported, UserError
from ponder.search.meter import Meter
from ponder.search.runner import solve
from ponder.search.strategies.best_of_n import BestOfN, mean_logprob
from ponder.search.strategies.budget_forcing import BudgetForcing
from ponder.types import (
    Budget,
    FinishReason,
    Message,
    Request,
    SamplingParams,
    Spend,
    StopReason,
    Thinking,
    split_response,
)

pytest.importorskip("openai")
QUESTION = "2 * 21 ="


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    forget()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")


def offline(server, *can, model="mock", **options):
    """An engine that does not probe; retries come at once."""
    options = {"backoff": 0.0, "template_tokens": 8, "timeout": 20.0} | options
    return OpenAI(server.url, probe=False, capabilities=can, **options).open(model)


def ask(max_tokens=200, n=1, prompt=QUESTION, seed=3, **params):
    return Request(prompt, SamplingParams(max_tokens, seed=seed, **params), n)


def sample(engine, request):
    """Completions of one call; the engine is closed afterwards."""

    async def go():
        try:
            return await engine.generate(request)
        finally:
            await engine.close()

    return asyncio.run(go())


def faults(*script):
    """The first calls fail as told, the rest do not."""
    return lambda number, body: script[number] if number < len(script) else None


def spent(completions):
    return sum((c.spend for c in completions), Spend())


# The probe ----------------------------------------------------------------------------------------------------------


def test_the_probe_finds_what_the_endpoint_does_by_its_effect():
    with Server(Behaviour(usage="running", thinking="thinking_budget", context=5000)) as server:
        engine = OpenAI(server.url).open("mock")
        can, found = engine.capabilities, engine.findings
        assert (can.n, can.logprobs, can.seed, can.prefix, can.thinking) == (True,) * 5
        assert (found.prefix, found.thinking, found.usage) == ("flags", "thinking_budget", "running")
        assert engine.info.context == 5000
        assert dict(found.markers) == {"<think>": 1, "</think>": 1}
        assert engine.opening.tokens == server.tokens() < 600


def test_what_an_endpoint_refuses_or_ignores_is_said_once_each_and_denied(caplog):
    behaviour = Behaviour(n=False, seed=False, prefix="", refuses=("logprobs", "continuous_usage_stats", "top_k"))
    with Server(behaviour) as server:
        engine = OpenAI(server.url).open("mock")
        can = engine.capabilities
        assert (can.n, can.logprobs, can.seed, can.prefix, can.thinking) == (False,) * 5
        for word in ("no n:", "log-probabilities", "seed", "continue", "bounds no thought"):
            assert sum(word in r.getMessage() for r in caplog.records) == 1
        assert engine.findings.usage == "final"
        assert engine.opening.tokens == server.tokens()


def test_an_endpoint_is_probed_once_however_many_open_it():
    with Server() as server:

        async def many():
            return await asyncio.gather(*(OpenAI(server.url).open_async("mock") for _ in range(5)))

        engines = asyncio.run(many())
        assert len({e.findings for e in engines}) == 1
        assert sum((e.opening for e in engines), Spend()).tokens == server.tokens()


def test_a_prefix_by_a_last_message_alone_and_the_other_limit_field_are_found():
    with Server(Behaviour(prefix="plain", refuses=("max_tokens", "continue_final_message"))) as server:
        engine = OpenAI(server.url).open("mock")
        assert (engine.findings.prefix, engine.findings.limit_field) == ("plain", "max_completion_tokens")
        assert sample(engine, ask())[0].finish_reason is FinishReason.STOP


def test_the_probe_survives_a_busy_endpoint_and_says_when_there_is_none():
    with Server(Behaviour(faults=faults(Fault("status", status=503), Fault("drop", 3)))) as server:
        assert OpenAI(server.url, backoff=0.0).open("mock").capabilities.n
    with pytest.raises(EndpointFailed, match=r"127\.0\.0\.1.*connection failed"):
        OpenAI(server.url, backoff=0.0, retries=1).open("mock")


# What a call returns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", ""])
def test_thoughts_are_marked_wherever_the_endpoint_puts_them(name):
    with Server(Behaviour(reasoning=name)) as server:
        engine = offline(server, "seed")
        completion = sample(engine, ask())[0]
        response = split_response(completion.text, completion.finish_reason, engine.info.thought)
        assert completion.text.startswith("<think>")
        assert completion.text.count("</think>") == 1
        assert response.thought
        assert response.answer in {str(n) for n in range(42, 52)}


@pytest.mark.parametrize("usage", ["final", "running"])
def test_spend_is_what_the_endpoint_counted_discarded_samples_too(usage):
    with Server(Behaviour(usage=usage)) as server:
        completions = sample(offline(server, "n", "seed"), ask(n=4))
        spend = spent(completions)
        assert spend.tokens == server.tokens()
        assert spend.cached_tokens == server.calls[0].prompt_tokens // 2
        assert len(completions) == 4


def test_without_usage_tokens_are_bounded_and_that_is_said(caplog):
    with Server(Behaviour(usage="none")) as server:
        engine = offline(server)
        completions = sample(engine, ask())
        assert server.tokens() <= spent(completions).tokens <= engine.count_tokens(QUESTION) + 200
        assert sum("no usage" in r.getMessage() for r in caplog.records) == 1


def test_log_probabilities_come_without_ids_and_can_be_chosen_by():
    with Server() as server:
        completion = sample(offline(server, "logprobs"), ask())[0]
        assert completion.segments == ()
        assert len(completion.logprobs) > 3
        assert mean_logprob(completion) == pytest.approx(sum(completion.logprobs) / len(completion.logprobs))


def test_a_truncated_response_abstains():
    with Server() as server:
        engine = offline(server, "seed")
        completion = sample(engine, ask(2))[0]
        assert completion.finish_reason is FinishReason.LENGTH
        assert split_response(completion.text, completion.finish_reason, engine.info.thought).answer is None


def test_pieces_of_a_stream_make_up_the_text():
    with Server() as server:
        engine = offline(server, "n", "seed")

        async def go():
            texts, completions = ["", ""], {}
            async for delta in engine.stream(ask(n=2)):
                texts[delta.sample] += delta.text
                if delta.completion is not None:
                    completions[delta.sample] = delta.completion
            await engine.close()
            return texts, [completions[i].text for i in range(2)]

        texts, whole = asyncio.run(go())
        assert texts == whole


def test_a_response_is_continued_from_its_prefix_and_the_prefix_counts():
    with Server() as server:
        engine = offline(server, "prefix", "seed", template_tokens=20)

        async def go():
            first = (await engine.generate(ask(stop=("</think>",))))[0]
            prefix = first.text + "</think>"
            second = (await engine.generate(Request(QUESTION, SamplingParams(200, seed=3), prefix=prefix)))[0]
            await engine.close()
            return first, second, prefix

        first, second, prefix = asyncio.run(go())
        assert first.finish_reason is FinishReason.STOP
        assert second.text.startswith(prefix)
        assert second.text.removeprefix(prefix).isdigit()
        assert server.calls[1].body["continue_final_message"] is True
        assert server.calls[1].body["max_tokens"] <= 200 - len(tokens(prefix))
        assert spent((first, second)).tokens == server.tokens()


def test_an_unsupported_request_is_refused_before_anything_is_sent():
    with Server() as server:
        engine = offline(server)
        for request in (
            ask(n=2),
            Request((1, 2, 3), SamplingParams(5)),
            Request(QUESTION, SamplingParams(5), prefix="so"),
            ask(thinking=Thinking(5)),
            ask(top_logprobs=3),
            ask(stop_ids=(1,)),
        ):
            with pytest.raises(Unsupported, match="mock"):
                asyncio.run(engine.generate(request))
        with pytest.raises(Unsupported, match="weights"):
            asyncio.run(engine.load_weights(None, "1"))
        assert not server.calls


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
        Fault("repeat", 4, times=3),
        Fault("error", 4, message="out of memory"),
        Fault("hang", 4),
        Fault("hang"),
    ],
    ids=lambda f: f"{f.kind}{f.status if f.kind == 'status' else f.after}",
)
def test_a_fault_is_tried_again_and_both_attempts_are_booked_within_the_reservation(fault):
    with Server(Behaviour(faults=faults(fault))) as server:
        completions = sample(offline(server, "seed", timeout=0.3), ask(400))
        assert completions[0].finish_reason is FinishReason.STOP
        assert len(server.calls) == 2
        assert server.tokens() <= spent(completions).tokens <= ROOM
        assert completions[0].text == sample(offline(server, "seed"), ask(400))[0].text


def test_a_repeated_chunk_is_dropped_where_it_can_be_told():
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
        engine = offline(server, "seed", retries=2)
        with pytest.raises(EndpointFailed, match="3 times in a row") as failed:
            sample(engine, ask(400))
        assert len(server.calls) == 3
        assert server.tokens() <= failed.value.spend.tokens <= ROOM
        assert failed.value.completions[0].text.startswith("<think>")
        assert failed.value.completions[0].finish_reason is FinishReason.CANCELLED


def test_retries_end_where_the_reservation_does():
    with Server(Behaviour(faults=lambda n, b: Fault("drop", 5))) as server:
        engine = offline(server, "seed", retries=50)
        with pytest.raises(EndpointFailed, match="no room for a retry") as failed:
            sample(engine, ask(150))
        assert server.tokens() <= failed.value.spend.tokens <= ROOM - 250
        limits = [c.body["max_tokens"] for c in server.calls]
        assert limits == sorted(limits, reverse=True)
        assert 1 < len(limits) < 10


def test_a_wrong_request_is_the_users_to_mend_in_the_endpoints_words_and_costs_nothing():
    with Server(Behaviour(context=100)) as server:
        with pytest.raises(UserError, match="maximum context length is 100") as refused:
            sample(offline(server), ask(400))
        assert refused.value.spend == Spend()
        assert len(server.calls) == 1


def test_a_refused_key_is_named_by_its_variable_and_never_shown(caplog):
    fault = Fault("status", status=401, message="Incorrect API key provided: sk-secret")
    with Server(Behaviour(faults=lambda n, b: fault)) as server:
        with pytest.raises(UserError, match="check the key in OPENAI_API_KEY") as refused:
            sample(offline(server), ask())
        with pytest.raises(UserError):
            OpenAI(server.url).open("mock")
        assert "sk-secret" not in str(refused.value) + caplog.text + repr(offline(server).options)


def test_a_stream_that_breaks_goes_on_where_it_was_for_those_who_watch():
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
            limit = engine.lane().gate.limit
            await engine.close()
            return done, limit

        done, limit = asyncio.run(go())
        assert len(done) == 16
        assert server.peak <= 4
        assert limit < 4
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
            came = asyncio.Event()
            request = ask(4000)
            call = asyncio.create_task(meter.generate(engine, request, on_delta=lambda d: came.set()))
            await came.wait()
            await asyncio.sleep(0.02)
            call.cancel()
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await call
            return cancelled.value

        error = asyncio.run(go())
        server.wait_quiet()
        assert server.calls[0].hung_up
        assert server.calls[0].sampled_tokens < 1000
        assert server.tokens() <= meter.spend.tokens < 1500
        assert error.completions[0].finish_reason is FinishReason.CANCELLED
        assert error.completions[0].text.startswith("<think>so")


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


@settings(max_examples=12)
@given(
    budget=st.integers(60, 900),
    script=st.lists(st.sampled_from(KINDS), max_size=6),
    usage=st.sampled_from(["final", "none"]),
    many=st.booleans(),
)
def test_a_search_never_spends_more_than_its_budget_as_the_endpoint_counts(budget, script, usage, many):
    behaviour = Behaviour(usage=usage, faults=faults(*script))
    problem = MockEnvironment().problem("train", 7)
    with Server(behaviour) as server:
        engine = offline(server, "seed", "logprobs", *(["n"] if many else []))

        async def go():
            try:
                return await solve(BestOfN(4, max_tokens=80), problem, engine, budget=Budget(tokens=budget))
            finally:
                await engine.close()

        outcome = asyncio.run(go())
        server.wait_quiet()
        assert server.tokens() <= outcome.spend.tokens <= budget


def test_a_thought_is_bounded_by_a_second_call_within_the_budget():
    problem = MockEnvironment().problem("train", 21)
    speaker = Scripted(Behaviour(), lambda m, r: ("so " * 40, "42"))
    with Server(speaker=speaker) as server:
        engine = OpenAI(server.url, backoff=0.0).open("mock")
        before = server.tokens()

        async def go():
            strategy = BudgetForcing(12, answer_tokens=8)
            return await solve(strategy, problem, engine, budget=Budget(tokens=400))

        speaker.say = lambda m, r: ("so " * 40, "42")
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


# Counting -----------------------------------------------------------------------------------------------------------


@given(st.text(max_size=60))
def test_bytes_bound_every_tokenizer_whose_tokens_spell_a_byte_each(text):
    assert bytes_bound(text) >= len(text.encode("utf-8", "surrogatepass"))
    assert bytes_bound(text) >= len(tokens(text))


@given(st.integers(0, 500), st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_shares_add_up_and_follow_the_weights(total, weights):
    shares = apportion(total, weights)
    assert sum(shares) == total
    whole = sum(weights)
    assert all(abs(s - total * w / whole) < 1 for s, w in zip(shares, weights, strict=True)) or whole == 0


def test_a_prompt_that_was_counted_costs_that_and_a_bound_that_failed_is_raised():
    counter = Counter("", 4, 2)
    prompt = (Message("system", "be brief"), Message("user", "2 + 2"))
    assert counter.prompt(prompt) == 4 + 2 + bytes_bound("be brief") + bytes_bound("2 + 2")
    assert counter.learn_prompt(prompt, 9) == 0
    assert counter.prompt(prompt) == 9
    assert counter.learn_prompt("hi", 30) == 30 - (4 + bytes_bound("hi"))
    assert counter.prompt("ho") == 30


def test_a_tokenizer_file_counts_closer_than_bytes(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = tokenizers.Tokenizer(WordLevel({"so": 0, "[UNK]": 1}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    counter = Counter(str(tmp_path), 4, 2)
    assert counter.prompt("so so so") == 7
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Counter(str(tmp_path / "nothing"), 4, 2)


# Options ------------------------------------------------------------------------------------------------------------


def test_the_engine_is_found_by_name_and_its_options_are_checked(monkeypatch):
    part = registry.build("engines", "openai", {"base_url": "http://localhost:1/v1", "concurrency": 3})
    assert part == OpenAI("http://localhost:1/v1", concurrency=3)
    for name, value in (("timeout", 0.0), ("concurrency", 0), ("base_url", "localhost"), ("capabilities", ("seeds",))):
        with pytest.raises(UserError, match=name if name != "capabilities" else "did you mean 'seed'"):
            OpenAI(**({"base_url": "http://x/v1", "probe": False} | {name: value}))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        OpenAI("https://api.openai.com/v1").open("gpt")


def test_messages_and_settings_reach_the_endpoint_as_they_are():
    with Server() as server:
        engine = offline(server, "seed", reasoning_effort="low", body={"service_tier": "flex"})
        prompt = (Message("system", "double"), Message("user", "2 * 4 ="))
        sample(engine, ask(prompt=prompt, temperature=0.25, top_p=0.5, stop=("x",)))
        body = server.calls[0].body
        assert body["messages"] == [{"role": m.role, "content": m.content} for m in prompt]
        wanted = {
            "temperature": 0.25,
            "top_p": 0.5,
            "stop": ["x"],
            "seed": 3,
            "reasoning_effort": "low",
            "stream": True,
        }
        assert wanted | {"service_tier": "flex", "model": "mock"} == {
            k: body[k] for k in [*wanted, "service_tier", "model"]
        }
        assert server.calls[0].key == "sk-secret"


def test_the_scripted_speaker_is_right_as_often_as_it_should():
    assert solver(1.0)([{"role": "user", "content": "2 * 4 ="}], __import__("random").Random(0))[1] == "8"
