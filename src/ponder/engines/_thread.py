"""A thread that runs one job after another and ends with its owner, or with Python."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

from ponder.errors import EngineClosed

CLOSED = "the engine is closed: open a new one"


class OneByOne:
    """A daemon thread. (A `ThreadPoolExecutor`'s thread would keep Python from exiting until its job is done.)"""

    def __init__(self, name: str, free: Callable[[], None]) -> None:
        """`free` runs on the thread at its end."""
        self.closing = threading.Event()
        """The running job should end soon, and no new job is accepted."""
        self.ended: Future[None] = Future()
        self._jobs: queue.SimpleQueue[tuple[Future[None], Callable[[], None]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, args=(free,), name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> Future[None]:
        """Run a job after those before it; cancelling the future before that drops it. Raises `EngineClosed`."""
        future: Future[None] = Future()
        with self._lock:
            if self.closing.is_set():
                raise EngineClosed(CLOSED)
            self._jobs.put((future, job))
        return future

    def shutdown(self, timeout: float = 0.0) -> None:
        """Let the thread end after the jobs that were submitted, and wait for it up to `timeout` seconds."""
        with self._lock:
            if not self.closing.is_set():
                self.closing.set()
                self._jobs.put(None)
        if timeout and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self, free: Callable[[], None]) -> None:
        while (item := self._jobs.get()) is not None:
            future, job = item
            if future.set_running_or_notify_cancel():
                try:
                    job()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(None)
            # The job knows its engine, which must not live for as long as this thread waits.
            del item, future, job
        try:
            free()
        finally:
            self.ended.set_result(None)
