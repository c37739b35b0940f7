"""The in-process torch engine: its options. Importing this is quick; torch is imported when a model is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ponder.config import size
from ponder.errors import UserError

if TYPE_CHECKING:
    from ponder.engines.torch.engine import TorchEngine

__all__ = ["Torch", "TorchEngine"]


@dataclass(frozen=True)
class Torch:
    """A model in this process (the default): continuous batching, shared prefixes, any model of `list models`."""

    adapter: str | None = None
    """The folder of a LoRA adapter (PEFT's) for the model; it is applied without merging."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in memory."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto is the first GPU if there is one."""
    kv_memory: str = ""
    """Most memory for keys and values, such as 2GiB; empty: a quarter of what is available, 1 GiB at most (half of a
    GPU's free memory)."""
    exact: bool = False
    """Batch-invariant: a sample has the same bits in any company. Slower; float32 on a CPU only."""
    compile: bool = False
    """Decode through torch.compile, with CUDA graphs on a GPU; opening takes a minute."""
    raw_prompts: bool = False
    """Continue plain-text prompts as they are, without the chat template."""
    max_rows: int = 512
    """Most samples that run at once."""
    prefill_chunk: int = 512
    """Most tokens of prompts that are computed between two steps of running samples."""
    packed: bool | None = None
    """Products go through a second copy of the matrices; None: where that is faster and the copy takes at most a
    quarter of the free memory."""

    def __post_init__(self) -> None:
        size(self.kv_memory, "kv_memory")
        for name in ("max_rows", "prefill_chunk"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: give at least 1")

    def open(self, model: str) -> TorchEngine:
        """An engine for whatever `models.load` can name.

        Raises `MissingExtra` without torch, `UserError` for a model that cannot be loaded, `Unsupported` for options
        that the model cannot do.
        """
        from ponder.models.load import load

        loaded = load(model, adapter=self.adapter, dtype=self.dtype, device=self.device)
        if self.raw_prompts:
            loaded.take_plain_prompts()
        from ponder.engines.torch.engine import TorchEngine

        return TorchEngine(
            loaded,
            max_rows=self.max_rows,
            kv_memory=size(self.kv_memory, "kv_memory"),
            prefill_chunk=self.prefill_chunk,
            exact=self.exact,
            packed=self.packed,
            compile=self.compile,
        )


def __getattr__(name: str) -> Any:
    if name == "TorchEngine":
        from ponder.engines.torch.engine import TorchEngine

        return TorchEngine
    raise AttributeError(name)
