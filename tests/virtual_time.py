"""An event loop whose clock stands still while anything can run, and then jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Waits for nothing: where it should sleep, the loop's clock moves on."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        timers = self.loop._scheduled
        if not timers:
            raise RuntimeError("every task waits for something that will never come")
        self.loop.now = max(self.loop.now, timers[0]._when)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs what sleeps as fast as the machine can; `time()` is exact. Nothing in it may use threads or sockets."""

    _scheduled: list[Any]

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.now = 0.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
