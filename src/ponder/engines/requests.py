"""How engines that draw tokens themselves read a request: checked, texts as ids, the state of its thought."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ponder.engines.text import Vocabulary
from ponder.errors import TooLong, Unsupported, UserError
from ponder.types import Request, SamplingParams, Thinking

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel

MOST_LOGPROBS = 100
"""Most of the best ids that may be reported at a token."""


@dataclass(frozen=True, slots=True)
class Markers:
    """The thought markers of a model as ids; empty where the model does not mark thoughts."""

    open: tuple[int, ...] = ()
    close: tuple[int, ...] = ()
    open_text: str = ""
    close_text: str = ""
    opened_by_template: bool = False

    @classmethod
    def of(cls, model: LoadedModel) -> Markers:
        thought = model.info.thought
        if thought is None:
            return cls()
        encode = model.tokenizer.encode
        return cls(
            tuple(encode(thought.open, special=True, continues=True)),
            tuple(encode(thought.close, special=True, continues=True)),
            thought.open,
            thought.close,
            thought.opened_by_template,
        )

    @property
    def single(self) -> bool:
        return len(self.open) == 1 and len(self.close) == 1


@dataclass(frozen=True, slots=True)
class Ready:
    """A request, resolved."""

    prompt: tuple[int, ...]
    prefix: tuple[int, ...]
    """Ids of `Request.prefix`; computed with the prompt and counted as prompt tokens."""
    extend: tuple[int, ...]
    """Ids that replace an early end of thought."""
    inside: bool
    """Whether sampling begins inside a thought."""
    thought: int
    """Tokens of thought in the prefix."""


def resolve(
    request: Request, prompt: tuple[int, ...], model: LoadedModel, vocabulary: Vocabulary, markers: Markers
) -> Ready:
    """Check a request, whose prompt is these ids, and resolve it; nothing runs. Raises `UserError`, `Unsupported`."""
    p = request.params
    _check_params(p, request.n)
    if not prompt:
        raise UserError("the prompt is empty: give at least one token")
    check_ids(prompt, "the prompt", model, vocabulary)
    check_ids(p.stop_ids, "stop_ids", model, vocabulary)
    total = len(prompt) + p.max_tokens
    if total > model.info.context:
        raise TooLong(
            f"the prompt has {len(prompt)} tokens and max_tokens is {p.max_tokens}: together {total}, but "
            f"{model.info.name} has a context of {model.info.context}; shorten the prompt or lower max_tokens"
        )
    prefix_text, prefix = _prefix(request.prefix, model, vocabulary)
    if len(prefix) >= p.max_tokens:
        raise UserError(
            f"the prefix has {len(prefix)} tokens and max_tokens is {p.max_tokens}: nothing is left to sample"
        )
    if any(i in model.end_ids or i in p.stop_ids for i in prefix):
        raise UserError("the prefix holds an end token: a response cannot continue after its end")
    inside, thought = False, 0
    extend: tuple[int, ...] = ()
    if p.thinking is not None:
        _check_thinking(p.thinking, model, markers)
        inside = markers.opened_by_template or prompt[-len(markers.open) :] == markers.open
        inside, parts = _within_thought(prefix_text, markers, inside)
        thought = sum(len(model.tokenizer.encode(part, special=True, continues=True)) for part in parts)
        extend = tuple(model.tokenizer.encode(p.thinking.extend, continues=True)) if p.thinking.min_tokens else ()
    return Ready(prompt, prefix, extend, inside, thought)


def check_ids(ids: Sequence[int], where: str, model: LoadedModel, vocabulary: Vocabulary) -> None:
    for i in ids:
        if not 0 <= i < vocabulary.size:
            raise UserError(f"{where} holds id {i}, but {model.info.name} knows ids 0 to {vocabulary.size - 1}")


def _check_params(p: SamplingParams, n: int) -> None:
    if n < 1:
        raise UserError(f"n is {n}: ask for at least one sample")
    if p.max_tokens < 1:
        raise UserError(f"max_tokens is {p.max_tokens}: ask for at least one token")
    if not (p.temperature >= 0 and math.isfinite(p.temperature)):
        raise UserError(f"temperature is {p.temperature}: it must be 0 (greedy) or a positive number")
    if not 0 < p.top_p <= 1:
        raise UserError(f"top_p is {p.top_p}: it must be above 0 and at most 1")
    if not 0 <= p.min_p <= 1:
        raise UserError(f"min_p is {p.min_p}: it must be between 0 and 1")
    if p.top_k < 0:
        raise UserError(f"top_k is {p.top_k}: it must be 0 (off) or a positive number")
    if p.logprobs_of not in ("sampled", "raw"):
        raise UserError(f"logprobs_of is {p.logprobs_of!r}: it must be 'sampled' or 'raw'")
    if not 0 <= p.top_logprobs <= MOST_LOGPROBS:
        raise UserError(f"top_logprobs is {p.top_logprobs}: it must be between 0 and {MOST_LOGPROBS}")
    if "" in p.stop:
        raise UserError("a stop string is empty: leave it out, or name the text to stop at")


def _check_thinking(t: Thinking, model: LoadedModel, markers: Markers) -> None:
    if model.info.thought is None:
        raise Unsupported(
            f"{model.info.name} does not mark its thoughts: leave `thinking` out, or use a model that does"
        )
    if t.max_tokens is not None and t.max_tokens < 0:
        raise UserError(f"thinking.max_tokens is {t.max_tokens}: it must be at least 0")
    if t.min_tokens < 0:
        raise UserError(f"thinking.min_tokens is {t.min_tokens}: it must be at least 0")
    if t.max_tokens is not None and t.min_tokens > t.max_tokens:
        raise UserError(f"thinking.min_tokens ({t.min_tokens}) is above thinking.max_tokens ({t.max_tokens})")
    if t.min_tokens and not t.extend:
        raise UserError("thinking.min_tokens needs thinking.extend: the text that replaces an early end of thought")
    if t.min_tokens and not markers.single:
        raise Unsupported(
            f"thinking.min_tokens needs a thought marker of one token; {model.info.name} spells {markers.close_text!r} "
            f"with {len(markers.close)}"
        )


def _prefix(prefix: str | tuple[int, ...], model: LoadedModel, vocabulary: Vocabulary) -> tuple[str, tuple[int, ...]]:
    """What a response begins with, as text and as ids."""
    if isinstance(prefix, str):
        return prefix, tuple(model.tokenizer.encode(prefix, special=True, continues=True)) if prefix else ()
    check_ids(prefix, "the prefix", model, vocabulary)
    return model.tokenizer.decode(list(prefix)), tuple(prefix)


def _within_thought(text: str, markers: Markers, inside: bool) -> tuple[bool, list[str]]:
    """Whether a thought is open after `text`, and the parts of the text that are thought."""
    parts = []
    while True:
        before, found, after = text.partition(markers.close_text if inside else markers.open_text)
        if inside and before:
            parts.append(before)
        if not found:
            return inside, parts
        text, inside = after, not inside
