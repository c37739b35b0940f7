"""How many threads of the processor this process computes with: torch's, and the workers that follow the same number.

Nothing is set unless somebody asks: torch then takes as many as there are cores, and so do the workers.
"""

from __future__ import annotations

import os
import sys

from ponder.errors import UserError

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Read by the libraries under torch when they are loaded, also in child processes."""
_asked: int | None = None


def check(count: int | None) -> None:
    """Raises `UserError` for fewer than one."""
    if count is not None and count < 1:
        raise UserError(f"threads = {count}: give at least 1, or leave it out for as many as there are cores")


def use(count: int | None) -> None:
    """Compute with this many threads from now on, in the whole process; None changes nothing.

    Call it before a model is loaded. Raises `UserError` for fewer than one.
    """
    global _asked
    check(count)
    if count is None:
        return
    _asked = count
    for name in _VARIABLES:
        os.environ[name] = str(count)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)


def asked() -> int | None:
    """The number that was asked for, if any."""
    return _asked


def count() -> int:
    """The number that was asked for, else that of the usable cores."""
    return cores() if _asked is None else _asked


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
