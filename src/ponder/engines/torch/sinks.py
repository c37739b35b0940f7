"""Where the decoding thread sends the results of a job; for a stream it is `engines._handover.Handover`."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Any

from ponder.types import Completion


def _post(loop: asyncio.AbstractEventLoop, action: Callable[..., None], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(action, *args)
    except RuntimeError:
        # The loop is closed, and with it the caller.
        return


class FutureSink:
    """Settles one asyncio future."""

    def __init__(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[tuple[Completion, ...]]) -> None:
        self.loop, self.future = loop, future

    def tokens(self, sample: int, ids: list[int]) -> None: ...

    def sample(self, sample: int, completion: Completion) -> None: ...

    def done(self, completions: tuple[Completion, ...]) -> None:
        _post(self.loop, lambda: None if self.future.done() else self.future.set_result(completions))

    def failed(self, error: BaseException) -> None:
        _post(self.loop, lambda: None if self.future.done() else self.future.set_exception(error))


class SyncSink:
    """Settles one thread-safe future."""

    def __init__(self, future: concurrent.futures.Future[tuple[Completion, ...]]) -> None:
        self.future = future

    def tokens(self, sample: int, ids: list[int]) -> None: ...

    def sample(self, sample: int, completion: Completion) -> None: ...

    def done(self, completions: tuple[Completion, ...]) -> None:
        self.future.set_result(completions)

    def failed(self, error: BaseException) -> None:
        self.future.set_exception(error)
