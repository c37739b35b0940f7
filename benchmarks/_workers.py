"""Processes that stay up: the sides of a comparison, ponder and the peers, each in its own Python."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

SCRIPTS = Path(__file__).parent / "workers"
MARK = "\x1e"
"""Starts an answer (`workers/pipe.py`)."""
TAIL = 4000
"""Characters of a worker's output that are shown when it fails."""


class PeerMissing(Exception):
    """A peer that is not available here; the message is one line that says why."""


class WorkerFailed(Exception):
    """A worker answered with an error or ended; the message names it, `output` is the end of what it printed."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class Worker:
    """A script of `workers/` that runs until it is closed and is driven over a pipe (see `workers/pipe.py`)."""

    def __init__(
        self, name: str, script: str, logs: Path, *, python: str | None = None, environment: Mapping[str, str] = {}
    ) -> None:
        """Start it; `python` None is this Python. Returns at once: the first `call` waits until it is ready."""
        self.name = name
        self.log = logs / f"{name.replace(' ', '-').replace('/', '-')}.log"
        own = python is None
        # A peer's Python must find its own packages and none of ponder's.
        variables = {k: v for k, v in os.environ.items() if own or k not in ("PYTHONPATH", "PYTHONHOME")}
        # The log stays readable, and nothing asks the network for models that lie on disk.
        variables |= {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._log = self.log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [python or sys.executable, str(SCRIPTS / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**variables, **environment},
        )
        self._ready = False

    def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one message and wait for its answer. Raises `WorkerFailed`."""
        if not self._ready:
            self._read()
            self._ready = True
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while not (line := self._process.stdout.readline()).startswith(MARK):
            if not line:
                raise self._ended()
        answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
        if "error" in answer:
            raise WorkerFailed(f"{self.name}: {answer['error']}", self._tail())
        return answer

    def _ended(self) -> WorkerFailed:
        return WorkerFailed(f"{self.name} ended with code {self._process.wait()}", self._tail())

    def _tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-TAIL:]

    def close(self) -> None:
        """Close the pipe, which ends the worker; one that does not end is killed after a while."""
        for end in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert end is not None
                end.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def peer_versions(python: str | None, flag: str, packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of a peer's packages in its Python. Raises `PeerMissing` if the Python or one of them is not there."""
    if not python:
        raise PeerMissing(f"give {flag} (benchmarks/README.md says how to make it)")
    words = ", ".join(map(repr, packages))
    code = f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in ({words},)}}))"
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, env=variables, check=False)
    except OSError as error:
        raise PeerMissing(f"{flag} {python}: {error.strerror or error}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it ended without output"])[-1]
        raise PeerMissing(f"{flag} {python}: {reason}")
    return json.loads(done.stdout)


def preloads(python: str) -> dict[str, str]:
    """What vLLM asks to be loaded first for best performance, where its environment holds it: OpenMP and malloc."""
    prefix = Path(python).absolute().parent.parent
    patterns = ("lib/libiomp5.so", "lib/python*/site-packages/vllm/libs/libtcmalloc*.so*")
    found = [str(files[0]) for pattern in patterns if (files := sorted(prefix.glob(pattern)))]
    # The block time is what vLLM sets for its own workers.
    return {"LD_PRELOAD": ":".join(found), "KMP_BLOCKTIME": "5"} if found else {}


def settle(seconds: float = 0.3) -> None:
    """Let threads that still spin at a barrier go to sleep before another process is timed."""
    time.sleep(seconds)
