import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.evaluation.intervals import (
    bootstrap_clustered,
    bootstrap_mean,
    clopper_pearson,
    mcnemar,
    mean_of_problems,
    over_seeds,
    paired_difference,
    wilson,
)


def test_wilson_agrees_with_published_values():
    # Newcombe 1998, Stat. Med. 17, table I, method 3 (81/263, 15/148, 0/20, 1/29).
    for k, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        estimate = wilson(k, n)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)
        assert (estimate.value, estimate.n) == (k / n, n)


def test_clopper_pearson_agrees_with_published_values():
    # Newcombe 1998, table I, method 5.
    for k, n, low, high in (
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ):
        estimate = clopper_pearson(k, n)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_shares_lie_in_their_intervals_and_intervals_in_0_to_1(pair):
    for method in (wilson, clopper_pearson):
        estimate = method(*pair)
        assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
        assert estimate.low < estimate.high
    assert clopper_pearson(*pair).low <= wilson(*pair).low + 0.02


def test_intervals_of_shares_cover_95_percent():
    n = 60
    pmf = {p: [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)] for p in (0.05, 0.2, 0.5, 0.87)}
    for method, least in ((wilson, 0.92), (clopper_pearson, 0.95)):
        intervals = [method(k, n) for k in range(n + 1)]
        for p, chances in pmf.items():
            covered = sum(c for c, i in zip(chances, intervals, strict=True) if i.low <= p <= i.high)
            assert covered >= least, (method.__name__, p)


@pytest.mark.parametrize(
    ("draw", "truth"), [(lambda r: r.random(80) < 0.3, 0.3), (lambda r: r.exponential(1.0, 80), 1.0)]
)
def test_the_bootstrap_covers_about_95_percent(draw, truth):
    rng = np.random.default_rng(1)
    estimates = [bootstrap_mean(draw(rng), seed=i, resamples=800) for i in range(400)]
    covered = sum(e.low <= truth <= e.high for e in estimates) / 400
    assert 0.90 <= covered <= 0.98


def test_drawing_counts_and_drawing_values_give_the_same_interval():
    rng = np.random.default_rng(0)
    few = rng.integers(0, 3, 300).astype(float)
    many = few + rng.random(300) * 1e-9  # all distinct, so drawn one by one
    a, b = bootstrap_mean(few), bootstrap_mean(many)
    assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=0.01)
    assert bootstrap_mean(many, seed=3) == bootstrap_mean(many, seed=3) != bootstrap_mean(many, seed=4)


def test_samples_of_one_problem_do_not_count_as_independent():
    rng = np.random.default_rng(0)
    skill = (rng.random(100) < 0.5).astype(float)
    copies = np.repeat(skill[:, None], 16, axis=1)
    clustered, flat = bootstrap_clustered(copies), bootstrap_mean(copies.ravel())
    assert clustered.high - clustered.low > 3 * (flat.high - flat.low)
    assert clustered.n == 100
    gap = np.array([[1.0, math.nan], [math.nan, math.nan], [0.0, 1.0]])
    assert (bootstrap_clustered(gap).value, bootstrap_clustered(gap).n) == (0.75, 2)


def test_pairing_narrows_a_comparison_on_the_same_problems():
    rng = np.random.default_rng(0)
    difficulty = rng.random(400)
    a = (difficulty < 0.55).astype(float)
    b = (difficulty < 0.50).astype(float)
    paired = paired_difference(a, b)
    assert paired.low > 0
    assert wilson(int(a.sum()), 400).low < wilson(int(b.sum()), 400).high
    assert paired_difference([1, math.nan, 0], [0, 1, 0]).n == 2


def test_mcnemar_is_the_exact_sign_test():
    a, b = [1] * 10 + [0] * 2 + [1] * 50, [0] * 10 + [1] * 2 + [1] * 50
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert mcnemar([1, 0], [1, 0]) == 1.0
    assert mcnemar([1, 0], [0, 1]) == 1.0
    assert 0.0 <= mcnemar([1] * 3000, [0] * 3000) < 1e-300
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar([0.5], [1])


def test_fewer_than_five_seeds_are_points():
    few = over_seeds([[0.2, 0.4], [0.5, 0.5]])
    assert (few.low, few.value, few.high, few.n) == pytest.approx((0.3, 0.4, 0.5, 2))
    assert "no interval" in few.method
    rng = np.random.default_rng(0)
    skill = 0.4 + 0.1 * rng.standard_normal(6)
    values = (rng.random((6, 300)) < skill[:, None]).astype(float)
    many = over_seeds(values, resamples=2000)
    assert (many.n, many.low < many.value < many.high) == (6, True)
    # What differs between seeds is part of the interval, not only what differs between problems.
    pooled = bootstrap_mean(values.mean(axis=0))
    assert many.high - many.low > pooled.high - pooled.low


def test_shares_have_wilsons_interval_and_means_of_samples_the_bootstrap():
    assert mean_of_problems([1.0] * 20).low == wilson(20, 20).low < 1.0
    assert mean_of_problems([1.0 - 1e-15, 0.0]).method == "wilson"
    assert mean_of_problems([0.5, 1.0, math.nan]).method == "bootstrap over problems"
    assert mean_of_problems([0.5, 1.0, math.nan]).n == 2


def test_nothing_gives_no_estimate():
    for values in ([], [math.nan]):
        with pytest.raises(ValueError, match="nothing to estimate"):
            bootstrap_mean(values)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)
