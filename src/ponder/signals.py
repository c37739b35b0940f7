"""Signals that end a command: the first stops it softly, the second ends the process at once.

`handled` is for the command line, which owns its process. A script or a notebook keeps Python's own handling of Ctrl-C.

The second signal works whatever runs. Python runs a handler between two instructions of the main thread, and code in C
may keep that from happening for minutes. So the system's own action is set for the second signal until the handler of
the first has run (`_once`, which needs glibc). From then on a small process waits for the byte that the second one
writes (`signal.set_wakeup_fd`), and kills this process if the handler has not ended it soon after.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_PATIENCE = 0.5
"""Seconds that the second signal's handler gets, and that flushing gets in it."""
_REAPER = f"""
import os, sys, time
if os.read(0, 1):
    time.sleep({_PATIENCE})
    if os.getppid() == int(sys.argv[1]):
        os.kill(int(sys.argv[1]), 9)
"""


class _State:
    """Of the process: signals belong to it."""

    installed = False
    received = 0
    """Number of the first signal; 0 before."""
    soft: Callable[[], None] | None = None
    reaper: tuple[subprocess.Popen[bytes], socket.socket] | None = None


def installed() -> bool:
    """Whether `handled` is open."""
    return _State.installed


def received() -> int:
    """Number of the first signal that came; 0 if none has."""
    return _State.received


def is_soft() -> bool:
    """Whether the first signal only asks for a stop (`soft`)."""
    return _State.soft is not None


def is_real(error: BaseException) -> bool:
    """Whether a `KeyboardInterrupt` comes from a signal, and not from code that raised one by itself."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    if threading.current_thread() is not threading.main_thread():
        return False  # Python raises a signal's in the main thread alone
    return bool(_State.received) or not _State.installed


@contextlib.contextmanager
def soft(stop: Callable[[], None]) -> Iterator[None]:
    """While open, the first signal calls `stop`; otherwise it raises `KeyboardInterrupt` in the main thread."""
    before, _State.soft = _State.soft, stop
    try:
        yield
    finally:
        _State.soft = before


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """While open, SIGINT, SIGTERM and SIGHUP stop softly, and a second one of any of them ends the process.

    Does nothing outside the main thread, and if it is open already. A SIGHUP that is ignored (`nohup`) stays so.
    """
    if _State.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in STOPPING if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
    _State.installed, _State.received = True, 0
    old = {n: signal.signal(n, _handle) for n in numbers}
    for number in numbers:
        _once(number)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if _State.reaper is not None:
            reaper, wakes = _State.reaper
            signal.set_wakeup_fd(-1)
            wakes.close()
            reaper.wait()
        _State.installed, _State.received, _State.reaper = False, 0, None


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.received:
        _end(number)
    _State.received = number
    mine = [n for n in STOPPING if signal.getsignal(n) is _handle]
    for each in mine:
        signal.signal(each, signal.SIG_DFL)
    # Starting a process lets other threads run, and one may not come back.
    if _start_reaper():
        for each in mine:
            signal.signal(each, _handle)
    if _State.soft is None:
        raise KeyboardInterrupt
    _State.soft()


def _start_reaper() -> bool:
    try:
        read, write = socket.socketpair()
        write.setblocking(False)
        command = [sys.executable, "-S", "-E", "-c", _REAPER, str(os.getpid())]
        quiet = subprocess.DEVNULL
        # A session of its own: Ctrl-C at the terminal is not for it.
        with read:
            reaper = subprocess.Popen(command, stdin=read.fileno(), stdout=quiet, stderr=quiet, start_new_session=True)
    except (OSError, ValueError):
        return False
    signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    _State.reaper = reaper, write
    return True


def _end(number: int) -> None:
    def flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()

    # On a thread: the reader of a pipe may take nothing any more.
    flushing = threading.Thread(target=flush, daemon=True)
    with contextlib.suppress(RuntimeError):
        flushing.start()
        flushing.join(_PATIENCE / 2)
    os._exit(128 + number)


def _once(number: int) -> None:
    """Let the system forget a handler when it runs (`SA_RESETHAND`), which Python's `signal` cannot ask for."""
    with contextlib.suppress(Exception):
        libc = ctypes.CDLL(None)
        libc.signal.restype = libc.sysv_signal.restype = ctypes.c_void_p
        libc.signal.argtypes = libc.sysv_signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        libc.sysv_signal(number, libc.signal(number, None))
