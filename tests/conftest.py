"""Settings of hypothesis and signals, and the model and engine that most tests of the engine share.

The same examples each time and no deadline: a slow machine must not fail a test, nor luck.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from ponder.engines.torch import TorchEngine
    from ponder.models.base import LoadedModel

# What a test dequantises is not kept for the user whose machine it runs on.
os.environ["PONDER_CACHE"] = ""
# Which products are fastest is measured, and the last bits depend on it: the same in every process of a test.
os.environ["PONDER_PRODUCTS"] = "onednn"

settings.register_profile("ponder", deadline=None, derandomize=True)
settings.load_profile("ponder")

# A background job may have been told to ignore Ctrl-C; tests that press it must not wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Tests of other rooms run where torch is not installed, so it is imported in the fixtures.


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    from engine_fixture import make_model

    return make_model()


@pytest.fixture(scope="module")
def engine(model: LoadedModel) -> Iterator[TorchEngine]:
    from ponder.engines.torch import TorchEngine

    engine = TorchEngine(model, max_rows=64)
    yield engine
    engine.close_now()
