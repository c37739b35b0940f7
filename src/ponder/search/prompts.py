"""Prompts that a search derives from a problem's: with an instruction, or asking for a revision."""

from __future__ import annotations

import dataclasses

from ponder.types import Message, Prompt, as_messages


def instructed(prompt: Prompt, instruction: str, chat: bool, *, system: bool = False) -> Prompt:
    """The prompt with an instruction at its end, or as (part of) the system message.

    Text that a model continues as it is has no system message: there the instruction follows in any case, on the same
    line where the text ends with a colon (`A: Let's think step by step.`).
    """
    if not instruction:
        return prompt
    if isinstance(prompt, str) and not (system and chat):
        return f"{prompt}{_joint(prompt)}{instruction}"
    messages = as_messages(prompt)
    if system:
        if messages[0].role == "system":
            first = dataclasses.replace(messages[0], content=f"{messages[0].content}\n{instruction}")
            return (first, *messages[1:])
        return (Message("system", instruction), *messages)
    last = messages[-1]
    return (*messages[:-1], dataclasses.replace(last, content=f"{last.content}{_joint(last.content)}{instruction}"))


def continued(prompt: Prompt, answer: str | None, request: str, chat: bool) -> Prompt:
    """The prompt, an answer to it (None: there was none) and what is asked of that answer.

    Chat models get turns. A model that continues text gets the same as paragraphs, and then the prompt once more, so
    that what comes next is an answer to it.
    """
    if isinstance(prompt, str) and not chat:
        parts = [prompt, *([] if answer is None else [answer]), request, prompt]
        return "\n\n".join(part.strip() for part in parts)
    messages = as_messages(prompt)
    if answer is None:
        last = messages[-1]
        return (*messages[:-1], dataclasses.replace(last, content=f"{last.content}\n\n{request}"))
    return (*messages, Message("assistant", answer.strip()), Message("user", request))


def _joint(text: str) -> str:
    if not text or text[-1].isspace():
        return ""
    return " " if text.endswith(":") else "\n"
