"""Scores that cost something: the worst case is reserved, what they cost is booked, environments bring their own."""

from __future__ import annotations

import asyncio

import pytest
from mocks import MockEngine, MockEnvironment
from search_play import searched

from ponder.budget.caller import MeteredEngine
from ponder.environments.judging import judge
from ponder.errors import BudgetExceeded, PonderError
from ponder.protocols import Feedback, Scorer
from ponder.scorers.base import BaseScorer
from ponder.search import Meter, solve
from ponder.search.strategies.best_of_n import BestOfN
from ponder.search.strategies.majority import Majority
from ponder.types import Budget, Problem, Response, Score, Spend, StopReason

ENV = MockEnvironment()
PROBLEM = ENV.problem("test", 1)
RESPONSES = (Response("1"), Response("22"))


class Dear(BaseScorer):
    """Costs `costs` tokens (and so many thousandths of a dollar) a response, and says that it costs at most `most`."""

    def __init__(self, most=10, costs=4, fail=None):
        self.most, self.costs, self.fail = most, costs, fail
        self.asked = 0

    def worst(self, problem, responses):
        return Spend(sampled_tokens=self.most * len(responses), dollars=1e-3 * self.most * len(responses))

    async def score(self, problem, responses, engine):
        self.asked += 1
        await asyncio.sleep(0)
        if self.fail is not None:
            raise self.fail
        return [Score(len(r.answer), Spend(sampled_tokens=self.costs, dollars=1e-3 * self.costs)) for r in responses]


def scored(scorer, budget=Budget(), **options):  # noqa: B008  (frozen)
    meter = Meter(budget)
    try:
        return asyncio.run(meter.score(scorer, PROBLEM, RESPONSES, **options)), meter
    except Exception as error:
        return error, meter


@pytest.mark.parametrize("budget", [Budget(), Budget(tokens=20), Budget(dollars=0.02), Budget(20, 60.0, 0.02)])
def test_what_scores_cost_is_booked_and_the_rest_given_back(budget):
    scores, meter = scored(Dear(), budget)
    assert scores == (1.0, 2.0)
    assert (meter.spend.tokens, meter.spend.verifier_calls) == (8, 2)
    assert meter.spend.dollars == pytest.approx(8e-3)
    assert meter.idle


@pytest.mark.parametrize("budget", [Budget(tokens=19), Budget(dollars=0.0199), Budget(tokens=0), Budget(dollars=0.0)])
def test_scores_whose_worst_case_does_not_fit_are_not_begun(budget):
    scorer = Dear()
    error, meter = scored(scorer, budget)
    assert isinstance(error, BudgetExceeded)
    assert "are left, and a call needs at least 20 tokens" in str(error)
    assert (scorer.asked, meter.spend, meter.idle) == (0, Spend(), True)


def test_scores_that_failed_are_booked_at_their_worst_case():
    error, meter = scored(Dear(fail=ConnectionError("no")), Budget(tokens=50))
    assert isinstance(error, ConnectionError)
    assert (meter.spend.tokens, meter.spend.verifier_calls, meter.idle) == (20, 2, True)


def test_scores_that_cost_more_than_declared_are_booked_and_are_a_failed_scorer():
    error, meter = scored(Dear(most=10, costs=12), Budget(tokens=50))
    assert isinstance(error, PonderError)
    assert "it cost 24 tokens and $0.024, more than the 20 tokens and $0.02" in str(error)
    assert (meter.spend.tokens, meter.idle) == (24, True)


def test_a_scorer_that_calls_an_engine_may_declare_no_cost_of_its_own():
    """Its calls could wait for what is reserved for itself."""
    meter = Meter()
    with pytest.raises(PonderError, match="it may do one of the two"):
        asyncio.run(meter.score(Dear(), PROBLEM, RESPONSES, MeteredEngine(meter, MockEngine())))


def test_scores_wait_for_what_other_calls_give_back():
    async def run():
        meter = Meter(Budget(tokens=30))
        held = await meter.reserve(10, 10)
        task = asyncio.create_task(meter.score(Dear(), PROBLEM, RESPONSES))
        await asyncio.sleep(0.01)
        assert not task.done()
        held.settle(Spend(prompt_tokens=10))
        return await task, meter

    scores, meter = asyncio.run(run())
    assert (scores, meter.spend.tokens, meter.idle) == ((1.0, 2.0), 18, True)


def test_a_search_without_room_for_scores_continues_without_them():
    engine = MockEngine(["</think>1", "</think>22"])
    outcome = searched(BestOfN(n=2, max_tokens=20), PROBLEM, engine, scorer=Dear(most=500), budget=Budget(tokens=200))
    assert (outcome.stop, outcome.spend.tokens) == (StopReason.BUDGET, engine.used.tokens)
    assert outcome.reason.startswith("chosen by mean log-probability; ")
    assert "a call needs at least 1000 tokens" in outcome.reason


def test_what_is_derived_from_the_base_is_a_scorer():
    assert isinstance(BaseScorer(), Scorer)
    assert not isinstance(object(), Scorer)


def test_an_environment_gives_its_own_feedback():
    """Votes use its equality by default, and its checker is asked."""

    class Parity:
        def extract(self, problem, response):
            return response.answer

        def same(self, a, b):
            return int(a) % 2 == int(b) % 2

    class Doubling(MockEnvironment):
        answers = Parity()

    engine = MockEngine(["</think>2", "</think>1", "</think>4", "</think>2"])
    environment = Doubling()

    def voted(feedback):
        return asyncio.run(solve(Majority(n=4), PROBLEM, engine, feedback=feedback))

    assert [o.vote_share for o in map(voted, (None, Feedback(), environment, environment.feedback))] == [
        0.5,
        0.5,
        0.75,
        0.75,
    ]
    assert asyncio.run(solve(BestOfN(n=2), PROBLEM, engine, feedback=environment)).spend.verifier_calls == 2


def test_what_is_slow_runs_on_a_thread():
    import threading

    threads = {}

    class Answers:
        def extract(self, problem, response):
            threads["answers"] = threading.current_thread()
            return response.answer

        def same(self, a, b):
            return a == b

    def check(problem, response):
        threads["checker"] = threading.current_thread()
        return ENV._decide(problem, response)

    class Slow(MockEnvironment):
        def judge(self, problem: Problem, response: Response):
            threads["judge"] = threading.current_thread()
            return super().judge(problem, response)

    for slow in (False, True):
        feedback = Feedback(check, None, Answers(), slow)
        for strategy in (Majority(n=2), BestOfN(n=2)):
            asyncio.run(solve(strategy, PROBLEM, MockEngine(), feedback=feedback))
        asyncio.run(judge(Slow(slow_judge=slow), PROBLEM, Response("1")))
        assert [threads.pop(n) is not threading.main_thread() for n in ("answers", "checker", "judge")] == [slow] * 3
