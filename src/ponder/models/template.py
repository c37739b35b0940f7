"""Chat templates: Hugging Face's Jinja convention, rendered in a sandbox.

The text of messages must not be able to forge a marker (`<|end|>`, `</think>`): the template is rendered with a
placeholder for each content, and the contents are tokenised apart, as plain text. So a template that looks into the
contents (strips them, splits them at `</think>`) sees the placeholder instead, and `strftime_now` is a fixed date, so
that a prompt is the same every day.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ponder.errors import Unsupported, UserError
from ponder.types import Message

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel


def _raise(message: str) -> None:
    raise UserError(f"the chat template refused the messages: {message}")


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.globals["raise_exception"] = _raise
    env.globals["strftime_now"] = lambda fmt: "2026-01-01"
    return env.from_string(source)


def _render(model: LoadedModel, messages: list[dict[str, Any]]) -> str:
    if model.chat_template is None:
        raise Unsupported(f"{model.info.name} has no chat template; give it plain text")
    try:
        return _compiled(model.chat_template).render(
            messages=messages, add_generation_prompt=True, tools=None, **model.special_tokens
        )
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template of {model.info.name} failed: {error}") from None


def render(model: LoadedModel, messages: Sequence[Message]) -> str:
    """The prompt as text, for people; `encode_chat` gives the ids."""
    return _render(model, [{"role": m.role, "content": m.content} for m in messages])


def encode_chat(model: LoadedModel, messages: Sequence[Message]) -> tuple[int, ...]:
    """Ids of a chat: markers of the template as single ids, contents as plain text that can forge none."""
    contents = {f"\ue000{i}\ue001": m.content for i, m in enumerate(messages)}
    text = _render(model, [{"role": m.role, "content": key} for m, key in zip(messages, contents, strict=True)])
    markers = {t: i for t in model.tokenizer.markers if (i := model.tokenizer.id_of(t)) is not None}
    alternatives = "|".join(re.escape(t) for t in sorted(markers, key=len, reverse=True))
    ids: list[int] = []
    plain = ""
    for piece in re.split(f"(\ue000\\d+\ue001{'|' + alternatives if markers else ''})", text):
        if piece in markers:
            ids += model.tokenizer.encode(plain)
            ids.append(markers[piece])
            plain = ""
        else:
            plain += contents.get(piece, piece)
    return (*ids, *model.tokenizer.encode(plain))
