"""Adaptive: majority that stops when more samples would hardly change its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ponder.errors import BudgetExceeded, UserError
from ponder.protocols import SearchContext
from ponder.search.clusters import Cluster
from ponder.search.options import SamplingOptions, check_choice
from ponder.search.stopping import beta, dirichlet
from ponder.search.voting import Voting
from ponder.types import Outcome, Problem, Spend, StopReason

RULES = ("beta", "dirichlet", "esc")


@dataclass(frozen=True)
class Adaptive(SamplingOptions):
    """Majority that stops early (Adaptive-Consistency, Aggarwal et al. 2023, arXiv:2305.11860); cost ≤ n × max_tokens.

    `beta` and `dirichlet` stop when the posterior probability that the answer in the lead has the most support is at
    least `threshold`; `beta` looks at the two best answers, `dirichlet` at all that were seen. `esc` stops when all
    samples of a window agree (Early-Stopping Self-Consistency, Li et al. 2024, arXiv:2401.10480). Each rule also stops
    when the samples that are left could not overtake the leader. Samples are drawn in waves, each by its own call,
    and looked at in the order of their index; what still runs when the rule is satisfied is cancelled.
    """

    n: int = 32
    """Most samples."""
    rule: str = "beta"
    """`beta`, `dirichlet` or `esc`."""
    threshold: float = 0.95
    """Least probability that the leader stays, for `beta` and `dirichlet` (0.95 in the paper)."""
    wave: int = 4
    """Samples in flight at once; the window of `esc`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rule", self.rule, RULES)
        if not 0.5 < self.threshold < 1.0:
            raise UserError(f"threshold = {self.threshold!r}: give more than 0.5, below 1")
        if self.wave < (2 if self.rule == "esc" else 1):
            raise UserError(f"wave = {self.wave}: give at least 1 sample, 2 with the rule esc")

    def start(self, problem: Problem, context: SearchContext) -> Voting:
        prompt = self.prompt(problem, context)
        return _Adaptive(self, problem, context, self.params(), self.n, self.thought_budget(), prompt)

    def stays(self, votes: Sequence[int]) -> float:
        """Posterior probability that the leader stays, by the votes of each answer, most first."""
        return beta(votes[0], votes[1] if len(votes) > 1 else 0) if self.rule == "beta" else dirichlet(votes)

    @property
    def fewest(self) -> int:
        """Votes below which the posterior cannot reach the threshold, even if all agree."""
        return next(k for k in range(1, 10_000) if self.stays([k]) >= self.threshold)


class _Adaptive(Voting):
    def __init__(self, options: Adaptive, *args: Any) -> None:
        self._options = options
        self._fewest = 0 if options.rule == "esc" else options.fewest
        self._seen = 0
        """How many samples, from the first on, have been looked at."""
        self._looking = False
        """A group is asked for; `_seen` grows when it is there."""
        self._why = ""
        """Why it stopped before the last sample."""
        self._refused: set[int] = set()
        """Samples that the budget had no room for."""
        super().__init__(*args)

    def begin(self) -> None:
        self._wave()

    def _wave(self) -> None:
        for i in range(self.drawn, min(self.drawn + self._options.wave, self.n)):
            self.draw(i, 1)

    def told(self, ask_id: int, answer: Any) -> None:
        if ask_id >= 0 and isinstance(answer, BudgetExceeded):
            self._refused.add(ask_id % self.n)
        super().told(ask_id, answer)

    def all_sampled(self) -> None:
        pass

    def run_grew(self) -> None:
        self._look()

    def grouped(self, upto: int) -> None:
        self._looking = False
        self._seen = upto
        self._decide()
        self._look()

    def _look(self) -> None:
        """Look at the samples in order, as far as they are there."""
        while not self._looking and not self._why and self._seen < self.run:
            upto = self._seen + 1
            if self._needs_votes(upto):
                self._looking = self.group(upto)
                continue
            self._seen = upto
            self._decide()
        if self._seen == self.drawn and not self._looking and not self._why:
            if not self._refused:
                self._wave()
            elif len(self.answered(self._seen)) > len(self.votes or ()):
                self._looking = self.group(self._seen)

    def _needs_votes(self, upto: int) -> bool:
        """Whether the votes of the first `upto` samples are not known and could decide something."""
        answered = self.answered(upto)
        if not answered or len(answered) == len(self.votes or ()):
            return False
        if upto == self.n:
            return True
        if self._options.rule == "esc":
            return upto % self._options.wave == 0
        return len(answered) >= min(self._fewest, self.n - upto)

    def _decide(self) -> None:
        ranked = self.standings() if self.votes is not None else ()
        if not ranked or self._seen == self.n or any(i < self._seen for i in self._refused):
            return
        votes = [len(p.members) for p in ranked]
        lead = votes[0] - (votes[1] if len(votes) > 1 else 0)
        options = self._options
        if lead > self.n - self._seen:
            self._why = "the samples that are left could not overtake the leader"
        elif options.rule == "esc":
            window = range(self._seen - options.wave, self._seen)
            if self._seen % options.wave == 0 and any(set(window) <= set(p.members) for p in ranked):
                self._why = f"all {options.wave} samples of a window agreed"
        elif options.stays(votes) >= options.threshold:
            self._why = f"the leader changes with probability under {1 - options.threshold:.3g}"
        if self._why:
            self.drop(*(i for i in self.waiting if i >= 0))

    def late(self) -> set[int]:
        return {i for i in self.leaves if self._why and i >= self._seen} | super().late()

    def explain(self, ranked: tuple[Cluster, ...]) -> str:
        said = super().explain(ranked)
        return f"{said}; stopped after {self._seen} of {self.n}: {self._why}" if self._why else said

    def outcome(self, spend: Spend, stop: StopReason) -> Outcome:
        outcome = super().outcome(spend, stop)
        if self._why and stop in (StopReason.FINISHED, StopReason.BUDGET):
            return dataclasses.replace(outcome, stop=StopReason.ACCEPTED)
        return outcome
