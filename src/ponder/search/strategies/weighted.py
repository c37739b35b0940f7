"""Weighted: a vote weighted by confidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ponder.errors import Unsupported, UserError
from ponder.numbers import percent
from ponder.protocols import Ask, Score, SearchContext, Vote
from ponder.search.clusters import Cluster, shown
from ponder.search.confidence import (
    TOP_LOGPROBS,
    Measure,
    lowest_confidence,
    mean_logprob,
    self_certainty,
    tail_confidence,
)
from ponder.search.options import SamplingOptions, check_choice, check_share
from ponder.search.voting import Voting
from ponder.types import Problem

BY = ("score", "logprob", "certainty", "tail", "lowest")
_WORDS = {
    "score": "score",
    "logprob": "log-probability",
    "certainty": "self-certainty",
    "tail": "tail confidence",
    "lowest": "lowest group confidence",
}


@dataclass(frozen=True)
class Weighted(SamplingOptions):
    """Vote weighted by confidence (DeepConf, Fu et al. 2025, arXiv:2508.15260); cost n × max_tokens (+ n scores).

    The weight is a scorer's score; the probability per token, exp(mean log-probability) (Wang et al. 2022, eq. 1);
    self-certainty (Kang et al. 2025, arXiv:2502.18581); or DeepConf's confidence of the last tokens, or of the least
    confident stretch. With negative scores the weights are exp(score - highest). With `keep`, only the most
    confident samples vote (DeepConf's filtering). If there is nothing to weigh by, every vote counts 1.
    """

    by: str = "logprob"
    """`score`, `logprob`, `certainty`, `tail` or `lowest`."""
    window: int = 128
    """Tokens of the tail, and of a group for `lowest` (2,048 in the paper, for responses of tens of thousands)."""
    keep: float = 1.0
    """Share of the samples with an answer that vote, the most confident ones (0.1 or 0.9 in the paper)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("by", self.by, BY)
        check_share("keep", self.keep)
        if self.window < 1:
            raise UserError(f"window = {self.window}: give at least 1 token")

    def ranking(self, checker: bool, scorer: bool) -> str:
        """What it weighs by."""
        return self.by

    def start(self, problem: Problem, context: SearchContext) -> Voting:
        if self.by == "score" and not context.scorer:
            raise Unsupported("weighted by score needs a scorer and there is none; weigh by logprob, or use majority")
        if self.by != "score" and not context.capabilities.logprobs:
            raise Unsupported(
                f"weighted by {self.by} needs log-probabilities, which the engine of {context.info.name} does not "
                "give; weigh by score, or use majority"
            )
        top = 0 if self.by in ("score", "logprob") else TOP_LOGPROBS
        params = self.params(raw=self.by != "score", top_logprobs=top)
        return _Weighted(self, problem, context, params, self.n, self.thought_budget(), self.prompt(problem, context))

    def measure(self) -> Measure:
        """The weight of a response, from the calls that it took."""
        if self.by == "logprob":
            return lambda calls: None if (mean := mean_logprob(calls)) is None else math.exp(mean)
        if self.by == "certainty":
            return self_certainty
        if self.by == "tail":
            return lambda calls: tail_confidence(calls, self.window)
        return lambda calls: lowest_confidence(calls, self.window)


_SCORES = -1


class _Weighted(Voting):
    def __init__(self, options: Weighted, *args: Any) -> None:
        self._options = options
        self._found: dict[int, float] = {}
        """What the samples are weighed by, where there is anything."""
        super().__init__(*args)

    def all_sampled(self) -> None:
        super().all_sampled()
        indices = self.answered()
        if self._options.by != "score":
            measure = self._options.measure()
            values = {i: measure(self.calls_of(self.leaves[i])) for i in indices}
            self._found = {i: v for i, v in values.items() if v is not None and math.isfinite(v)}
            for i, value in self._found.items():
                self.tree.score(self.leaves[i].id, value)
        elif indices:
            self.push(Ask(_SCORES, Score(tuple(self.leaves[i].response for i in indices))))

    def told_more(self, ask_id: int, answer: Any) -> None:
        if ask_id != _SCORES:
            super().told_more(ask_id, answer)
        elif not isinstance(answer, Exception):
            scores = {i: float(x) for i, x in zip(self.answered(), answer, strict=True)}
            for i, score in scores.items():
                self.tree.score(self.leaves[i].id, score)
            self._found = {i: x for i, x in scores.items() if math.isfinite(x)}

    def weights(self, votes: Mapping[int, Vote | None]) -> dict[int, float] | None:
        voting = {i: self._found[i] for i, vote in votes.items() if vote is not None and i in self._found}
        if not voting:
            return None
        kept = sorted(voting, key=lambda i: (-voting[i], i))[: math.ceil(self._options.keep * len(voting))]
        highest, below = max(voting.values()), min(voting.values()) < 0
        return {i: math.exp(voting[i] - highest) if below else voting[i] for i in kept}

    def representative(self, cluster: Cluster) -> int:
        """Its most confident response."""
        return max(cluster.members, key=lambda i: (self._found.get(i, -math.inf), -i))

    def explain(self, ranked: tuple[Cluster, ...]) -> str:
        said = super().explain(ranked)
        if not self._found:
            return f"{said}; there was no {_WORDS[self._options.by]} to weigh by, so every vote counted 1"
        total = sum(p.weight for p in ranked)
        share = ranked[0].weight / total if total > 0 else 0.0
        by = _WORDS[self._options.by]
        return f"{shown(ranked[0].answer)} has {percent(share)} of the weight by {by} ({said})"
