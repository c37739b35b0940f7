"""Tools at an OpenAI-compatible endpoint: what is sent, what is read from the stream, what is reserved for it."""

from __future__ import annotations

import json

import pytest
from mocks import sample
from openai_play import ask, fresh, offline
from openai_server import Behaviour, Piece, Server, tokens

from ponder.engines.openai.tokens import Counter
from ponder.search.trace import Tree
from ponder.types import FinishReason, Message, Tool, ToolCall

pytest.importorskip("openai")

ADD = Tool("add", "Adds", '{"type": "object", "properties": {"a": {"type": "integer"}}}')
CALL = ToolCall("c1", "add", '{"a": 1}')
ASKED = (Message("user", "1 + 1?", tools=(ADD,)),)
LATER = (*ASKED, Message("assistant", "", tool_calls=(CALL,)), Message("tool", "2", tool_call_id="c1", name="add"))
DELTAS = (
    {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"a":'}},
    {"index": 0, "function": {"arguments": " 1}"}},
    {"index": 1, "id": "c2", "type": "function", "function": {"name": "add", "arguments": "{}"}},
)


class Caller:
    """Says a text, then calls tools; counts what a template would write of tools and calls."""

    def __init__(self, text=("Let", " me"), deltas=DELTAS, finish="tool_calls", thought=()):
        self.text, self.deltas, self.finish, self.thought = text, deltas, finish, thought

    def prompt_tokens(self, body):
        return 3 + len(tokens(json.dumps([body["messages"], body.get("tools")])))

    async def sample(self, body, n, most):
        for text in self.thought:
            yield Piece(0, text, 1, thought=True)
        for text in self.text:
            yield Piece(0, text)
        for delta in self.deltas:
            yield Piece(0, f"@{json.dumps(delta)}", 4)
        yield Piece(0, "", 1, finish=self.finish)


class Calling(Server):
    def _choice(self, piece, body):
        if piece.text.startswith("@"):
            return {"index": 0, "delta": {"tool_calls": [json.loads(piece.text[1:])]}, "finish_reason": None}
        return super()._choice(piece, body)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    fresh(monkeypatch)


def test_tools_calls_and_results_are_sent_as_the_api_has_them():
    with Calling(Behaviour(), Caller(deltas=(), finish="stop")) as server:
        sample(offline(server), ask(prompt=LATER))
        body = server.calls[0].body
    function = {"name": "add", "description": "Adds", "parameters": json.loads(ADD.parameters)}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["messages"] == [
        {"role": "user", "content": "1 + 1?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"},
    ]


def test_without_tools_the_body_is_what_it_was():
    with Calling(Behaviour(), Caller(deltas=(), finish="stop")) as server:
        sample(offline(server), ask())
        assert "tools" not in server.calls[0].body


@pytest.mark.parametrize("finish", ["tool_calls", "stop"])
def test_streamed_calls_are_the_completions(finish):
    with Calling(Behaviour(), Caller(finish=finish)) as server:
        (completion,) = sample(offline(server), ask(prompt=ASKED))
        assert completion.tool_calls == (CALL, ToolCall("c2", "add", "{}"))
        assert (completion.text, completion.finish_reason, completion.error) == ("Let me", FinishReason.STOP, None)
        response = Tree("p", None).add(0, completion).response
        assert (response.answer, response.tool_calls) == ("Let me", completion.tool_calls)
        assert completion.spend.tokens == server.tokens()


def test_a_call_ends_a_thought_from_a_separate_field():
    with Calling(Behaviour(), Caller(text=(), thought=("hm",))) as server:
        engine = offline(server)
        (completion,) = sample(engine, ask(prompt=ASKED))
    response = Tree("p", engine.info.thought).add(0, completion).response
    assert (response.thought, response.answer, len(response.tool_calls)) == ("hm", "", 2)


def test_a_call_of_a_tool_that_was_not_offered_is_an_error_still():
    with Calling(Behaviour(), Caller()) as server:
        (completion,) = sample(offline(server), ask())
    assert completion.error == "the model called a tool, and none was offered"
    assert (completion.tool_calls, completion.finish_reason) == ((), FinishReason.LENGTH)


def test_a_truncated_call_is_no_call():
    with Calling(Behaviour(), Caller(deltas=DELTAS[:2], finish="length")) as server:
        (completion,) = sample(offline(server), ask(prompt=ASKED))
    assert (completion.tool_calls, completion.finish_reason) == ((), FinishReason.LENGTH)


def test_without_usage_calls_are_bounded():
    with Calling(Behaviour(usage="none"), Caller()) as server:
        (completion,) = sample(offline(server), ask(prompt=ASKED, max_tokens=2000))
        assert server.calls[0].sampled_tokens <= completion.spend.sampled_tokens <= 400


def test_the_bound_of_a_prompt_counts_tools_and_calls():
    counter = Counter("", 8, 8)
    plain = counter.prompt((Message("user", "1 + 1?"),))
    assert counter.prompt(ASKED) - plain > len(ADD.parameters) + len(ADD.description)
    caller = Caller()
    for prompt in (ASKED, LATER):
        with Calling(Behaviour(), caller) as server:
            engine = offline(server)
            sample(engine, ask(prompt=prompt))
            assert Counter("", 8, 8).prompt(prompt) >= server.calls[0].prompt_tokens
    called = counter.prompt(LATER) - counter.prompt((*ASKED, Message("assistant", ""), Message("tool", "2")))
    assert called > len(CALL.arguments) + len(CALL.name)
