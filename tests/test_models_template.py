"""Chat templates: tools and calls as transformers renders them, texts that forge nothing, ids as they were sampled."""

from __future__ import annotations

import json

import pytest
from chat_templates import TOOLS, with_template
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.errors import Unsupported, UserError
from ponder.models import tiny
from ponder.models import tools as tool_formats
from ponder.models.base import LoadedModel
from ponder.types import Message, Tool, ToolCall, ToolFormat

SCHEMA = (
    '{"type": "object", "properties": {"text": {"type": "string", "description": "Was 7 ist"}}, "required": ["text"]}'
)
FIND = Tool("find", "Finds ümläuts", SCHEMA)
CALL = ToolCall("call_0", "find", '{"text": "a \\"b\\" ü", "n": [1, 2.5, null, true], "more": {"x": "y"}}')
CHAT = (
    Message("system", "Be <brief>.", tools=(FIND, Tool("stop"))),
    Message("user", "Find & 'quote' it"),
    Message("assistant", "I look.", tool_calls=(CALL, ToolCall("call_1", "stop"))),
    Message("tool", "found", tool_call_id="call_0", name="find"),
    Message("tool", "", tool_call_id="call_1", name="stop"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "again", tool_call_id="call_0", name="find"),
)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return with_template(tiny.new_model(0), TOOLS)


def as_transformers(messages: tuple[Message, ...]) -> tuple[list[dict], list[dict] | None]:
    """What a user of transformers writes."""
    rows = []
    for m in messages:
        row = {"role": m.role, "content": m.content}
        if m.tool_calls:
            row["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": json.loads(c.arguments)}}
                for c in m.tool_calls
            ]
        rows.append(row | ({"tool_call_id": m.tool_call_id, "name": m.name} if m.role == "tool" else {}))
    tools = [
        {
            "type": "function",
            "function": {"name": t.name, "description": t.description, "parameters": json.loads(t.parameters)},
        }
        for m in messages
        for t in m.tools
    ]
    return rows, tools or None


@pytest.mark.parametrize("messages", [CHAT, CHAT[:2], CHAT[1:2], CHAT[:3]], ids=len)
def test_tools_and_calls_are_what_transformers_makes_of_them(model: LoadedModel, messages: tuple[Message, ...]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny.build_tokenizer(), chat_template=TOOLS)
    rows, tools = as_transformers(messages)
    text = theirs.apply_chat_template(rows, tools=tools, tokenize=False, add_generation_prompt=True)
    assert model.render(messages) == text
    ids = theirs.apply_chat_template(rows, tools=tools, add_generation_prompt=True, return_dict=False)
    assert list(model.prompt_ids(messages)) == ids


EVIL = st.lists(
    st.sampled_from([*tiny.MARKERS, "<|end", "|>", '"', "\\", "\n", "é", "\ue0000\ue001", "\ue0030\ue004", "x"]),
    max_size=4,
).map("".join)


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(EVIL, min_size=10, max_size=10))
def test_no_text_from_outside_forges_a_marker(model: LoadedModel, texts: list[str]) -> None:
    def chat(t: list[str]) -> tuple[Message, ...]:
        schema = json.dumps({"type": "object", "properties": {f"k{t[0]}": {"type": "string", "description": t[1]}}})
        arguments = json.dumps({f"a{t[4]}": [t[5], {"b": t[6]}]})
        return (
            Message("system", f"s{t[2]}", tools=(Tool("find", f"d{t[3]}", schema),)),
            Message("user", f"u{t[7]}"),
            Message("assistant", "c", tool_calls=(ToolCall("0", "find", arguments), ToolCall("1", "find", f"b{t[8]}"))),
            Message("tool", f"r{t[9]}", tool_call_id="0", name="find"),
        )

    def markers(messages: tuple[Message, ...]) -> list[int]:
        known = {model.tokenizer.id_of(m) for m in tiny.MARKERS}
        return [i for i in model.prompt_ids(messages) if i in known]

    assert markers(chat(texts)) == markers(chat(["x"] * 10))
    # And nothing is lost: what the ids spell is the prompt as a person reads it.
    assert model.tokenizer.decode(model.prompt_ids(chat(texts))) == model.render(chat(texts))


def test_keys_are_sorted_as_their_texts_are(model: LoadedModel) -> None:
    template = "{{ messages[0].tool_calls[0].function.arguments | tojson(sort_keys=True, ensure_ascii=True) }}"
    call = Message("assistant", "", tool_calls=(ToolCall("0", "f", '{"b": "ä", "a": "z", "c": 1}'),))
    sorting = with_template(model, template)
    assert sorting.tokenizer.decode(sorting.prompt_ids((call,))) == '{"a": "z", "b": "\\u00e4", "c": 1}'


def continued(model: LoadedModel, ids: tuple[int, ...], *more: Message) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids of a prompt with a response to it, and those of the prompt of the turn after that."""
    asked = (Message("user", "12 + 34?", tools=(FIND,)),)
    said = Message("assistant", model.tokenizer.decode(ids), ids=ids)
    return model.prompt_ids(asked) + ids, model.prompt_ids((*asked, said, *more))


@settings(deadline=None, max_examples=40)
@given(sampled=st.lists(st.integers(0, 400), min_size=1, max_size=12), ended=st.booleans())
def test_the_next_prompt_begins_with_the_ids_of_the_turn_before(
    model: LoadedModel, sampled: list[int], ended: bool
) -> None:
    end = model.end_ids[0]
    ids = (*(i for i in sampled if i != end), *((end,) if ended else ()))
    if not ids:
        return
    before, after = continued(model, ids, Message("tool", "found", tool_call_id="call_0", name="find"))
    assert after[: len(before)] == before
    # One end marker, whether it was sampled or the template wrote it.
    rest = after[len(before) :]
    written = model.tokenizer.decode(rest)
    tail = "\n<|reserved0|>user\n<tool_response>\nfound\n</tool_response><|end|>\n<|reserved0|>assistant\n"
    assert written == ("" if ended else "<|end|>") + tail


EMPTY_THOUGHT = (
    "{%- for m in messages -%}<|{{ m.role }}|>{%- if m.role == 'assistant' -%}<think></think>{%- endif -%}"
    "{{ m.content }}<|end|>{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


@pytest.mark.parametrize("template", [tiny.TEMPLATE, EMPTY_THOUGHT], ids=["opens a thought", "writes an empty one"])
def test_a_past_response_stands_after_what_its_prompt_ended_with(template: str) -> None:
    model = with_template(tiny.new_model(0), template)
    ids = (*model.tokenizer.encode("1</think>2", special=True), model.end_ids[0])
    asked = (Message("user", "Hi"),)
    said = Message("assistant", "2", ids=ids)
    before = model.prompt_ids(asked) + ids
    assert model.prompt_ids((*asked, said, Message("user", "And?")))[: len(before)] == before


def test_calls_are_in_the_ids_already(model: LoadedModel) -> None:
    ids = (*model.tokenizer.encode("<tool_call>{}</tool_call>", special=True), model.end_ids[0])
    asked = (Message("user", "Hi"),)
    plain, called = (
        model.prompt_ids((*asked, Message("assistant", "", tool_calls=calls, ids=ids))) for calls in ((), (CALL,))
    )
    assert plain == called


def test_a_template_without_tools_refuses_them() -> None:
    model = tiny.new_model(0)
    with pytest.raises(Unsupported, match="the chat template of ponder-tiny offers no tools"):
        model.prompt_ids((Message("user", "Hi", tools=(FIND,)),))
    with pytest.raises(Unsupported, match="the chat template of ponder-tiny writes no tool calls"):
        model.prompt_ids((Message("assistant", "", tool_calls=(CALL,)),))


def test_the_tool_format_follows_from_the_template_and_the_config(model: LoadedModel) -> None:
    assert model.info.tools == ToolFormat()
    assert tool_formats.find(tiny.new_model(0)) is None
    model = with_template(model, TOOLS)
    model.config = {"ponder": {"tools": None}}
    assert tool_formats.find(model) is None
    model.config = {"ponder": {"tools": {"open": "[", "close": "]"}}}
    assert tool_formats.find(model) == ToolFormat("[", "]")
    model.config = {"ponder": {"tools": {"open": "["}}}
    with pytest.raises(UserError, match=r"config\.json: ponder\.tools must be null or have the texts"):
        tool_formats.find(model)


def test_a_tool_without_a_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="tool 'f': parameters are not a JSON object"):
        Tool("f", parameters="[]")
