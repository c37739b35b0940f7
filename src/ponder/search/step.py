"""Responses that grow by steps: how they grow, and what is known of one."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from ponder.errors import UserError
from ponder.search.sampling import check_sampling
from ponder.types import Completion, FinishReason, Verdict, VerdictKind

_KINDS = 8
CHECK, SCORE, HOLD, RELEASE, MORE = range(5)
CALL = -1


def ask_about(number: int, kind: int) -> int:
    """The id of an ask about a step or a lease: no two are equal, and timing does not change it."""
    return -(_KINDS * number + kind) - 1


def asked_about(ask_id: int) -> tuple[int, int]:
    """The number and the kind of an ask; ids from 0 on are calls."""
    return divmod(-ask_id - 1, _KINDS) if ask_id < 0 else (ask_id, CALL)


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How responses grow. Strategies inherit these fields; they go by name, so that `beam:4` sets one of its own."""

    depth: int = 16
    """Most steps of a response; then it is closed and answered."""
    step_tokens: int = 32
    """Most tokens of a step."""
    delimiters: tuple[str, ...] = ("\n",)
    """Texts that end a step; none: every step has `step_tokens` tokens."""
    answer_tokens: int = 16
    """Tokens kept for the end-of-thought marker and the answer."""
    temperature: float = 1.0
    """0 is greedy: all samples of a step are then the same."""
    top_p: float = 1.0
    """Sample from the likeliest ids that make up this share of the probability; 1 is off."""
    top_k: int = 0
    """Sample from this many of the likeliest ids; 0 is off."""
    min_p: float = 0.0
    """Leave out ids less likely than this share of the likeliest one; 0 is off."""

    def __post_init__(self) -> None:
        check_sampling(1, self.temperature, self.top_p, self.top_k, self.min_p)
        check_positive(self, "step_tokens", "depth", "answer_tokens")
        if "" in self.delimiters:
            raise UserError("delimiters: an empty text ends every step before it begins; leave it out")


def check_positive(options: Any, *names: str) -> None:
    """Raises `UserError` for a field below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise UserError(f"{name} = {getattr(options, name)}: give at least 1")


@dataclass(eq=False, slots=True)
class Step:
    """A response up to the end of one of its steps; `id` is its node's."""

    id: int
    parent: Step | None
    completion: Completion
    depth: int
    """Steps so far."""
    tokens: int
    """Tokens of the response so far (an estimate for engines without ids)."""
    ended: bool
    """The response is over, or cannot be added to."""
    logprob: tuple[float, int]
    """Sum of the log-probabilities of the sampled tokens so far, and their number."""
    children: list[Step] = field(default_factory=list)
    closed: bool = False
    """Its thought has ended: only the answer is missing."""
    times: int = 1
    """How often it was sampled: equal siblings are one step."""
    score: float | None = None
    verdict: Verdict | None = None

    @classmethod
    def after(cls, parent: Step | None, node_id: int, completion: Completion, new: int, *, ended: bool) -> Step:
        """The step that a call for one more step brought; `new` is its tokens where there are no ids."""
        total, count = (0.0, 0) if parent is None else parent.logprob
        logprobs = [x for s in completion.segments for x in s.logprobs or ()]
        logprob = (total + math.fsum(logprobs), count + len(logprobs))
        tokens = len(completion.ids) or (0 if parent is None else parent.tokens) + new
        depth = 1 if parent is None else parent.depth + 1
        return cls(node_id, parent, completion, depth, tokens, ended, logprob)

    @property
    def draws(self) -> int:
        """How often this response was sampled; an answer sampled right after its step, as often as that step."""
        return self.times * (self.parent.times if self.parent is not None and self.parent.closed else 1)

    @property
    def mean_logprob(self) -> float:
        """Of the sampled tokens so far; -inf where the engine gives none."""
        total, count = self.logprob
        return total / count if count else -math.inf

    @property
    def rejected(self) -> bool:
        """A checker that worked did not accept it."""
        return self.rank == 0

    @property
    def rank(self) -> int:
        """2 accepted by a checker, 1 not checked, 0 rejected."""
        if self.verdict is None or self.verdict.kind is VerdictKind.JUDGE_ERROR:
            return 1
        return 2 if self.verdict.correct else 0


def content(completion: Completion) -> tuple[int, ...] | str:
    """What two steps are compared by."""
    return completion.ids or completion.text


def unfinished(
    completion: Completion, begun: str, delimiters: tuple[str, ...], *, stops: bool, whole: bool = False
) -> tuple[Completion, int]:
    """A completion after `begun` that will be continued, and the number of its new tokens.

    With `stops` the engine stopped at a delimiter, which is put back. Without, the text is cut back to the last
    delimiter (unless `whole`). It is marked as truncated, so that a step is never taken for a whole response.
    """
    text, new = completion.text + (completion.stopped_by or ""), completion.spend.response_tokens
    if not stops and not whole:
        end = max((at + len(d) for d in delimiters if (at := text.rfind(d, len(begun))) >= 0), default=0)
        if end > len(begun):
            new = math.ceil(new * (end - len(begun)) / (len(text) - len(begun)))
            text = text[:end]
    return dataclasses.replace(completion, text=text, finish_reason=FinishReason.LENGTH), new
