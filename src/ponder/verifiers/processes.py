"""Processes for work that may hang, eat memory or crash: a call that overruns is killed, and the pool continues.

Plain subprocesses rather than `multiprocessing`: nothing is forked from a process with threads, the caller's main
module is not imported again, no signal handler is needed (so calls work from any thread and next to an event loop).
The time limit of a call counts from when its worker says that it starts, not while it waits for a worker or an import.
It counts processor time; the wall-clock limit is four times as long.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from ponder import threads
from ponder.errors import PonderError
from ponder.verifiers._worker import WAITING, receive, send

STARTUP_SECONDS = 120.0
"""Longest that a worker may take to start, and again to import what it is to call."""
MOST_WORKERS = 4
"""Where the number of workers is not given; as many as there are threads, if those are fewer."""
_CALLS = 5_000
"""Calls after which a worker is replaced; symbolic libraries keep caches that only grow."""
_OUT_OF_TIME = {-int(getattr(signal, name)) for name in ("SIGPROF", "SIGALRM") if hasattr(signal, name)}


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a call: `ok` with its value, or why there is none."""

    kind: Literal["ok", "timeout", "memory", "error"]
    value: Any = None
    reason: str = ""


class _Died(Exception):
    """The worker ended by itself."""


class _Late(Exception):
    """The worker did not answer in time."""


class _Worker:
    """One process and its two pipes."""

    def __init__(self, memory: int) -> None:
        path = os.pathsep.join(p for p in sys.path if p)
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ponder.verifiers._worker", str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # what a buffer holds, poll does not see
            env=environment,
            start_new_session=True,  # Ctrl-C at the terminal is for the parent
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in: BinaryIO = self.process.stdin  # type: ignore[assignment]
        self._out: BinaryIO = self.process.stdout  # type: ignore[assignment]
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN | select.POLLHUP)
        self.calls = 0
        self.closed = False

    def ready(self) -> None:
        self.wait(STARTUP_SECONDS)

    def send(self, message: Any) -> None:
        try:
            send(self._in, message)
        except OSError:
            raise _Died from None

    def wait(self, seconds: float) -> dict[str, Any]:
        """The next message. Raises `_Late` or `_Died`."""
        end = time.monotonic() + seconds
        while not self._poll.poll(max(0.0, end - time.monotonic()) * 1000):
            if time.monotonic() >= end:
                raise _Late
        try:
            return receive(self._out)
        except (EOFError, OSError, ValueError):
            raise _Died from None

    def kill(self) -> int:
        """End the process whatever it does; its exit status, negative for a signal."""
        status = self.process.poll()
        if status is None:
            self.process.kill()
            status = self.process.wait()
        for pipe in (self._in, self._out):
            with contextlib.suppress(OSError):
                pipe.close()
        return status


class Pool:
    """At most `workers` processes, started when they are needed. Safe to call from any number of threads.

    `call` blocks; from a coroutine use `asyncio.to_thread(pool.call, …)`.
    """

    def __init__(self, workers: int | None = None, memory: int = 1 << 30) -> None:
        self._workers = workers
        self._memory = memory
        self._forget()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)  # the pipes belong to the parent

    def _forget(self) -> None:
        self._change = threading.Condition()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._count = 0

    def call(self, function: str, arguments: list[Any], seconds: float) -> Result:
        """Call `module:name` with JSON arguments in a worker; its result must be JSON too.

        Raises `PonderError` if a worker cannot start or import the function: an infrastructure error, not the call's.
        """
        for attempt in (1, 2):
            worker = self._take()
            keep = False
            try:
                worker.send({"function": function, "arguments": arguments, "seconds": seconds})
                first = worker.wait(STARTUP_SECONDS)
                if first["kind"] != "started":
                    keep = True
                    raise PonderError(f"{function} cannot be loaded in a worker: {first.get('reason')}")
                result, keep = self._work(worker, seconds)
                return result
            except (_Died, _Late):
                if attempt == 2:
                    raise PonderError("a verifier's worker process died before it began") from None
            finally:
                self._give(worker, keep)
        raise AssertionError

    def _work(self, worker: _Worker, seconds: float) -> tuple[Result, bool]:
        """Wait for a call that has started; the result, and whether the worker is still good."""
        try:
            reply = worker.wait(seconds * WAITING if hasattr(signal, "setitimer") else seconds)
        except _Late:
            return Result("timeout", reason=f"it took longer than {seconds:g} s"), False
        except _Died:
            status = worker.kill()
            if worker.closed:
                raise PonderError("the pool of verifier processes was closed during a call") from None
            if status in _OUT_OF_TIME:
                return Result("timeout", reason=f"it took longer than {seconds:g} s"), False
            if status == -9:
                return Result("memory", reason="the system killed it, most likely for its memory"), False
            return Result("error", reason=f"its process ended with status {status}"), False
        worker.calls += 1
        result = Result(reply["kind"], reply.get("value"), reply.get("reason", ""))
        return result, result.kind != "memory" and worker.calls < _CALLS

    def _take(self) -> _Worker:
        with self._change:
            while not self._idle and self._count >= (self._workers or min(MOST_WORKERS, threads.count())):
                self._change.wait()
            if self._idle:
                return self._idle.pop()
            self._count += 1
        worker = None
        try:
            worker = _Worker(self._memory)
            with self._change:
                self._all.add(worker)
            worker.ready()
            return worker
        except BaseException as error:
            with self._change:
                self._count -= 1
                self._change.notify()
                if worker is not None:
                    self._all.discard(worker)
            if worker is not None:
                worker.kill()
            if isinstance(error, _Died | _Late | OSError):
                raise PonderError(f"a verifier's worker process cannot start: {error!r}") from None
            raise

    def _give(self, worker: _Worker, keep: bool) -> None:
        if not keep:
            worker.kill()
        with self._change:
            if keep and worker in self._all:
                self._idle.append(worker)
            else:
                self._count -= 1
                self._all.discard(worker)
            self._change.notify()

    def close(self) -> None:
        """End every worker, busy ones too. Idempotent; a later call starts new ones."""
        with self._change:
            idle, self._idle = self._idle, []
            self._count -= len(idle)
            busy = self._all - set(idle)
            self._all = busy
            for worker in busy:
                worker.closed = True
                worker.process.kill()
            self._change.notify_all()
        for worker in idle:
            worker.kill()


_pools: dict[int, Pool] = {}
_lock = threading.Lock()


def shared(memory: int = 1 << 30) -> Pool:
    """The pool of this process for calls with this memory limit, in bytes."""
    with _lock:
        if memory not in _pools:
            _pools[memory] = Pool(memory=memory)
        return _pools[memory]
