"""The in-process torch engine. Importing this is quick; torch is imported when an engine is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ponder.engines.torch.engine import TorchEngine
    from ponder.models.base import LoadedModel

__all__ = ["Torch", "TorchEngine"]


@dataclass(frozen=True)
class Torch:
    """Samples from a model in this process, on the CPU or a GPU, with continuous batching."""

    max_rows: int = 512
    """Most samples that run at the same time; others wait."""
    kv_memory: int = 0
    """Most bytes that keys and values may take; 0 takes a share of what is available."""
    prefill_chunk: int = 512
    """Most tokens of prompts that are computed between two steps of running rows."""
    exact: bool = False
    """Batch-invariant: a sample has the same bits in any company. Slower; a CPU in float32 only."""

    def open(self, model: LoadedModel, version: str = "0") -> TorchEngine:
        """Start an engine on a loaded model. Raises `UserError` for options that make no sense."""
        from ponder.engines.torch.engine import TorchEngine

        return TorchEngine(
            model,
            max_rows=self.max_rows,
            kv_memory=self.kv_memory or None,
            prefill_chunk=self.prefill_chunk,
            exact=self.exact,
            version=version,
        )


def __getattr__(name: str) -> Any:
    if name == "TorchEngine":
        from ponder.engines.torch.engine import TorchEngine

        return TorchEngine
    raise AttributeError(name)
