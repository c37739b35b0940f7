"""The one reader of JSON Lines, and the one of prompts."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder import jsonl
from ponder.errors import UserError
from ponder.messages import read_prompt
from ponder.types import Message, Tool, ToolCall, to_json

# JSON Lines -----------------------------------------------------------------------------------------------------------


def read(path, **options):
    return [(number, value) for number, _, value in jsonl.objects(path, **options)]


def test_lines_are_numbered_as_an_editor_does_and_blank_ones_and_the_mark_are_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \r\n{"a": "\xc3\xa9"}\r\n')
    assert read(path) == [(1, {"a": 1}), (4, {"a": "é"})]
    assert [where for _, where, _ in jsonl.objects(path)] == [f"{path}: line 1", f"{path}: line 4"]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == read(path)


BAD = {
    "not UTF-8": (b'{"a": "\xff"}\n', "line 2 is not UTF-8: invalid start byte at its byte 8"),
    "a number": (b"12\n", "line 2 is not a JSON object but int"),
    "not JSON": (b'{"a"\n', "line 2 is not valid JSON"),
    "deep": (b"[" * 100_000 + b"\n", "line 2 is not valid JSON"),
}


@pytest.mark.parametrize("torn", [None, []], ids=["refuse", "pass over"])
@pytest.mark.parametrize(("line", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_line_with_an_end_is_refused_whatever_is_done_with_a_torn_one(tmp_path, line, said, torn):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'{"a": 2}')
    with pytest.raises(UserError) as caught:
        read(path, torn=torn)
    assert str(caught.value).startswith(f"{path}: {said}")
    assert "\n" not in str(caught.value)


def test_a_torn_last_line_is_refused_or_told(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xc3')
    with pytest.raises(UserError, match="line 2 is not UTF-8"):
        read(path)
    torn = []
    assert read(path, torn=torn) == [(1, {"a": 1})]
    assert torn == [f"{path}: line 2 is torn (8 bytes) and was skipped"]


def test_a_torn_line_alone_is_nothing_only_where_nothing_is_fine(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("no JSON at all")
    with pytest.raises(UserError, match="line 1 is not valid JSON"):
        read(path, torn=[])
    torn = []
    assert read(path, torn=torn, some=False) == []
    assert len(torn) == 1


def test_what_is_no_file_with_an_object_is_refused_unless_nothing_is_fine(tmp_path):
    missing, empty = tmp_path / "missing.jsonl", tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    for path, said in ((missing, "no such file"), (empty, "is empty")):
        with pytest.raises(UserError, match=said):
            read(path)
        assert read(path, some=False) == []
    for some in (True, False):
        with pytest.raises(UserError, match="is a folder"):
            read(tmp_path, some=some)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda b: b[:-12], r"cannot be read after line \d+: Compressed file ended"),
        (lambda b: b[:20] + b"\x00" * 8 + b[28:], "cannot be read: Error -3"),
        (lambda b: b"plain", "cannot be read: Not a gzipped file"),
    ],
    ids=["cut", "overwritten", "plain"],
)
def test_a_spoilt_gzip_file_is_one_sentence(tmp_path, spoil, said):
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(b"".join(json.dumps({"a": str(i)}).encode() + b"\n" for i in range(1000)), mtime=0)
    path.write_bytes(spoil(whole))
    with pytest.raises(UserError, match=rf"a\.jsonl\.gz: {said}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@given(rows=st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), min_size=1, max_size=4))
def test_what_was_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert read(path) == list(enumerate(rows, 1))


# Prompts --------------------------------------------------------------------------------------------------------------

NAMES = st.text(min_size=1, max_size=5)
SCHEMAS = st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2).map(json.dumps)
TOOLS = st.builds(Tool, NAMES, st.text(max_size=5), SCHEMAS)
CALLS = st.builds(ToolCall, st.text(max_size=5), NAMES, st.text(max_size=5))
MESSAGES = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.text(max_size=5),
    st.lists(CALLS, max_size=2).map(tuple),
    st.text(max_size=5),
    st.text(max_size=5),
    st.lists(TOOLS, max_size=2).map(tuple),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
)


@given(prompt=st.text() | st.lists(MESSAGES, min_size=1, max_size=4).map(tuple))
def test_reading_a_prompt_is_the_inverse_of_writing_it(prompt):
    assert read_prompt(json.loads(json.dumps(to_json(prompt))), "here") == prompt


def test_tools_and_calls_are_read_as_openai_spells_them():
    weather = {"name": "weather", "description": "Of a town", "parameters": {"type": "object", "properties": {}}}
    value = [
        {"role": "user", "content": "Rain?", "tools": [{"type": "function", "function": weather}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Ulm"}'}},
                {"type": "function", "function": {"name": "weather", "arguments": {"town": "Bonn"}}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "wet"},
    ]
    assert read_prompt(value, "here") == (
        Message("user", "Rain?", tools=(Tool("weather", "Of a town", '{"type": "object", "properties": {}}'),)),
        Message(
            "assistant",
            "",
            (ToolCall("c1", "weather", '{"town": "Ulm"}'), ToolCall("", "weather", '{"town": "Bonn"}')),
        ),
        Message("tool", "wet", tool_call_id="c1", name="weather"),
    )


def test_a_content_may_be_a_list_of_texts():
    parts = [{"type": "text", "text": "Rain"}, {"type": "text", "text": "in Ulm?"}]
    assert read_prompt([{"role": "user", "content": parts}], "here") == (Message("user", "Rain\nin Ulm?"),)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "the prompt must be text, or a list of objects with role and content"),
        ([], "the prompt must be text, or a list of objects with role and content"),
        (["x"], 'message 1 of the prompt must be an object with role and content, and is "x"'),
        (
            [{"role": "boss"}],
            "message 1 of the prompt: the role must be system, user, assistant or tool, and",
        ),
        ([{"role": ["user"]}], "message 1 of the prompt: the role must be"),
        ([{"role": "user"}], "message 1 of the prompt: the content must be text, and is missing"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            "the content must be text, or a list of texts, and holds",
        ),
        ([{"role": "user", "content": [3]}], "the content must be text, or a list of texts, and holds 3"),
        ([{"role": "user", "content": "", "name": 3}], "message 1 of the prompt: name must be text, and is 3"),
        ([{"role": "user", "content": "", "tools": {}}], "message 1 of the prompt: tools must be a list, and is {}"),
        ([{"role": "user", "content": "", "tools": [{}]}], "tools: the name must be text, and is missing"),
        (
            [{"role": "user", "content": "", "tools": [{"name": "f", "parameters": "[]"}]}],
            "tools: tool 'f': parameters are not a JSON object: '[]'",
        ),
        ([{"role": "assistant", "tool_calls": ["x"]}], 'tool_calls must be objects with a name, and hold "x"'),
        (
            [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": 3}]}],
            "tool_calls: arguments must be an object, or JSON as text, and is 3",
        ),
        ([{"role": "user", "content": "", "ids": [1, True]}], "ids must be whole numbers, and hold true"),
    ],
)
def test_a_bad_prompt_is_one_sentence_that_names_the_message(value, said):
    with pytest.raises(UserError) as caught:
        read_prompt(value, "a.jsonl: line 3")
    assert str(caught.value).startswith("a.jsonl: line 3: ")
    assert said in str(caught.value)
