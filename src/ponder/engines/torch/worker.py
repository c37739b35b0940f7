"""The decoding thread: a first-in-first-out queue in front of the running batch.

The thread owns the batch; everybody else posts closures that run between two steps. It holds no reference to the
engine, so that an engine that is forgotten can be collected and its thread ended.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from ponder.engines.torch.batch import Batch
from ponder.engines.torch.cache import rounded
from ponder.engines.torch.jobs import Job
from ponder.errors import EngineClosed, PonderError
from ponder.models.host import release_threads

CLOSED = "the engine is closed: open a new one"


class Worker:
    """Runs the batch on a daemon thread until `shutdown`."""

    def __init__(self, batch: Batch, *, max_rows: int, memory: int) -> None:
        self.batch, self.max_rows, self.memory = batch, max_rows, memory
        self.queue: deque[Job] = deque()
        self.ended: Future[None] = Future()
        """Done when the thread has told every caller and stopped."""
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self.closing = False
        """No more work is taken."""
        self._thread = threading.Thread(target=self._run, name="ponder-engine", daemon=True)
        self._thread.start()

    def post(self, action: Callable[[], None]) -> None:
        """Run something on the thread before the next step. Raises `EngineClosed`."""
        with self._wake:
            if self.closing:
                raise EngineClosed(CLOSED)
            self._inbox.append(action)
            self._wake.notify()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs as one group: they join the batch in this order, together as far as there is room."""
        self.post(lambda: self.queue.extend(j for j in jobs if not j.cancelled))

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Drop jobs and free their rows before the next step; their sinks hear no more. Never raises."""
        for job in jobs:
            job.cancelled = True
        with self._wake:
            self._inbox.append(self._drop_cancelled)
            self._wake.notify()

    def call(self, action: Callable[[], Any]) -> Future[Any]:
        """Run something between two steps and return its result or error. Raises `EngineClosed`."""
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(action())
            except BaseException as error:
                future.set_exception(error)

        self.post(run)
        return future

    def shutdown(self, timeout: float | None = 0.0) -> None:
        """Ask the thread to stop after the step it is in, and wait for it up to `timeout` seconds."""
        with self._wake:
            self.closing = True
            self._wake.notify()
        if timeout != 0.0 and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while True:
                if not (self.queue or len(self.batch)):
                    release_threads()
                with self._wake:
                    while not (self.closing or self._inbox or self.queue or len(self.batch)):
                        self._wake.wait()
                    actions = list(self._inbox)
                    self._inbox.clear()
                    closing = self.closing
                try:
                    # Also when closing: a caller whose group is still in the inbox must be told.
                    for action in actions:
                        action()
                    if closing:
                        return
                    self._advance()
                except BaseException as error:
                    self._fail(_explain(error))
        finally:
            self._fail(EngineClosed("the engine was closed while the request ran"))
            self.batch.forward.clear()
            self.ended.set_result(None)

    def _advance(self) -> None:
        self._admit()
        if not len(self.batch):
            return
        for row, completion in self.batch.step():
            job = row.job
            if job.cancelled:
                continue
            job.results[row.index] = completion
            job.sink.sample(row.index, completion)
            if len(job.results) == job.request.n:
                job.sink.done(tuple(job.results[i] for i in range(job.request.n)))

    def _admit(self) -> None:
        samples: list[tuple[Job, int]] = []
        running, limit = len(self.batch), self.batch.longest_total
        full = False
        for job in self.queue:
            for index in range(job.next, job.request.n):
                count, longest = running + len(samples) + 1, max(limit, job.total)
                full = count > self.max_rows or not self._fits(count, longest)
                if full:
                    break
                samples.append((job, index))
                limit = longest
            if full:
                break
        count = running + len(samples)
        # A prefill has a fixed cost: while others run and more wait, save it for several rows.
        if not samples or (running and full and len(samples) < count // 16):
            return
        rows = min(rounded(count, 16), self.max_rows)
        self.batch.join(samples, cache_rows=rows if self._fits(rows, limit) else count, limit=limit)
        for job, index in samples:
            job.next = index + 1
        while self.queue and self.queue[0].next == self.queue[0].request.n:
            self.queue.popleft().saved = None
        self._keep_prompt(samples)

    def _fits(self, rows: int, length: int) -> bool:
        # The one longest row was checked before it was queued, without the rounding.
        return rows == 1 or rows * rounded(length) * self.batch.forward.bytes_per_token <= self.memory

    def _keep_prompt(self, samples: Sequence[tuple[Job, int]]) -> None:
        """Only the head of the queue can be admitted in part: keep its prompt for the samples that still wait."""
        if not self.queue or self.queue[0].next == 0 or self.queue[0].saved is not None:
            return
        head = self.queue[0]
        # The last one: it joined just now, with today's weights.
        slot = max(s for s, row in enumerate(self.batch.rows) if row.job is head)
        head.saved = self.batch.save_prompt(slot)

    def drop_caches(self) -> None:
        """Forget kept prompts: they were computed with other weights."""
        for job in self.queue:
            job.saved = None

    def _drop_cancelled(self) -> None:
        self.queue = deque(j for j in self.queue if not j.cancelled)
        leaving = [s for s, row in enumerate(self.batch.rows) if row.job.cancelled]
        if leaving:
            self.batch.leave(np.array(leaving))

    def _fail(self, error: PonderError) -> None:
        """Tell every caller, and begin again with an empty batch."""
        jobs = dict.fromkeys([*(row.job for row in self.batch.rows), *self.queue])
        self.queue.clear()
        self.batch.reset()
        for job in jobs:
            if not job.cancelled:
                own = type(error)(*error.args)
                own.__cause__ = error.__cause__
                job.sink.failed(own)


def _explain(error: BaseException) -> PonderError:
    if isinstance(error, PonderError):
        return error
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate" in str(error):
        wrapped = PonderError("the engine ran out of memory: lower max_rows, kv_memory or max_tokens")
    else:
        wrapped = PonderError(f"the engine failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
