"""A request as the body of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ponder.engines.openai.findings import Findings
from ponder.types import Message, Prompt, Request, Tool, as_messages, offered_tools


def body(
    request: Request, model: str, findings: Findings, max_tokens: int, more: Mapping[str, Any], effort: str = ""
) -> dict[str, Any]:
    """The body of a call for `request.n` samples of at most `max_tokens` new tokens each."""
    p = request.params
    assert not isinstance(request.prefix, tuple)
    prompt: Prompt = request.prompt  # type: ignore[assignment]
    messages = [_message(m) for m in as_messages(prompt)]
    fields: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "stream": True,
        findings.limit_field: max_tokens,
        "temperature": p.temperature,
        "top_p": p.top_p,
    }
    if findings.usage != "none":
        fields["stream_options"] = {"include_usage": True}
        if findings.usage == "running":
            fields["stream_options"]["continuous_usage_stats"] = True
    if request.prefix:
        messages.append({"role": "assistant", "content": request.prefix})
        if findings.prefix == "flags":
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
    if tools := offered_tools(prompt):
        fields["tools"] = [_tool(t) for t in tools]
    if request.n > 1:
        fields["n"] = request.n
    if findings.seed:
        # Some endpoints keep seeds in 32 bits and refuse more.
        fields["seed"] = p.seed & 0x7FFFFFFF
    if findings.logprobs:
        fields["logprobs"] = True
    if p.stop:
        fields["stop"] = list(p.stop)
    if p.top_k or findings.cuts:
        fields["top_k"] = p.top_k or -1
    if p.min_p or findings.cuts:
        fields["min_p"] = p.min_p
    if effort:
        fields["reasoning_effort"] = effort
    if p.thinking is not None and p.thinking.max_tokens is not None:
        _put(fields, findings.thinking, p.thinking.max_tokens)
    return {**fields, **more}


def _message(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        fields["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in message.tool_calls
        ]
    return fields | {k: v for k in ("tool_call_id", "name") if (v := getattr(message, k))}


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.schema()}
    return {"type": "function", "function": function}


def _put(fields: dict[str, Any], path: str, value: Any) -> None:
    *outer, last = path.split(".")
    for name in outer:
        fields = fields.setdefault(name, {})
    fields[last] = value
