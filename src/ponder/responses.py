"""Reading a response as it was sampled: thought, tool calls and answer, by the model's own markers.

The rule for thoughts is the one by which the engines count their tokens. An end marker ends the thought that is open; a
begin marker opens one where none is open; any other marker is a stray and stands for the end of a line. The answer is
all text outside of thoughts, in its order. So the first `</think>` ends the thought, as vLLM's reasoning parsers have
it (`DeepSeekR1ReasoningParser`), and a second one neither empties the answer nor hides what was said before it: whoever
answers twice is judged by both answers, and a thought behind the answer changes nothing. Only where a response never
opens its thought (the prompt did, unknown to the reader) does the first end marker make all before it the thought.
"""

from __future__ import annotations

import json
import re

from ponder.types import FinishReason, Response, ThoughtFormat, ToolCall, ToolFormat, json_object


def split_response(
    text: str, finish: FinishReason, thought: ThoughtFormat | None = None, tools: ToolFormat | None = None
) -> Response:
    """Split a response into thought, tool calls and answer.

    Truncated or unclosed: the answer is None (no fallback), and nothing is called. Calls are found in the answer alone,
    between the markers of `tools`; anything there but a JSON object with a `name` stays text.
    """
    whole, inner = text, None
    if thought is not None and (thought.opened_by_template or thought.open in text or thought.close in text):
        inside, inner, text = _divide(text, thought)
        if inside:
            return Response(None, whole.replace(thought.open, "", 1).strip(), whole)
    if finish is not FinishReason.STOP:
        return Response(None, inner, whole)
    calls: tuple[ToolCall, ...] = ()
    if tools is not None:
        text, calls = _split_calls(text, tools)
    return Response(text, inner, whole, calls)


def _divide(text: str, thought: ThoughtFormat) -> tuple[bool, str, str]:
    """Whether a thought is open at the end, the text in thoughts, and the text outside."""
    inside = thought.opened_by_template or thought.close in text.partition(thought.open)[0]
    parts: dict[bool, list[str]] = {True: [], False: [""]}
    for piece in re.split(f"({re.escape(thought.open)}|{re.escape(thought.close)})", text):
        if piece in (thought.open, thought.close):
            inside = piece == thought.open
        else:
            parts[inside].append(piece)
    return inside, _lines(parts[True]), _lines(parts[False])


def _lines(parts: list[str]) -> str:
    """Parts that are not blank, one to a line; a single one as it is."""
    said = [part for part in parts if part.strip()]
    return "\n".join(said) if said else parts[-1]


def _split_calls(text: str, tools: ToolFormat) -> tuple[str, tuple[ToolCall, ...]]:
    """The text around the calls, and the calls."""
    rest: list[str] = []
    calls: list[ToolCall] = []
    while True:
        before, opened, after = text.partition(tools.open)
        inside, closed, behind = after.partition(tools.close)
        if not (opened and closed):
            rest.append(text)
            return "".join(rest), tuple(calls)
        call = _read_call(inside, f"call_{len(calls)}")
        if call is None:
            # Not a call: resume right after the marker, since a call may begin within it.
            rest.append(before + opened)
            text = after
        else:
            rest.append(before)
            calls.append(call)
            text = behind


def _read_call(text: str, call_id: str) -> ToolCall | None:
    found = json_object(text)
    if found is None or not isinstance(found.get("name"), str) or not found["name"]:
        return None
    arguments = found.get("arguments", {})
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(call_id, found["name"], written)
