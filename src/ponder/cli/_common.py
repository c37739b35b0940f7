"""What `eval` and `solve` share: an engine for a model, a strategy from its name and shortcuts, spend as text."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ponder import registry
from ponder.errors import UserError, nearest
from ponder.protocols import Engine, Strategy
from ponder.runs.progress import duration, quantity
from ponder.types import Spend


@contextlib.contextmanager
def engine_for(
    model: str,
    *,
    adapter: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    kv_memory: str = "",
    exact: bool = False,
    raw_prompts: bool = False,
) -> Iterator[Engine]:
    """Load a model and open the in-process engine on it. Raises `UserError` for a model that cannot be loaded.

    `kv_memory` is a size such as `2GiB`, empty for the engine's own choice; `exact` is its batch-invariant mode. With
    `raw_prompts` plain-text prompts do not go through the chat template.
    """
    from ponder import sync
    from ponder.config import size
    from ponder.models.load import load

    memory = size(kv_memory, "--kv-memory")
    loaded = load(model, adapter=adapter, dtype=dtype, device=device)
    if raw_prompts:
        loaded.take_plain_prompts()
    from ponder.engines.torch import TorchEngine

    engine = TorchEngine(loaded, kv_memory=memory, exact=exact)
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
