"""What finding out about an endpoint may cost: never more than its share of a budget, and what was left out is said."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mocks import sample
from openai_play import ask, fresh
from openai_server import Behaviour, Fault, Server

from ponder import registry
from ponder.engines.openai import OpenAI
from ponder.engines.openai.options import CAPABILITIES
from ponder.engines.openai.probe import SHARE, forget
from ponder.errors import UserError
from ponder.types import FinishReason, Spend

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    fresh(monkeypatch)


KINDS = [None, None, None, Fault("drop", 3), Fault("garbage", 1), Fault("status", status=503)]


def test_the_probe_keeps_to_its_share_of_the_budget_whatever_the_endpoint_does():
    behaviours = [
        Behaviour(usage="running", thinking="thinking_budget"),
        Behaviour(n=False, seed=False, prefix="plain", refuses=("logprobs", "top_k", "continuous_usage_stats")),
        Behaviour(usage="none", refuses=("max_tokens", "seed")),
    ]
    servers = [Server(b) for b in behaviours]
    with servers[0], servers[1], servers[2]:

        @settings(max_examples=30, deadline=None)
        @given(
            tokens=st.integers(0, 5000),
            which=st.sampled_from(servers),
            script=st.lists(st.sampled_from(KINDS), max_size=6),
        )
        def holds(tokens, which, script):
            forget()
            which.calls.clear()
            which.behaviour.faults = lambda number, body: script[number] if number < len(script) else None
            engine = OpenAI(which.url, backoff=0.0, retries=9).open_within("mock", tokens)
            which.wait_quiet()
            assert which.tokens() <= engine.opening.tokens <= tokens / SHARE
            assert engine.opening.tokens > 0 or which.tokens() == 0
            can = engine.capabilities
            assert not any(getattr(can, name) for name in engine.findings.unasked)

        holds()


def test_a_larger_budget_finds_out_more_and_a_large_one_everything():
    with Server(Behaviour(usage="running", thinking="thinking_budget")) as server:
        unasked = []
        for tokens in (0, 600, 20_000):
            engine = OpenAI(server.url, template_tokens=20).open_within("mock", tokens)
            unasked.append(set(engine.findings.unasked))
        # A caller with a larger budget probes what a small one skipped, in the same process.
        assert unasked[0] == set(CAPABILITIES) > unasked[1] > unasked[2] == set()
        whole = engine.findings
        forget()
        assert OpenAI(server.url, template_tokens=20).open("mock").findings == whole


def test_what_was_skipped_is_warned_of_once_with_the_numbers_and_how_to_fix_it(caplog):
    with Server() as server:
        engine = OpenAI(server.url).open_within("mock", 600)
        assert (engine.opening.tokens, len(server.calls)) == (0, 0)
        (said,) = [r.getMessage() for r in caplog.records]
        assert "whether it can do n, logprobs, seed, prefix, thinking" in said
        assert "150 of the 150 that the budget allows the probe are left" in said
        assert "give a larger budget" in said
        assert "probe=false and capabilities" in said
        # The question itself has its budget.
        assert sample(engine, ask())[0].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_the_probe_ends_with_its_share_of_the_seconds_and_a_call_that_was_cut_is_booked_at_its_worst(seconds, caplog):
    with Server(Behaviour(faults=lambda n, b: Fault("hang", 2))) as server:
        engine = OpenAI(server.url).open_within("mock", seconds=seconds)
        server.wait_quiet()
        assert engine.findings.unasked == CAPABILITIES
        assert server.tokens() <= engine.opening.tokens
        assert (engine.opening.tokens > 0) == bool(server.calls) == (seconds > 0)
        assert engine.opening.seconds < 10
        assert any("seconds" in r.getMessage() for r in caplog.records)


def test_engines_that_share_a_probe_share_what_it_found_and_one_of_them_what_it_cost():
    with Server(Behaviour(usage="running")) as server:

        async def many():
            return await asyncio.gather(*(OpenAI(server.url).open_async("mock", 2000) for _ in range(4)))

        engines = asyncio.run(many())
        assert len({e.findings for e in engines}) == 1
        assert sum((e.opening for e in engines), Spend()).tokens == server.tokens()
        assert sum(e.opening != Spend() for e in engines) == 1


def test_fields_that_the_options_state_are_sent_with_the_probe_and_without():
    with Server(Behaviour(refuses=("max_tokens", "stream_options"))) as server:
        stated = {"limit_field": "max_completion_tokens", "usage": "none", "template_tokens": 8}
        engine = OpenAI(server.url, probe=False, **stated).open("mock")
        assert sample(engine, ask())[0].finish_reason is FinishReason.STOP
        bodies = [c.body for c in server.calls]
        found = OpenAI(server.url, **stated).open("mock").findings
        assert (found.limit_field, found.usage) == ("max_completion_tokens", "none")
        assert all("max_completion_tokens" in c.body and "stream_options" not in c.body for c in server.calls), bodies
    with pytest.raises(UserError, match="limit_field"):
        registry.build("engines", "openai", {"base_url": server.url, "limit_field": "most"})


def test_what_is_known_of_an_endpoint_is_not_asked_again_in_another_process():
    with Server(Behaviour(usage="running", thinking="thinking_budget", context=5000)) as server, Server() as other:
        first = OpenAI(server.url).open("mock")
        known, asked = json.loads(json.dumps(first.known)), len(server.calls)
        forget()
        again = OpenAI(server.url).open_within("mock", 0, 0.0, known)
        assert (again.findings, again.info, again.known) == (first.findings, first.info, known)
        assert (again.opening, len(server.calls)) == (Spend(), asked)
        assert server.url not in json.dumps(known)
        # What is known of another endpoint, or cannot be read, is asked.
        for of, values in ((other, known), (server, {**known, "findings": {"prefix": "no such"}}), (server, {})):
            forget()
            before = len(of.calls)
            assert OpenAI(of.url).open_within("mock", known=values).opening.tokens > 0
            assert len(of.calls) > before


def test_a_partial_probe_changes_nothing_of_what_it_did_find():
    with Server(Behaviour(usage="running")) as server:
        whole = OpenAI(server.url).open("mock").findings
        forget()
        part = OpenAI(server.url).open_within("mock", 1500).findings
        assert 0 < len(part.unasked) < len(CAPABILITIES)
        known = [name for name in ("n", "logprobs", "seed", "prefix", "thinking") if name not in part.unasked]
        assert [getattr(part, name) for name in known] == [getattr(whole, name) for name in known]
        assert part.template_tokens == whole.template_tokens
