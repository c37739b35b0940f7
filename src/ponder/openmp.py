"""How long OpenMP's threads spin at a barrier before they sleep; set before torch loads the library.

A thread that waits spins, since waking a sleeping one costs more than a small product takes. Beside other work that is
ruinous: the thread that is waited for is not scheduled, and those that spin take the core it needs. GNU OpenMP spins
for about a millisecond unless told otherwise (GOMP_SPINCOUNT). docs/LOG.md has what each count costs on an idle machine
and beside a busy one.
"""

from __future__ import annotations

import os
import sys

SPINS = "2000"
"""Rounds of a waiting thread, some microseconds."""


def bound_spinning() -> bool:
    """Set the count, if neither the user nor a library that is loaded already has decided; True if it was set."""
    if "torch" in sys.modules or "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return False
    os.environ["GOMP_SPINCOUNT"] = SPINS
    return True
