"""What `eval` and `solve` share: a model's flags and its engines, a strategy by name with shortcuts, spend as text."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ponder import registry
from ponder.config import Options
from ponder.errors import PonderError, UserError, nearest
from ponder.protocols import Engine, Strategy
from ponder.runs.progress import duration, quantity
from ponder.types import Spend

if TYPE_CHECKING:
    from ponder.cli._opening import Opening


class Stopped(PonderError):
    """Work that was interrupted; the message is the command to go on with it."""

    exit_code = 130


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is loaded and sampled from. A verb's config inherits these fields."""

    model: str = "ponder-tiny"
    """A built-in name, a folder (of a LoRA adapter too), a run directory, a .gguf file or a hub id; with another engine
    than torch, what that engine takes for a model."""
    engine: str = "torch"
    """What runs the model: a name of `ponder list engines`, or PATH.py:Class."""
    engine_options: Options = field(default_factory=dict)
    """Options of the engine (torch has flags of its own: --adapter, --dtype, --device, --kv-memory, --exact)."""
    others: Options = field(default_factory=dict)
    """Further models by name, for strategies that ask for one: --others big=smollm2-135m. They run as --model does."""
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


def check_target(flag: str, name: str) -> None:
    """Refuse a file that cannot be written, before anything is spent on what it is for. Raises `UserError`."""
    path = Path(name)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{flag} {path}: its folder does not exist; make it first")
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder; name a file in it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path}: its folder cannot be written to; name a file in another one")


TORCH_ONLY = ("adapter", "dtype", "device", "kv_memory", "exact", "compile")
"""Flags of the torch engine."""


def check_engine(options: ModelOptions, *, raw_prompts: bool = False) -> None:
    """Refuse flags of one engine that are given with another, and models without a name. Raises `UserError`."""
    if options.engine == "torch":
        if options.engine_options:
            raise UserError(
                "--engine-options: the engine torch has flags of its own "
                f"({', '.join(_flag(name) for name in TORCH_ONLY)}); give those"
            )
    else:
        defaults = {f.name: f.default for f in dataclasses.fields(ModelOptions)}
        given = [_flag(name) for name in TORCH_ONLY if getattr(options, name) != defaults[name]]
        given += ["--raw-prompts"] if raw_prompts else []
        if given:
            raise UserError(
                f"{given[0]} is of the engine torch, not of {options.engine!r}: leave it out, or see what "
                "--engine-options takes"
            )
        registry.find("engines", options.engine)
    for name, model in options.others.items():
        if not isinstance(model, str) or not model:
            raise UserError(f"--others {name}={model}: give NAME=MODEL")


@contextlib.contextmanager
def engine_for(options: ModelOptions, *, raw_prompts: bool = False, opening: Opening | None = None) -> Iterator[Engine]:
    """Open the engine on its model; it is closed at the end.

    With `raw_prompts` plain-text prompts do not go through the chat template. What opening it costs is kept within
    what `opening` has left, and booked there. Raises `UserError` for a model that cannot be loaded or options that the
    engine does not have.
    """
    from ponder import sync

    check_engine(options, raw_prompts=raw_prompts)
    opened = _torch(options, raw_prompts) if options.engine == "torch" else _by_name(options, opening)
    try:
        if opening is not None:
            opening.book(opened, options.model)
        yield opened
    finally:
        sync.run(opened.close())


@contextlib.contextmanager
def others_for(
    options: ModelOptions, *, raw_prompts: bool = False, opening: Opening | None = None
) -> Iterator[dict[str, Engine]]:
    """The engines of `--others` by name, each opened as that of `--model`."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(
                engine_for(
                    dataclasses.replace(options, model=model, adapter=None), raw_prompts=raw_prompts, opening=opening
                )
            )
            for name, model in options.others.items()
        }


def _torch(options: ModelOptions, raw_prompts: bool) -> Engine:
    from ponder.config import size
    from ponder.models.load import load

    memory = size(options.kv_memory, "--kv-memory")
    loaded = load(options.model, adapter=options.adapter, dtype=options.dtype, device=options.device)
    if raw_prompts:
        loaded.take_plain_prompts()
    from ponder.engines.torch import TorchEngine

    return TorchEngine(loaded, kv_memory=memory, exact=options.exact, compile=options.compile)


def _by_name(options: ModelOptions, opening: Opening | None) -> Engine:
    part = registry.build("engines", options.engine, options.engine_options)
    if not callable(getattr(part, "open", None)):
        raise UserError(f"--engine {options.engine}: {type(part).__name__} has no method open(model) -> Engine")
    if opening is not None and callable(getattr(part, "open_within", None)):
        known = opening.known.get(options.model)
        engine: Engine = part.open_within(options.model, *opening.left(options.model), known)
    else:
        engine = part.open(options.model)
    if engine.opening.tokens:
        print(f"note: finding out what {options.model} can do took {engine.opening.tokens:,} tokens", file=sys.stderr)
    return engine


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def model_facts(engine: Engine, options: ModelOptions) -> dict[str, Any]:
    """What a run's manifest says of the model and the engine behind it; of options, none that names a secret."""
    from ponder.models.base import LoadedModel

    model = getattr(engine, "model", None)
    facts = model.facts() if isinstance(model, LoadedModel) else {"name": engine.info.name}
    return {"engine": options.engine, **facts}


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
        flag = _flag(key)
        if key in values:
            raise UserError(f"{key} is given twice, by {flag} and in --strategy-options: give it once")
        if key not in known:
            raise UserError(f"{flag}: the strategy {name!r} has no option {key!r}{nearest(key, known)}")
        values[key] = value
    strategy: Strategy = registry.build("search.strategies", name, values)
    return strategy


def value_of(args: Sequence[str], flag: str) -> str | None:
    """What follows a flag, as `FLAG VALUE` or `FLAG=VALUE`; None if it is not given."""
    for word, following in zip_longest(args, args[1:]):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def spend_text(spend: Spend, seconds: float) -> str:
    """`120 prompt + 64 response tokens, 3.1e+08 FLOPs, 2 s, 32 tokens/s`."""
    cached = f" (and {quantity(spend.cached_tokens)} cached)" if spend.cached_tokens else ""
    parts = [f"{quantity(spend.prompt_tokens)} prompt{cached} + {quantity(spend.response_tokens)} response tokens"]
    if spend.verifier_calls:
        parts.append(f"{quantity(spend.verifier_calls)} checker call{'s' * (spend.verifier_calls != 1)}")
    if spend.flops:
        parts.append(f"{spend.flops:.2g} FLOPs")
    if spend.dollars:
        parts.append(money(spend.dollars))
    parts.append(clock(seconds))
    parts.append(f"{quantity(rate(spend, seconds))} tokens/s")
    return ", ".join(parts)


def rate(spend: Spend, seconds: float) -> float:
    """Response tokens per second."""
    return spend.response_tokens / seconds if seconds > 0 else 0.0


def clock(seconds: float) -> str:
    """`0.3 s`, `42 s`, `3 min 05 s`."""
    return duration(seconds) if seconds >= 10 else f"{seconds:.2g} s"


def money(dollars: float) -> str:
    """`$12.30`, `$0.0041`, `$3.2e-06`."""
    return f"${dollars:,.2f}" if dollars >= 1 else f"${dollars:.2g}"
