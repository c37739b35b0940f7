"""The text of a delta or a message, in whichever form an endpoint gives it: thoughts and answers, in order.

Content is a text, or a list of parts: `{"type": "text", "text": …}` (OpenAI; Mistral and Anthropic through gateways),
`output_text`, `{"type": "thinking", "thinking": … or a list of parts}`, `{"type": "reasoning", "summary": …}`.
A thought may also be a field beside the content: `reasoning_content` (DeepSeek, vLLM, SGLang), `reasoning` (OpenRouter,
Ollama), `thinking`, or `reasoning_details` (OpenRouter, which gives it besides `reasoning`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
_TEXTS = ("text", "thinking", "reasoning", "content", "summary", "refusal", "value")


class Malformed(ValueError):
    """The endpoint sent what does not belong in a stream of chat completions."""


def texts(delta: Any) -> list[tuple[bool, str]]:
    """`(is thought, text)` in their order, without empty ones. Raises `Malformed`."""
    if not isinstance(delta, Mapping):
        return []
    fields = (_read(delta.get(name), name, True) for name in _THOUGHTS)
    # Some give the same thought in two fields.
    thought = next(filter(None, fields), [])
    return thought + _read(delta.get("content"), "content", False)


def text(delta: Any, name: str) -> str:
    """A field that is a text; empty if it is missing. Raises `Malformed`."""
    value = delta.get(name) if isinstance(delta, Mapping) else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"a chunk's {name} is {type(value).__name__}, not a text")
    return value


def _read(value: Any, name: str, thought: bool, depth: int = 0) -> list[tuple[bool, str]]:
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [(thought, value)]
    if isinstance(value, list) and depth < 8:
        return [piece for part in value for piece in _read(part, name, thought, depth + 1)]
    if isinstance(value, Mapping) and depth < 8:
        kind = str(value.get("type", "")).casefold()
        thinks = thought or value.get("thought") is True or any(w in kind for w in ("thinking", "reasoning", "thought"))
        for field in _TEXTS:
            if value.get(field) is not None:
                return _read(value[field], name, thinks, depth + 1)
        # A thought that is only signed or encrypted has no text, and neither has the end of one.
        if thinks or kind in ("", "text", "output_text"):
            return []
        raise Malformed(f"a chunk's {name} has a part of type {kind[:40]!r}, and no text")
    raise Malformed(f"a chunk's {name} is {type(value).__name__}, not a text or a list of parts")
