"""How a benchmark drives a process that stays up: one JSON object a line in, one out. Standard library only.

A line out begins with `MARK`; lines that a library prints before the pipe is opened do not.

The first line out says that the process is ready; after it every line in gets one answer, `{"error": …}` if it failed.
While it waits the process is blocked on the pipe and takes no processor time.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MARK = "\x1e"
"""Record separator (RFC 7464)."""


class Pipe:
    """The worker's end. From here on, what libraries print goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, **answer: Any) -> None:
        self._out.write(f"{MARK}{json.dumps(answer)}\n")
        self._out.flush()

    def receive(self) -> dict[str, Any] | None:
        """The next message; None if the benchmark has closed the pipe."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def fail(self, error: BaseException) -> None:
        traceback.print_exception(error)
        self.send(error=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def serve(handlers: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer messages `{"do": NAME, …}` with what the handler of that name returns, until the pipe is closed."""
    pipe = Pipe()
    pipe.send(ready=True)
    while (message := pipe.receive()) is not None:
        try:
            answer = handlers[message.pop("do")](**message)
        except Exception as error:
            pipe.fail(error)
        else:
            pipe.send(**answer)


def timed(seconds: float, lengths: Sequence[int], samples: int, max_tokens: int) -> dict[str, Any]:
    """What every side answers to `generate`: seconds, tokens in all, peak memory in bytes.

    `lengths` are the tokens of each sample. Raises `RuntimeError` if there are not `samples` of `max_tokens` each:
    rates of unequal work say nothing.
    """
    if len(lengths) != samples:
        raise RuntimeError(f"{len(lengths)} responses instead of {samples}")
    wrong = [n for n in lengths if n != max_tokens]
    if wrong:
        raise RuntimeError(f"{len(wrong)} responses have not {max_tokens} tokens; the first has {wrong[0]}")
    return {"seconds": seconds, "tokens": sum(lengths), "peak_bytes": peak_bytes()}


def forget_peak() -> bool:
    """Reset the peak of resident memory (Linux); False where that is impossible: the peak is then the process's."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Largest resident memory of this process since the last `forget_peak`."""
    # Not `ru_maxrss`: a process inherits that from the one that started it.
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
