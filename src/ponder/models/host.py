"""Settings of the C libraries under torch, so that small models run at full speed on a CPU."""

from __future__ import annotations

import ctypes
import functools
import platform
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 1 << 30
_PAUSE_HARD = 2


@functools.cache
def reuse_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 1 GiB for the next allocation; True if it was set.

    By default it maps each large tensor again and the kernel clears its pages each time, which made a training step of
    a small model 1.6 times as long (docs/LOG.md). Without glibc nothing is done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))


@functools.cache
def _libgomp() -> ctypes.CDLL | None:
    """The GNU OpenMP library that this process has loaded, if any."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
        path = next(p for line in lines if "libgomp" in (p := line.split()[-1]))
        library = ctypes.CDLL(path)
        library.omp_pause_resource_all  # noqa: B018  (since OpenMP 5.0)
    except (OSError, StopIteration, AttributeError):
        return None
    return library


def release_threads() -> bool:
    """Release the OpenMP threads of the calling thread; True if there was such a library.

    Each Python thread that computes gets its own team, kept for later. As soon as there are more team threads than
    cores, libgomp stops spinning at barriers and sleeps instead, and a decoding step of a small model took 2.7 times as
    long (docs/LOG.md). So code that ends a burst of work (loading, an update, a batch that ran empty) calls this; the
    next burst makes a new team in about 50 µs. Must not be called inside a parallel region.
    """
    library = _libgomp()
    return library is not None and library.omp_pause_resource_all(_PAUSE_HARD) == 0
