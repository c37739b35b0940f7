"""Exact votes over draws from a pool, and the posteriors that stop a vote."""

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.evaluation.estimators import majority_of_k, pass_at_k
from ponder.search.stopping import beta, dirichlet


def voted(cluster, correct, k):
    """Majority of k over every order of drawing; a tie goes to the cluster that was drawn first."""
    gains = []
    for order in itertools.permutations(range(len(cluster)), k):
        votes = Counter(cluster[i] for i in order if cluster[i] is not None)
        best = max(votes.values(), default=0)
        first = next((i for i in order if cluster[i] is not None and votes[cluster[i]] == best), None)
        gains.append(0.0 if first is None else correct[first])
    return sum(gains) / len(gains)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from([None, "a", "b", "c", "d"]), st.booleans()), min_size=1, max_size=5))
def test_majority_of_k_is_the_mean_over_every_order_of_drawing(samples):
    cluster, correct = zip(*samples, strict=True)
    correct = [float(c) for c in correct]
    names = sorted({p for p in cluster if p is not None})
    sizes = [cluster.count(p) for p in names]
    gains = [np.mean([c for q, c in samples if q == p]) for p in names]
    counts = range(1, len(cluster) + 1)
    exact = majority_of_k(sizes, gains, len(cluster), counts)
    for k in counts:
        assert exact[k - 1] == pytest.approx(voted(cluster, correct, k), abs=1e-12)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 5), st.data())
def test_someone_wins_whenever_someone_votes(sizes, abstain, data):
    """The chances of all clusters to win add up to the chance that a draw holds a vote."""
    n = sum(sizes) + abstain
    k = data.draw(st.integers(1, n))
    wins = [majority_of_k(sizes, [float(i == j) for i in range(len(sizes))], n, [k])[0] for j in range(len(sizes))]
    assert sum(wins) == pytest.approx(pass_at_k(n, [sum(sizes)], k)[0], abs=1e-10)
    assert sorted(wins) == pytest.approx([w for _, w in sorted(zip(sizes, wins, strict=True))])


def test_majority_of_one_is_the_share_of_correct_samples_and_of_all_the_vote_itself():
    assert majority_of_k([5, 2, 1], [1.0, 0.0, 0.0], 10, [1])[0] == pytest.approx(0.5)
    assert list(majority_of_k([5, 2, 1], [1.0, 0.0, 0.0], 10, [10])) == [1.0]
    assert majority_of_k([3, 3], [1.0, 0.0], 6, [6])[0] == pytest.approx(0.5)
    assert list(majority_of_k([], [], 4, [1, 4])) == [0.0, 0.0]


def test_majority_of_many_samples_neither_overflows_nor_cancels():
    values = majority_of_k([12, 9], [1.0, 0.0], 1000, [1, 500, 1000])
    assert values[0] == pytest.approx(0.012)
    assert 0.5 < values[1] < 1.0
    assert values[2] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("sizes", "gains", "n", "counts", "said"),
    [([2], [1.0], 2, [3], "counts"), ([2], [1.0], 2, [0], "counts"), ([3], [1.0], 2, [1], "clusters"),
     ([1, 1], [1.0], 2, [1], "clusters"), ([0], [1.0], 2, [1], "clusters"), ([1], [1.0], 1001, [1], "n = 1001")],
)  # fmt: skip
def test_majority_of_k_refuses_the_impossible(sizes, gains, n, counts, said):
    with pytest.raises(ValueError, match=said):
        majority_of_k(sizes, gains, n, counts)


def test_the_dirichlet_posterior_is_the_beta_one_for_two_answers_and_that_of_draws_for_more():
    for votes in ((1, 0), (4, 0), (3, 3), (9, 2), (30, 18)):
        assert dirichlet(votes) == pytest.approx(beta(*votes), abs=1e-6)
    assert dirichlet((5,)) == pytest.approx(beta(5, 0), abs=1e-6)
    rng = np.random.default_rng(0)
    for votes in ((4, 2, 1), (3, 3, 3, 1), (10, 6, 6)):
        drawn = rng.gamma(np.array(votes) + 1.0, size=(200_000, len(votes)))
        assert dirichlet(votes) == pytest.approx((drawn.argmax(axis=1) == 0).mean(), abs=0.005)


def test_votes_of_a_random_pool_agree_with_drawing_it():
    rng = random.Random(1)
    cluster = [rng.choice([None, 0, 0, 1, 1, 2]) for _ in range(24)]
    sizes = [cluster.count(i) for i in range(3)]
    exact = majority_of_k(sizes, [1.0, 0.0, 0.0], 24, [9])[0]
    hits = []
    for _ in range(5_000):
        drawn = rng.sample(cluster, 9)
        votes = Counter(p for p in drawn if p is not None)
        best = max(votes.values(), default=0)
        hits.append(next((p for p in drawn if p is not None and votes[p] == best), None) == 0)
    error = math.sqrt(exact * (1 - exact) / len(hits))
    assert abs(np.mean(hits) - exact) < 4 * error
