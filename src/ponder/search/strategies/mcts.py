"""Monte Carlo tree search over steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from ponder.errors import UserError
from ponder.numbers import percent
from ponder.protocols import Ask, Group, SearchContext, Vote
from ponder.search.puct import Puct
from ponder.search.step import MORE, Step, StepOptions, ask_about, check_positive
from ponder.search.step_search import Stepping
from ponder.types import Outcome, Problem, Spend, StopReason


@dataclass(frozen=True)
class Mcts(StepOptions):
    """PUCT over steps (AlphaZero, arXiv:1712.01815); cost ≤ simulations × expand × (step_tokens + answer_tokens).

    Each call also reads the prompt and the response so far, once for each sample (from the cache where the engine kept
    it); only a step that ends its thought costs `answer_tokens`. Silver et al. 2017 (AlphaZero); values are brought to
    [0, 1] by the lowest and highest seen, as in Schrittwieser et al. 2020 (MuZero, arXiv:1911.08265, eq. 5); more
    children for nodes that are visited often, as in Coulom 2007 (progressive widening).

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
    responses vote, as often as they were sampled, with their values in [0, 1] as weights. If there is none, or a
    checker rejected all, the path of most visits is closed and answered, from the answer reserve.
    """

    simulations: int = 32
    """Steps that are expanded."""
    expand: int = 4
    """Children that a simulation samples."""
    per_move: int = 4
    """Simulations after which the search commits to the step of most visits and continues from there; 0 is never."""
    parallel: int = 4
    """Simulations that run at a time."""
    exploration: float = 1.25
    """The constant of PUCT."""
    prior: Literal["logprob", "uniform"] = "logprob"
    """Prior of siblings: softmax of the mean log-probabilities of their new tokens, or uniform."""
    widening: float = 0.5
    """A step is expanded again when it was expanded fewer than (visits / expand) ** widening times; 0 is never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "simulations", "expand", "parallel")
        if self.per_move < 0:
            raise UserError(f"per_move = {self.per_move}: give 0 (never) or more")
        if not 0.0 <= self.exploration < math.inf:
            raise UserError(f"exploration = {self.exploration!r}: give 0 or more")
        if not 0.0 <= self.widening <= 1.0:
            raise UserError(f"widening = {self.widening!r}: give 0 (never) to 1")
        if self.prior not in ("logprob", "uniform"):
            raise UserError(f"prior = {self.prior!r}: give logprob or uniform")

    def start(self, problem: Problem, context: SearchContext) -> Stepping:
        search = TreeSearch(problem, context, self)
        search.simulate()
        return search


class TreeSearch(Stepping):
    """The search of `Mcts`."""

    def __init__(self, problem: Problem, context: SearchContext, options: Mcts) -> None:
        super().__init__(problem, context, options)
        self._options = o = options
        self.puct = Puct(self.roots, self.can_grow, o.expand, o.exploration, o.prior, o.widening)
        self._simulated = self._since = 0
        self._at: Step | None = None
        """Where the search has moved to."""
        self._leaves: list[Step | None] = []
        """What the running wave expands."""
        self._waves: list[tuple[list[Step | None], list[Step]]] = []
        """What was expanded, and the steps that it brought."""
        self._by_score = self.scored
        """The values that were backed up are scores."""
        self._voters: list[Step] = []
        self._votes: tuple[Vote | None, ...] = ()

    def simulate(self) -> None:
        """Choose the steps of the next wave and expand them."""
        leaves: list[Step | None] = []
        most = 0 if self._move() else min(self._options.parallel, self._options.simulations - self._simulated)
        while len(leaves) < most and not self.puct.shut(self._at):
            leaf = self.puct.descend(self._at)
            if leaf in leaves:
                break
            leaves.append(leaf)
            self._simulated += 1
            self._since += 1
            self.puct.expanding(leaf)
        self._leaves = leaves
        self.lease([leaf for leaf in leaves if leaf is not None])
        for leaf in leaves:
            self.grow(leaf, self._options.expand)
        if not leaves:
            self._conclude()

    def _move(self) -> bool:
        """Go to the child of most visits when it is time to, and up where nothing is left; True if this is the end."""
        while self._at is not None and self.puct.shut(self._at):
            self._at, self._since = self._at.parent, 0
        if not self._options.per_move or self._since < self._options.per_move:
            return False
        below, visits = self.puct.children(self._at), self.puct.visits
        growing = [c for c in below if not self.puct.shut(c)]
        if not growing:
            return False
        best = max(growing, key=lambda c: (visits[c.id].count, visits[c.id].mean, -c.id))
        whole = [e for c in below for e in (c.children if c.closed else [c]) if self.answered(e) and not e.rejected]
        if any(visits[e.id].mean >= visits[best.id].mean for e in whole):
            return True
        self._at, self._since = best, 0
        return False

    def advance(self, steps: list[Step]) -> None:
        self._waves.append((self._leaves, steps))
        waves = self._waves[-1:]
        if self._by_score and not self.scored:
            # The scorer failed: log-probabilities cannot be averaged with scores, nor compared with them.
            self._by_score, waves = False, self._waves
            self.puct.forget()
        for leaves, found in waves:
            self.puct.back_up(leaves, {step: self._worth(step) for step in found})
        if self.spent or self.failed:
            self._conclude()
        else:
            self.simulate()

    def _worth(self, step: Step) -> float | None:
        """The value of a step that is backed up; None for a dead end."""
        value = self.value(step)
        dead = step.rejected or (step.ended and not self.answered(step))
        return None if dead or not math.isfinite(value) else value

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
        while paths := [c for c in self.puct.children(at) if not c.ended]:
            at = max(paths, key=lambda c: (self.puct.visits[c.id].count, self.value(c), -c.id))
        return at

    def _note(self) -> None:
        for step in self.steps.values():
            visits = self.puct.visits[step.id]
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
                weight = step.draws * (self.puct.scaled(value) if math.isfinite(value) else 0.0)
                weights[vote.cluster] = weights.get(vote.cluster, 0.0) + weight
        if best is None or best.rank == 2 or not weights:
            return super().outcome(spend, stop)
        cluster = max(weights, key=lambda c: (weights[c], -c))
        voters = [s for s, v in zip(self._voters, self._votes, strict=True) if v is not None and v.cluster == cluster]
        best = max(voters, key=lambda s: (self.value(s), -s.id))
        total = math.fsum(weights.values())
        share = weights[cluster] / total if total else 1.0 / len(weights)
        reason = f"{percent(share)} of the votes, weighted by value"
        several = sum(v is not None for v in self._votes) > 1
        return Outcome(
            self.tree[best.id].response, share if several else None, self.tree.trace(), spend, stop, best.id, reason
        )
