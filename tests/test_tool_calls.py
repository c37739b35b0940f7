"""Tool calls are read from what a model wrote, between its markers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mocks import sample

from ponder.engines.replay import Replay
from ponder.engines.simulated import Simulated
from ponder.errors import Unsupported
from ponder.responses import split_response
from ponder.search.trace import Tree
from ponder.types import (
    Completion,
    FinishReason,
    Message,
    Request,
    Response,
    SamplingParams,
    Spend,
    ThoughtFormat,
    Tool,
    ToolCall,
    ToolFormat,
)

FORMAT = ToolFormat()
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
THOUGHT = ThoughtFormat("<think>", "</think>")
ADD = '{"name": "add", "arguments": {"a": 1, "b": "ü"}}'


def read(text: str, finish: FinishReason = STOP) -> Response:
    return split_response(text, finish, THOUGHT, FORMAT)


def test_a_call_is_found_and_the_text_beside_it_is_the_answer() -> None:
    response = read(f"<think>hm</think>Let me see.\n<tool_call>\n{ADD}\n</tool_call>")
    assert response.tool_calls == (ToolCall("call_0", "add", '{"a": 1, "b": "ü"}'),)
    assert (response.answer, response.thought) == ("Let me see.\n", "hm")
    assert response.tool_calls[0].values() == {"a": 1, "b": "ü"}


def test_several_calls_are_found_in_order_with_ids_of_their_own() -> None:
    response = read(f"<tool_call>{ADD}</tool_call>, <tool_call>{{'no'}}</tool_call><tool_call>{ADD}</tool_call>")
    assert [c.id for c in response.tool_calls] == ["call_0", "call_1"]
    assert response.answer == ", <tool_call>{'no'}</tool_call>"


@pytest.mark.parametrize(
    "inside",
    ["", "{", "[1]", "{}", '{"name": 3}', '{"name": ""}', "add(1, 2)", '{"a":' * 5000, "[" * 100_000],
    ids=range(9),
)
def test_what_is_no_call_stays_text(inside: str) -> None:
    text = f"a<tool_call>{inside}</tool_call>b"
    assert read(text) == Response(text, None, text)


def test_an_open_call_and_a_truncated_one_are_none() -> None:
    assert read(f"<tool_call>{ADD}").tool_calls == ()
    assert read(f"<tool_call>{ADD}</tool_call>", LENGTH) == Response(None, None, f"<tool_call>{ADD}</tool_call>")


def test_a_call_within_a_thought_is_none() -> None:
    response = read(f"<think><tool_call>{ADD}</tool_call></think>3")
    assert (response.tool_calls, response.answer) == ((), "3")


def test_arguments_that_are_no_object_are_kept_as_they_are() -> None:
    (call,) = read('<tool_call>{"name": "f", "arguments": "1 + 2"}</tool_call>').tool_calls
    assert (call.arguments, call.values()) == ("1 + 2", None)
    (bare,) = read('<tool_call>{"name": "f"}</tool_call>').tool_calls
    assert bare.values() == {}


def test_without_a_tool_format_nothing_is_read() -> None:
    text = f"<tool_call>{ADD}</tool_call>"
    assert split_response(text, STOP, THOUGHT) == Response(text, None, text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    calls=st.lists(st.tuples(st.text(min_size=1), st.dictionaries(st.text(), JSON, max_size=3)), max_size=3),
    between=st.text(alphabet="ab \n", max_size=5),
)
def test_calls_that_were_written_are_read(calls: list[tuple[str, dict]], between: str) -> None:
    written = [json.dumps({"name": name, "arguments": arguments}) for name, arguments in calls]
    assume(not any("</tool_call>" in w for w in written))
    response = read(between + "".join(f"<tool_call>\n{w}\n</tool_call>{between}" for w in written))
    assert [(c.name, c.values()) for c in response.tool_calls] == calls
    assert response.answer == between * (len(calls) + 1)


def test_calls_beside_the_text_are_those_of_the_node() -> None:
    call = ToolCall("call_abc", "add", "{}")
    completion = Completion("3", STOP, Spend(), tool_calls=(call,))
    assert Tree("p", None).add(0, completion).response == Response("3", None, "3", (call,))
    text = f"<tool_call>{ADD}</tool_call>"
    tree = Tree("p", None, FORMAT)
    assert tree.add(0, Completion(text, STOP, Spend())).response.tool_calls[0].name == "add"


def test_engines_without_a_model_refuse_tools(tmp_path: Path) -> None:
    prompt = (Message("user", "1 + 1?", tools=(Tool("add"),)),)
    request = Request(prompt, SamplingParams(16))
    with pytest.raises(Unsupported, match="this simulated engine calls no tools"):
        sample(Simulated().open("simulated"), request)
    pool = tmp_path / "pool.jsonl"
    pool.write_text(
        '{"problem_id": "p", "prompt": "1 + 1?", "samples": [{"text": "2", "tokens": 1, "correct": true}]}\n'
    )
    with pytest.raises(Unsupported, match=r"pool\.jsonl: a recorded pool calls no tools"):
        sample(Replay().open(str(pool)), request)
