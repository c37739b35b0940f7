"""The synchronous face: run a coroutine on one background event loop and wait for its result; `gather_all`; threads.

One loop serves the whole process, so that parts which belong to a loop (clients, engines' futures) can be used by call
after call. It runs on its own thread; so it works in a notebook too, where another loop is already running.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import logging
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

from ponder import outside, signals
from ponder.errors import PartFailed

P = ParamSpec("P")
T = TypeVar("T")

_GLANCE = 0.5
"""Seconds after which the waiting thread looks for a signal."""
_STUCK_SECONDS = 2.0
"""A loop that does nothing for so long after an interrupt is given up."""
_log = logging.getLogger(__name__)
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop that `run` uses, started if needed."""
    global _loop, _thread
    with _lock:
        if _loop is None or _thread is None or not _thread.is_alive() or _loop.is_closed():
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_serve, args=(_loop,), name="ponder-loop", daemon=True)
            _thread.start()
        return _loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped. A task that raises `SystemExit` ends `run_forever`, but not what waits."""
    while True:
        try:
            loop.run_forever()
            return
        except BaseException as error:
            _log.debug("%s left the event loop, which goes on", type(error).__name__)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end and return its result or raise its exception.

    Ctrl-C cancels the coroutine, waits for it to clean up, and is raised again; a second one does not wait. What only
    code of a user can have raised (`SystemExit`, a `KeyboardInterrupt` or a cancellation without a cause) is
    `PartFailed`. Raises `RuntimeError` if called on the background loop itself, where it could never end: there,
    use `await`.
    """
    if threading.current_thread() is _thread:
        coroutine.close()
        raise RuntimeError("ponder.sync.run was called on its own event loop: use `await` in asynchronous code")
    work = _contained(coroutine)
    future = asyncio.run_coroutine_threadsafe(work, background_loop())
    before = signals.received()
    try:
        while not concurrent.futures.wait((future,), _GLANCE).done:
            # The system may have given the signal to another thread, or its interrupt was lost in a destructor.
            if signals.received() != before and not signals.is_soft():
                raise KeyboardInterrupt
        return future.result()
    except BaseException:
        if not future.done():
            _cancel_and_wait(future, work)
        raise


async def _contained(coroutine: Coroutine[Any, Any, T]) -> T:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt, asyncio.CancelledError) as error:
        raise outside.failure(error) from error


def _cancel_and_wait(future: concurrent.futures.Future[Any], coroutine: Coroutine[Any, Any, Any]) -> None:
    """Cancel, and wait until the coroutine has left its last `finally`."""
    future.cancel()
    loop = background_loop()

    async def finished() -> None:
        others = {t for t in asyncio.all_tasks() if t.get_coro() is coroutine}
        await asyncio.gather(*others, return_exceptions=True)

    # The loop's thread may be in the middle of a long computation, or never come back from a user's code: an interrupt
    # does not wait for its end, and what is still to be closed gets another loop.
    alive = threading.Event()
    loop.call_soon_threadsafe(alive.set)
    if not alive.wait(_STUCK_SECONDS):
        global _loop
        with _lock:
            _loop = None if _loop is loop else _loop
        return
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


async def on_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread` for code of users, which may never return: the process can end all the same.

    (The threads of `asyncio.to_thread` keep Python from exiting until they are done.) What is no ordinary exception is
    raised as `PartFailed`.
    """
    job: concurrent.futures.Future[T] = concurrent.futures.Future()
    context = contextvars.copy_context()

    def work() -> None:
        if not job.set_running_or_notify_cancel():
            return
        try:
            job.set_result(context.run(function, *args, **kwargs))
        except BaseException as error:
            ordinary = isinstance(error, Exception) and not isinstance(error, StopIteration)
            job.set_exception(error if ordinary else PartFailed(outside.sentence(error)))

    _threads.submit(work)
    return await asyncio.wrap_future(job)


class _Threads:
    """Daemon threads, started as they are needed, that take one piece of work after another."""

    def __init__(self, most: int) -> None:
        self._most, self._started, self._idle = most, 0, 0
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def submit(self, work: Callable[[], None]) -> None:
        with self._lock:
            self._work.put(work)
            if self._idle >= self._work.qsize() or self._started == self._most:
                return
            self._started += 1
        threading.Thread(target=self._run, name="ponder-work", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            work = self._work.get()
            with self._lock:
                self._idle -= 1
            work()
            del work  # it may hold what should be freed


_threads = _Threads(min(32, (os.cpu_count() or 1) + 4))


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
