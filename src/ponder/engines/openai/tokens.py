"""Upper bounds of token counts at an endpoint, exact where it counted the text before.

A bound is the endpoint's own count of the same text, else the tokens of `tokenizer`, else UTF-8 bytes, plus what the
chat template adds.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ponder.errors import MissingExtra, UserError
from ponder.types import Message, Prompt, Tool, as_messages, offered_tools

REMEMBERED = 4096
"""Prompts and responses whose counts are kept."""
TOOLS_TOKENS = 512
"""Most tokens that a template writes about tools before it lists them."""
CALL_TOKENS = 96
"""Most tokens of markers, field names and brackets around one call or one tool."""
_ENDING = 256
"""Most characters that may follow a remembered response in a text that continues it."""


def bytes_bound(text: str) -> int:
    """Upper bound for any tokenizer whose tokens spell at least one byte each.

    Compatibility normalisation, which some tokenizers do first, can lengthen a text; the longest form counts. One more
    is for the space that SentencePiece puts in front.
    """
    if not text:
        return 0
    if text.isascii():
        return len(text) + 1
    forms = (text, unicodedata.normalize("NFKC", text), unicodedata.normalize("NFKD", text))
    return max(len(form.encode("utf-8", "surrogatepass")) for form in forms) + 1


class Counter:
    """Bounds for the texts of one endpoint and model; remembers what the endpoint counted."""

    def __init__(self, tokenizer: str, template_tokens: int, message_tokens: int) -> None:
        """`template_tokens` are of a conversation of one message, `message_tokens` of each further one."""
        self.template_tokens = template_tokens
        self.markers: dict[str, int] = {}
        """Exact tokens of texts that end a remembered response, such as the end-of-thought marker."""
        self._message_tokens = message_tokens
        self._tokenizer = _load(tokenizer) if tokenizer else None
        self._prompts: OrderedDict[Prompt, int] = OrderedDict()
        self._texts: OrderedDict[bytes, int] = OrderedDict()

    @property
    def exact(self) -> bool:
        """Whether there is a tokenizer."""
        return self._tokenizer is not None

    def text(self, text: str) -> int:
        """Bound for one text on its own."""
        if not text:
            return 0
        if self._tokenizer is not None:
            return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
        return self.markers.get(text) or bytes_bound(text)

    def prompt(self, prompt: Prompt) -> int:
        """Bound for a prompt, its template included."""
        known = self._prompts.get(prompt)
        if known is not None:
            return known
        messages = as_messages(prompt)
        contents = sum(self._message(m) for m in messages)
        tools = offered_tools(prompt)
        offer = TOOLS_TOKENS * bool(tools) + sum(map(self._tool, tools))
        return self.template_tokens + self._message_tokens * (len(messages) - 1) + contents + offer

    def _message(self, message: Message) -> int:
        calls = sum(self.call(c.name, c.arguments) + self.text(c.id) for c in message.tool_calls)
        return sum(map(self.text, (message.content, message.tool_call_id, message.name))) + calls

    def call(self, name: str, arguments: str) -> int:
        """Bound for a tool call as a model or a template writes it."""
        return CALL_TOKENS + self.text(name) + self.text(arguments)

    def _tool(self, tool: Tool) -> int:
        # Some templates write each value on its own line.
        schema = json.dumps(tool.schema(), indent=4, ensure_ascii=False)
        return CALL_TOKENS + self.text(tool.name) + self.text(tool.description) + self.text(schema)

    def response(self, text: str) -> int:
        """Bound for a response that is to be continued, often a remembered one with a little added.

        Text that the endpoint sampled counts as the tokens that it was sampled in.
        """
        if self._tokenizer is not None or not text:
            return self.text(text)
        for end in range(len(text), max(0, len(text) - _ENDING), -1):
            known = self._texts.get(_digest(text[:end]))
            if known is not None:
                return min(known + self.text(text[end:]), bytes_bound(text))
        return bytes_bound(text)

    def learn_prompt(self, prompt: Prompt, tokens: int) -> int:
        """Remember the endpoint's count of a prompt. Returns by how much the bound was too low (0 if it held).

        If it was too low, the bound is raised for all later prompts.
        """
        if prompt in self._prompts:
            short = 0
        else:
            short = max(0, tokens - self.prompt(prompt))
            self.template_tokens += short
        _remember(self._prompts, prompt, tokens)
        return short

    def learn_response(self, text: str, tokens: int) -> None:
        """Remember an upper bound for the tokens of a response."""
        _remember(self._texts, _digest(text), tokens)


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Split a total in proportion to weights, in whole numbers (largest remainder, ties to the first)."""
    whole = sum(weights)
    if whole == 0:
        weights, whole = [1] * len(weights), len(weights)
    shares = [total * w // whole for w in weights]
    order = sorted(range(len(weights)), key=lambda i: -(total * weights[i] % whole))
    for i in order[: total - sum(shares)]:
        shares[i] += 1
    return shares


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _remember(store: OrderedDict[Any, int], key: Any, value: int) -> None:
    store[key] = value
    store.move_to_end(key)
    if len(store) > REMEMBERED:
        store.popitem(last=False)


def _load(path: str) -> Any:
    file = Path(path)
    if file.is_dir():
        file = file / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"tokenizer = {path!r}: there is no file {file}; give a tokenizer.json or its folder")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtra("reading a tokenizer", "torch") from None
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        raise UserError(f"tokenizer = {path!r}: {file} cannot be read: {error}") from None
