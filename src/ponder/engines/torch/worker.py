"""The decoding thread: a first-in-first-out queue in front of the running batch.

A job waits in the queue until its worst case fits, then among the `joining` until its prompt is computed, then its
samples get slots. No job overtakes another. A request that could never fit is refused with the numbers; so is one that
waits only for leases while nothing runs. `hold(ids)` is a job without rows that keeps its node.

The seconds of a search begin when its first call is worked on (`Receipt.begin`). A call whose seconds are used up
(`Receipt.left`) is stopped before the next step or chunk; while such calls wait for their prompts, chunks are as small
as the time that they may take.

Chunked prefill: between two decode steps at most `prefill_chunk` ids of prompts are computed, the oldest first, so that
streams keep flowing. A prompt that shares a page or more with one that is being computed waits for it. A group that
finds the engine idle starts decoding together, so that the same group gives the same bits.

The thread owns the batch; other threads post closures that run between two steps. It holds no reference to the engine,
so that an unused engine can be garbage-collected and its thread ended.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from ponder.engines._deltas import total
from ponder.engines.torch.batch import Batch
from ponder.engines.torch.cache import rounded
from ponder.engines.torch.jobs import Job
from ponder.engines.torch.prefix import PAGE
from ponder.errors import EngineClosed, OutOfTime, PonderError, UserError
from ponder.models.host import release_threads
from ponder.types import Spend

CLOSED = "the engine is closed: open a new one"
UNDISTURBED = 4
"""Chunks of prompts that are computed in one pass while no rows are decoding."""
CHUNK_SECONDS, CHUNK_SHARE, FIRST_CHUNK = 0.1, 0.25, 64
"""Where time is limited, a pass over prompts takes about so long at most, and about this share of what is left; as the
speed is not known before, the first pass has so many ids."""


class Worker:
    """Runs the batch on a daemon thread until `shutdown`."""

    def __init__(self, batch: Batch, *, max_rows: int, chunk: int) -> None:
        self.batch, self.max_rows, self.chunk = batch, max_rows, chunk
        self.queue: deque[Job] = deque()
        self.joining: list[tuple[Job, int]] = []
        """Samples that are admitted and wait for their prompts, in order."""
        self.leases: list[Job] = []
        """Admitted leases; granted once their prefix is computed."""
        self.timed: list[Job] = []
        """Jobs whose time is limited and that are not over."""
        self._speed = 0.0
        """Ids of prompts per second in the last chunk; 0 before the first."""
        self._groups = 0
        self.ended: Future[None] = Future()
        """Done when the thread has notified every caller and stopped."""
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self.closing = False
        """No more work is accepted."""
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
        """Queue jobs as one group: they join the batch in this order, as many together as there is room for."""

        def add() -> None:
            self._groups += 1
            for job in jobs:
                job.group = self._groups
            self.queue.extend(j for j in jobs if not j.cancelled)
            self.timed.extend(j for j in jobs if j.timed)

        self.post(add)

    def cancel(self, jobs: Sequence[Job]) -> Future[None]:
        """Drop jobs and free their rows before the next step; their sinks get nothing more. Never raises.

        Once that is done, the jobs know what they used (`spend`) and `results` holds what was sampled.
        """
        dropped: Future[None] = Future()
        for job in jobs:
            job.cancelled = True

        def drop() -> None:
            try:
                self._cut(jobs)
                self._drop_cancelled()
            finally:
                dropped.set_result(None)

        with self._wake:
            if self.ended.done():
                dropped.set_result(None)
            else:
                self._inbox.append(drop)
                self._wake.notify()
        return dropped

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

    @property
    def busy(self) -> bool:
        """Whether there is something to compute."""
        loads = self.batch.pool is not None and self.batch.pool.loads
        return bool(self.queue or self.joining or loads or len(self.batch))

    def _run(self) -> None:
        try:
            while True:
                if not self.busy:
                    release_threads()
                with self._wake:
                    while not (self.closing or self._inbox or self.busy):
                        self._wake.wait()
                    actions = list(self._inbox)
                    self._inbox.clear()
                    closing = self.closing
                try:
                    # Also when closing: a caller whose group is still in the inbox must get an answer.
                    for action in actions:
                        action()
                    if closing:
                        return
                    self._advance()
                except BaseException as error:
                    self._fail(_explain(error))
        finally:
            self._fail(EngineClosed("the engine was closed while the request ran"))
            with self._wake:
                self.ended.set_result(None)
                late = list(self._inbox)
            for action in late:
                action()

    def _advance(self) -> None:
        if self.timed:
            self._stop_late()
        self._admit()
        pool = self.batch.pool
        if pool is not None and pool.loads:
            most = self._chunk()
            self._begin(most)
            began = time.perf_counter()
            with torch.inference_mode():
                count = pool.work(most)
            self._speed = count / max(1e-9, time.perf_counter() - began) if count else self._speed
        for lease in self.leases:
            if lease.load is not None and lease.load.ready and not lease.granted:
                lease.granted = True
                lease.sink.done(())
        self._join()
        if not len(self.batch):
            return
        for row, completion in self.batch.step():
            job = row.job
            job.results[row.index] = completion
            if len(job.results) == job.request.n:
                job.spend = total(job.completions)
            if job.cancelled:
                continue
            job.sink.sample(row.index, completion)
            if len(job.results) == job.request.n:
                job.sink.done(tuple(job.results[i] for i in range(job.request.n)))

    def _stop_late(self) -> None:
        """End the jobs whose time is used up; what they have sampled is kept."""
        self.timed = [j for j in self.timed if not j.cancelled and len(j.results) < j.samples]
        late = [j for j in self.timed if (left := j.left()) is not None and left <= 0]
        if not late:
            return
        self._cut(late)
        for job in late:
            job.cancelled = True
        self._drop_cancelled()
        for job in late:
            job.sink.failed(OutOfTime("its time is used up", job.completions))

    def _chunk(self) -> int:
        """Most ids of prompts in the next pass."""
        most = self.chunk if len(self.batch) else UNDISTURBED * self.chunk
        left = [seconds for j in self.timed if (seconds := j.left()) is not None]
        if not left:
            return most
        seconds = min(CHUNK_SECONDS, min(left) * CHUNK_SHARE)
        return max(PAGE, min(most, int(self._speed * seconds))) if self._speed else min(most, FIRST_CHUNK)

    def _begin(self, most: int) -> None:
        """Tell the jobs whose prompts are in the next pass of so many ids that they are worked on."""
        pool = self.batch.pool
        assert pool is not None
        waiting = {id(job.load): job for job, _ in self.joining if not job.begun}
        for load in pool.loads if waiting else ():
            if (job := waiting.get(id(load))) is not None:
                _tell_begun(job)
            most -= len(load.ids) - load.done
            if most <= 0:
                return

    def _admit(self) -> None:
        """Take jobs from the queue while their worst case fits, in order: no job is overtaken."""
        rows = len(self.batch) + len(self.joining)
        longest = max([self.batch.longest, *(job.private for job, _ in self.joining)])
        while self.queue:
            job = self.queue[0]
            if job.load is None and not self._open(job, rows, longest):
                if not (rows or self.batch.pool is None or self.batch.pool.loads):
                    self.queue.popleft()
                    job.sink.failed(self._refusal(job))
                    continue
                return
            longest = max(longest, job.private) if job.samples else longest
            while job.next < job.samples and rows < self.max_rows and self._fits(rows + 1, longest):
                self.joining.append((job, job.next))
                job.next += 1
                rows += 1
            if job.next < job.samples:
                return
            self.queue.popleft()
            if job.lease:
                self.leases.append(job)

    def _open(self, job: Job, rows: int, longest: int) -> bool:
        """Hold a job's prompt if that and its first row fit; its rows hang on it if that pays or is needed."""
        pool = self.batch.pool
        if pool is None:
            return rows < self.max_rows
        if job.samples and rows >= self.max_rows:
            return False
        more = pool.look(job.cached)
        for hangs in (True,) if pool.hanging_pays(job.samples, len(job.cached)) else (False, True):
            job.hangs = hangs and not job.lease
            columns = max(longest, job.private) if job.samples else longest
            if pool.fits(rows + min(1, job.samples), columns, more):
                job.load = pool.open(job.cached, max(1, job.samples))
                return True
        job.hangs = False
        return False

    def _fits(self, rows: int, longest: int) -> bool:
        return self.batch.pool is None or self.batch.pool.fits(rows, longest)

    def _refusal(self, job: Job) -> UserError:
        """The error for a job that does not fit although nothing runs: leases hold the rest."""
        pool = self.batch.pool
        assert pool is not None
        per_token = pool.shape.bytes_per_token
        job.hangs = not job.lease
        need = pool.look(job.cached) + (0 if job.lease else job.private)
        return UserError(
            f"{need * per_token} more bytes of cache are needed, but leases hold {pool.tree.held_tokens * per_token} "
            f"of the {pool.limit * per_token} of kv_memory: release a lease or raise kv_memory"
        )

    def _join(self) -> None:
        """Give slots to samples whose prompts are computed. A group that finds the engine idle starts together."""
        ready = [(job, i) for job, i in self.joining if job.load is None or job.load.ready]
        if not ready:
            return
        running = len(self.batch)
        if running:
            # Joining has a fixed cost: while more wait than fit, several rows join at once.
            if self.queue and len(ready) < running // 16:
                return
        else:
            first = self.joining[0][0].group
            behind = [j for j, _ in self.joining if j.group == first and j.load is not None and not j.load.ready]
            if behind and not any(job.timed for job, _ in ready):
                return
        for job, _ in ready:
            _tell_begun(job)
        count, late = running + len(ready), len(self.joining) - len(ready)
        longest = max([self.batch.longest, *(job.private for job, _ in self.joining)])
        wide = min(rounded(count, 16), self.max_rows)
        self.batch.join(ready, cache_rows=wide if self._fits(wide + late, longest) else count)
        self.joining = [s for s in self.joining if s[0].load is not None and not s[0].load.ready]
        for job, _ in ready:
            self._let_go(job, 1)

    def _let_go(self, job: Job, count: int) -> None:
        if job.load is not None and self.batch.pool is not None:
            self.batch.pool.give_back(job.load, count)
            if not job.load.count:
                job.load = None

    def drop_caches(self) -> None:
        """Free nodes without a holder."""
        if self.batch.pool is not None:
            self.batch.pool.tree.evict(self.batch.pool.tree.tokens)

    def begin_again(self) -> None:
        """The weights have changed: put all leases, and jobs that are admitted but not running, back into the queue."""
        waiting = list(dict.fromkeys([*self.leases, *(job for job, _ in self.joining), *self.queue]))
        for job, index in reversed(self.joining):
            job.next = index
        for job in waiting:
            if job.load is not None:
                self._let_go(job, job.load.count)
        self.joining.clear()
        self.leases.clear()
        self.queue = deque(waiting)

    def _cut(self, jobs: Sequence[Job]) -> None:
        """Record what jobs have sampled and used, once."""
        jobs = [job for job in jobs if not job.is_cut]
        for slot, row in enumerate(self.batch.rows):
            if row.job in jobs:
                row.job.results[row.index] = self.batch.cut_short(slot)
        for job in jobs:
            spend, load = total(job.completions), job.load
            if load is not None and not load.paid:
                spend += Spend(prompt_tokens=load.done - load.matched, device_seconds=load.seconds)
            job.spend, job.is_cut = spend, True

    def _drop_cancelled(self) -> None:
        dropped = dict.fromkeys([*self.leases, *(job for job, _ in self.joining), *self.queue])
        # Others may have been cancelled since, whose turn has not come yet.
        self._cut([job for job in dict.fromkeys([*dropped, *(r.job for r in self.batch.rows)]) if job.cancelled])
        for job in dropped:
            if job.cancelled and job.load is not None:
                self._let_go(job, job.load.count)
        self.queue = deque(j for j in self.queue if not j.cancelled)
        self.joining = [s for s in self.joining if not s[0].cancelled]
        self.leases = [j for j in self.leases if not j.cancelled]
        leaving = [s for s, row in enumerate(self.batch.rows) if row.job.cancelled]
        if leaving:
            self.batch.leave(np.array(leaving))

    def _fail(self, error: PonderError) -> None:
        """Report to every caller, and start again with an empty batch; granted leases are recomputed."""
        running = [*(row.job for row in self.batch.rows), *(job for job, _ in self.joining)]
        jobs = dict.fromkeys([*running, *self.queue, *self.leases])
        granted = [job for job in self.leases if job.granted and not job.cancelled]
        try:
            self._cut(list(jobs))
        except Exception:
            # The failure may have left the batch in any state; then what was used is not known.
            for job in jobs:
                job.spend = None
        self.queue.clear()
        self.joining.clear()
        self.leases.clear()
        self.batch.reset()
        for job in jobs:
            job.load = None
            if not (job.cancelled or job.granted):
                own = type(error)(*error.args)
                own.__cause__ = error.__cause__
                job.sink.failed(own)
        if not self.closing:
            for job in granted:
                job.is_cut = False
            self.queue.extend(granted)


def _tell_begun(job: Job) -> None:
    if not job.begun:
        job.begun = True
        job.begin()


def _explain(error: BaseException) -> PonderError:
    if isinstance(error, PonderError):
        return error
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate" in str(error):
        wrapped = PonderError("the engine ran out of memory: lower max_rows, kv_memory or max_tokens")
    else:
        wrapped = PonderError(f"the engine failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
