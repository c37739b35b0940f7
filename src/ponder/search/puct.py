"""Which step of a tree to expand next: visits, values and PUCT (AlphaZero, arXiv:1712.01815)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ponder.search.step import Step


@dataclass(slots=True)
class Visits:
    """The PUCT statistics of a step; the empty response has them too."""

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


@dataclass(slots=True)
class Puct:
    """The visits of a tree's steps; a step that is None is the empty response."""

    roots: list[Step]
    can_grow: Callable[[Step], bool]
    expand: int
    """Children that an expansion samples."""
    exploration: float
    prior: Literal["logprob", "uniform"]
    widening: float
    visits: defaultdict[int | None, Visits] = field(default_factory=lambda: defaultdict(Visits))
    """By step id."""
    low: float = math.inf
    """Lowest value that was seen."""
    high: float = -math.inf

    # Down -----------------------------------------------------------------------------------------------------------

    def descend(self, step: Step | None) -> Step | None:
        """The step to expand, from here down by PUCT; if all that are left are being expanded, one of these."""
        while not self._wants_children(step):
            below = [c for c in self.children(step) if not self.shut(c)]
            if not below:
                break
            step = max(below, key=lambda c: (self.puct(c), -c.id))
        return step

    def expanding(self, leaf: Step | None) -> None:
        """A simulation expands a step: until its answer is there it counts as a visit of the lowest value above."""
        self.visits[id_of(leaf)].expanded += 1
        for step in up(leaf):
            self.visits[id_of(step)].running += 1

    def puct(self, step: Step) -> float:
        """Q + exploration × prior × sqrt(visits of siblings and itself) / (1 + visits); Q in [0, 1]."""
        mine = self.visits[step.id]
        siblings = self.children(step.parent)
        visits = sum(self.visits[s.id].count + self.visits[s.id].running for s in siblings)
        count = mine.count + mine.running
        q = mine.count * self.scaled(mine.mean) / count if count else 0.0
        return q + self.exploration * self._prior(step) * math.sqrt(visits) / (1 + count)

    def scaled(self, value: float) -> float:
        """A value in [0, 1], by the lowest and highest that were seen (MuZero, arXiv:1911.08265, eq. 5)."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5

    def children(self, step: Step | None) -> list[Step]:
        return self.roots if step is None else step.children

    def shut(self, step: Step | None) -> bool:
        """Nothing of it and below it can be expanded any more."""
        visits = self.visits[id_of(step)]
        if not visits.shut:
            ended = step is not None and not self.can_grow(step)
            over = visits.expanded and not visits.running and not self.widening
            visits.shut = ended or bool(over and all(self.shut(c) for c in self.children(step)))
        return visits.shut

    def _prior(self, step: Step) -> float:
        siblings = self.children(step.parent)
        if self.prior == "uniform":
            return 1.0 / len(siblings)
        means = [_mean_logprob_of_new(s) for s in siblings]
        top = max(means)
        shares = [math.exp(m - top) for m in means]
        return shares[siblings.index(step)] / math.fsum(shares)

    def _wants_children(self, step: Step | None) -> bool:
        """It is to be expanded itself, rather than one of its children."""
        visits = self.visits[id_of(step)]
        if step is not None and not self.can_grow(step):
            return False
        if not visits.expanded or not self.widening:
            return not visits.expanded
        often = visits.expanded < (visits.count / self.expand) ** self.widening
        return often or (not visits.running and all(self.shut(c) for c in self.children(step)))

    # Up -------------------------------------------------------------------------------------------------------------

    def back_up(self, leaves: Sequence[Step | None], values: Mapping[Step, float | None]) -> None:
        """The simulations of a wave are over: the leaves that they expanded, and the value of each new step.

        A step with the value None counts as the lowest value seen, and as 0 at most.
        """
        for visits in self.visits.values():
            visits.running = 0
        known = [v for v in values.values() if v is not None]
        self.low = min([self.low, *known, *([0.0] if len(known) < len(values) else [])])
        self.high = max([self.high, *known])
        found: dict[int | None, float] = {}
        for step, said in values.items():
            value = self.low if said is None else said
            self.visits[step.id].add(value)
            # An answer that was sampled right after its step belongs to the same simulation.
            parent = step.parent
            leaf_id = id_of(parent.parent if parent is not None and parent.closed else parent)
            found[leaf_id] = max(value, found.get(leaf_id, value))
        for leaf in leaves:
            for step_above in up(leaf):
                # A simulation without a new step counts as the mean so far.
                visits = self.visits[id_of(step_above)]
                visits.add(found.get(id_of(leaf), visits.mean))

    def forget(self) -> None:
        """Drop all that was backed up, as when the scale of the values changes."""
        self.low, self.high = math.inf, -math.inf
        for visits in self.visits.values():
            visits.count, visits.total = 0, 0.0


def id_of(step: Step | None) -> int | None:
    return None if step is None else step.id


def up(step: Step | None) -> list[Step | None]:
    """A step and all above it, the empty response last."""
    path: list[Step | None] = [step]
    while step is not None:
        step = step.parent
        path.append(step)
    return path


def _mean_logprob_of_new(step: Step) -> float:
    """Of the tokens that a step added; 0 where the engine gives none."""
    before, count = (0.0, 0) if step.parent is None else step.parent.logprob
    new = step.logprob[1] - count
    return (step.logprob[0] - before) / new if new else 0.0
