"""Chat templates: Hugging Face's Jinja convention, rendered in a sandbox.

Text from outside must not be able to forge a marker (`<|end|>`, `</think>`, `</tool_call>`): contents, names, call
arguments and tool descriptions. The template is rendered with a placeholder for each such text, and the texts are
tokenised separately, as plain text. So a template that inspects them (strips them, splits them at `</think>`) sees the
placeholder instead; equal texts have equal placeholders, and placeholders sort as their texts do. `strftime_now` is a
fixed date, so that a prompt is the same every day.

An assistant's message with `ids` is inserted as it was sampled: after the text that a prompt for a response ends with,
without a second end marker. So the prompt of a further turn begins with the ids of the turns before it, unless the
template leaves out or rewrites other messages.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ponder.errors import Unsupported, UserError
from ponder.models.tokenizer import Tokenizer
from ponder.types import Message, Tool, ToolCall, offered_tools

if TYPE_CHECKING:
    import jinja2

_PLACE = "\ue000\\d+[ja]*\ue001|\ue003\\d+\ue004"
"""Placeholder of a text by its number, with one `j` or `a` for each time that it was written into a JSON string (ASCII
only for `a`); or of the ids of a message by its number."""
_IN_JSON = re.compile(r"(?:\ue000|\\ue000)(\d+)([ja]*)(?:\ue001|\\ue001)")
_SCHEMA = {"type", "properties", "required", "description", "default", "enum", "items", "anyOf", "oneOf", "allOf"} | {
    *("object", "array", "string", "number", "integer", "boolean", "null", "additionalProperties", "title", "format"),
}
"""Words of JSON Schema get no placeholder, since templates compare them."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template with its special tokens and its name in errors."""

    source: str
    """Jinja."""
    special_tokens: tuple[tuple[str, str], ...] = ()
    """`bos_token`, `eos_token`, … with their texts."""
    name: str = "the model"
    """The model's name, for errors."""


def render(template: ChatTemplate, messages: Sequence[Message]) -> str:
    """The prompt as text, ready for the assistant's turn, for reading; `encode_chat` gives the ids.

    Raises `UserError` if the template refuses the messages, `Unsupported` if it has no tools and the messages use some.
    """
    text, texts = _placed(template, messages, sampled=False)
    return re.sub(_PLACE, lambda found: _written(found[0], texts), text)


def encode_chat(
    template: ChatTemplate, tokenizer: Tokenizer, end_ids: Sequence[int], messages: Sequence[Message]
) -> tuple[int, ...]:
    """Ids of a chat: markers of the template as single ids, texts from outside as plain text that cannot forge one.

    Raises what `render` raises.
    """
    text, texts = _placed(template, messages, sampled=True)
    if any(m.ids for m in messages):
        text = _as_sampled(text, _opening(template))
    markers = {t: i for t in tokenizer.markers if (i := tokenizer.id_of(t)) is not None}
    alternatives = "|".join(re.escape(t) for t in sorted(markers, key=len, reverse=True))
    ids: list[int] = []
    plain, ended = "", False
    for piece in re.split(f"({_PLACE}{'|' + alternatives if markers else ''})", text):
        if piece in markers:
            # The sampled end marker is already there.
            if not (ended and not plain and markers[piece] in end_ids):
                ids += tokenizer.encode(plain)
                ids.append(markers[piece])
            plain, ended = "", False
        elif piece.startswith("\ue003"):
            sampled = messages[int(piece[1:-1])].ids
            ids += tokenizer.encode(plain)
            ids += sampled
            plain, ended = "", sampled[-1] in end_ids
        else:
            plain += _written(piece, texts) if piece.startswith("\ue000") else piece
    return (*ids, *tokenizer.encode(plain))


def _placed(template: ChatTemplate, messages: Sequence[Message], *, sampled: bool) -> tuple[str, list[str]]:
    """The rendered messages with a placeholder for each text from outside, and these texts by number."""
    found: dict[str, None] = {}
    _convention(messages, lambda text: found.setdefault(text) or text, sampled=sampled)
    texts = sorted(found)
    places = {text: f"\ue000{i:06d}\ue001" for i, text in enumerate(texts)}
    return _render(template, *_convention(messages, places.__getitem__, sampled=sampled)), texts


def _convention(
    messages: Sequence[Message], mark: Callable[[str], str], *, sampled: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Messages and tools as Hugging Face's templates take them; `mark` is called on each text from outside.

    With `sampled`, a message that has ids becomes a placeholder for them; its tool calls are in the ids too.
    """

    def outside(text: str) -> str:
        # Templates test whether there is content: an empty text stays empty.
        return mark(text) if text else ""

    rows = []
    for number, message in enumerate(messages):
        by_ids = sampled and bool(message.ids)
        row: dict[str, Any] = {
            "role": message.role,
            "content": f"\ue003{number}\ue004" if by_ids else outside(message.content),
        }
        if message.tool_calls and not by_ids:
            row["tool_calls"] = [_call(c, outside) for c in message.tool_calls]
        row |= {k: outside(v) for k in ("tool_call_id", "name") if (v := getattr(message, k))}
        rows.append(row)
    return rows, [_tool(t, outside) for t in offered_tools(tuple(messages))] or None


def _call(call: ToolCall, outside: Callable[[str], str]) -> dict[str, Any]:
    values = call.values()
    arguments = outside(call.arguments) if values is None else _marked(values, outside)
    function = {"name": outside(call.name), "arguments": arguments}
    return {"id": outside(call.id), "type": "function", "function": function}


def _tool(tool: Tool, outside: Callable[[str], str]) -> dict[str, Any]:
    def word(text: str) -> str:
        return text if text in _SCHEMA else outside(text)

    parameters = _marked(tool.schema(), word)
    function = {"name": outside(tool.name), "description": outside(tool.description), "parameters": parameters}
    return {"type": "function", "function": function}


def _marked(value: Any, mark: Callable[[str], str]) -> Any:
    """A JSON value with all its texts marked, keys too."""
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, Mapping):
        return {mark(k): _marked(v, mark) for k, v in value.items()}
    return [_marked(v, mark) for v in value] if isinstance(value, list) else value


def _written(place: str, texts: Sequence[str]) -> str:
    """The text of a placeholder, escaped as often as it was written into JSON."""
    number, *escapes = re.findall(r"\d+|[ja]", place)
    text = texts[int(number)]
    for escape in escapes:
        text = json.dumps(text, ensure_ascii=escape == "a")[1:-1]
    return text


def _as_sampled(text: str, opening: str) -> str:
    """The rendered text with each placeholder for ids after `opening`, the text that a prompt for a response ends with.

    For past responses templates omit the beginning of a thought, or write an empty thought before them.
    """
    parts = re.split(f"({_PLACE})", text)
    for i in range(1, len(parts), 2):
        if not parts[i].startswith("\ue003") or not opening:
            continue
        before, found, _ = parts[i - 1].rpartition(opening)
        if found:
            parts[i - 1] = before + opening
        else:
            common = next(n for n in range(len(opening), -1, -1) if parts[i - 1].endswith(opening[:n]))
            parts[i - 1] += opening[common:] if common else ""
    return "".join(parts)


@functools.lru_cache(maxsize=16)
def _opening(template: ChatTemplate) -> str:
    """The text that the template adds to a conversation to begin a response."""
    try:
        hello = [{"role": "user", "content": "\ue003"}]
        whole, past = (_render(template, hello, None, prompt) for prompt in (True, False))
    except UserError:
        return ""
    return whole.removeprefix(past) if whole.startswith(past) else ""


# Jinja --------------------------------------------------------------------------------------------------------------


def _render(
    template: ChatTemplate, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, prompt: bool = True
) -> str:
    import jinja2

    if tools and "tools" not in template.source:
        raise Unsupported(f"the chat template of {template.name} offers no tools: use a model trained on tools")
    if any("tool_calls" in m for m in messages) and "tool_calls" not in template.source:
        raise Unsupported(f"the chat template of {template.name} writes no tool calls: use a model trained on tools")
    try:
        return _compiled(template.source).render(
            messages=messages, tools=tools, add_generation_prompt=prompt, **dict(template.special_tokens)
        )
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template of {template.name} failed: {error}") from None


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.globals["raise_exception"] = _raise
    env.globals["strftime_now"] = lambda fmt: "2026-01-01"
    env.filters["tojson"] = _to_json
    return env.from_string(source)


def _raise(message: str) -> None:
    raise UserError(f"the chat template refused the messages: {message}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers: Jinja's own escapes HTML. Placeholders record that they are in a JSON string."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    escape = "a" if ensure_ascii else "j"
    return _IN_JSON.sub(lambda found: f"\ue000{found[1]}{found[2]}{escape}\ue001", text)
