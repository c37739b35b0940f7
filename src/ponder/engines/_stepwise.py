"""An engine over one function, from ids to the logits of the next id: all of `llamacpp` but its library.

One thread (`_thread.py`) computes, one sample after another. For throughput use the torch engine, which decodes many
rows at once. Requests, random numbers and stop strings are read as there (`requests.py`, `random_streams.py`,
`text.py`, none of which needs torch). `_draw.py` and `_growth.py` do in numpy for one row what its batch does for many:
the same logits and seed give the same response.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ponder.engines._deltas import collected
from ponder.engines._growth import Growth
from ponder.engines._handover import Handover, deltas
from ponder.engines._thread import CLOSED, OneByOne
from ponder.engines.base import BaseEngine
from ponder.engines.requests import Markers, Ready, resolve
from ponder.engines.text import Vocabulary
from ponder.errors import EngineClosed, OutOfTime, PonderError, Unsupported
from ponder.models.base import LoadedModel
from ponder.protocols import Delivery, Receipt, WeightsUpdate
from ponder.types import Capabilities, Completion, Delta, Prompt, Request, Spend

_EXIT_SECONDS = 5.0
GRACE = 1.0
"""Most seconds that a cancelled call waits for the thread to finish its current part of the prompt or token.

Then it knows what was sampled and settles its receipt. If that takes longer, the receipt stays unsettled, and the
caller books the worst case.
"""


class NextLogits(Protocol):
    """Logits of shape V after some ids.

    Calls `computed` with the number of ids after each part that went through the model. An exception that it raises
    ends the call; what is computed by then may be kept.
    """

    def __call__(self, ids: Sequence[int], computed: Callable[[int], None]) -> np.ndarray: ...


class _Gone(Exception):
    """The call was cancelled."""


@dataclass
class _Call:
    """One request on the thread."""

    request: Request
    ready: Ready
    rate: float
    """Forward FLOPs of a token."""
    begin: Callable[[], None]
    left: Callable[[], float | None]
    """Of its receipt, see `protocols.Receipt`."""
    gone: threading.Event = field(default_factory=threading.Event)
    rows: list[Growth] = field(default_factory=list)
    """Samples that have started."""
    done: list[Completion] = field(default_factory=list)
    """Of samples that have finished."""
    first: tuple[list[int], np.ndarray] | None = None
    """Response ids and logits with which the first sample began: the other samples begin with the same."""

    def settle(self, receipt: Receipt) -> None:
        """Report what was sampled and used; the thread no longer works on it."""
        cut = [row.completion(self.rate) for row in self.rows[len(self.done) :] if row.begun]
        receipt.settle(sum((row.spend(self.rate) for row in self.rows), Spend()), (*self.done, *cut))


class StepwiseEngine(BaseEngine):
    """Samples from a model of which only tokenizer and next logits are known; see `protocols.Engine`.

    A sample draws the same random numbers as in the torch engine. A call that is cancelled, or whose stream is closed,
    ends within `grace` seconds, at once if it has not started, and then its receipt is settled.

    Log-probabilities are of the distribution that was sampled from, or the model's own with `logprobs_of="raw"`.
    """

    grace = GRACE
    queues = True

    def __init__(self, model: LoadedModel, logits: NextLogits, free: Callable[[], None] = lambda: None) -> None:
        """`model` has no module; `free` releases what the function holds, on the thread."""
        self.model = model
        self.info = model.info
        self.capabilities = Capabilities(
            ids=True, logprobs=True, seed=True, n=True, prefix=True, thinking=model.info.thought is not None
        )
        self._logits = logits
        self._vocabulary = Vocabulary(model.tokenizer, model.tokenizer.vocab_size)
        self._markers = Markers.of(model)
        self._thread = OneByOne("ponder-stepwise", free)
        # Ends the thread when the engine is garbage-collected and when Python exits.
        self._finalizer = weakref.finalize(self, self._thread.shutdown, _EXIT_SECONDS)

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        return len(self.model.prompt_ids(prompt))

    async def generate(self, request: Request, receipt: Receipt | None = None) -> tuple[Completion, ...]:
        return await collected(self.stream(request, receipt), request.n)

    async def stream(self, request: Request, receipt: Receipt | None = None) -> AsyncGenerator[Delta, None]:
        receipt = receipt or Receipt()
        if self._thread.closing.is_set():
            receipt.settle(Spend())
            raise EngineClosed(CLOSED)
        ready = resolve(
            request, tuple(self.model.prompt_ids(request.prompt)), self.model, self._vocabulary, self._markers
        )
        call, handover = _Call(request, ready, self.info.flops_per_token, receipt.begin, receipt.left), Handover()
        handover.open()
        future = self._thread.submit(lambda: self._work(call, handover))
        future.add_done_callback(lambda _: _failed(future, handover))
        pieces = deltas(handover, request.n, self._vocabulary, request.params.stop, ready.prefix)
        try:
            async with contextlib.aclosing(pieces):
                async for delta in pieces:
                    yield delta
        except (asyncio.CancelledError, GeneratorExit):
            call.gone.set()
            if not future.cancel():
                # Cancelled again, it does not wait.
                await _over(future, self.grace)
            raise
        finally:
            call.gone.set()
            if future.done() or len(call.done) == request.n:
                call.settle(receipt)

    # On the thread ------------------------------------------------------------------------------------------------

    def _work(self, call: _Call, handover: Handover) -> None:
        closing, p = self._thread.closing, call.request.params
        ends = frozenset((*self.model.end_ids, *p.stop_ids))
        if not call.gone.is_set():
            call.begin()
        try:
            for index in range(call.request.n):
                row = Growth(p, call.ready, self._markers, self._vocabulary, ends, index)
                call.rows.append(row)
                begun, sent = time.perf_counter(), len(row.ids)
                try:
                    while not row.over:
                        self._step(call, row)
                        handover.tokens(index, row.ids[sent:])
                        sent = len(row.ids)
                finally:
                    row.seconds = time.perf_counter() - begun
                call.done.append(row.completion(call.rate))
                handover.sample(index, call.done[-1])
        except _Gone:
            if closing.is_set():
                raise EngineClosed("the engine was closed while the request ran") from None
        except PonderError:
            raise
        except Exception as error:
            raise PonderError(f"the engine of {self.info.name} failed: {type(error).__name__}: {error}") from error

    def _step(self, call: _Call, row: Growth) -> None:
        """Give a sample its next id."""

        def go_on() -> None:
            if call.gone.is_set() or self._thread.closing.is_set():
                raise _Gone
            left = call.left()
            if left is not None and left <= 0:
                raise OutOfTime("its time is used up")

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

    async def load_weights(self, update: WeightsUpdate) -> Delivery:
        """Raises `Unsupported`: the weights are the file's."""
        raise Unsupported(f"{self.info.name} is read from a file that is not trained: train with the torch engine")

    async def close(self) -> None:
        self._thread.shutdown()
        await asyncio.shield(asyncio.wrap_future(self._thread.ended))


def _failed(future: Future[None], handover: Handover) -> None:
    """Report to the reader that a job failed; what was used is certain only now that it has ended."""
    if not future.cancelled() and (error := future.exception()) is not None:
        handover.failed(error)


async def _over(future: Future[None], seconds: float) -> None:
    """Wait for the end of a job, at most this long."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(_: Future[None]) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(over.set)

    future.add_done_callback(tell)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await over.wait()
