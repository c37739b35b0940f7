"""Beam search over steps."""

import dataclasses

from mocks import MockEngine
from tree_play import BEAM, Scorer, digits, run


def test_the_beam_keeps_the_best_of_each_level():
    outcome = run(BEAM, MockEngine(digits), scorer=Scorer())
    nodes = [n for n in outcome.trace.nodes if n.score is not None and n.response.answer is None]
    for level in range(1, BEAM.depth + 1):
        here = [n for n in nodes if len(outcome.trace.path(n.id)) == level]
        kept = [n for n in here if n.note != "pruned"]
        assert 0 < len(kept) <= BEAM.width
        assert min(n.score for n in kept) >= max((n.score for n in here if n.note == "pruned"), default=0.0)
        parents = {n.parent for n in here}
        assert len(parents) <= BEAM.width


def test_a_wider_beam_finds_more():
    def mean(width):
        strategy = dataclasses.replace(BEAM, width=width, expand=4, depth=6)
        found = [run(strategy, MockEngine(digits), scorer=Scorer(), seed=s).response.answer for s in range(6)]
        return sum(map(int, found)) / 6

    assert mean(4) > mean(1) > 25.0  # a sample has 22.5 on average
