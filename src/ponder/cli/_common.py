"""What `eval` and `solve` share: a model's flags and its engine, a strategy by name with shortcuts, spend as text."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from ponder import registry
from ponder.errors import UserError, nearest
from ponder.protocols import Engine, Strategy
from ponder.runs.progress import duration, quantity
from ponder.types import Spend


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is loaded and sampled from. A verb's config inherits these fields."""

    model: str = "ponder-tiny"
    """A built-in name, a folder (of a LoRA adapter too), a run directory, a .gguf file or a hub id."""
    adapter: str | None = None
    """The folder of a LoRA adapter (PEFT's) for the model; it is applied without merging."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in memory."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto is the first GPU if there is one."""
    kv_memory: str = ""
    """Most memory for keys and values, such as 2GiB (default: a quarter of what is available, 1 GiB at most; half of a
    GPU's free memory)."""
    exact: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Batch-invariant: a sample has the same bits in any company. Slower; float32 on a CPU only."""
    compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Decode through torch.compile, with CUDA graphs on a GPU (not yet measured there); opening takes a minute."""


@contextlib.contextmanager
def engine_for(options: ModelOptions, *, raw_prompts: bool = False) -> Iterator[Engine]:
    """Load a model and open the in-process engine on it. Raises `UserError` for a model that cannot be loaded.

    With `raw_prompts` plain-text prompts do not go through the chat template.
    """
    from ponder import sync
    from ponder.config import size
    from ponder.models.load import load

    memory = size(options.kv_memory, "--kv-memory")
    loaded = load(options.model, adapter=options.adapter, dtype=options.dtype, device=options.device)
    if raw_prompts:
        loaded.take_plain_prompts()
    from ponder.engines.torch import TorchEngine

    engine = TorchEngine(loaded, kv_memory=memory, exact=options.exact, compile=options.compile)
    try:
        yield engine
    finally:
        sync.run(engine.close())


def model_facts(engine: Engine) -> dict[str, Any]:
    """What a run's manifest says of the model behind an engine."""
    from ponder.models.base import LoadedModel

    model = getattr(engine, "model", None)
    return model.facts() if isinstance(model, LoadedModel) else {"name": engine.info.name}


def build_strategy(name: str, options: Mapping[str, Any], shortcuts: Mapping[str, Any]) -> Strategy:
    """A strategy by name, with its options and with those flags that are shortcuts for an option.

    Shortcuts that are None were not given. Raises `UserError` for an option that is given twice or that the strategy
    does not have.
    """
    cls, _ = registry.find("search.strategies", name)
    known = [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    values = dict(options)
    for key, value in shortcuts.items():
        if value is None:
            continue
        flag = f"--{key.replace('_', '-')}"
        if key in values:
            raise UserError(f"{key} is given twice, by {flag} and in --strategy-options: give it once")
        if key not in known:
            raise UserError(f"{flag}: the strategy {name!r} has no option {key!r}{nearest(key, known)}")
        values[key] = value
    strategy: Strategy = registry.build("search.strategies", name, values)
    return strategy


def spend_text(spend: Spend, seconds: float) -> str:
    """`120 prompt + 64 response tokens, 3.1e+08 FLOPs, 2 s, 32 tokens/s`."""
    cached = f" (and {quantity(spend.cached_tokens)} cached)" if spend.cached_tokens else ""
    parts = [f"{quantity(spend.prompt_tokens)} prompt{cached} + {quantity(spend.response_tokens)} response tokens"]
    if spend.verifier_calls:
        parts.append(f"{quantity(spend.verifier_calls)} checker calls")
    if spend.flops:
        parts.append(f"{spend.flops:.2g} FLOPs")
    if spend.dollars:
        parts.append(f"${spend.dollars:.4f}")
    parts.append(duration(seconds) if seconds >= 10 else f"{seconds:.1f} s")
    parts.append(f"{quantity(rate(spend, seconds))} tokens/s")
    return ", ".join(parts)


def rate(spend: Spend, seconds: float) -> float:
    """Response tokens per second."""
    return spend.response_tokens / seconds if seconds > 0 else 0.0
