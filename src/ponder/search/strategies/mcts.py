"""Monte Carlo tree search over steps."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

from ponder.errors import UserError
from ponder.protocols import Ask, Group, SearchContext, Vote
from ponder.search.stepping import MORE, Stepping, ask_about
from ponder.search.steps import Growth, Step, check_positive
from ponder.types import Outcome, Problem, Spend, StopReason


@dataclass(frozen=True)
class Mcts:
    """Search a tree of steps by PUCT; cost simulations × expand × step_tokens + answer_tokens.

    Each call also reads the prompt and the response so far, once for each sample (from the cache where the engine kept
    it). Silver et al. 2017 (AlphaZero, arXiv:1712.01815); values are brought to [0, 1] by the lowest and highest seen,
    as in Schrittwieser et al. 2020 (MuZero, arXiv:1911.08265, eq. 5); more children for nodes that are visited often,
    as in Coulom 2007 (progressive widening).

    A simulation goes down from the root, at each node to the child with the highest
    Q + exploration × prior × sqrt(visits of its siblings and itself) / (1 + its visits), to a step without children,
    and samples `expand` of them. Each is scored at once (there is no rollout: a scorer of partial responses says how
    good a step is; without one, or if it fails, the mean log-probability of the tokens so far), and counts as one visit
    with its score, for itself and all steps above it. `parallel` simulations run at a time; each is counted as a visit
    of the lowest value until its answer is there (virtual loss).

    The first response that a checker accepts ends the search; rejected ones have the lowest value. At the end the whole
    responses vote, each with its value as weight. If there is none, or a checker rejected all, the path of most visits
    is closed and answered, from the answer reserve.
    """

    simulations: int = 32
    """Steps that are expanded."""
    expand: int = 4
    """Children that a simulation samples."""
    parallel: int = 4
    """Simulations that run at a time."""
    exploration: float = 1.5
    """The constant of PUCT."""
    prior: Literal["logprob", "uniform"] = "logprob"
    """Prior of siblings: softmax of the mean log-probabilities of their new tokens, or all alike."""
    widening: float = 0.5
    """A step is expanded again when it was expanded fewer than (visits / expand) ** widening times; 0 is never."""
    depth: int = 16
    """Most steps of a response."""
    step_tokens: int = 32
    """Most tokens of a step."""
    delimiters: tuple[str, ...] = ("\n",)
    """Texts that end a step."""
    answer_tokens: int = 16
    """Tokens kept for the end-of-thought marker and the answer."""
    temperature: float = 1.0
    """0 is greedy: all samples of a step are then the same."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    """0 is off."""

    def __post_init__(self) -> None:
        check_positive(self, "simulations", "expand", "parallel")
        if not 0.0 <= self.exploration < math.inf:
            raise UserError(f"exploration = {self.exploration!r}: give 0 or more")
        if not 0.0 <= self.widening <= 1.0:
            raise UserError(f"widening = {self.widening!r}: give 0 (never) to 1")
        if self.prior not in ("logprob", "uniform"):
            raise UserError(f"prior = {self.prior!r}: give logprob or uniform")
        Growth.of(self)

    def start(self, problem: Problem, context: SearchContext) -> Stepping:
        search = TreeSearch(problem, context, self)
        search.simulate()
        return search


@dataclass(slots=True)
class Visits:
    """What PUCT knows of a step; the empty response has one too."""

    count: int = 0
    total: float = 0.0
    """Sum of the values of its visits."""
    running: int = 0
    """Simulations that went through it and have no answer yet."""
    expanded: int = 0
    shut: bool = False
    """Nothing of it and below it can be expanded any more."""


class TreeSearch(Stepping):
    """The search of `Mcts`; `visits` is by step id, None for the empty response."""

    def __init__(self, problem: Problem, context: SearchContext, options: Mcts) -> None:
        super().__init__(problem, context, Growth.of(options))
        self.visits: dict[int | None, Visits] = defaultdict(Visits)
        self._options = options
        self._simulated = 0
        self._low, self._high = math.inf, -math.inf
        self._voters: list[Step] = []
        self._votes: tuple[Vote | None, ...] = ()

    # Down -----------------------------------------------------------------------------------------------------------

    def simulate(self) -> None:
        """Choose the steps of the next wave and expand them."""
        leaves: list[Step | None] = []
        most = min(self._options.parallel, self._options.simulations - self._simulated)
        while len(leaves) < most and not self._shut(None):
            leaf = self._descend()
            if leaf in leaves:
                break
            leaves.append(leaf)
            self._simulated += 1
            self.visits[_id(leaf)].expanded += 1
            for step in _up(leaf):
                self.visits[_id(step)].running += 1
        self.lease([leaf for leaf in leaves if leaf is not None])
        for leaf in leaves:
            self.grow(leaf, self._options.expand)
        if not leaves:
            self._conclude()

    def _descend(self) -> Step | None:
        """The step to expand, from the root by PUCT; where all that is left is being expanded, one that is."""
        at: Step | None = None
        while not self._wants_children(at):
            below = [c for c in self._children(at) if not self._shut(c)]
            if not below:
                break
            at = max(below, key=lambda c: (self.puct(c), -c.id))
        return at

    def puct(self, step: Step) -> float:
        """Q + exploration × prior × sqrt(visits of siblings and itself) / (1 + visits); Q in [0, 1]."""
        mine = self.visits[step.id]
        siblings = self._children(step.parent)
        visits = sum(self.visits[s.id].count + self.visits[s.id].running for s in siblings)
        count = mine.count + mine.running
        q = mine.count * self._scaled(mine.total / mine.count) / count if mine.count else 0.0
        return q + self._options.exploration * self._prior(step) * math.sqrt(visits) / (1 + count)

    def _prior(self, step: Step) -> float:
        siblings = self._children(step.parent)
        if self._options.prior == "uniform":
            return 1.0 / len(siblings)
        return _likelihood(step) / math.fsum(map(_likelihood, siblings))

    def _scaled(self, value: float) -> float:
        return (value - self._low) / (self._high - self._low) if self._high > self._low else 0.5

    def _children(self, step: Step | None) -> list[Step]:
        return self.roots if step is None else step.children

    def _wants_children(self, step: Step | None) -> bool:
        """It is to be expanded itself, rather than one of its children."""
        visits, options = self.visits[_id(step)], self._options
        if step is not None and not self.can_grow(step):
            return False
        if not visits.expanded or not options.widening:
            return not visits.expanded
        often = visits.expanded < (visits.count / options.expand) ** options.widening
        return often or (not visits.running and all(self._shut(c) for c in self._children(step)))

    def _shut(self, step: Step | None) -> bool:
        """Nothing of it and below it can be expanded any more."""
        visits = self.visits[_id(step)]
        if not visits.shut:
            ended = step is not None and not self.can_grow(step)
            over = visits.expanded and not visits.running and not self._options.widening
            visits.shut = ended or bool(over and all(self._shut(c) for c in self._children(step)))
        return visits.shut

    # Up -------------------------------------------------------------------------------------------------------------

    def advance(self, steps: list[Step]) -> None:
        for visits in self.visits.values():
            visits.running = 0
        known = [v for s in steps if not s.rejected and math.isfinite(v := self.value(s))]
        bad = [s for s in steps if s.rejected or (s.ended and not self.answered(s))]
        # Rejected is worse than anything that was seen, and no better than nothing.
        self._low = min([self._low, *known, *([0.0] if bad else [])])
        self._high = max([self._high, *known])
        for step in steps:
            value = self.value(step)
            if step in bad or not math.isfinite(value):
                value = self._low if math.isfinite(self._low) else 0.0
            for above in _up(step):
                visits = self.visits[_id(above)]
                visits.count, visits.total = visits.count + 1, visits.total + value
        if self.spent or self.failed:
            self._conclude()
        else:
            self.simulate()

    # The end --------------------------------------------------------------------------------------------------------

    def _conclude(self) -> None:
        self._voters = [s for s in self.steps.values() if self.answered(s) and not s.rejected]
        if self._voters:
            self.lease(())
            responses = tuple(self.tree[s.id].response for s in self._voters)
            self.push(Ask(ask_about(self.new_id(), MORE), Group(responses)))
            return
        most = self._most_visited()
        self.close([] if most is None else [most])

    def _most_visited(self) -> Step | None:
        """Where the path of most visits ends that has not ended itself; ties by value."""
        at: Step | None = None
        while paths := [c for c in self._children(at) if not c.ended]:
            at = max(paths, key=lambda c: (self.visits[c.id].count, self.value(c), -c.id))
        return at

    def _note(self) -> None:
        for step in self.steps.values():
            visits = self.visits[step.id]
            if visits.count:
                note = f"{visits.count} visits, mean value {visits.total / visits.count:.3g}"
                self.tree.note(step.id, note + (f", expanded {visits.expanded} times" if visits.expanded else ""))

    def told_more(self, answer_id: int, answer: Any) -> None:
        if not isinstance(answer, Exception):
            self._votes = tuple(answer)
            for step, vote in zip(self._voters, self._votes, strict=True):
                if vote is not None:
                    self.tree.vote(step.id, vote.answer)

    def outcome(self, spend: Spend, stop: StopReason) -> Outcome:
        self._note()
        best = self.best_answer()
        weights: dict[int, float] = {}
        for step, vote in zip(self._voters, self._votes, strict=False):
            if vote is not None:
                value = self.value(step)
                weight = step.times * (self._scaled(value) if math.isfinite(value) else 0.0)
                weights[vote.party] = weights.get(vote.party, 0.0) + weight
        if best is None or best.rank == 2 or not weights:
            return super().outcome(spend, stop)
        party = max(weights, key=lambda p: (weights[p], -p))
        voters = [s for s, v in zip(self._voters, self._votes, strict=True) if v is not None and v.party == party]
        best = max(voters, key=lambda s: (self.value(s), -s.id))
        total = math.fsum(weights.values())
        share = weights[party] / total if total else 1.0 / len(weights)
        reason = f"{share:.0%} of the votes, weighted by value"
        return Outcome(self.tree[best.id].response, share, self.tree.trace(), spend, stop, best.id, reason)


def _id(step: Step | None) -> int | None:
    return None if step is None else step.id


def _up(step: Step | None) -> list[Step | None]:
    """A step and all above it, the empty response last."""
    path: list[Step | None] = [step]
    while step is not None:
        step = step.parent
        path.append(step)
    return path


def _likelihood(step: Step) -> float:
    """The geometric mean of the probabilities of a step's new tokens; 1 where the engine gives none."""
    before, count = (0.0, 0) if step.parent is None else step.parent.logprob
    new = step.logprob[1] - count
    return math.exp((step.logprob[0] - before) / new) if new else 1.0
