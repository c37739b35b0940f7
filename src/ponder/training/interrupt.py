"""Ctrl-C in a training loop: the first asks the loop to stop at a safe place, the second stops at once.

In the command line the signals are those of `ponder.signals`, and the second ends the process. In a script or a
notebook it raises `KeyboardInterrupt`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType

from ponder import signals
from ponder.errors import PonderError


class Interrupted(PonderError):
    """A run that was stopped after a checkpoint; the message is the command to continue."""

    exit_code = 130


class Interrupt:
    """While open, a signal that stops sets `requested`; a second one stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[int, object] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Interrupt:
        if signals.installed():
            self._stack.enter_context(signals.soft(self._request))
        elif threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self._request()

    def _request(self) -> None:
        self.requested = True
        # Not print: a handler that runs in the middle of another print must not use the same buffer.
        with contextlib.suppress(OSError):  # a terminal that is gone
            os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")
