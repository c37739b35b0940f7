"""OpenMP's threads do not spin for long, however ponder is started, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ponder.openmp import SPINS

WAYS = [
    "import ponder",
    "from ponder.engines.torch import Torch",
    "import ponder.cli.main",
    "from ponder.types import Spend",
]


def spins(code: str, **variables: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    shown = f"{code}; import os; print(os.environ.get('GOMP_SPINCOUNT', 'unset'))"
    done = subprocess.run([sys.executable, "-c", shown], env={**kept, **variables}, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.parametrize("code", WAYS)
def test_the_count_is_set_before_torch_is_loaded(code) -> None:
    assert spins(code) == SPINS


def test_what_the_user_set_stays() -> None:
    assert spins("import ponder", GOMP_SPINCOUNT="7") == "7"
    assert spins("import ponder", OMP_WAIT_POLICY="passive") == "unset"
