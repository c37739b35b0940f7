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
    and samples `expand` of them. Each is scored at once, which is its first visit (there is no rollout: a scorer of
    partial responses says how good a step is; without one, or if it fails, the mean log-probability of the tokens so
    far). The simulation's value is that of the best of them, and counts as one visit of every step above. `parallel`
    simulations run at a time; until its answer is there each is counted as a visit of the lowest value (virtual loss).

    After `per_move` simulations the search moves to the child of most visits, as a player does, and goes down from
    there; it moves back up where nothing is left to expand. Without moves, scores that do not rise with depth keep it
    near the root. It ends where a whole response is worth no less than the step that it would move to.

    The first response that a checker accepts ends the search; rejected ones have the lowest value. At the end the whole
    responses vote, each with its value as weight. If there is none, or a checker rejected all, the path of most visits
    is closed and answered, from the answer reserve.
    """

    simulations: int = 32
    """Steps that are expanded."""
    expand: int = 4
    """Children that a simulation samples."""
    per_move: int = 4
    """Simulations after which the search commits to the step of most visits and goes on from there; 0 is never."""
    parallel: int = 4
    """Simulations that run at a time."""
    exploration: float = 1.25
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
        if self.per_move < 0:
            raise UserError(f"per_move = {self.per_move}: give 0 (never) or more")
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

    def add(self, value: float) -> None:
        self.count, self.total = self.count + 1, self.total + value

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


class TreeSearch(Stepping):
    """The search of `Mcts`; `visits` is by step id, None for the empty response."""

    def __init__(self, problem: Problem, context: SearchContext, options: Mcts) -> None:
        super().__init__(problem, context, Growth.of(options))
        self.visits: dict[int | None, Visits] = defaultdict(Visits)
        self._options = options
        self._simulated = self._since = 0
        self._at: Step | None = None
        """Where the search has moved to."""
        self._leaves: list[Step | None] = []
        """What the running wave expands."""
        self._low, self._high = math.inf, -math.inf
        self._voters: list[Step] = []
        self._votes: tuple[Vote | None, ...] = ()

    # Down -----------------------------------------------------------------------------------------------------------

    def simulate(self) -> None:
        """Choose the steps of the next wave and expand them."""
        leaves: list[Step | None] = []
        most = 0 if self._move() else min(self._options.parallel, self._options.simulations - self._simulated)
        while len(leaves) < most and not self._shut(self._at):
            leaf = self._descend()
            if leaf in leaves:
                break
            leaves.append(leaf)
            self._simulated += 1
            self._since += 1
            self.visits[_id(leaf)].expanded += 1
            for step in _up(leaf):
                self.visits[_id(step)].running += 1
        self._leaves = leaves
        self.lease([leaf for leaf in leaves if leaf is not None])
        for leaf in leaves:
            self.grow(leaf, self._options.expand)
        if not leaves:
            self._conclude()

    def _descend(self) -> Step | None:
        """The step to expand, from the root by PUCT; where all that is left is being expanded, one that is."""
        at = self._at
        while not self._wants_children(at):
            below = [c for c in self._children(at) if not self._shut(c)]
            if not below:
                break
            at = max(below, key=lambda c: (self.puct(c), -c.id))
        return at

    def _move(self) -> bool:
        """Go to the child of most visits when it is time to, and up where nothing is left; True if this is the end."""
        while self._at is not None and self._shut(self._at):
            self._at, self._since = self._at.parent, 0
        if not self._options.per_move or self._since < self._options.per_move:
            return False
        children = [c for c in self._children(self._at) if not self._shut(c)]
        if not children:
            return False
        best = max(children, key=lambda c: (self.visits[c.id].count, self.visits[c.id].mean, -c.id))
        below = self._children(self._at)
        whole = [e for c in below for e in (c.children if c.closed else [c]) if self.answered(e) and not e.rejected]
        if any(self.visits[e.id].mean >= self.visits[best.id].mean for e in whole):
            return True
        self._at, self._since = best, 0
        return False

    def puct(self, step: Step) -> float:
        """Q + exploration × prior × sqrt(visits of siblings and itself) / (1 + visits); Q in [0, 1]."""
        mine = self.visits[step.id]
        siblings = self._children(step.parent)
        visits = sum(self.visits[s.id].count + self.visits[s.id].running for s in siblings)
        count = mine.count + mine.running
        q = mine.count * self._scaled(mine.mean) / count if count else 0.0
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
        found: dict[int | None, float] = {}
        for step in steps:
            value = self.value(step)
            if step in bad or not math.isfinite(value):
                value = self._low if math.isfinite(self._low) else 0.0
            self.visits[step.id].add(value)
            # An answer that its step began at once belongs to the same simulation.
            parent = step.parent
            leaf_id = _id(parent.parent if parent is not None and parent.closed else parent)
            found[leaf_id] = max(value, found.get(leaf_id, value))
        for leaf in self._leaves:
            for passed in _up(leaf):
                # A simulation that brought nothing new says as much as before.
                visits = self.visits[_id(passed)]
                visits.add(found.get(_id(leaf), visits.mean))
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
                note = f"{visits.count} visits, mean value {visits.mean:.3g}"
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
