"""How the C library gives memory back."""

from __future__ import annotations

import ctypes
import functools
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 1 << 30


@functools.cache
def reuse_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 1 GiB for the next allocation; True if it was told so.

    By default it maps each large tensor anew and the kernel clears its pages each time, which made a training step of
    a small model 1.6 times as long (docs/LOG.md). Elsewhere than on glibc nothing is done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))
