"""The in-process torch engine. Importing this is quick (options only); torch is imported when a model is opened.

`engine.py` is the asynchronous interface. One thread (`worker.py`) decodes one `Batch` (`batch.py`) of rows. Requests
that arrive in one turn of the event loop are handed over as one group, so that the same requests meet in the same batch
each time.

    jobs.py       a request as ids (`engines/requests.py`) and limits, or a refusal before anything runs
    worker.py     the queue: first in, first out; when prompts are computed and samples get slots
    pool.py       one memory limit for all keys and values; admission and eviction
    prefix.py     the radix tree of prefixes that were computed once
    cache.py      the slots: what belongs to one row, padded to the longest
    attention.py  attention over the cache: one token a row (`Step`), packed prompts (`PromptPass`)
    forward.py    runs the network with that cache, or transformers' own forward over whole rows
    packed.py     the decoder's forward pass from a packed copy of its matrices
    products.py   the ways to pack and multiply a matrix, by precision
    choosing.py   which of them is fastest here, measured and kept
    compiled.py   decode steps through `torch.compile`, piece by piece
    exact.py      the batch-invariant mode
    batch.py      who has a slot, and one decode step over all of them
    rows.py       all bookkeeping of a step as arrays over slots
    thoughts.py   bounded thoughts, and forced tokens
    endings.py    which rows end, by an id or a stop string, and their completions
    drawing.py    the head and each row's sampling rules: the next ids
    sampler.py    one uniform number a row (`engines/random_streams.py`), inverted through the CDF
    weights.py    new weights: checked before the first is copied, and their digest
    sinks.py      where the results of a job go
"""

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
    """Batch-invariant: a sample has the same bits with any batch composition. Slower; float32 on a CPU only."""
    compile: bool = False
    """Decode through torch.compile, with CUDA graphs on a GPU; opening takes a minute."""
    raw_prompts: bool = False
    """Continue plain-text prompts as they are, without the chat template."""
    max_rows: int = 512
    """Most samples in the running batch."""
    prefill_chunk: int = 512
    """Most prompt tokens that are computed between two decode steps (chunked prefill)."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """What products with the matrices compute in; weights, attention and the head stay float32. bfloat16 may be
    faster where the processor has units for it, int8 for few requests at once; both sample from a slightly other
    distribution."""
    products: str = ""
    """How matrices are multiplied: plain, mkl, onednn, onednn-bf16 or int8; empty: the fastest of the precision on this
    machine, measured once (`ponder doctor` shows it)."""

    def __post_init__(self) -> None:
        size(self.kv_memory, "kv_memory")
        for name in ("max_rows", "prefill_chunk"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: give at least 1")

    def open(self, model: str) -> TorchEngine:
        """An engine for whatever `models.load` can name.

        Raises `MissingExtra` without torch, `UserError` for a model that cannot be loaded, `Unsupported` for options
        that the model does not support.
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
            precision=self.precision,
            products=self.products or None,
            compile=self.compile,
        )


def __getattr__(name: str) -> Any:
    if name == "TorchEngine":
        from ponder.engines.torch.engine import TorchEngine

        return TorchEngine
    raise AttributeError(name)
