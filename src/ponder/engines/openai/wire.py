"""Requests as the body of a call, and chunks of its stream as samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ponder.engines.openai.findings import Findings
from ponder.types import (
    FinishReason,
    Message,
    Prompt,
    Request,
    ThoughtFormat,
    Tool,
    ToolCall,
    as_messages,
    offered_tools,
)

_SURE = -1e-4
"""Log-probabilities above this may well be equal for two tokens in a row."""
_STOPPED = {"stop", "eos", "eos_token", "end_turn", "stop_sequence"}
_CALLED = {"tool_calls", "function_call"}
_FILTERED = {
    "content_filter": "the endpoint's content filter ended the response",
    "tool_calls": "the model called a tool, and none was offered",
    "function_call": "the model called a function, and none was offered",
}


class Malformed(ValueError):
    """The endpoint sent what does not belong in a stream of chat completions."""


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


@dataclass
class Sample:
    """One choice of a call, as received so far."""

    text: str = ""
    """The new part of the response, with markers inserted around a thought that came in a separate field."""
    raw: str = ""
    """The same without inserted markers."""
    pieces: int = 0
    """Chunks with text."""
    alike: int = 0
    """Chunks equal to the previous one, which may be repeats."""
    logprobs: list[float] = field(default_factory=list)
    finish: str = ""
    running: int | None = None
    """Tokens so far, where the endpoint says."""
    in_thought: bool = False
    answering: bool = False
    """Text of the reasoning field belongs to the answer: the thought was closed before this call."""
    separate: bool = False
    """The thought came in a separate field."""
    last: Any = None
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    """Tool calls by their index: `id`, `name`, `arguments`, as received so far."""
    may_call: bool = False
    """Tools were offered."""

    @property
    def finish_reason(self) -> FinishReason:
        return FinishReason.STOP if self.finish in _STOPPED or self._called else FinishReason.LENGTH

    @property
    def _called(self) -> bool:
        return self.may_call and self.finish in _CALLED

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls, in the order of their indices; only of a response that is complete."""
        if not self.may_call or self.finish_reason is not FinishReason.STOP:
            return ()
        rows = [row for _, row in sorted(self.calls.items()) if row["name"]]
        return tuple(ToolCall(r["id"] or f"call_{i}", r["name"], r["arguments"] or "{}") for i, r in enumerate(rows))

    @property
    def error(self) -> str | None:
        if self.finish in _STOPPED or self.finish == "length" or self._called:
            return None
        return _FILTERED.get(self.finish, f"the endpoint ended the response with finish_reason {self.finish!r}")


class Received:
    """Folds the chunks of one stream."""

    def __init__(self, n: int, thought: ThoughtFormat | None, prefix: str = "", *, may_call: bool = False) -> None:
        """`may_call`: tools were offered."""
        self.samples = [Sample(may_call=may_call) for _ in range(n)]
        self.usage: Mapping[str, Any] | None = None
        """Of the whole call."""
        self.prompt_tokens: int | None = None
        self._thought = thought
        if thought is not None:
            for sample in self.samples:
                sample.in_thought = thought.close not in prefix and (
                    thought.opened_by_template or thought.open in prefix
                )
                sample.answering = thought.close in prefix

    def feed(self, chunk: Any) -> list[int]:
        """Take a chunk. Returns the samples with new text. Raises `Malformed`."""
        if not isinstance(chunk, Mapping):
            raise Malformed(f"a chunk is {type(chunk).__name__}, not an object")
        choices = chunk.get("choices") or []
        usage = chunk.get("usage")
        if not isinstance(choices, list) or not isinstance(usage, Mapping | None):
            raise Malformed("a chunk's choices or usage are not what they should be")
        if usage is not None:
            self._count(usage, choices)
        new = []
        for choice in choices:
            index = choice.get("index", 0) if isinstance(choice, Mapping) else None
            if not isinstance(index, int) or not 0 <= index < len(self.samples):
                raise Malformed(f"a chunk has a choice {index!r}, and {len(self.samples)} were asked for")
            if self._choice(self.samples[index], choice, chunk if len(choices) == 1 else choice):
                new.append(index)
        return new

    def _count(self, usage: Mapping[str, Any], choices: list[Any]) -> None:
        if isinstance(usage.get("prompt_tokens"), int):
            self.prompt_tokens = usage["prompt_tokens"]
        if not choices or len(self.samples) == 1:
            self.usage = usage

    def _choice(self, sample: Sample, choice: Mapping[str, Any], whole: Any) -> str:
        delta = choice.get("delta") or {}
        content, thought = _text(delta, "content"), _text(delta, "reasoning_content") or _text(delta, "reasoning")
        values = [entry.get("logprob") for entry in (choice.get("logprobs") or {}).get("content") or []]
        running = (whole.get("usage") or {}).get("completion_tokens")
        if content or thought:
            if whole == sample.last:
                if running is not None or whole.get("obfuscation") or any(v is not None and v < _SURE for v in values):
                    return ""
                sample.alike += 1
            if sample.finish:
                raise Malformed("a choice continues after its finish_reason")
            sample.pieces += 1
            sample.last = whole
            sample.raw += thought + content
            sample.logprobs += [float(v) for v in values if v is not None]
        if isinstance(running, int):
            sample.running = running
        called = bool(delta.get("tool_calls")) if isinstance(delta, Mapping) else False
        if called:
            _call(sample, delta["tool_calls"])
        text = self._written(sample, thought, content, called=called)
        sample.text += text
        if choice.get("finish_reason"):
            sample.finish = str(choice["finish_reason"])
            if sample.finish in ("abort", "error"):
                raise Malformed(f"the endpoint gave up, with finish_reason {sample.finish!r}")
        return text

    def _written(self, sample: Sample, thought: str, content: str, *, called: bool) -> str:
        """The text with markers around a thought from a separate field; a tool call ends it too."""
        form = self._thought
        if form is None or sample.answering:
            return thought + content
        text = ""
        if thought:
            text += thought if sample.in_thought else form.open + thought
            sample.in_thought = sample.separate = True
        if content or called:
            if sample.in_thought and sample.separate:
                text += form.close
                sample.in_thought = False
            text += content
        return text

    def check(self) -> None:
        """Raise `Malformed` if the stream was cut or sent a chunk twice."""
        if any(not s.finish for s in self.samples):
            raise Malformed("the stream ended before the response did")
        total = self.completion_tokens
        if total is None:
            return
        pieces, alike = sum(s.pieces for s in self.samples), sum(s.alike for s in self.samples)
        # A chunk has at least one token. Endpoints that send smaller pieces have far more chunks than tokens.
        if pieces > total >= pieces - alike:
            raise Malformed(f"the stream repeats itself: {pieces} pieces of {total} tokens")

    @property
    def completion_tokens(self) -> int | None:
        """Tokens of all samples as the endpoint counted them; None if it did not."""
        usage = self.usage
        if usage is None or not isinstance(usage.get("completion_tokens"), int):
            running = [s.running for s in self.samples]
            return None if any(r is None for r in running) else sum(r for r in running if r is not None)
        done: int = usage["completion_tokens"]
        # Some count reasoning tokens outside the completion; then the total includes them.
        total, prompt = usage.get("total_tokens"), self.prompt_tokens
        if isinstance(total, int) and prompt is not None:
            done = max(done, total - prompt)
        return done

    @property
    def cached_tokens(self) -> int:
        details = (self.usage or {}).get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
        return min(cached, self.prompt_tokens or 0) if isinstance(cached, int) else 0

    @property
    def reasoning_tokens(self) -> int:
        details = (self.usage or {}).get("completion_tokens_details")
        tokens = details.get("reasoning_tokens") if isinstance(details, Mapping) else None
        return tokens if isinstance(tokens, int) else 0


def _call(sample: Sample, pieces: Any) -> None:
    """Take pieces of tool calls. Raises `Malformed`."""
    for piece in pieces if isinstance(pieces, list) else [None]:
        if not isinstance(piece, Mapping) or not isinstance(piece.get("index", 0), int):
            raise Malformed("a chunk's tool_calls are not what they should be")
        function = piece.get("function") or {}
        row = sample.calls.setdefault(piece.get("index", 0), {"id": "", "name": "", "arguments": ""})
        row["id"] = row["id"] or _text(piece, "id")
        row["name"] += _text(function, "name")
        row["arguments"] += _text(function, "arguments")


def _text(delta: Any, name: str) -> str:
    value = delta.get(name) if isinstance(delta, Mapping) else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"a chunk's {name} is {type(value).__name__}, not a text")
    return value
