"""Why an endpoint ended a response: the words of servers and gateways, whatever their case, as what they mean.

OpenAI's words are `stop`, `length`, `tool_calls`, `content_filter`; behind gateways come those of TGI (`eos_token`,
`stop_sequence`), Anthropic (`end_turn`, `max_tokens`, `tool_use`, `refusal`), Gemini (`STOP`, `MAX_TOKENS`, `SAFETY`),
Cohere (`COMPLETE`), Mistral (`model_length`) and DeepSeek (`insufficient_system_resource`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any


class Ending(Enum):
    """What a `finish_reason` means."""

    STOPPED = "stopped"
    """The model ended its response."""
    CUT = "cut"
    """A limit ended it."""
    CALLED = "called"
    """The model calls a tool."""
    FILTERED = "filtered"
    """A filter ended it, or the model refused."""
    FAILED = "failed"
    """The endpoint gave up."""
    UNKNOWN = "unknown"


_WORDS = {
    Ending.STOPPED: "stop stopped eos eos_token eot end end_turn end_of_turn end_of_text stop_sequence stop_sequences "
    "stop_string stop_token stop_word stop_words complete completed done finish finished natural",
    Ending.CUT: "length max_tokens max_length max_output_tokens max_completion_tokens max_new_tokens model_length "
    "length_limit token_limit context_length context_length_exceeded context_window model_context_window_exceeded "
    "limit incomplete",
    Ending.CALLED: "tool_calls tool_call tool_use function_call function_calls",
    Ending.FILTERED: "content_filter content_filtered filtered safety recitation blocklist prohibited_content spii "
    "sensitive refusal guardrail_intervened error_toxic",
    Ending.FAILED: "abort aborted error errored fail failed failure cancel cancelled canceled timeout network_error "
    "server_error internal_error insufficient_system_resource",
}
_MEANS = {word: ending for ending, words in _WORDS.items() for word in words.split()}
_NOT_YET = {"", "null", "none", "unspecified", "not_finished"}


def finish_word(value: Any) -> str:
    """The word of a `finish_reason`, in one spelling; empty if the response goes on."""
    if isinstance(value, Mapping):
        value = value.get("type") or value.get("reason")
    if value is None or value is False:
        return ""
    # Enumerations of other APIs: `FinishReason.STOP`, `FINISH_REASON_STOP`, `end-turn`.
    word = str(value).strip().casefold().replace("-", "_").replace(" ", "_").rpartition(".")[2]
    word = word.removeprefix("finish_reason_").removeprefix("reason_")
    return "" if word in _NOT_YET else word


def meaning(word: str) -> Ending:
    """What a word of `finish_word` means."""
    return _MEANS.get(word, Ending.UNKNOWN)
