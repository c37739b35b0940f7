"""A worker process of `processes.Pool`: reads a call, says that it starts, answers. Dies when its parent does.

Messages are a 4-byte length and JSON. Output of the libraries that are called cannot get in between: the pipe is moved
away from file descriptor 1 before anything is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import struct
import sys
from typing import Any, BinaryIO

WAITING = 4.0
"""Wall-clock limit in units of the processor-time limit: a busy machine must not turn right answers into timeouts."""
GRACE = 5.0
"""Seconds after that until a worker ends itself, in case its parent is gone and cannot."""


def send(pipe: BinaryIO, message: Any) -> None:
    data = json.dumps(message).encode("ascii")  # lone surrogates and NUL travel escaped
    data = struct.pack(">I", len(data)) + data
    while data:
        data = data[pipe.write(data) :]  # an unbuffered pipe may take a part
    pipe.flush()


def receive(pipe: BinaryIO) -> Any:
    """The next message. Raises `EOFError` at the end of the pipe."""
    return json.loads(_exactly(pipe, struct.unpack(">I", _exactly(pipe, 4))[0]))


def _exactly(pipe: BinaryIO, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = pipe.read(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def limit_memory(limit: int) -> None:
    """Let allocations beyond a number of bytes fail in this process, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def answer(function: Any, arguments: list[Any], seconds: float) -> dict[str, Any]:
    """Call a function; whatever it raises becomes an answer, `BaseException` too (math-verify's timeout is one)."""
    if hasattr(signal, "setitimer"):
        # The default action of both signals ends the process, even inside C code.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds * WAITING + GRACE)
    try:
        return {"kind": "ok", "value": function(*arguments)}
    except MemoryError:
        return {"kind": "memory", "reason": "it needs too much memory"}
    except BaseException as error:
        return {"kind": "error", "reason": f"{type(error).__name__}: {error}"[:300]}
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    limit_memory(int(sys.argv[1]))
    send(outbox, {"kind": "ready"})
    while True:
        try:
            call = receive(inbox)
        except EOFError:
            return
        module, _, name = call["function"].partition(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except BaseException as error:
            send(outbox, {"kind": "broken", "reason": f"{type(error).__name__}: {error}"[:300]})
            continue
        send(outbox, {"kind": "started"})
        reply = answer(function, call["arguments"], call["seconds"])
        try:
            send(outbox, reply)
        except (TypeError, ValueError) as error:
            send(outbox, {"kind": "error", "reason": f"its result cannot be sent: {error}"[:300]})


if __name__ == "__main__":
    main()
