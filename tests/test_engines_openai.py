"""The engine of OpenAI-compatible endpoints, with the real client, against a server on localhost that counts itself."""

import asyncio
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mocks import MockEngine, sample
from openai_play import QUESTION, ask, faults, fresh, offline, spent
from openai_server import Behaviour, Fault, Piece, Scripted, Server, solver, tokens

from ponder import registry
from ponder.engines._ending import finish_word
from ponder.engines.openai import OpenAI
from ponder.engines.openai.faults import EndpointFailed
from ponder.engines.openai.parts import Malformed, texts
from ponder.engines.openai.received import Received
from ponder.engines.openai.tokens import Counter, apportion, bytes_bound
from ponder.errors import Unsupported, UserError
from ponder.protocols import WeightsUpdate
from ponder.responses import split_response
from ponder.search.strategies.best_of_n import mean_logprob
from ponder.types import FinishReason, Message, Request, SamplingParams, Spend, Thinking

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    fresh(monkeypatch)


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


def test_what_an_endpoint_refuses_or_ignores_is_warned_of_once_each_and_denied(caplog):
    behaviour = Behaviour(n=False, seed=False, prefix="", refuses=("logprobs", "continuous_usage_stats", "top_k"))
    with Server(behaviour) as server:
        engine = OpenAI(server.url).open("mock")
        can = engine.capabilities
        assert (can.n, can.logprobs, can.seed, can.prefix, can.thinking) == (False,) * 5
        for word in ("no n:", "log-probabilities", "seed", "continue", "cannot bound a thought"):
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


def test_without_usage_tokens_are_bounded_with_a_warning(caplog):
    with Server(Behaviour(usage="none")) as server:
        engine = offline(server)
        completions = sample(engine, ask())
        assert server.tokens() <= spent(completions).tokens <= engine.count_tokens(QUESTION) + 200
        assert sum("no usage" in r.getMessage() for r in caplog.records) == 1


@pytest.mark.parametrize("can", [(), ("logprobs",)])
def test_without_usage_a_response_that_reached_its_limit_is_booked_at_no_more(can):
    backend = Scripted(Behaviour(usage="none"), lambda m, r: ("so carry " * 40, "42"))
    with Server(backend.behaviour, backend) as server:
        engine = offline(server, *can)
        completions = sample(engine, ask(43))
        assert completions[0].finish_reason is FinishReason.LENGTH
        assert server.tokens() <= spent(completions).tokens == engine.count_tokens(QUESTION) + 43


def test_log_probabilities_come_without_ids_and_can_be_chosen_by():
    with Server() as server:
        completion = sample(offline(server, "logprobs"), ask())[0]
        assert completion.segments == ()
        assert len(completion.logprobs) > 3
        assert mean_logprob([completion]) == pytest.approx(sum(completion.logprobs) / len(completion.logprobs))


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
            asyncio.run(engine.load_weights(WeightsUpdate({}, 1)))
        assert not server.calls


# Counting -----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_bytes_bound_every_tokenizer_whose_tokens_spell_a_byte_each(text):
    assert bytes_bound(text) >= len(text.encode("utf-8", "surrogatepass"))
    assert bytes_bound(text) >= len(tokens(text))


@settings(max_examples=50)
@given(st.integers(0, 500), st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_shares_add_up_and_follow_the_weights(total, weights):
    shares = apportion(total, weights)
    assert sum(shares) == total
    if whole := sum(weights):
        assert all(abs(s - total * w / whole) < 1 for s, w in zip(shares, weights, strict=True))


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


def test_the_server_counts_the_true_tokens_of_a_call_that_does_not_stream_too():
    import openai

    with Server() as server:
        client = openai.OpenAI(base_url=server.url, api_key="sk-other", max_retries=0)
        done = client.chat.completions.create(model="mock", messages=[{"role": "user", "content": QUESTION}], n=2)
        client.close()
        assert [c.finish_reason for c in done.choices] == ["stop", "stop"]
        assert done.usage.total_tokens == server.tokens("sk-other") == server.tokens()
        assert server.tokens("sk-secret") == 0


def test_the_endpoint_of_the_benchmarks_counts_what_its_engine_samples(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks" / "workers"))
    import endpoint

    with Server(Behaviour(reasoning=""), endpoint.Model(MockEngine("so</think>42"))) as server:
        completions = sample(offline(server, "n"), ask(prompt="2 * 21 =", n=2))
        assert [c.text for c in completions] == ["so</think>42"] * 2
        # Characters, one token each marker, and the end of each response.
        assert spent(completions).tokens == server.tokens() == len("2 * 21 =") + 2 * 6


def test_the_scripted_backend_is_right_as_often_as_it_should():
    assert solver(1.0)([{"role": "user", "content": "2 * 4 ="}], random.Random(0))[1] == "8"


# Forms of an answer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("behaviour", [{}, {"parts": True}, {"parts": True, "reasoning": ""}], ids=str)
@pytest.mark.parametrize("n", [1, 2])
def test_an_answer_is_the_same_in_every_form(streams, behaviour, n):
    with Server() as server:
        plain = sample(offline(server, "n", "seed", "logprobs"), ask(n=n))
    with Server(Behaviour(streams=streams, **behaviour)) as server:
        completions = sample(offline(server, "n", "seed"), ask(n=n))
        assert [c.text for c in completions] == [c.text for c in plain]
        assert all(c.finish_reason is FinishReason.STOP and c.error is None for c in completions)
        assert spent(completions).tokens == server.tokens()
        if not streams:
            can = OpenAI(server.url, backoff=0.0).open("mock").capabilities
            assert (can.n, can.logprobs, can.seed) == (True, False, True)


TEXT, HM = {"type": "text", "text": "4"}, {"type": "text", "text": "hm"}


@pytest.mark.parametrize(
    ("delta", "wanted"),
    [
        ({"content": "4"}, [(False, "4")]),
        ({"content": [TEXT, {"type": "output_text", "text": "2"}]}, [(False, "4"), (False, "2")]),
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, TEXT]},
            [(True, "hm"), (False, "4")],
        ),
        ({"content": [{"type": "thinking", "thinking": "hm", "signature": "x"}, TEXT]}, [(True, "hm"), (False, "4")]),
        ({"content": [{"type": "reasoning", "reasoning": "hm"}]}, [(True, "hm")]),
        ({"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}]}, [(True, "hm")]),
        ({"content": [{"type": "reasoning_text", "text": "hm"}]}, [(True, "hm")]),
        ({"content": [{"text": "hm", "thought": True}, {"text": "4"}]}, [(True, "hm"), (False, "4")]),
        ({"content": ["4", {"type": "text", "text": {"value": "2"}}]}, [(False, "4"), (False, "2")]),
        ({"content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text"}]}, []),
        ({"content": {"type": "text", "text": "4"}}, [(False, "4")]),
        ({"reasoning_content": "hm", "reasoning": "hm", "content": None}, [(True, "hm")]),
        ({"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}, [(True, "hm")]),
        ({"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}, []),
        ({"thinking": "hm", "content": ""}, [(True, "hm")]),
        (None, []),
    ],
)
def test_texts_are_read_from_parts_in_their_order(delta, wanted):
    assert texts(delta) == wanted


@pytest.mark.parametrize("content", [3, True, [3], [{"type": "image_url", "image_url": {}}], [[[[[[[[["4"]]]]]]]]]])
def test_what_is_no_text_is_malformed(content):
    with pytest.raises(Malformed, match="a chunk's content"):
        texts({"content": content})


@pytest.mark.parametrize(
    ("said", "finish", "error"),
    [
        *((word, FinishReason.STOP, None) for word in ("STOP", "eos", "end_turn", "Stop-Sequence", "COMPLETE")),
        *((word, FinishReason.STOP, None) for word in ("FinishReason.STOP", "FINISH_REASON_STOP", "eos_token")),
        *((word, FinishReason.LENGTH, None) for word in ("LENGTH", "max_tokens", "MAX_TOKENS", "model_length")),
        ("CONTENT_FILTER", FinishReason.LENGTH, "content filter"),
        ("SAFETY", FinishReason.LENGTH, "content filter"),
        ("refusal", FinishReason.LENGTH, "content filter"),
        ("tool_use", FinishReason.LENGTH, "none was offered"),
        ("boredom", FinishReason.LENGTH, "finish_reason 'boredom'"),
    ],
)
def test_why_a_response_ended_is_read_in_the_words_of_every_server(said, finish, error):
    with Server(Behaviour(words={"stop": said})) as server:
        completion = sample(offline(server, "seed"), ask())[0]
        assert completion.finish_reason is finish
        assert completion.error is None if error is None else error in completion.error
        assert len(server.calls) == 1


@pytest.mark.parametrize("said", ["abort", "ERROR", "insufficient_system_resource"])
def test_an_endpoint_that_gives_up_is_asked_again(said):
    with Server(Behaviour(words={"stop": said})) as server:
        with pytest.raises(EndpointFailed, match="gave up, with finish_reason"):
            sample(offline(server, "seed", retries=1), ask(1000))
        assert len(server.calls) == 2


@pytest.mark.parametrize("word", [None, "", "null", "None", "FINISH_REASON_UNSPECIFIED", False])
def test_a_response_without_a_reason_goes_on(word):
    assert finish_word(word) == ""


# Equal tokens side by side --------------------------------------------------------------------------------------------


class Sayer:
    """Says given pieces, each with its tokens and log-probability."""

    def __init__(self, *pieces, end=1):
        self.pieces, self.end = pieces, end

    def prompt_tokens(self, body):
        return 5

    async def sample(self, body, n, most):
        for text, count, logprob in self.pieces:
            yield Piece(0, text, count, logprob=logprob)
        yield Piece(0, "", self.end, finish="stop")


@pytest.mark.parametrize("can", [("seed",), ("seed", "logprobs")], ids=len)
@pytest.mark.parametrize("usage", ["final", "running", "none"])
def test_equal_tokens_side_by_side_are_all_kept(usage, can):
    words = [" ha", " ha", " ha", "6", "6", "6", "6", "0", "0", " ha"]
    backend = Sayer(*((w, 1, -0.25) for w in words))
    with Server(Behaviour(usage=usage), backend) as server:
        body = {"stream_options": {"continuous_usage_stats": True, "include_usage": True}} if usage == "running" else {}
        completion = sample(offline(server, *can, body=body), ask())[0]
        assert completion.text == "".join(words)
        assert len(server.calls) == 1
        if "logprobs" in can:
            assert completion.logprobs == (-0.25,) * len(words)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["6", "ha", " "]), min_size=1, max_size=12), st.sampled_from([0, 1]))
def test_no_token_is_dropped_whatever_is_said(words, end):
    received = Received(1, None)
    chunk = {"id": "c", "created": 1}
    for word in words:
        logprobs = {"content": [{"token": word, "logprob": -0.5}]}
        received.feed(chunk | {"choices": [{"index": 0, "delta": {"content": word}, "logprobs": logprobs}]})
    received.feed(chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    received.feed(chunk | {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": len(words) + end}})
    assert received.samples[0].text == "".join(words)
    assert len(received.samples[0].logprobs) == len(words)
    assert received.over == 0


def test_an_endpoint_whose_pieces_are_smaller_than_tokens_is_not_accused_of_repeating():
    # "haha" is one token, and comes letter by letter; only what was seen before tells it from a repeat.
    varied = Sayer(*((c, int(c == "h"), None) for c in "the haha"))
    same = Sayer(("6", 1, None), ("6", 0, None), ("6", 0, None))
    with Server(Behaviour(usage="final"), varied) as server:
        engine = offline(server, "seed", retries=1)

        async def go():
            first = await engine.generate(ask())
            server.backend = same
            second = await engine.generate(ask())
            await engine.close()
            return first[0].text, second[0].text

        assert asyncio.run(go()) == ("the haha", "666")
        assert len(server.calls) == 2


def test_a_chunk_with_the_random_text_of_the_one_before_is_the_same_one():
    received = Received(1, None)
    for padding in ("k3XwQz", "k3XwQz", "pL0aaa", "", ""):
        received.feed({"choices": [{"index": 0, "delta": {"content": "6"}}], "obfuscation": padding})
    assert received.samples[0].text == "6666"
