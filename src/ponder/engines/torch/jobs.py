"""A request as the decoding thread sees it: ids instead of text, limits resolved, and where to send what comes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ponder.engines.torch.cache import rounded
from ponder.engines.torch.pool import slot_length
from ponder.engines.torch.prefix import PAGE, aligned
from ponder.engines.torch.sampler import stream_keys
from ponder.engines.torch.text import Vocabulary
from ponder.errors import Unsupported, UserError
from ponder.types import Completion, Request, SamplingParams, Spend, Thinking

if TYPE_CHECKING:
    from ponder.engines.torch.pool import Load
    from ponder.models.base import LoadedModel

NO_LIMIT = np.iinfo(np.int64).max // 2
MOST_LOGPROBS = 100
"""Most of the best ids that may be reported at a token."""


class Sink(Protocol):
    """Where a job's results go; called on the decoding thread."""

    def tokens(self, sample: int, ids: list[int]) -> None:
        """More ids of a running sample; only if the job streams."""
        ...

    def sample(self, sample: int, completion: Completion) -> None: ...

    def done(self, completions: tuple[Completion, ...]) -> None: ...

    def failed(self, error: BaseException) -> None: ...


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
            tuple(encode(thought.open, special=True)),
            tuple(encode(thought.close, special=True)),
            thought.open,
            thought.close,
            thought.opened_by_template,
        )

    @property
    def single(self) -> bool:
        return len(self.open) == 1 and len(self.close) == 1


@dataclass(eq=False)
class Job:
    """One request in the engine."""

    request: Request
    params: SamplingParams
    prompt: tuple[int, ...]
    prefix: tuple[int, ...]
    """Ids of `Request.prefix`; computed with the prompt and spent like it."""
    extend: tuple[int, ...]
    keys: np.ndarray
    """Stream key of each sample, uint64."""
    inside: bool
    """Sampling begins inside a thought."""
    thought: int
    """Tokens of thought in the prefix."""
    sink: Sink
    streams: bool = False
    lease: bool = False
    """It asks for no sample, only to have its prompt kept."""
    granted: bool = False
    """The lease's holder was told that it may go on."""
    group: int = 0
    """Jobs that were handed over together have one number."""
    next: int = 0
    """First sample that is not admitted yet."""
    load: Load | None = None
    """The prompt in the cache, from admission until its last sample has a slot; of a lease, until it is let go."""
    hangs: bool = False
    """It was admitted on the promise that its rows share the storage of the prompt."""
    cancelled: bool = False
    results: dict[int, Completion] = field(default_factory=dict)
    spend: Spend = field(default_factory=Spend)
    """What was used by the time that it was cut short."""

    def tell(self, error: BaseException) -> None:
        """Let an exception say what was sampled and used by the time that the job was cut short."""
        error.spend = self.spend  # type: ignore[attr-defined]
        error.completions = tuple(self.results[i] for i in sorted(self.results))  # type: ignore[attr-defined]

    @property
    def samples(self) -> int:
        """How many rows it asks for."""
        return 0 if self.lease else self.request.n

    @property
    def context(self) -> tuple[int, ...]:
        """What is there before the first draw."""
        return self.prompt + self.prefix

    @cached_property
    def cached(self) -> np.ndarray:
        """Ids whose keys and values are there before the first draw; the step of that draw computes the last."""
        return np.array(self.context if self.lease else self.context[:-1], dtype=np.int64)

    @property
    def private(self) -> int:
        """Columns that each of its rows may come to need."""
        return self.total - (aligned(len(self.context) - 1) if self.hangs else 0)

    @property
    def total(self) -> int:
        """Longest that prompt and response may become."""
        return len(self.prompt) + self.params.max_tokens


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


def _check_ids(ids: Sequence[int], where: str, model: LoadedModel, vocabulary: Vocabulary) -> None:
    for i in ids:
        if not 0 <= i < vocabulary.size:
            raise UserError(f"{where} holds id {i}, but {model.info.name} knows ids 0 to {vocabulary.size - 1}")


def _prefix(prefix: str | tuple[int, ...], model: LoadedModel, vocabulary: Vocabulary) -> tuple[str, tuple[int, ...]]:
    """What a response begins with, as text and as ids."""
    if isinstance(prefix, str):
        return prefix, tuple(model.tokenizer.encode(prefix, special=True)) if prefix else ()
    _check_ids(prefix, "the prefix", model, vocabulary)
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


def prepare(
    request: Request,
    prompt: tuple[int, ...],
    model: LoadedModel,
    vocabulary: Vocabulary,
    markers: Markers,
    sink: Sink,
    *,
    bytes_per_token: int,
    memory: int,
    streams: bool = False,
) -> Job:
    """Check a request, whose prompt is these ids, and resolve it. Raises `UserError`, `Unsupported`; nothing ran."""
    p = request.params
    _check_params(p, request.n)
    if not prompt:
        raise UserError("the prompt is empty: give at least one token")
    _check_ids(prompt, "the prompt", model, vocabulary)
    _check_ids(p.stop_ids, "stop_ids", model, vocabulary)
    total = len(prompt) + p.max_tokens
    if total > model.info.context:
        raise UserError(
            f"the prompt has {len(prompt)} tokens and max_tokens is {p.max_tokens}: together {total}, but "
            f"{model.info.name} has a context of {model.info.context}; shorten the prompt or lower max_tokens"
        )
    prefix_text, prefix = _prefix(request.prefix, model, vocabulary)
    # The prompt in nodes, and a slot for what comes after them.
    computed = len(prompt) + len(prefix) - 1
    need = (rounded(computed, PAGE) + slot_length(1, total - aligned(computed))) * bytes_per_token
    if need > memory:
        raise UserError(
            f"a row of {total} tokens needs {need} bytes of cache, but kv_memory is {memory}: "
            f"raise kv_memory, shorten the prompt or lower max_tokens"
        )
    if len(prefix) >= p.max_tokens:
        raise UserError(
            f"the prefix has {len(prefix)} tokens and max_tokens is {p.max_tokens}: nothing is left to sample"
        )
    if any(i in model.end_ids or i in p.stop_ids for i in prefix):
        raise UserError("the prefix holds an end token: a response cannot go on after its end")
    inside, thought = False, 0
    extend: tuple[int, ...] = ()
    if p.thinking is not None:
        _check_thinking(p.thinking, model, markers)
        inside = markers.opened_by_template or prompt[-len(markers.open) :] == markers.open
        inside, parts = _within_thought(prefix_text, markers, inside)
        thought = sum(len(model.tokenizer.encode(part, special=True)) for part in parts)
        extend = tuple(model.tokenizer.encode(p.thinking.extend)) if p.thinking.min_tokens else ()
    return Job(
        request, p, prompt, prefix, extend, stream_keys(p.seed, np.arange(request.n)), inside, thought, sink, streams
    )


def prepare_lease(
    ids: Sequence[int], model: LoadedModel, vocabulary: Vocabulary, sink: Sink, *, bytes_per_token: int, memory: int
) -> Job:
    """A job that only keeps a prefix. Raises `UserError` for a prefix that is empty or can never fit."""
    ids = tuple(ids)
    if not ids:
        raise UserError("the prefix to hold is empty: give at least one token")
    _check_ids(ids, "the prefix to hold", model, vocabulary)
    if len(ids) > model.info.context:
        raise UserError(
            f"the prefix to hold has {len(ids)} tokens, but {model.info.name} has a context of {model.info.context}"
        )
    need = rounded(len(ids), PAGE) * bytes_per_token
    if need > memory:
        raise UserError(
            f"a prefix of {len(ids)} tokens needs {need} bytes of cache, but kv_memory is {memory}: raise kv_memory"
        )
    request = Request(ids, SamplingParams(1))
    return Job(request, request.params, ids, (), (), np.zeros(0, dtype=np.uint64), False, 0, sink, lease=True)


def stop_table(stops: Sequence[str], vocabulary: Vocabulary) -> np.ndarray:
    """For each id, whether it may complete one of the texts."""
    return np.logical_or.reduce([vocabulary.enders(s) for s in stops])
