"""A request as the decoding thread sees it: ids instead of text, limits resolved, and where to send the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ponder.engines.random_streams import stream_keys
from ponder.engines.requests import Markers, check_ids, resolve
from ponder.engines.text import Vocabulary
from ponder.engines.torch.cache import rounded
from ponder.engines.torch.pool import slot_length
from ponder.engines.torch.prefix import PAGE, aligned
from ponder.errors import UserError
from ponder.types import Completion, Request, SamplingParams, Spend

if TYPE_CHECKING:
    from ponder.engines.torch.pool import Load
    from ponder.models.base import LoadedModel
    from ponder.protocols import Receipt

NO_LIMIT = np.iinfo(np.int64).max // 2


class Sink(Protocol):
    """Where a job's results go; called on the decoding thread."""

    def tokens(self, sample: int, ids: list[int]) -> None:
        """More ids of a running sample; called only if the job streams."""
        ...

    def sample(self, sample: int, completion: Completion) -> None: ...

    def done(self, completions: tuple[Completion, ...]) -> None: ...

    def failed(self, error: BaseException) -> None: ...


@dataclass(eq=False)
class Job:
    """One request in the engine."""

    request: Request
    params: SamplingParams
    prompt: tuple[int, ...]
    prefix: tuple[int, ...]
    """Ids of `Request.prefix`; computed with the prompt and counted as prompt tokens."""
    extend: tuple[int, ...]
    keys: np.ndarray
    """Stream key of each sample, uint64."""
    inside: bool
    """Whether sampling begins inside a thought."""
    thought: int
    """Tokens of thought in the prefix."""
    sink: Sink
    streams: bool = False
    lease: bool = False
    """It asks for no samples, only that its prompt is kept."""
    granted: bool = False
    """The lease's holder was told that the prefix is ready."""
    group: int = 0
    """Jobs that were handed over together share one number."""
    next: int = 0
    """First sample that is not admitted yet."""
    load: Load | None = None
    """The prompt in the cache, from admission until its last sample has a slot; of a lease, until it is released."""
    hangs: bool = False
    """It was admitted on condition that its rows share the storage of the prompt."""
    cancelled: bool = False
    results: dict[int, Completion] = field(default_factory=dict)
    spend: Spend | None = None
    """What was used when it finished or was cut short; None before, and where that is not known."""
    begin: Callable[[], None] = lambda: None
    left: Callable[[], float | None] = lambda: None
    """Of its receipt, see `protocols.Receipt`."""
    timed: bool = False
    """Its time is limited: it may be stopped, and does not wait for the others of its group."""
    begun: bool = False
    """`begin` was called."""
    is_cut: bool = False
    """It was ended early, and what it had used by then is known."""

    def settle(self, receipt: Receipt) -> None:
        """Settle its receipt with what was sampled and used, where that is known."""
        if self.spend is not None:
            receipt.settle(self.spend, self.completions)

    @property
    def completions(self) -> tuple[Completion, ...]:
        """The samples that finished or were cut short, in order."""
        return tuple(self.results[i] for i in sorted(self.results))

    @property
    def samples(self) -> int:
        """Number of rows that it asks for."""
        return 0 if self.lease else self.request.n

    @property
    def context(self) -> tuple[int, ...]:
        """Prompt and prefix: what is given before the first draw."""
        return self.prompt + self.prefix

    @cached_property
    def cached(self) -> np.ndarray:
        """Ids whose keys and values are computed before the first draw; the step of that draw computes the last."""
        return np.array(self.context if self.lease else self.context[:-1], dtype=np.int64)

    @property
    def private(self) -> int:
        """Most columns that each of its rows may need."""
        return self.total - (aligned(len(self.context) - 1) if self.hangs else 0)

    @property
    def total(self) -> int:
        """Most tokens of prompt and response."""
        return len(self.prompt) + self.params.max_tokens


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
    """Check a request, whose prompt is these ids, and resolve it; nothing runs. Raises `UserError`, `Unsupported`."""
    p = request.params
    ready = resolve(request, prompt, model, vocabulary, markers)
    total = len(ready.prompt) + p.max_tokens
    # The prompt in nodes, and a slot for what follows it.
    computed = len(ready.prompt) + len(ready.prefix) - 1
    need = (rounded(computed, PAGE) + slot_length(1, total - aligned(computed))) * bytes_per_token
    if need > memory:
        raise UserError(
            f"a row of {total} tokens needs {need} bytes of cache, but kv_memory is {memory}: "
            f"raise kv_memory, shorten the prompt or lower max_tokens"
        )
    keys = stream_keys(p.seed, np.arange(request.n))
    prompt, prefix, extend = ready.prompt, ready.prefix, ready.extend
    return Job(request, p, prompt, prefix, extend, keys, ready.inside, ready.thought, sink, streams)


def prepare_lease(
    ids: Sequence[int], model: LoadedModel, vocabulary: Vocabulary, sink: Sink, *, bytes_per_token: int, memory: int
) -> Job:
    """A job that only keeps a prefix. Raises `UserError` for a prefix that is empty or can never fit."""
    ids = tuple(ids)
    if not ids:
        raise UserError("the prefix to hold is empty: give at least one token")
    check_ids(ids, "the prefix to hold", model, vocabulary)
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
