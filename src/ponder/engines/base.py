"""Opening an engine by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ponder import registry

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel
    from ponder.protocols import Engine


def open_engine(
    model: LoadedModel, spec: str = "torch", options: Mapping[str, Any] | None = None, *, version: str = "0"
) -> Engine:
    """Open the engine that a spec names (`torch`, an entry point, `./mine.py:Mine`) on a loaded model.

    `options` are the fields of the engine's config. Raises `UserError` for an unknown name or option.
    """
    return registry.build("engines", spec, options).open(model, version)
