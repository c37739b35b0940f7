"""Conversations with a mock engine: it continues by ids, and calls the calculator as scripted."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable

from mocks import MockEngine, encode

from ponder.types import Message, Prompt, Request, ToolFormat


class Talking(MockEngine):
    """A mock of a model that takes messages and calls tools; its prompts hold what it sampled, unchanged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.info = dataclasses.replace(self.info, chat=True, tools=ToolFormat())

    def _prompt_ids(self, prompt: Prompt | tuple[int, ...]) -> tuple[int, ...]:
        if not isinstance(prompt, tuple) or not all(isinstance(m, Message) for m in prompt):
            return super()._prompt_ids(prompt)
        messages: tuple[Message, ...] = prompt  # type: ignore[assignment]
        return tuple(i for m in messages for i in m.ids or encode(f"[{m.role}]{m.content}"))


def call(expression: str, name: str = "calculate") -> str:
    """A call as a model writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': {'expression': expression}})}</tool_call>"


def scripted(*texts: str) -> Callable[[Request, random.Random], str]:
    """Returns one text after another, one for each turn of the conversation."""

    def text(request: Request, rng: random.Random) -> str:
        assert not isinstance(request.prompt, str)
        return texts[sum(m.role == "assistant" for m in request.prompt if isinstance(m, Message))]

    return text


def calculating(request: Request, rng: random.Random) -> str:
    """Calls the calculator with the question, and answers with its result."""
    asked, last = request.prompt[0], request.prompt[-1]
    assert isinstance(asked, Message)
    assert isinstance(last, Message)
    if last.role == "tool":
        return f"</think>The answer is {last.content}"
    return f"hm</think>{call(asked.content.removeprefix('What is ').removesuffix('?'))}"
