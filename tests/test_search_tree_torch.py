"""Step-wise tree search on the real engine: ponder-tiny solves Countdown with it."""

import asyncio
import contextlib
import itertools

import pytest

pytest.importorskip("torch")

from ponder.engines.torch import TorchEngine
from ponder.models.load import load
from ponder.registry import build
from ponder.search import solve
from ponder.search.strategies.beam import Beam
from ponder.search.strategies.mcts import Mcts
from ponder.types import Budget, StopReason

STEPS = {"delimiters": (",", ";"), "step_tokens": 24, "answer_tokens": 20}


class Counting(TorchEngine):
    """Counts leases."""

    held = most = total = 0

    @contextlib.asynccontextmanager
    async def hold(self, ids):
        async with super().hold(ids):
            self.held += 1
            self.total += 1
            self.most = max(self.most, self.held)
            try:
                yield
            finally:
                self.held -= 1


@pytest.fixture(scope="module")
def tiny():
    return load("ponder-tiny")


@pytest.mark.parametrize(
    "strategy", [Beam(2, 4, depth=12, **STEPS), Mcts(16, 4, 4, 2, depth=12, **STEPS)], ids=["beam", "mcts"]
)
def test_a_tree_search_solves_countdown_and_computes_no_prefix_twice(tiny, strategy):
    countdown = build("environments", "countdown")
    problems = [countdown.problem("test", i) for i in range(4)]

    async def run():
        engine = Counting(tiny)
        try:
            budget = Budget(tokens=6000)
            outcomes = [await solve(strategy, p, engine, feedback=countdown, budget=budget) for p in problems]
            return outcomes, engine.held, engine.most, engine.total
        finally:
            await engine.close()

    outcomes, held, most, total = asyncio.run(run())
    accepted = [o.stop is StopReason.ACCEPTED for o in outcomes]
    assert [countdown.judge(p, o.response).correct for p, o in zip(problems, outcomes, strict=True)] == accepted
    # One sample solves about half.
    assert sum(accepted) >= 3
    assert (held, most <= 4, total > 4) == (0, True, True)
    assert max(len(o.trace.path(n.id)) for o in outcomes for n in o.trace.nodes) >= 3
    for outcome in outcomes:
        trace = outcome.trace
        assert outcome.spend.tokens <= 6000
        for node in trace.nodes:
            ids = [n.completion.ids for n in trace.path(node.id)]
            assert all(b[: len(a)] == a for a, b in itertools.pairwise(ids))
            if node.parent is not None:
                # Only the last step of the prefix may have to be computed (and the token before it, which was computed
                # with that step); the rest comes from the cache.
                (parent,) = (n for n in trace.nodes if n.id == node.parent)
                assert node.completion.spend.prompt_tokens <= parent.completion.spend.response_tokens + 1
