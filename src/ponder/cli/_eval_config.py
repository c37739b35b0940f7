"""The options of `ponder eval`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from ponder.cli._budget import TotalOptions
from ponder.cli._common import ModelOptions
from ponder.cli._feedback import ScorerOptions
from ponder.config import Options


@dataclass(frozen=True)
class EvalConfig(TotalOptions, ScorerOptions, ModelOptions):
    """Options of `ponder eval`."""

    environment: str = ""
    """A name of `ponder list environments`, PATH.py:Class, or a FILE.jsonl with a prompt and an answer a line (default:
    jsonl with --data, else countdown)."""
    environment_options: Options = field(default_factory=dict)
    """Options of the environment."""
    data: str | None = None
    """Short for --environment-options data=PATH."""
    strategy: str = "direct"
    """A name of `ponder list strategies`."""
    strategy_options: Options = field(default_factory=dict)
    """Options of the strategy."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """Number of problems, from the start of the split."""
    split: Literal["train", "test"] = "test"
    """Which problems to use."""
    samples: int = 1
    """Samples per problem; the accuracy is their mean."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy (default: 0 for one response to each problem of gsm8k or jsonl, as the field
    measures them; else the strategy's own, 1 for most)."""
    max_tokens: int | None = None
    """Maximum tokens of a response (default: the strategy's own)."""
    seed: int = 0
    """Same seed, same samples."""
    concurrency: int | None = None
    """Searches in flight at once (default: 512); the engine batches them."""
    show: int = 2
    """How many responses to show."""
    out: str | None = None
    """Write a run directory: every search as a tree, the results and a report."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the run that --out holds."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Resume the stopped evaluation in --out."""
    record: str | None = None
    """Write every response in full to this pool (JSON Lines), for `ponder replay`."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the result as JSON."""


FREE = (
    *("out", "overwrite", "resume", "record", "json", "show", "concurrency", "device", "kv_memory", "threads"),
    *("total_tokens", "total_seconds", "total_dollars", "prices"),
)
"""Fields that may differ when an evaluation is resumed: they do not change what a search does."""
