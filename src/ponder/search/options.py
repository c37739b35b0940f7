"""The options that all strategies over whole responses share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ponder.errors import UserError, nearest
from ponder.protocols import SearchContext
from ponder.search.prompts import instructed
from ponder.search.sampling import ThoughtBudget, check_sampling
from ponder.types import Problem, Prompt, SamplingParams

MAX_TOKENS = 512
"""Default of the most tokens of a response."""


@dataclass(frozen=True)
class SamplingOptions:
    """How a strategy samples. A strategy inherits these fields; `n` comes first, so that `majority:8` is 8 samples."""

    n: int = 8
    """Samples."""
    temperature: float = 1.0
    """0 is greedy: all samples are then the same."""
    max_tokens: int | None = None
    """Most tokens of a response (default 512); with `thought_tokens` it follows from that."""
    thought_tokens: int | None = None
    """Most tokens of thought; then the end of thought is forced (as in budget_forcing)."""
    answer_tokens: int = 16
    """With `thought_tokens`: tokens kept for the answer."""
    top_p: float = 1.0
    """Sample from the likeliest ids that make up this share of the probability; 1 is off."""
    top_k: int = 0
    """Sample from this many of the likeliest ids; 0 is off."""
    min_p: float = 0.0
    """Leave out ids less likely than this share of the likeliest one; 0 is off."""
    instruction: str = ""
    """Added to the prompt, on a line of its own (`Let's think step by step.`)."""

    def __post_init__(self) -> None:
        check_sampling(self.n, self.temperature, self.top_p, self.top_k, self.min_p)
        if self.max_tokens is not None and self.thought_tokens is not None:
            raise UserError("max_tokens and thought_tokens: give one (max_tokens is thought_tokens + answer_tokens)")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"max_tokens = {self.max_tokens}: give at least 1")
        self.thought_budget()

    def thought_budget(self) -> ThoughtBudget | None:
        """How long a thought may be; None if it is not bounded."""
        return None if self.thought_tokens is None else ThoughtBudget(self.thought_tokens, self.answer_tokens)

    def params(self, *, raw: bool = False, top_logprobs: int = 0) -> SamplingParams:
        """What the engine is asked; with `raw`, log-probabilities are the model's own, before temperature and top-p."""
        return SamplingParams(
            self.max_tokens or MAX_TOKENS,
            self.temperature,
            self.top_p,
            self.top_k,
            self.min_p,
            logprobs_of="raw" if raw else "sampled",
            top_logprobs=top_logprobs,
        )

    def prompt(self, problem: Problem, context: SearchContext) -> Prompt:
        """The problem's prompt with the instruction."""
        return instructed(problem.prompt, self.instruction, context.info.chat)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises `UserError` that names the field and the choices."""
    if value not in choices:
        raise UserError(f"{name} = {value!r}: give one of {', '.join(choices)}{_meant(value, choices)}")


def _meant(value: str, choices: Sequence[str]) -> str:
    said = nearest(value, choices)
    return said if "did you mean" in said else ""


def check_share(name: str, value: float, *, least: float = 0.0) -> None:
    """Raises `UserError` if a value is not above `least` and at most 1."""
    if not least < value <= 1.0:
        raise UserError(f"{name} = {value!r}: give more than {least:g}, at most 1")
