"""The options of `ponder solve`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from ponder.cli._budget import BudgetOptions
from ponder.cli._common import ModelOptions
from ponder.cli._feedback import ScorerOptions
from ponder.config import Options


@dataclass(frozen=True)
class SolveConfig(BudgetOptions, ScorerOptions, ModelOptions):
    """Options of `ponder solve`."""

    question: tyro.conf.Positional[str] = ""
    """The question; - reads it from stdin."""
    environment: str | None = None
    """An environment (a name, PATH.py:Class or FILE.jsonl), in place of a question. The search may use its checker,
    its scorer and how it compares answers; its judge judges the outcome."""
    environment_options: Options = field(default_factory=dict)
    """Options of the environment."""
    problem: str = "test:0"
    """With --environment: SPLIT:INDEX of the problem."""
    strategy: str | None = None
    """A name of `ponder list strategies` (default: direct; budget_forcing with --thought-tokens)."""
    strategy_options: Options = field(default_factory=dict)
    """Options of the strategy."""
    max_tokens: int | None = None
    """Maximum tokens of a response, thought and answer (default: the strategy's own)."""
    thought_tokens: int | None = None
    """Maximum tokens of thought; its end is then forced."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy (default: the strategy's own, 1 for most)."""
    seed: int = 0
    """Same seed, same answer."""
    save: str | None = None
    """Write the search's state to this file when it ends, is interrupted or has used up its budget."""
    continue_: Annotated[str | None, tyro.conf.arg(name="continue")] = None
    """Resume the search that --save wrote to this file, which holds its options too, but not its budget: give that
    again."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object, without streaming."""
