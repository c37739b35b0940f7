"""From a compute thread to a reader on an event loop, which may be slow.

The engine is shared, so it has no back-pressure: it is not slowed down, and what waits for a reader is merged.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Sequence

from ponder.engines.text import TextStream, Vocabulary
from ponder.types import Completion, Delta


class Handover:
    """What was sampled and not read yet, merged: at most one entry for each sample, however slow its reader is.

    The thread never waits, so a slow reader does not slow down other calls. Everything but `open` and `take`
    may be called on any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, list[int] | Completion] = {}
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = asyncio.Event()
        self._woken = False
        """The reader was already woken."""

    def open(self) -> None:
        """Begin to read, on the running loop. Call it before anything is handed over."""
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        """Number of samples with something to read."""
        return len(self._waiting)

    def tokens(self, sample: int, ids: Sequence[int]) -> None:
        """More ids of a sample."""
        with self._lock:
            waiting = self._waiting.setdefault(sample, [])
            assert isinstance(waiting, list)
            waiting.extend(ids)
            self._wake()

    def sample(self, sample: int, completion: Completion) -> None:
        """A sample is done; its completion includes the ids that still wait."""
        with self._lock:
            self._waiting[sample] = completion
            self._wake()

    def done(self, completions: tuple[Completion, ...]) -> None: ...

    def failed(self, error: BaseException) -> None:
        """Nothing more will come; the reader gets what waits, then this error."""
        with self._lock:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if not self._woken and self._loop is not None:
            self._woken = True
            # Without a loop there is no reader left to wake.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ready.set)

    async def take(self) -> tuple[int, list[int] | Completion]:
        """The oldest entry, once there is one. Raises what `failed` was given."""
        while True:
            with self._lock:
                if self._waiting:
                    sample = next(iter(self._waiting))
                    return sample, self._waiting.pop(sample)
                if self._error is not None:
                    raise self._error
                self._woken = False
                self._ready.clear()
            await self._ready.wait()


async def deltas(
    handover: Handover, n: int, vocabulary: Vocabulary, stop: Sequence[str], prefix: tuple[int, ...]
) -> AsyncGenerator[Delta, None]:
    """The pieces of `n` samples that a thread hands over as ids; each response begins with `prefix`.

    Raises the error with which the thread failed.
    """
    texts, shown = [TextStream(vocabulary, stop) for _ in range(n)], [0] * n
    for sample, text in enumerate(texts):
        if piece := text.push(prefix):
            shown[sample] = len(text.ids)
            yield Delta(sample, piece, prefix)
    left = n
    while left:
        sample, new = await handover.take()
        text = texts[sample]
        if isinstance(new, Completion):
            left -= 1
            yield Delta(sample, text.finish(new.text), new.ids[shown[sample] :], new)
        elif piece := text.push(new):
            ids = tuple(text.ids[shown[sample] :])
            shown[sample] = len(text.ids)
            yield Delta(sample, piece, ids)
