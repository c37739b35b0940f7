"""Trees by hand: an engine that writes digits, what scores and checks them, and an engine that counts its leases."""

from __future__ import annotations

import contextlib
import dataclasses
import re

import pytest
from mocks import MockEngine
from search_play import Rule, searched

from ponder.search.strategies.beam import Beam
from ponder.search.strategies.mcts import Mcts
from ponder.types import Capabilities, Problem, Verdict, VerdictKind

DIGITS = Problem("digits", "Write digits.")
BEAM = Beam(width=2, expand=3, depth=4, step_tokens=4, delimiters=(",",), answer_tokens=4)
MCTS = Mcts(simulations=8, expand=3, parallel=2, depth=4, step_tokens=4, delimiters=(",",), answer_tokens=4)
BOTH = pytest.mark.parametrize("strategy", [BEAM, MCTS], ids=["beam", "mcts"])
TEXT = Capabilities(n=True, prefix=True, seed=True)


def digits(request, rng):
    """Five steps of one digit each, whatever was there before, and their sum; some are dropped or end early."""
    begun = request.prefix if isinstance(request.prefix, str) else ""
    if "</think>" in begun:
        return f"{begun.partition('</think>')[0]}</think>{total(begun)}"
    text = begun
    while text.count(",") < 5:
        text += f"{rng.randint(0, 9)},"
    return f"{text}</think>{total(text)}"


def total(text):
    return sum(map(int, re.findall(r"\d", text.partition("</think>")[0])))


def high(text):
    """Higher is better: the mean digit so far."""
    found = re.findall(r"\d", text.partition("</think>")[0])
    return sum(map(int, found)) / (9 * len(found)) if found else 0.0


def above(least):
    def check(problem, response):
        if response.answer is None:
            return Verdict(VerdictKind.NO_ANSWER, 0.0, "no answer")
        fine = int(response.answer) >= least
        return Verdict(VerdictKind.CORRECT if fine else VerdictKind.WRONG, float(fine), "", response.answer)

    return check


class Scorer(Rule):
    """Scores texts; keeps what it was asked."""

    def __init__(self, rule=high):
        super().__init__(rule)


@dataclasses.dataclass
class Leasing(MockEngine):
    """Keeps count of what is held."""

    held: dict = dataclasses.field(default_factory=dict)
    most: int = 0
    leases: int = 0

    def __post_init__(self):
        super().__post_init__()
        self.capabilities = dataclasses.replace(self.capabilities, leases=True)

    @contextlib.asynccontextmanager
    async def hold(self, ids):
        self.leases += 1
        self.held[tuple(ids)] = self.held.get(tuple(ids), 0) + 1
        self.most = max(self.most, sum(self.held.values()))
        try:
            yield
        finally:
            self.held[tuple(ids)] -= 1


def run(strategy, engine, problem=DIGITS, **options):
    return searched(strategy, problem, engine, **options)


def shape(outcome):
    """What must not depend on timing."""
    nodes = [(n.id, n.parent, n.completion.text, n.score, n.check, n.note, n.vote) for n in outcome.trace.nodes]
    return outcome.chosen, outcome.response, outcome.vote_share, outcome.reason, nodes
