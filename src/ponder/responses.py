"""Reading a response as it was sampled: thought, tool calls and answer, by the model's own markers."""

from __future__ import annotations

import json

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
        inner, closed, text = text.rpartition(thought.close)
        if not closed or thought.open in text:
            return Response(None, whole.replace(thought.open, "", 1).strip(), whole)
        inner = inner.replace(thought.open, "", 1)
    if finish is not FinishReason.STOP:
        return Response(None, inner, whole)
    calls: tuple[ToolCall, ...] = ()
    if tools is not None:
        text, calls = _split_calls(text, tools)
    return Response(text, inner, whole, calls)


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
