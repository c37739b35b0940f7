"""Chunks of a call's stream as samples.

Some gateways send a chunk twice (a listener that is registered twice, a connection that is resumed). It is dropped only
where it is certain to be the same one (`_repeated`); else the endpoint's count decides at the end (`calls.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ponder.engines._ending import Ending, finish_word, meaning
from ponder.engines.openai.parts import Malformed, text, texts
from ponder.types import FinishReason, ThoughtFormat, ToolCall

_RANDOM = 6
"""Characters of random text that are never equal by chance."""
_ERRORS = {
    Ending.FILTERED: "the endpoint's content filter ended the response, with finish_reason {}",
    Ending.CALLED: "the model called a tool, and none was offered",
}


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
    """Tokens of chunks equal to the previous one, which may be repeats or equal tokens side by side."""
    counted: bool = True
    """Every chunk with text so far raised the endpoint's running count."""
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
        return FinishReason.STOP if self._ending is Ending.STOPPED or self._called else FinishReason.LENGTH

    @property
    def _ending(self) -> Ending:
        return meaning(self.finish)

    @property
    def _called(self) -> bool:
        return self.may_call and self._ending is Ending.CALLED

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls, in the order of their indices; only of a response that is complete."""
        if not self.may_call or self.finish_reason is not FinishReason.STOP:
            return ()
        rows = [row for _, row in sorted(self.calls.items()) if row["name"]]
        return tuple(ToolCall(r["id"] or f"call_{i}", r["name"], r["arguments"] or "{}") for i, r in enumerate(rows))

    @property
    def error(self) -> str | None:
        """Why a response that is neither complete nor truncated ended."""
        if self._ending in (Ending.STOPPED, Ending.CUT) or self._called:
            return None
        return _ERRORS.get(self._ending, "the endpoint ended the response with finish_reason {}").format(
            repr(self.finish)
        )

    @property
    def least(self) -> int:
        """Tokens that were seen: a log-probability is one, and else a chunk is at least one."""
        return max(self.pieces, len(self.logprobs))


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
        whole = all(isinstance(c, Mapping) and "message" in c and "delta" not in c for c in choices)
        if whole or len(self.samples) == 1:
            self.usage = usage

    def _choice(self, sample: Sample, choice: Mapping[str, Any], whole: Any) -> str:
        # Some streams end with a chunk that repeats the response as a whole, as `message` beside the delta.
        delta = choice.get("delta", choice.get("message"))
        pieces = texts(delta)
        values = [entry.get("logprob") for entry in (choice.get("logprobs") or {}).get("content") or []]
        running = (whole.get("usage") or {}).get("completion_tokens")
        if pieces:
            if whole == sample.last:
                if _repeated(sample, whole, running):
                    return ""
                sample.alike += max(1, len(values))
            if sample.finish:
                raise Malformed("a choice continues after its finish_reason")
            sample.counted = isinstance(running, int) and sample.counted and running > (sample.running or 0)
            sample.pieces += 1
            sample.last = whole
            sample.raw += "".join(part for _, part in pieces)
            sample.logprobs += [float(v) for v in values if v is not None]
        if isinstance(running, int):
            sample.running = running
        calls = delta.get("tool_calls") if isinstance(delta, Mapping) else None
        if calls:
            _call(sample, calls, whole="delta" not in choice)
        new = self._written(sample, pieces, called=bool(calls))
        sample.text += new
        if word := finish_word(choice.get("finish_reason")):
            sample.finish = word
            if meaning(word) is Ending.FAILED:
                raise Malformed(f"the endpoint gave up, with finish_reason {word!r}")
        return new

    def _written(self, sample: Sample, pieces: Sequence[tuple[bool, str]], *, called: bool) -> str:
        """The text with markers around a thought from a separate field or part; a tool call ends it too."""
        form = self._thought
        if form is None or sample.answering:
            return "".join(part for _, part in pieces)
        written = ""
        for thought, part in (*pieces, *([(False, "")] if called else [])):
            if thought and not sample.in_thought:
                written += form.open
            elif not thought and sample.in_thought and sample.separate:
                written += form.close
            sample.separate = sample.separate or thought
            sample.in_thought = thought or (sample.in_thought and not sample.separate)
            written += part
        return written

    def check(self) -> None:
        """Raise `Malformed` if the stream was cut."""
        if any(not s.finish for s in self.samples):
            raise Malformed("the stream ended before the response did")

    @property
    def over(self) -> int:
        """By how many tokens more was received than the endpoint counted; 0 if it did not count."""
        total = self.completion_tokens
        return 0 if total is None else max(0, sum(s.least for s in self.samples) - total)

    @property
    def alike(self) -> int:
        """Tokens that may have come twice."""
        return sum(s.alike for s in self.samples)

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


def _repeated(sample: Sample, chunk: Mapping[str, Any], running: Any) -> bool:
    """Whether a chunk that equals the last one is certain to be the same one, sent twice.

    Equal text and an equal log-probability prove nothing: two equal tokens side by side have them. The endpoint's
    count does, which every other chunk raised and this one did not; so does the random text that OpenAI adds.
    """
    padding = chunk.get("obfuscation")
    if isinstance(padding, str) and len(padding) >= _RANDOM:
        return True
    return isinstance(running, int) and sample.counted


def _call(sample: Sample, pieces: Any, *, whole: bool) -> None:
    """Take pieces of tool calls; of a `whole` message they have no index. Raises `Malformed`."""
    for number, piece in enumerate(pieces if isinstance(pieces, list) else [None]):
        at = number if whole else 0
        if not isinstance(piece, Mapping) or not isinstance(piece.get("index", at), int):
            raise Malformed("a chunk's tool_calls are not what they should be")
        function = piece.get("function") or {}
        row = sample.calls.setdefault(piece.get("index", at), {"id": "", "name": "", "arguments": ""})
        row["id"] = row["id"] or text(piece, "id")
        row["name"] += text(function, "name")
        row["arguments"] += text(function, "arguments")
