"""Credit for each step of a search tree, from the leaves below it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ponder.training.credit import Credit
from ponder.training.rollouts import Group, has_signal


@dataclass(frozen=True)
class TreeMean:
    """How much each step of a tree raised the mean reward of the leaves still below; mean_only for flat groups.

    The value of a node is the mean reward of the leaves below it, a Monte Carlo estimate (VinePPO, Kazemnejad et al.
    2024, arXiv:2410.01679, §4, which samples new leaves). The credit of a step is its value minus that of the
    branching point before it; the first steps are compared with the mean of all leaves.
    """

    def __call__(self, groups: Sequence[Group]) -> list[list[Credit]]:
        """One value for the ids of each node. Ids that several leaves share are trained on once, with the first
        leaf that is trainable and has a reward.

        Nodes between two branching points are one step: they have one value. A group whose rewards
        are all equal is skipped, and so is a node without a judged leaf.
        """
        return [self._group(group) for group in groups]

    def _group(self, group: Group) -> list[Credit]:
        if not has_signal(group):
            return [Credit.none(s) for s in group.samples]
        children = Counter(n.parent for n in group.trace.nodes)
        below: defaultdict[int | None, list[float]] = defaultdict(list)
        for sample in group.samples:
            if sample.reward is not None:
                for at in (None, *(n.id for n in group.trace.path(sample.leaf))):
                    below[at].append(sample.reward)
        value = {node: math.fsum(rewards) / len(rewards) for node, rewards in below.items()}
        credits, seen = [], set()
        for sample in group.samples:
            each: list[float | None] = []
            base = value[None]
            for node in group.trace.path(sample.leaf):
                taken = sample.reward is None or not sample.trainable or node.id in seen
                each.append(None if taken else value[node.id] - base)
                if children[node.id] > 1 and node.id in value:
                    base = value[node.id]
                if not taken:
                    seen.add(node.id)
            credits.append(Credit.of_nodes(group, sample, each))
        return credits
