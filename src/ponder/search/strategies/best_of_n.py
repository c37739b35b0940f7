"""Best of n: several samples, one winner."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ponder.errors import Unsupported
from ponder.protocols import Ask, Check, Score, SearchContext
from ponder.search.confidence import TOP_LOGPROBS, Measure, check_rank, mean_logprob, self_certainty, usable
from ponder.search.options import SamplingOptions, check_choice
from ponder.search.sampling import Sampling
from ponder.types import Node, Outcome, Problem, Spend, StopReason

BY = ("auto", "checker", "scorer", "logprob", "certainty")


@dataclass(frozen=True)
class BestOfN(SamplingOptions):
    """Sample n responses and keep the best (Cobbe et al. 2021, arXiv:2110.14168, §4); cost n × max_tokens + n checks.

    The best is what the checker accepts, what the scorer scores highest, or what the model itself is most certain of:
    by mean log-probability, or by self-certainty (Kang et al. 2025, arXiv:2502.18581). `auto` takes the first of these
    that there is, except self-certainty. Ties go to the lowest sample index. Responses without an answer never win. If
    what should decide fails on every response, the next one that is available does.
    """

    by: str = "auto"
    """`auto`, `checker`, `scorer`, `logprob` or `certainty`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("by", self.by, BY)

    def ranking(self, checker: bool, scorer: bool) -> str:
        """What it ranks by where these are there: checker, score, logprob or certainty, as `ponder replay` says it."""
        by = self.by
        if by == "auto":
            by = "checker" if checker else "scorer" if scorer else "logprob"
        return "score" if by == "scorer" else by

    def start(self, problem: Problem, context: SearchContext) -> Sampling:
        there = {"checker": context.checker, "scorer": context.scorer}
        if not there.get(self.by, True):
            raise Unsupported(f"best_of_n by the {self.by} needs one and there is none; choose by = auto")
        if self.by in ("logprob", "certainty") and not context.capabilities.logprobs:
            raise Unsupported(
                f"best_of_n by {self.by} needs log-probabilities, which the engine of {context.info.name} does not "
                "give; choose by = auto"
            )
        certainty = self.by == "certainty"
        params = self.params(raw=certainty or self.by == "logprob", top_logprobs=TOP_LOGPROBS if certainty else 0)
        prompt = self.prompt(problem, context)
        by = self.ranking(context.checker, context.scorer)
        measures = [("self-certainty", self_certainty)] if certainty else []
        measures.append(("mean log-probability", mean_logprob))
        return _Best(
            by == "checker", by == "score", measures, problem, context, params, self.n, self.thought_budget(), prompt
        )


_SCORE = -1
"""The ask that scores; the check of sample `i` is ask `-2 - i`."""


class _Best(Sampling):
    def __init__(self, checks: bool, scores: bool, measures: Sequence[tuple[str, Measure]], *args: Any) -> None:
        self._checks, self._scores, self._measures = checks, scores, measures
        super().__init__(*args)

    def sampled(self, index: int, node: Node) -> None:
        if self._checks and node.response.answered:
            self.push(Ask(-2 - index, Check(node.response)))

    def all_sampled(self) -> None:
        answered = self._answered()
        if self._scores and answered:
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
        return [n for n in nodes if n.response.answered]

    def outcome(self, spend: Spend, stop: StopReason) -> Outcome:
        first = super().outcome(spend, stop)
        answered = self._answered()
        if not answered:
            return dataclasses.replace(first, chosen=None)
        best, reason = self._select(answered)
        if stop is StopReason.FINISHED and best.check is not None and best.check.correct:
            stop = StopReason.ACCEPTED
        return Outcome(best.response, None, first.trace, spend, stop, best.id, reason)

    def _select(self, nodes: list[Node]) -> tuple[Node, str]:
        """The best of the answered nodes (in sample order), and what decided."""
        if any(usable(n.check) for n in nodes):
            best = max(nodes, key=lambda n: check_rank(n.check))
            accepted = best.check is not None and best.check.correct
            none = f"the checker accepted none of {len(nodes)} answer{'s' * (len(nodes) != 1)}"
            return best, "chosen by the checker" if accepted else none
        scores: list[tuple[str, list[float | None]]] = [("score", [n.score for n in nodes])]
        scores += [(name, [measure(self.calls_of(n)) for n in nodes]) for name, measure in self._measures]
        for name, values in scores:
            there = [(n, v) for n, v in zip(nodes, values, strict=True) if v is not None and not math.isnan(v)]
            if there:
                return max(there, key=lambda pair: pair[1])[0], f"chosen by {name}"
        return nodes[0], "nothing to choose by: the first answer"
