"""Stopping a vote early: the posterior, the windows, and what is not sampled for it."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mocks import MockEngine, MockEnvironment, doubler
from search_play import searched

from ponder.search.stopping import beta, dirichlet
from ponder.search.strategies.adaptive import Adaptive
from ponder.search.strategies.majority import Majority
from ponder.types import Capabilities, Problem, StopReason

ENV = MockEnvironment()
PROBLEM = ENV.problem("test", 3)
ONE_BY_ONE = Capabilities(ids=True, logprobs=True, seed=True)


def run(strategy, engine, problem=PROBLEM, **options):
    return searched(strategy, problem, engine, **options)


def saying(*answers, **options):
    """An engine whose sample of index `i` gives answer number `i`."""

    def text(request, rng):
        return f"</think>{answers[request.metadata['sample']]}"

    return MockEngine(text, **options)


# The posterior ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second", "value"), [(0, 0, 0.5), (1, 0, 0.75), (4, 0, 31 / 32), (3, 1, 13 / 16)])
def test_beta_is_the_posterior_that_the_leader_has_more_than_half(first, second, value):
    assert beta(first, second) == pytest.approx(value)


@given(st.integers(0, 40), st.integers(0, 40))
def test_beta_is_symmetric_and_grows_with_the_lead(first, second):
    assert beta(first, second) + beta(second, first) == pytest.approx(1)
    assert beta(first + 1, second) > beta(first, second) > beta(first, second + 1)


@given(st.integers(0, 30), st.integers(0, 30))
def test_dirichlet_over_two_answers_is_beta(first, second):
    assert dirichlet([first, second]) == pytest.approx(beta(first, second), abs=1e-6)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=5))
def test_dirichlet_shares_one_probability_among_the_answers(votes):
    shares = [dirichlet([votes[i], *votes[:i], *votes[i + 1 :]]) for i in range(len(votes))]
    assert sum(shares) == pytest.approx(1, abs=1e-6)
    assert max(range(len(votes)), key=lambda i: shares[i]) in [i for i, v in enumerate(votes) if v == max(votes)]


def test_dirichlet_agrees_with_draws_from_it():
    rng, votes, wins = random.Random(1), (5, 3, 3), 0
    for _ in range(20_000):
        draws = [rng.gammavariate(v + 1, 1) for v in votes]
        wins += draws[0] == max(draws)
    assert dirichlet(votes) == pytest.approx(wins / 20_000, abs=0.015)


# Stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["beta", "dirichlet"])
def test_four_that_agree_are_enough(rule):
    engine = saying(*["42"] * 32)
    outcome = run(Adaptive(rule=rule), engine)
    assert (outcome.response.answer, outcome.stop) == ("42", StopReason.ACCEPTED)
    assert outcome.reason == (
        "4 of 4 votes for 42; stopped after 4 of 32: the leader changes with probability under 0.05"
    )
    assert engine.calls == 4


def test_a_window_that_agrees_stops_and_one_that_does_not_continues():
    engine = saying("1", "2", "2", "2", "2", "2", *["7"] * 9)
    outcome = run(Adaptive(n=15, rule="esc", wave=3), engine)
    assert outcome.reason == "5 of 6 votes for 2; stopped after 6 of 15: all 3 samples of a window agreed"
    assert engine.calls == 6


def test_votes_that_cannot_change_the_result_are_not_drawn():
    engine = saying(*"1212111", *"2222")
    outcome = run(Adaptive(n=8, threshold=0.99, wave=1), engine)
    assert outcome.reason.endswith("stopped after 7 of 8: the samples that are left could not overtake the leader")
    assert engine.calls == 7


def test_samples_that_abstain_are_no_votes():
    engine = saying("1", "", "1", "", "", "1", *["1"] * 10)
    outcome = run(Adaptive(n=16, wave=1), engine)
    assert engine.calls == 7
    assert outcome.reason.startswith("4 of 4 votes for 1; 3 of 7 responses abstained; stopped after 7 of 16")


def test_what_still_runs_is_cancelled_booked_and_shown():
    def delay(request):
        return 0.0 if request.metadata["sample"] < 4 else 30.0

    engine = saying(*["42"] * 32, delay=delay)
    outcome = run(Adaptive(wave=8), engine)
    assert (outcome.response.answer, outcome.stop) == ("42", StopReason.ACCEPTED)
    assert (engine.calls, engine.cancelled, engine.in_flight) == (8, 4, 0)
    assert outcome.spend.tokens == engine.used.tokens


def test_samples_beyond_the_stop_are_not_counted_whatever_came_first():
    # Samples 4 to 7 are there before the first four, and all say otherwise.
    engine = saying(*"1111", *"2222", *"3" * 24, delay=lambda r: 0.0 if r.metadata["sample"] > 3 else 0.005)
    outcome = run(Adaptive(wave=8), engine)
    assert outcome.response.answer == "1"
    assert [n.note for n in outcome.trace.nodes[4:]] == ["not counted: the search had stopped"] * 4
    assert outcome.reason.startswith("4 of 4 votes for 1; stopped after 4 of 32")


def test_answers_that_become_equal_by_a_third_one_are_looked_at_in_order():
    class Close:
        """1 is about 2 and 2 is about 3; 1 is not about 3."""

        def extract(self, problem, response):
            return response.answer or None

        def same(self, a, b):
            return abs(int(a) - int(b)) <= 1

    for rng in range(5):
        order = random.Random(rng).sample(range(8), 8)
        engine = saying(*"13131322", delay=lambda r, order=order: 0.001 * order[r.metadata["sample"]])
        outcome = run(Adaptive(n=8, wave=8), engine, answers=Close())
        # Three against three at first; the seventh joins them all.
        assert outcome.reason.startswith("7 of 7 votes for 1; stopped after 7 of 8")


def skewed(request, rng):
    """Problems differ in how often the model is right; one wrong answer is more likely than the others."""
    # What a sample says does not depend on the call that it comes in.
    problem, sample = request.metadata["problem"], request.metadata["sample"]
    share = random.Random(problem).uniform(0.2, 1.0)
    rng = random.Random(f"{problem} {sample}")
    return "</think>" + ("1" if rng.random() < share else str(rng.choice([2, 2, 3, 4])))


SKEWED = [Problem(f"p{i}", "?") for i in range(60)]


@pytest.fixture(scope="module")
def full():
    """The answers of the whole majority."""
    engine = MockEngine(skewed, capabilities=ONE_BY_ONE)
    return [run(Majority(n=32), engine, problem).response.answer for problem in SKEWED]


@pytest.mark.parametrize(("rule", "most"), [("beta", 0.6), ("dirichlet", 0.7), ("esc", 0.75)])
def test_it_gives_the_full_majoritys_answer_nearly_always_for_fewer_samples(full, rule, most):
    engine = MockEngine(skewed)
    early = [run(Adaptive(n=32, rule=rule), engine, problem).response.answer for problem in SKEWED]
    same = sum(a == b for a, b in zip(early, full, strict=True))
    assert same / len(SKEWED) >= 0.95
    assert engine.calls / len(SKEWED) <= most * 32


def test_with_doubt_to_the_end_it_is_the_majority():
    answers = [a for pair in itertools.repeat("12", 16) for a in pair]
    outcome = run(Adaptive(n=32), saying(*answers))
    assert outcome.stop is StopReason.FINISHED
    assert outcome.reason == "16 of 32 votes for 1, as many as for 2: the earlier sample decides"
    assert math.isclose(outcome.vote_share, 0.5)


def test_each_sample_of_a_model_that_doubles_is_judged_by_the_same_seed_as_without_waves():
    texts = []
    for wave in (1, 3, 8):
        engine = MockEngine(doubler(0.5))
        run(Adaptive(n=8, threshold=0.999999, wave=wave), engine, seed=2)
        texts.append([r.params.seed for r in sorted(engine.requests, key=lambda r: r.metadata["sample"])])
    shortest = min(map(len, texts))
    assert texts[0][:shortest] == texts[1][:shortest] == texts[2][:shortest]
