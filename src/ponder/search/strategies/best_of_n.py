"""Best of n: several samples, one winner."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ponder.errors import UserError
from ponder.protocols import Ask, Check, Score, SearchContext
from ponder.search.sampling import Sampling, ThoughtBudget, check_sampling
from ponder.types import Completion, Node, Outcome, Problem, SamplingParams, Spend, StopReason, Verdict, VerdictKind


@dataclass(frozen=True)
class BestOfN:
    """Sample n responses and keep the best (Cobbe et al. 2021, arXiv:2110.14168, §4); cost n × max_tokens + n checks.

    The best is what the checker accepts; without a checker, what the scorer scores highest; without either, the
    highest mean log-probability. Ties go to the lowest sample index. Responses without an answer never win. If the
    checker or the scorer fails on every response, the next of these decides.
    """

    n: int = 8
    """Samples."""
    temperature: float = 1.0
    """0 is greedy: all samples are then the same."""
    max_tokens: int | None = None
    """Most tokens of a response (default 512); with `thought_tokens` it follows from that."""
    thought_tokens: int | None = None
    """Most tokens of thought, closed by force (as in budget_forcing)."""
    answer_tokens: int = 16
    """With `thought_tokens`: tokens kept for the answer."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    """0 is off."""

    def __post_init__(self) -> None:
        check_sampling(self.n, self.temperature, self.top_p, self.top_k, self.min_p)
        if self.max_tokens is not None and self.thought_tokens is not None:
            raise UserError("max_tokens and thought_tokens: give one (max_tokens is thought_tokens + answer_tokens)")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"max_tokens = {self.max_tokens}: give at least 1")
        self._budget()

    def _budget(self) -> ThoughtBudget | None:
        if self.thought_tokens is None:
            return None
        return ThoughtBudget(self.thought_tokens, self.answer_tokens)

    def start(self, problem: Problem, context: SearchContext) -> Sampling:
        params = SamplingParams(self.max_tokens or 512, self.temperature, self.top_p, self.top_k, self.min_p)
        return _Best(problem, context, params, self.n, self._budget())


_SCORE = -1
"""The ask that scores; the check of sample `i` is ask `-2 - i`."""


class _Best(Sampling):
    def sampled(self, index: int, node: Node) -> None:
        if self.context.checker and node.response.answer is not None:
            self.push(Ask(-2 - index, Check(node.response)))

    def all_sampled(self) -> None:
        answered = self._answered()
        if self.context.scorer and not self.context.checker and answered:
            self.push(Ask(_SCORE, Score(tuple(n.response for n in answered))))

    def told_more(self, ask_id: int, answer: Any) -> None:
        if isinstance(answer, Exception):
            return
        if ask_id == _SCORE:
            for node, score in zip(self._answered(), answer, strict=True):
                self.tree.score(node.id, float(score))
        else:
            self.tree.check(self.leaves[-2 - ask_id].id, answer)

    def _answered(self) -> list[Node]:
        nodes = (self.tree[self.leaves[i].id] for i in sorted(self.leaves))
        return [n for n in nodes if n.response.answer is not None]

    def outcome(self, spend: Spend, stop: StopReason) -> Outcome:
        first = super().outcome(spend, stop)
        answered = self._answered()
        if not answered:
            return dataclasses.replace(first, chosen=None)
        best, confidence, reason = _select(answered)
        if stop is StopReason.FINISHED and best.check is not None and best.check.correct:
            stop = StopReason.ACCEPTED
        return Outcome(best.response, confidence, first.trace, spend, stop, best.id, reason)


def _select(nodes: list[Node]) -> tuple[Node, float | None, str]:
    """The best of the answered nodes (in sample order), the confidence in it, and what decided."""
    if any(_usable(n.check) for n in nodes):
        best = max(nodes, key=lambda n: _check_rank(n.check))
        reward = best.check.reward if best.check is not None and _usable(best.check) else None
        return best, reward, "chosen by the checker"
    if any(n.score is not None and not math.isnan(n.score) for n in nodes):
        return (
            max(nodes, key=lambda n: -math.inf if n.score is None or math.isnan(n.score) else n.score),
            None,
            ("chosen by score"),
        )
    if any(mean_logprob(n.completion) is not None for n in nodes):
        best = max(nodes, key=lambda n: -math.inf if (m := mean_logprob(n.completion)) is None else m)
        return best, None, "chosen by mean log-probability"
    return nodes[0], None, "nothing to choose by: the first answer"


def _usable(check: Verdict | None) -> bool:
    return check is not None and check.kind is not VerdictKind.JUDGE_ERROR


def _check_rank(check: Verdict | None) -> tuple[int, float]:
    """Accepted before unchecked before rejected; then by reward."""
    if check is None or check.reward is None:
        return 1, 0.0
    return (2 if check.correct else 0), check.reward


def mean_logprob(completion: Completion) -> float | None:
    """Mean log-probability of the sampled tokens; None where the engine gave none."""
    total, count = 0.0, 0
    for segment in completion.segments:
        if segment.logprobs is not None:
            total += math.fsum(segment.logprobs)
            count += len(segment.logprobs)
    if not count and completion.logprobs:
        return math.fsum(completion.logprobs) / len(completion.logprobs)
    return total / count if count else None
