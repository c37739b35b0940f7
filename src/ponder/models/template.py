"""Chat templates: Hugging Face's Jinja convention, rendered in a sandbox.

The text is what transformers' `apply_chat_template` makes of the same messages, whatever the template does to a content
(trims it, cuts a thought at `</think>`, looks into the system turn). Text from outside cannot forge a marker
(`<|end|>`, `</think>`, `</tool_call>`) all the same: contents, names, call arguments, tool descriptions. For each
character it is known whether the template wrote it (`provenance.py`), and a marker counts only where it wrote all of
it. The date (`strftime_now`) is fixed, so that a prompt is the same every day.

An assistant's message with `ids` is inserted as it was sampled: after the text that a prompt for a response ends with,
without a second end marker. So the prompt of a further turn begins with the ids of the turns before it, unless the
template leaves out or rewrites other messages. The template sees a short text in place of such a message.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ponder.errors import PonderError, Unsupported, UserError
from ponder.models.provenance import OWN, SAMPLED, Traced, joined, origin, own, plain
from ponder.models.tokenizer import Piece, Tokenizer
from ponder.types import Message, Tool, ToolCall, offered_tools

_PLACE = re.compile("\ue003(\\d+)\ue004")
"""Where the ids of a message go, by its number."""


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
    return plain(_rendered(template, *_convention(messages, sampled=False)))


def encode_chat(
    template: ChatTemplate, tokenizer: Tokenizer, end_ids: Sequence[int], messages: Sequence[Message]
) -> tuple[int, ...]:
    """Ids of a chat: markers of the template as single ids, texts from outside as plain text that cannot forge one.

    They are transformers' ids wherever no text from outside holds a marker. Raises what `render` raises.
    """
    text = _rendered(template, *_convention(messages, sampled=True))
    if any(m.ids for m in messages):
        pieces = _as_sampled(text, _opening(template), messages, template.name)
        pieces = _ended_once(pieces, tokenizer, end_ids)
    else:
        pieces = _pieces(text)
    return tuple(tokenizer.encode_pieces(pieces))


def _convention(
    messages: Sequence[Message], *, sampled: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Messages and tools as Hugging Face's templates take them.

    With `sampled`, a message that has ids becomes the place for them; its tool calls are in the ids too.
    """
    rows = []
    for number, message in enumerate(messages):
        by_ids = sampled and bool(message.ids)
        content = own(f"\ue003{number}\ue004", SAMPLED) if by_ids else Traced(message.content)
        row: dict[str, Any] = {"role": own(message.role), "content": content}
        if message.tool_calls and not by_ids:
            row["tool_calls"] = [_call(c) for c in message.tool_calls]
        row |= {k: Traced(v) for k in ("tool_call_id", "name") if (v := getattr(message, k))}
        rows.append(row)
    return rows, [_tool(t) for t in offered_tools(tuple(messages))] or None


def _call(call: ToolCall) -> dict[str, Any]:
    values = call.values()
    function = {"name": call.name, "arguments": call.arguments if values is None else values}
    return _outside({"id": call.id, "type": "function", "function": function})


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.schema()}
    return _outside({"type": "function", "function": function})


def _outside(value: Any) -> Any:
    """A JSON value with all its texts as text from outside, keys too."""
    if isinstance(value, str):
        return Traced(value)
    if isinstance(value, Mapping):
        return {Traced(k): _outside(v) for k, v in value.items()}
    return [_outside(v) for v in value] if isinstance(value, list) else value


def _pieces(text: Traced) -> list[Piece]:
    """Runs of text of one origin."""
    whole = plain(text)
    runs = re.finditer(rb"(.)\1*", origin(text), re.DOTALL)
    return [Piece(whole[run.start() : run.end()], own=run[1] == OWN) for run in runs]


def _as_sampled(text: Traced, opening: str, messages: Sequence[Message], name: str) -> list[Piece]:
    """The rendered text as pieces, each response with ids after `opening`, the text that a prompt for it ends with.

    For past responses templates omit the beginning of a thought, or write an empty thought before them.
    """
    found: list[Piece] = []
    view, whole, kinds, at = _own_view(text), plain(text), origin(text), 0
    rewritten = UserError(
        f"the chat template of {name} rewrites past responses, so none can be given as ids: leave the ids out"
    )
    if len(_PLACE.findall(whole)) > len(re.findall(SAMPLED + b"+", kinds)) and not any(
        "\ue003" in m.content for m in messages
    ):
        raise rewritten
    while (start := kinds.find(SAMPLED, at)) >= 0:
        place = _PLACE.match(whole, start)
        if place is None or kinds[start : place.end()] != SAMPLED * len(place[0]):
            raise rewritten
        before, cut = view[at:start], text[at:start]
        if opening and (where := before.rfind(opening)) >= 0:
            found += _pieces(cut[: where + len(opening)])
        else:
            common = next(n for n in range(len(opening), -1, -1) if before.endswith(opening[:n]))
            found += _pieces(joined((cut, own(opening[common:] if common else ""))))
        found.append(Piece(ids=messages[int(place[1])].ids))
        at = place.end()
    return found + _pieces(text[at:])


def _own_view(text: Traced) -> str:
    """The text with NUL for each character that is not the template's own."""
    kinds = origin(text)
    return "".join(c if kinds[i : i + 1] == OWN else "\0" for i, c in enumerate(plain(text)))


def _ended_once(pieces: Sequence[Piece], tokenizer: Tokenizer, end_ids: Sequence[int]) -> list[Piece]:
    """The pieces with one end marker after a response, whether it was sampled or the template wrote it."""
    markers = sorted(tokenizer.markers, key=len, reverse=True)
    found: list[Piece] = []
    for piece in pieces:
        sampled = found[-1].ids if found else ()
        written = next((m for m in markers if piece.own and piece.text.startswith(m)), "")
        end = tokenizer.id_of(written) if written else None
        if sampled and sampled[-1] in end_ids and end in end_ids:
            if end == sampled[-1]:
                # The marker in the text may take the white space next to it, so the text's one stays.
                found[-1] = Piece(ids=sampled[:-1])
            else:
                piece = Piece(piece.text[len(written) :], own=True)
        found.append(piece)
    return found


@functools.lru_cache(maxsize=16)
def _opening(template: ChatTemplate) -> str:
    """The text that the template adds to a conversation to begin a response."""
    try:
        hello = [{"role": own("user"), "content": Traced("\ue003")}]
        whole, past = (plain(_rendered(template, hello, None, prompt)) for prompt in (True, False))
    except UserError:
        return ""
    return whole.removeprefix(past) if whole.startswith(past) else ""


def _rendered(
    template: ChatTemplate, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, prompt: bool = True
) -> Traced:
    import jinja2

    from ponder.models.template_jinja import compiled

    if tools and "tools" not in template.source:
        raise Unsupported(f"the chat template of {template.name} offers no tools: use a model trained on tools")
    if any("tool_calls" in m for m in messages) and "tool_calls" not in template.source:
        raise Unsupported(f"the chat template of {template.name} writes no tool calls: use a model trained on tools")
    special = {name: own(text) for name, text in template.special_tokens}
    try:
        text = compiled(template.source).render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=prompt,
            **special,
        )
    except PonderError:
        raise
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise UserError(f"the chat template of {template.name} failed: {error}") from None
    assert isinstance(text, Traced)
    return text
