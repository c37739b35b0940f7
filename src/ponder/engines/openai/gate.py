"""The limit on calls in flight: additive increase, multiplicative decrease, and pauses that an endpoint asks for."""

from __future__ import annotations

import asyncio
from collections import deque

from ponder.errors import EngineClosed

CLOSED = "the endpoint's engine was closed"


class Gate:
    """Admits calls in order; belongs to one event loop.

    The limit halves when the endpoint says that it is too busy, at most once for all calls that were sent before, and
    grows by one after as many successes as its size (AIMD; Chiu and Jain 1989). After `Retry-After`, no call is sent
    before that time has passed.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self.flying = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._until = 0.0
        self._cut = -1.0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def enter(self) -> float:
        """Wait for a free place. Returns the time of entry on the loop's clock. Raises `EngineClosed`."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise EngineClosed(CLOSED)
        if self._waiters or not self._free(loop.time()):
            turn = loop.create_future()
            self._waiters.append(turn)
            self._admit()
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled() and turn.exception() is None:
                    self.leave()
                raise
        else:
            self.flying += 1
        return loop.time()

    def leave(self, *, well: bool = False) -> None:
        """Free the place; `well` if the endpoint served the call."""
        self.flying -= 1
        if well:
            self.limit = min(float(self.most), self.limit + 1.0 / self.limit)
        self._admit()

    def slow_down(self, entered: float, wait: float) -> None:
        """The endpoint was too busy for a call that came in at `entered`: no call is admitted for `wait` seconds."""
        now = asyncio.get_running_loop().time()
        self._until = max(self._until, now + wait)
        if entered > self._cut:
            self._cut = now
            self.limit = max(1.0, self.limit / 2)

    def close(self) -> None:
        """Fail all waiting calls and all later ones."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for turn in self._waiters:
            if not turn.done():
                turn.set_exception(EngineClosed(CLOSED))
        self._waiters.clear()

    def _free(self, now: float) -> bool:
        return self.flying < int(self.limit) and now >= self._until

    def _admit(self) -> None:
        while self._waiters and self._waiters[0].done():
            self._waiters.popleft()
        if not self._waiters:
            return
        loop = self._waiters[0].get_loop()
        while self._waiters and self._free(loop.time()):
            turn = self._waiters.popleft()
            if not turn.done():
                self.flying += 1
                turn.set_result(None)
        now = loop.time()
        if self._waiters and now < self._until:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_later(self._until - now, self._admit)
