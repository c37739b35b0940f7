"""Cascade: a fast answer first, a slow one only if the fast one is unsure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ponder import registry
from ponder.config import Options
from ponder.errors import Unsupported, UserError
from ponder.numbers import percent
from ponder.protocols import Ask, Check, Search, SearchContext, Strategy
from ponder.search.clusters import Cluster, result, shown
from ponder.search.confidence import mean_logprob, usable
from ponder.search.nested import Nested, chosen, context_of, moved
from ponder.search.options import SamplingOptions, check_choice, check_share
from ponder.search.voting import Voting
from ponder.types import Outcome, Problem, Spend, StopReason, Trace

UNSURE = ("auto", "checker", "agreement", "logprob")


@dataclass(frozen=True)
class Cascade(SamplingOptions):
    """Answer fast, search on if unsure (FrugalGPT, Chen et al. 2023, arXiv:2305.05176); cost n × max_tokens + slow's.

    The fast answer is the majority of a few cheap samples (AutoMix, Madaan et al. 2023, arXiv:2310.12963, verifies it
    likewise with the small model). It is kept if it is sure: the checker accepts one of its answers; or enough of its
    samples agree; or its mean log-probability is high enough. Without a fast answer it is never sure. Otherwise a
    second strategy searches from scratch, on the same or another engine; if it finds none, the fast answer is kept.
    """

    n: int = 4
    """Fast samples."""
    unsure: str = "auto"
    """What decides: `checker`, `agreement`, `logprob`; `auto` takes the first of these that is available."""
    agreement: float = 0.75
    """Least share of all fast samples that must give the answer (those without one count as not agreeing)."""
    logprob: float = -0.2
    """Least mean log-probability of the fast answer's tokens, in nats; depends on the model."""
    slow: str = "majority"
    """The strategy that is run when unsure, by name."""
    slow_options: Options = field(default_factory=dict)
    """Its options."""
    engine: str = ""
    """The engine that it runs on, by the name that it was given; empty is the same one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("unsure", self.unsure, UNSURE)
        check_share("agreement", self.agreement)
        if not self.logprob <= 0.0:
            raise UserError(f"logprob = {self.logprob!r}: give 0 or less")
        if self.unsure == "agreement" and self.n < 2:
            raise UserError(f"unsure = agreement needs n of 2 or more, not {self.n}")
        self.slow_strategy()

    def slow_strategy(self) -> Strategy:
        """The second strategy. Raises `UserError` for an unknown name or option."""
        try:
            return registry.build("search.strategies", self.slow, self.slow_options)
        except UserError as error:
            raise UserError(f"slow: {error}") from None

    def start(self, problem: Problem, context: SearchContext) -> Search:
        by = self._by(context)
        params = self.params(raw=by == "logprob")
        prompt = self.prompt(problem, context)
        fast = _Fast(self, by, problem, context, params, self.n, self.thought_budget(), prompt)
        slow = self.slow_strategy().start(problem, context_of(context, problem, self.engine, "slow"))
        return _Cascade(self, problem, fast, slow)

    def _by(self, context: SearchContext) -> str:
        there = {"checker": context.checker, "agreement": self.n > 1, "logprob": context.capabilities.logprobs}
        if self.unsure == "auto":
            by = next((name for name in UNSURE[1:] if there[name]), None)
            if by is None:
                raise Unsupported(
                    "cascade has no measure of confidence: there is no checker, n is 1, and the engine of "
                    f"{context.info.name} gives no log-probabilities; give n of 2 or more"
                )
            return by
        if not there[self.unsure]:
            raise Unsupported(f"cascade by unsure = {self.unsure} is not available here; choose agreement")
        return self.unsure


class _Fast(Voting):
    """The fast answer, and whether it is sure. The check of sample `i` is ask `-2 - n - i`."""

    def __init__(self, options: Cascade, by: str, *args: Any) -> None:
        self._options = options
        self._by = by
        super().__init__(*args)

    def grouped(self, upto: int) -> None:
        if self._by == "checker":
            for cluster in self.standings():
                first = cluster.members[0]
                self.push(Ask(-2 - self.n - first, Check(self.leaves[first].response)))

    def told_more(self, ask_id: int, answer: Any) -> None:
        if ask_id >= -1 - self.n:
            super().told_more(ask_id, answer)
        elif not isinstance(answer, Exception):
            self.tree.check(self.leaves[-2 - self.n - ask_id].id, answer)

    def standings(self) -> tuple[Cluster, ...]:
        """What the checker accepted comes first."""
        ranked = super().standings()
        return tuple(sorted(ranked, key=lambda c: not self._accepted(c)))

    def _accepted(self, cluster: Cluster) -> bool:
        check = self.tree[self.leaves[cluster.members[0]].id].check
        return check is not None and check.correct

    def outcome(self, spend: Spend, stop: StopReason) -> Outcome:
        """The checker's choice is no vote."""
        outcome = super().outcome(spend, stop)
        check = None if outcome.chosen is None else self.tree[outcome.chosen].check
        return dataclasses.replace(outcome, vote_share=None) if check and check.correct else outcome

    def sure(self) -> tuple[bool, str]:
        """Whether the fast answer is kept, and why, as a clause."""
        ranked = self.standings()
        if not ranked:
            return False, "no fast answer"
        leader, options = ranked[0], self._options
        if self._by == "checker" and any(usable(self.tree[leaf.id].check) for leaf in self.leaves.values()):
            if self._accepted(leader):
                return True, f"the checker accepts {shown(leader.answer)}"
            return False, f"the checker rejects {shown(leader.answer)}"
        if self._by == "logprob" and (mean := mean_logprob(self.calls_of(self.leaves[leader.members[0]]))) is not None:
            sure = mean >= options.logprob
            return sure, f"mean log-probability {mean:.3g}, {'at least' if sure else 'below'} {options.logprob:g}"
        without = {"checker": "the checker failed; ", "logprob": "there were no log-probabilities; "}.get(self._by, "")
        if self.n == 1:
            return False, f"{without}no measure of confidence"
        agree = len(leader.members) / self.n
        return agree >= options.agreement, f"{without}{result(ranked)}, {percent(agree)} of {self.n} fast samples"


class _Cascade:
    def __init__(self, options: Cascade, problem: Problem, fast: _Fast, slow: Search) -> None:
        self._options = options
        self._problem = problem
        self._fast, self._slow = fast, slow
        self._stages = (Nested(fast, 0, 2), Nested(slow, 1, 2, options.engine))
        self._sure: bool | None = None
        """None before the fast answer is there."""
        self._why = ""

    @property
    def _running(self) -> Sequence[Nested]:
        return self._stages if self._sure is False else self._stages[:1]

    def ask(self) -> list[Ask]:
        return [ask for stage in self._running for ask in stage.ask()]

    def tell(self, ask_id: int, answer: Any) -> None:
        for stage in self._running:
            stage.tell(ask_id, answer)
        if self._sure is None and self._fast.done:
            self._sure, self._why = self._fast.sure()

    def unwanted(self) -> list[int]:
        return [ask_id for stage in self._running for ask_id in stage.unwanted()]

    def reserve(self) -> tuple[int, int]:
        return self._slow.reserve() if self._sure is False else self._fast.reserve()

    @property
    def done(self) -> bool:
        return self._fast.done and (self._sure is not False or self._slow.done)

    def outcome(self, spend: Spend, stop: StopReason) -> Outcome:
        fast = self._fast.outcome(spend, stop)
        if self._sure is not False:
            if self._sure and stop is StopReason.FINISHED:
                stop = StopReason.ACCEPTED
            why = f"{self._why}: sure, so {self._options.slow} was not run" if self._sure else fast.reason
            return dataclasses.replace(fast, stop=stop, reason=why)
        slow = self._slow.outcome(spend, stop)
        # A fast sample may take two calls: nodes below 2 n.
        offset = 2 * self._options.n
        nodes = (*fast.trace.nodes, *moved(slow.trace.nodes, offset))
        trace = Trace(self._problem.id, nodes)
        if not slow.response.answered and fast.response.answered:
            reason = f"{self._why}: unsure, but {self._options.slow} found no answer, so the fast one is kept"
            return dataclasses.replace(fast, trace=trace, stop=slow.stop, reason=reason)
        reason = f"{self._why}: unsure; {self._options.slow}: {slow.reason or 'its answer'}"
        return dataclasses.replace(slow, trace=trace, chosen=chosen(slow, offset), reason=reason)
