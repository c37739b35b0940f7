"""What `eval` and `solve` share: a model's flags and its engines, a strategy by name with shortcuts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ponder import registry, threads
from ponder.cli._output import note
from ponder.config import Options
from ponder.engines.faster import hints
from ponder.engines.opening import EngineOptions, OpeningBudget, open_engine, open_others, part_of
from ponder.errors import PonderError, UserError, nearest
from ponder.protocols import Engine, Strategy
from ponder.reading import refuse_nul, refuse_special
from ponder.types import Spend


class Stopped(PonderError):
    """Work that was interrupted; the message is the command that resumes it."""

    exit_code = 130


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is loaded and sampled from. A verb's config inherits these fields."""

    model: str = "ponder-tiny"
    """A built-in name, a folder (of a LoRA adapter too), a run directory, a .gguf file or a hub id; with an engine
    other than torch, that engine's name of the model."""
    engine: str = "torch"
    """What runs the model: a name of `ponder list engines`, or PATH.py:Class."""
    engine_options: Options = field(default_factory=dict)
    """Options of the engine. --adapter, --dtype, --device, --kv-memory, --precision, --products, --exact, --compile
    and --raw-prompts are short for torch's options of the same names."""
    others: Options = field(default_factory=dict)
    """Further models by name, for strategies and scorers that use one: --others big=smollm2-135m. They run on the same
    engine as --model."""
    adapter: str | None = None
    """The folder of a LoRA adapter (PEFT's) for the model; it is applied without merging."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights in memory (default: float32)."""
    device: str | None = None
    """cpu, cuda, cuda:1, … (default: the first GPU if there is one)."""
    threads: int | None = None
    """Threads of the processor, for the model and for workers that judge (default: as many as there are cores)."""
    kv_memory: str | None = None
    """Maximum memory of the KV cache, such as 2GiB (default: a quarter of the available memory, at most 1 GiB; on a GPU
    half of its free memory)."""
    precision: Literal["float32", "bfloat16", "int8"] | None = None
    """What products with the matrices compute in (default: float32). bfloat16 may be faster where the processor has
    units for it, int8 for few requests at once; both sample from a slightly other distribution."""
    products: str | None = None
    """How matrices are multiplied: plain, mkl, onednn, onednn-bf16 or int8 (default: the fastest of the precision on
    this machine, measured once; ponder doctor shows it)."""
    exact: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Batch-invariant: a sample has the same bits with any batch composition. Slower; float32 on a CPU only."""
    compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Decode through torch.compile, with CUDA graphs on a GPU (not yet measured there); opening takes a minute."""
    raw_prompts: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue plain-text prompts as they are, without the chat template (for few-shot text)."""


def check_target(flag: str, name: str) -> None:
    """Refuse a file that cannot be written, before anything is spent on what it is for. Raises `UserError`."""
    path = Path(name)
    refuse_nul(path, flag)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{flag} {path}: its folder does not exist; create it first")
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder; name a file in it")
    refuse_special(path)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path}: its folder cannot be written to; name a file in another one")


SHORTCUTS = ("adapter", "dtype", "device", "kv_memory", "precision", "products", "exact", "compile", "raw_prompts")
"""Flags that are short for an option of the engine."""


def engine_options(config: ModelOptions) -> EngineOptions:
    """What the flags ask for; --threads holds from here on, in the whole process.

    Raises `UserError` for a flag that the engine has no option for or that is given twice, and for a wrong value.
    """
    threads.use(config.threads)
    given = {name: value for name in SHORTCUTS if (value := getattr(config, name)) not in (None, False)}
    if config.threads is not None and "threads" in _options_of(config.engine):
        given["threads"] = config.threads
    for name, model in config.others.items():
        if not isinstance(model, str) or not model:
            raise UserError(f"--others {name}={model}: give NAME=MODEL")
    options = with_shortcuts("engines", config.engine, config.engine_options, given, "--engine-options")
    asked = EngineOptions(config.model, config.engine, options, config.others)
    part_of(asked)
    return asked


@contextlib.contextmanager
def engines_for(options: EngineOptions, budget: OpeningBudget) -> Iterator[tuple[Engine, dict[str, Engine]]]:
    """The engine of `--model` and those of `--others` by name, open.

    What would be faster and what opening them took is printed to stderr. Raises `UserError` for a model that cannot be
    opened.
    """
    for hint in hints(options):
        note(f"note: {hint}")
    with open_engine(options, budget) as engine, open_others(options, budget) as others:
        for model, opened in ((options.model, engine), *((options.others[n], e) for n, e in others.items())):
            if opened.opening.tokens:
                note(f"note: finding out what {model} can do took {opened.opening.tokens:,} tokens")
        yield engine, others


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def model_facts(engine: Engine, options: ModelOptions) -> dict[str, Any]:
    """What a run's manifest says of the model and its engine; no options, since one may hold a secret."""
    from ponder.models.base import LoadedModel

    model = getattr(engine, "model", None)
    facts = model.facts() if isinstance(model, LoadedModel) else {"name": engine.info.name}
    return {"engine": options.engine, **facts, **getattr(engine, "products", {})}


def build_strategy(name: str, options: Mapping[str, Any], shortcuts: Mapping[str, Any]) -> Strategy:
    """A strategy by name, with its options and with the flags that are short for an option.

    Shortcuts that are None were not given. Raises `UserError` for an option that is given twice or that the strategy
    does not have.
    """
    given = {key: value for key, value in shortcuts.items() if value is not None}
    values = with_shortcuts("search.strategies", name, options, given, "--strategy-options")
    strategy: Strategy = registry.build("search.strategies", name, values)
    return strategy


def with_shortcuts(
    room: str, name: str, options: Mapping[str, Any], shortcuts: Mapping[str, Any], flag: str
) -> dict[str, Any]:
    """The options of a part, with those that separate flags gave; `flag` is where the others come from.

    Raises `UserError` for an option that is given twice or that the part does not have.
    """
    known = _options_of(name, room)
    values, what = dict(options), "engine" if room == "engines" else "strategy"
    for key, value in shortcuts.items():
        if key in values:
            raise UserError(f"{key} is given twice, by {_flag(key)} and in {flag}: give it once")
        if key not in known:
            raise UserError(f"{_flag(key)}: the {what} {name!r} has no option {key!r}{nearest(key, known)}")
        values[key] = value
    return values


def _options_of(name: str, room: str = "engines") -> list[str]:
    """The options of a part. Raises `UserError` for an unknown one."""
    cls, _ = registry.find(room, name)
    return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def value_of(args: Sequence[str], flag: str) -> str | None:
    """What follows a flag, as `FLAG VALUE` or `FLAG=VALUE`; None if it is not given."""
    for word, following in zip_longest(args, args[1:]):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def rate(spend: Spend, seconds: float) -> float:
    """Response tokens per second."""
    return spend.response_tokens / seconds if seconds > 0 else 0.0
