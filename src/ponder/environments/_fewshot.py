"""Prompts with worked examples, for base models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ponder.types import Message, Prompt

Style = Literal["chat", "text"]


def few_shot_prompt(question: str, examples: Sequence[tuple[str, str]], style: Style) -> Prompt:
    """A question after worked (question, answer) examples.

    `chat` gives turns of user and assistant; without examples the question alone. `text` gives blocks of
    `Question: …` and `Answer: …` for a model that continues text, ending in `Answer:`; give the engine the stop string
    `Question:` there, or the model continues with questions that it makes up.
    """
    if style == "text":
        blocks = [f"Question: {q}\nAnswer: {a}\n\n" for q, a in examples]
        return "".join(blocks) + f"Question: {question}\nAnswer:"
    if not examples:
        return question
    turns = [m for q, a in examples for m in (Message("user", q), Message("assistant", a))]
    return (*turns, Message("user", question))
