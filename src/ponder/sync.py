"""The synchronous face: run a coroutine on one background event loop and wait for its result; and `gather_all`.

One loop serves the whole process, so that parts which belong to a loop (clients, engines' futures) can be used by call
after call. It runs on its own thread; so it works in a notebook too, where another loop is already running.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop that `run` uses, started if needed."""
    global _loop, _thread
    with _lock:
        if _loop is None or _thread is None or not _thread.is_alive() or _loop.is_closed():
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="ponder-loop", daemon=True)
            _thread.start()
        return _loop


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end and return its result or raise its exception.

    Ctrl-C cancels the coroutine, waits for it to clean up, and is raised again; a second one does not wait. Raises
    `RuntimeError` if called on the background loop itself, where it could never end: `await` there.
    """
    if threading.current_thread() is _thread:
        coroutine.close()
        raise RuntimeError("ponder.sync.run was called on its own event loop: use `await` in asynchronous code")
    future = asyncio.run_coroutine_threadsafe(coroutine, background_loop())
    try:
        return future.result()
    except BaseException:
        if not future.done():
            _cancel_and_wait(future, coroutine)
        raise


def _cancel_and_wait(future: concurrent.futures.Future[Any], coroutine: Coroutine[Any, Any, Any]) -> None:
    """Cancel, and wait until the coroutine has left its last `finally`."""
    future.cancel()
    loop = background_loop()

    async def finished() -> None:
        others = {t for t in asyncio.all_tasks() if t.get_coro() is coroutine}
        await asyncio.gather(*others, return_exceptions=True)

    # The loop's thread may be in the middle of a long computation: an interrupt does not wait for its end.
    with contextlib.suppress(concurrent.futures.TimeoutError):
        asyncio.run_coroutine_threadsafe(finished(), loop).result(timeout=2.0)


def iterate(items: AsyncIterator[T]) -> Iterator[T]:
    """Walk an asynchronous iterator from synchronous code; leaving the loop early closes it."""
    try:
        while True:
            try:
                yield run(_next(items))
            except StopAsyncIteration:
                return
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            run(close())


async def gather_all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results of coroutines that run at once, in their order; the first failure cancels the rest and is raised.

    Whatever ends it, none of them runs on: `asyncio.gather` lets the others go on spending after a failure.
    """
    tasks = [asyncio.create_task(w) for w in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)
