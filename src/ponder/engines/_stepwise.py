"""An engine over one function, from ids to the logits of the next: what `llamacpp` is beside its library.

One thread computes, one sample after another. For throughput use the torch engine, which decodes many rows at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ponder.engines._deltas import collected
from ponder.engines._growth import Growth
from ponder.engines._thread import CLOSED, OneByOne
from ponder.engines.requests import Markers, Ready, resolve
from ponder.engines.text import TextStream, Vocabulary
from ponder.errors import EngineClosed, PonderError, Unsupported
from ponder.models.base import LoadedModel
from ponder.types import Capabilities, Completion, Delta, Prompt, Request, Spend

_EXIT_SECONDS = 5.0
GRACE = 1.0
"""Seconds that a cancelled call waits at most for the thread to end the part of the prompt or the token that it is in.

Then it knows what was sampled and says so (`CancelledError.spend`, `.completions`). What takes longer is not waited
for: the call ends without saying, and whoever counts books its worst case.
"""


class NextLogits(Protocol):
    """Logits of shape V after some ids.

    Calls `computed` with the number of ids after each part of them that went through the model; what that raises ends
    the call, and what is computed by then may be kept.
    """

    def __call__(self, ids: Sequence[int], computed: Callable[[int], None]) -> np.ndarray: ...


class _Gone(Exception):
    """Nobody waits for the call any more."""


@dataclass
class _Call:
    """A request on its way through the thread."""

    request: Request
    ready: Ready
    rate: float
    """Forward FLOPs of a token."""
    gone: threading.Event = field(default_factory=threading.Event)
    rows: list[Growth] = field(default_factory=list)
    """Samples that were begun."""
    first: tuple[list[int], np.ndarray] | None = None
    """Response ids and logits with which the first sample began: its siblings begin with the same."""

    def tell(self, error: BaseException) -> None:
        """Let an exception say what was sampled and used."""
        rows = [row for row in self.rows if row.begun]
        error.completions = tuple(row.completion(self.rate) for row in rows)  # type: ignore[attr-defined]
        error.spend = sum((row.spend(self.rate) for row in self.rows), Spend())  # type: ignore[attr-defined]


class StepwiseEngine:
    """Samples from a model of which only tokenizer and next logits are known; see `protocols.Engine`.

    A sample draws the same random numbers as in the torch engine. A call that is cancelled ends within `grace` seconds,
    at once if it has not begun, and its `CancelledError` carries what was sampled (`completions`) and used (`spend`).

    Log-probabilities are of the distribution that was sampled from, or the model's own with `logprobs_of="raw"`.
    """

    weights_version = ""
    grace = GRACE

    def __init__(self, model: LoadedModel, logits: NextLogits, free: Callable[[], None] = lambda: None) -> None:
        """`model` has no module; `free` gives back what the function holds, on the thread."""
        self.model = model
        self.info = model.info
        self.capabilities = Capabilities(
            ids=True, logprobs=True, seed=True, n=True, prefix=True, thinking=model.info.thought is not None
        )
        self._logits = logits
        self._vocabulary = Vocabulary(model.tokenizer, model.tokenizer.vocab_size)
        self._markers = Markers.of(model)
        self._thread = OneByOne("ponder-stepwise", free)
        # Ends the thread when the engine is forgotten and when Python exits.
        self._finalizer = weakref.finalize(self, self._thread.shutdown, _EXIT_SECONDS)

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        return len(self.model.prompt_ids(prompt))

    async def generate(self, request: Request) -> tuple[Completion, ...]:
        return await collected(self._stream(request), request.n)

    def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        return self._stream(request)

    async def _stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        if self._thread.closing.is_set():
            raise EngineClosed(CLOSED)
        ready = resolve(
            request, tuple(self.model.prompt_ids(request.prompt)), self.model, self._vocabulary, self._markers
        )
        call = _Call(request, ready, self.info.flops_per_token)
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Delta | None]()

        def tell(delta: Delta | None) -> None:
            # Without a loop there is nobody left to tell.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(events.put_nowait, delta)

        future = self._thread.submit(lambda: self._work(call, tell))
        future.add_done_callback(lambda _: tell(None))
        try:
            while (delta := await events.get()) is not None:
                yield delta
            future.result()
        except asyncio.CancelledError as error:
            call.gone.set()
            if not future.cancel():
                # Cancelled once more, it does not wait.
                with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                    async with asyncio.timeout(self.grace):
                        while await events.get() is not None:
                            pass
            if future.done():
                call.tell(error)
            raise
        finally:
            call.gone.set()
            future.cancel()

    # On the thread ------------------------------------------------------------------------------------------------

    def _work(self, call: _Call, tell: Callable[[Delta], None]) -> None:
        closing, p = self._thread.closing, call.request.params
        ends = frozenset((*self.model.end_ids, *p.stop_ids))
        try:
            for index in range(call.request.n):
                row = Growth(p, call.ready, self._markers, self._vocabulary, ends, index)
                call.rows.append(row)
                begun, stream, shown = time.perf_counter(), TextStream(self._vocabulary, p.stop), 0
                try:
                    while not row.over:
                        piece = stream.push(row.ids[len(stream.ids) :])
                        if piece:
                            tell(Delta(index, piece, tuple(row.ids[shown:])))
                            shown = len(row.ids)
                        self._step(call, row)
                finally:
                    row.seconds = time.perf_counter() - begun
                completion = row.completion(call.rate)
                tell(Delta(index, stream.finish(completion.text), completion.ids[shown:], completion))
        except _Gone:
            if closing.is_set():
                closed = EngineClosed("the engine was closed while the request ran")
                call.tell(closed)
                raise closed from None
        except Exception as error:
            failed = error if isinstance(error, PonderError) else self._failure(error)
            call.tell(failed)
            raise failed from error.__cause__ if failed is error else error

    def _failure(self, error: Exception) -> PonderError:
        return PonderError(f"the engine of {self.info.name} failed: {type(error).__name__}: {error}")

    def _step(self, call: _Call, row: Growth) -> None:
        """Give a sample its next id."""

        def go_on() -> None:
            if call.gone.is_set() or self._thread.closing.is_set():
                raise _Gone

        def computed(count: int) -> None:
            row.computed += count
            go_on()

        go_on()
        if row.is_forced:
            row.force()
            return
        if call.first is not None and call.first[0] == row.ids:
            logits = call.first[1]
        else:
            logits = self._logits((*call.ready.prompt, *row.ids), computed)
            if call.first is None:
                call.first = (list(row.ids), logits)
        row.found()
        row.draw(logits)

    # Life ---------------------------------------------------------------------------------------------------------

    async def load_weights(self, source: Any, version: str) -> None:
        """Raises `Unsupported`: the weights are the file's."""
        raise Unsupported(f"{self.info.name} is read from a file that is not trained: train with the torch engine")

    async def close(self) -> None:
        self._thread.shutdown()
        await asyncio.shield(asyncio.wrap_future(self._thread.ended))
