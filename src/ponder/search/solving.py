"""A search whose leading response is read piece by piece, on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ponder.budget.streams import Reader
from ponder.errors import PonderError
from ponder.types import Delta, Outcome


class Solving:
    """A search that runs: its pieces as an asynchronous iterator, and then its outcome.

        async with stream(strategy, problem, engine) as solving:
            async for delta in solving:
                print(delta.text, end="")
            outcome = await solving.outcome()

    It begins with the first piece that is asked for. One piece is buffered, and the search waits until it is taken
    (back-pressure); its budget's seconds keep running. Leaving the block, or `aclose`, ends a search that still runs,
    with everything that it started: its journal and the enclosing meter have what it spent. One task at a time may
    read.
    """

    def __init__(self, search: Callable[[Reader], Coroutine[Any, Any, Outcome]]) -> None:
        """`search` is started with a reader for its pieces, as in `lambda reader: solve(..., on_delta=reader)`."""
        self._search = search
        self._pieces: asyncio.Queue[Delta | None] = asyncio.Queue(1)
        self._task: asyncio.Task[Outcome] | None = None
        self._closed = False

    def __aiter__(self) -> Solving:
        return self

    async def __anext__(self) -> Delta:
        """The next piece. Raises what the search raises."""
        task = self._begun()
        delta = None
        if not (task.done() and self._pieces.empty()):
            delta = await self._pieces.get()
        if delta is None:
            if not self._closed:
                task.result()
            raise StopAsyncIteration
        return delta

    async def outcome(self) -> Outcome:
        """The outcome of the search; unread pieces are skipped.

        Raises what the search raises, and `PonderError` after it was closed early.
        """
        async for _ in self:
            pass
        task = self._begun()
        if task.cancelled():
            raise PonderError("the search was closed before its end: it has no outcome")
        return task.result()

    async def aclose(self) -> None:
        """End the search if it still runs, and wait until all that it started has ended. Idempotent."""
        self._closed = True
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # retrieved, so that asyncio does not warn
        while not self._pieces.empty():
            self._pieces.get_nowait()

    async def __aenter__(self) -> Solving:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _begun(self) -> asyncio.Task[Outcome]:
        if self._task is None:
            if self._closed:
                raise PonderError("the search was closed before it began")
            self._task = asyncio.ensure_future(self._search(self._pieces.put))
            self._task.add_done_callback(self._wake)
        return self._task

    def _wake(self, _: object) -> None:
        """Wake a reader that waits for a piece: none will come."""
        if self._pieces.empty():
            self._pieces.put_nowait(None)
