"""Invariants of every strategy. They are found by the registry, so that a new one is tested too."""

import dataclasses
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mocks import ALL, MockEngine, MockEnvironment, doubler
from search_play import Rule, answer_to, context, play, plays, searched

from ponder import registry
from ponder.scorers.base import BaseScorer
from ponder.search.journal import Journal
from ponder.search.strategies.best_of_n import BestOfN
from ponder.search.strategies.weighted import Weighted
from ponder.types import Budget, Capabilities, Score, StopReason

ENV = MockEnvironment()
PROBLEM = ENV.problem("test", 3)
ROOM = "search.strategies"
NEEDED = {"budget_forcing": {"thought_tokens": 12}}
"""Options of strategies that cannot do without."""
VARIANTS = [
    ("weighted", {"by": "score"}),
    ("weighted", {"by": "lowest", "keep": 0.5}),
    ("best_of_n", {"by": "certainty"}),
    ("best_of_n", {"by": "scorer", "thought_tokens": 8}),
    ("adaptive", {"n": 12, "rule": "dirichlet", "wave": 3}),
    ("adaptive", {"n": 12, "rule": "esc", "thought_tokens": 8}),
    ("refine", {"feedback": "self"}),
    ("cascade", {"unsure": "agreement", "slow": "adaptive", "slow_options": {"n": 6}}),
    ("cascade", {"unsure": "logprob", "n": 1, "slow": "refine"}),
    ("cascade", {"slow": "best_of_n", "slow_options": {"n": 3, "thought_tokens": 8}}),
]
CASES = [(name, NEEDED.get(name, {})) for name in registry.names(ROOM)] + VARIANTS
ENGINES = [
    ALL,
    Capabilities(ids=True, logprobs=True, seed=True, prefix=True),
    Capabilities(ids=True, logprobs=True, seed=True, n=True, prefix=True),
]
"""One call for everything; a call for each sample; a second call where a thought is bounded."""
ONE = Score(1.0)
each = pytest.mark.parametrize(("name", "options"), CASES, ids=lambda v: v if isinstance(v, str) else str(v or "-"))


def build(name, options):
    return registry.build(ROOM, name, options)


def engine_of(name, capabilities=ALL, share=0.4):
    return MockEngine(doubler(share, thought=12), capabilities=capabilities, chat=name == "turns")


def result(outcome):
    """What must not depend on the order: the decision, and all that it was made from."""
    nodes = [n for n in outcome.trace.nodes if not n.note.startswith(("not counted", "cancelled"))]
    return (
        dataclasses.replace(outcome.trace, nodes=tuple(nodes)),
        outcome.response,
        outcome.vote_share,
        (
            outcome.stop,
            outcome.chosen,
            outcome.reason,
        ),
    )


@each
@pytest.mark.parametrize("checker", [False, True], ids=["unchecked", "checked"])
def test_the_order_of_answers_and_telling_them_twice_change_nothing(name, options, checker):
    @settings(max_examples=6, deadline=None)
    @given(st.integers(0, 2**32), st.sampled_from(ENGINES), st.sampled_from([0.0, 0.4, 0.9]))
    def check(order, capabilities, share):
        engine, strategy = engine_of(name, capabilities, share), build(name, options)
        outcomes = []
        for rng in (None, random.Random(order)):
            given = dataclasses.replace(context(engine, checker, True), turns=plays(strategy))
            search = strategy.start(PROBLEM, given)
            outcome, _, _ = play(search, lambda a: answer_to(a, PROBLEM, engine, ENV.checker), rng)
            assert search.outcome(outcome.spend, outcome.stop) == outcome, "asking for the outcome changes it"
            outcomes.append(result(outcome))
        assert outcomes[0] == outcomes[1]

    check()


def run(strategy, engine, **options):
    return searched(strategy, PROBLEM, engine, checker=ENV.checker, scorer=Rule(len), **options)


@each
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_search_that_was_cut_anywhere_is_continued_to_the_same_outcome(name, options, share):
    strategy, whole, rng = build(name, options), Journal(), random.Random(5)
    wanted = result(run(strategy, engine_of(name, share=share), journal=whole))
    rows, order = whole.to_json(), list(whole.answers)
    cuts = [order[:length] for length in range(len(order) + 1)]
    cuts += [rng.sample(order, rng.randrange(len(order))) for _ in range(4)]
    for kept in cuts:
        part = [row for row in rows["answers"] if row["ask"] in kept]
        journal = Journal.from_json(json.loads(json.dumps(rows | {"answers": part})))
        engine = engine_of(name, share=share)
        assert result(run(strategy, engine, journal=journal)) == wanted
        assert engine.calls > 0 or len(kept) > 0
    engine = engine_of(name, share=share)
    run(strategy, engine, journal=whole)
    assert engine.calls == 0, "a finished search calls the engine again"


@each
def test_a_budget_of_any_size_gives_an_outcome_and_is_kept(name, options):
    strategy = build(name, options)
    for capabilities in ENGINES:
        for tokens in (0, 1, 7, 10, 15, 23, 40, 64, 101, 200, 400):
            engine = engine_of(name, capabilities)
            outcome = run(strategy, engine, budget=Budget(tokens=tokens))
            assert outcome.spend.tokens <= tokens
            assert outcome.spend.tokens == engine.used.tokens
            if not engine.calls:
                assert (outcome.stop, outcome.chosen) == (StopReason.BUDGET, None)
                assert "tokens are left" in outcome.reason
            if outcome.chosen is not None:
                node = next(n for n in outcome.trace.nodes if n.id == outcome.chosen)
                assert node.response == outcome.response
            else:
                assert outcome.response.answer is None


def asks(name, options):
    """True if this search asks a checker, a scorer or a comparison that do what they should."""
    asked = []

    class Sound(BaseScorer):
        async def score(self, problem, responses, engine):
            asked.append("scorer")
            return (ONE,) * len(responses)

        def extract(self, problem, response):
            asked.append("comparison")
            return response.answer

        def same(self, a, b):
            return a == b

    def check(problem, response):
        asked.append("checker")
        return ENV.checker(problem, response)

    engine = MockEngine("</think>4", chat=name == "turns")
    searched(build(name, options), PROBLEM, engine, checker=check, scorer=Sound(), answers=Sound())
    return bool(asked)


def test_most_strategies_ask_for_feedback_and_those_of_one_response_do_not():
    asking = {name for name, options in CASES if asks(name, options)}
    assert {"best_of_n", "weighted", "majority", "adaptive", "refine", "cascade", "beam", "mcts"} <= asking
    assert not {"direct", "cot", "budget_forcing", "turns"} & asking


@each
def test_a_search_continues_without_a_checker_a_scorer_or_a_comparison_that_fails(name, options):
    failures = []

    def fail(what):
        failures.append(what)
        raise ConnectionError(f"no {what} today")

    class Broken(BaseScorer):
        async def score(self, problem, responses, engine):
            fail("scorer")

        def extract(self, problem, response):
            fail("comparison")

    engine = MockEngine("</think>4", chat=name == "turns")
    broken = {"checker": lambda p, r: fail("checker"), "scorer": Broken(), "answers": Broken()}
    outcome = searched(build(name, options), PROBLEM, engine, **broken)
    assert outcome.response.answer == "4"
    assert bool(failures) == asks(name, options)
    if failures:
        assert f"failed: ConnectionError: no {failures[0]} today" in outcome.reason


@each
def test_what_a_checker_a_scorer_or_a_comparison_cannot_mean_is_its_failure(name, options):
    wrong = []

    class Wrong(BaseScorer):
        async def score(self, problem, responses, engine):
            wrong.append("the scorer failed: it gave ")
            return (Score(1.0),) * (len(responses) + 1)

        def extract(self, problem, response):
            wrong.append("the comparison of answers failed: an answer was read as int, not as text")
            return 4

        def same(self, a, b):
            return a == b

    def check(problem, response):
        wrong.append("the checker failed: it gave a bool, not a verdict")
        return True

    engine = MockEngine("</think>4", chat=name == "turns")
    outcome = searched(build(name, options), PROBLEM, engine, checker=check, scorer=Wrong(), answers=Wrong())
    assert outcome.response.answer == "4"
    assert bool(wrong) == asks(name, options)
    if wrong:
        assert wrong[0] in outcome.reason


@pytest.mark.parametrize("strategy", [BestOfN(n=3, by="scorer"), Weighted(n=3, by="score")])
@pytest.mark.parametrize(
    "scores",
    [(), (ONE, ONE), (ONE,) * 4, (ONE, None, ONE), (ONE, 1.0, ONE), (ONE, Score("high"), ONE), None],  # type: ignore[arg-type]
    ids=["none", "two", "four", "a gap", "a number", "a word", "no sequence"],
)
def test_scores_that_are_not_one_number_for_each_response_are_a_failed_scorer(strategy, scores):
    class Miscounting(BaseScorer):
        async def score(self, problem, responses, engine):
            return scores

    outcome = searched(strategy, PROBLEM, MockEngine("</think>4"), scorer=Miscounting())
    assert outcome.response.answer == "4"
    assert "the scorer failed: " in outcome.reason
    assert outcome.spend.verifier_calls == 3
    assert all(n.score is None for n in outcome.trace.nodes)


@each
def test_an_engine_that_fails_at_some_call_leaves_the_best_so_far(name, options):
    for at in range(4):
        engine = engine_of(name)
        engine.fail = lambda k, r, at=at: ConnectionError("gone") if k >= at else None
        outcome = run(build(name, options), engine)
        if engine.calls > at:
            # What the search decided before it needed the failed call is kept.
            assert outcome.stop in (StopReason.FAILED, StopReason.ACCEPTED)
        if at == 0:
            assert (outcome.stop, outcome.response.answer, outcome.chosen) == (StopReason.FAILED, None, None)
            assert "gone" in outcome.reason
