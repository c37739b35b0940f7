"""The in-process torch engine. Importing this is quick; torch is imported with `TorchEngine`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ponder.engines.torch.engine import TorchEngine

__all__ = ["TorchEngine"]


def __getattr__(name: str) -> Any:
    if name == "TorchEngine":
        from ponder.engines.torch.engine import TorchEngine

        return TorchEngine
    raise AttributeError(name)
