import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.evaluation.distributions import beta_cdf, student_quantile
from ponder.evaluation.intervals import (
    clopper_pearson,
    differences,
    gaffke,
    mcnemar,
    mean_in_bounds,
    mean_of_problems,
    mean_unbounded,
    over_seeds,
    paired_difference,
)

VALUES = st.lists(st.sampled_from([0.0, 0.001, 0.25, 0.5, 1.0]) | st.floats(0.0, 1.0), min_size=1, max_size=40)


def test_clopper_pearson_agrees_with_published_values():
    # Newcombe 1998, Stat. Med. 17, table I, method 5.
    for k, n, low, high in (
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ):
        estimate = clopper_pearson(k, n)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)
        assert (estimate.value, estimate.n) == (k / n, n)


def test_quantiles_agree_with_published_values():
    for freedom, quantile in ((1, 12.7062), (4, 2.7764), (19, 2.0930), (120, 1.9799)):
        assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=5e-5)
    assert beta_cdf(2, 3, 0.4) == pytest.approx(0.5248)  # 1 - P(X <= 1) of 4 trials with chance 0.4
    assert (beta_cdf(2, 3, 0.0), beta_cdf(2, 3, 1.0)) == (0.0, 1.0)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_shares_lie_in_their_intervals_and_intervals_in_0_to_1(pair):
    estimate = clopper_pearson(*pair)
    assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
    assert estimate.low < estimate.high


def binomial(n, p):
    return [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


def test_intervals_of_shares_cover_95_percent():
    for n in (1, 20, 60):
        intervals = [clopper_pearson(k, n) for k in range(n + 1)]
        # 0.0035 is where Wilson's interval covers 84 %.
        for p in (0.0035, 0.01, 0.05, 0.2, 0.5, 0.87):
            covered = sum(c for c, i in zip(binomial(n, p), intervals, strict=True) if i.low <= p <= i.high)
            assert covered >= 0.95, (n, p)


@pytest.mark.parametrize("n", [20, 50, 100])
def test_a_paired_difference_covers_where_few_problems_differ(n):
    # All differ in one direction, so that the coverage is a sum over how many do; the bootstrap's is 0.54 for n = 50
    # with 2 % discordant.
    found = [paired_difference([1.0] * k + [0.0] * (n - k), [0.0] * n) for k in range(n // 2)]
    for discordant in (0.01, 0.02, 0.03, 0.05, 0.1, 0.2):
        chances = zip(binomial(n, discordant), found, strict=False)
        assert sum(c for c, e in chances if e.low <= discordant <= e.high) >= 0.95, discordant


@given(VALUES, VALUES)
def test_the_mean_is_inside_and_the_interval_is_never_empty(a, b):
    pairs = list(zip(a, b, strict=False))
    for estimate, low in (
        (mean_of_problems(a), 0.0),
        (paired_difference(*zip(*pairs, strict=True)), -1.0),
        (paired_difference(a, a), -1.0),
    ):
        assert low <= estimate.low <= estimate.value <= estimate.high <= 1.0
        # Even if nothing differs, n problems leave at least this open.
        assert estimate.high - estimate.low >= 1.0 - 0.025 ** (1 / estimate.n) - 1e-9


@given(VALUES)
def test_an_interval_of_mirrored_values_is_the_mirrored_interval(values):
    units = np.array(values)
    low, high = gaffke(units, 0.0, 1.0)
    assert gaffke(1.0 - units, 0.0, 1.0) == pytest.approx((1.0 - high, 1.0 - low), abs=1e-6)
    assert gaffke(np.sort(units), 0.0, 1.0) == pytest.approx((low, high), abs=1e-9)


def test_for_0_and_1_gaffkes_interval_is_the_exact_one():
    for n in (1, 5, 50, 400):
        for k in {0, 1, n // 2, n}:
            exact = clopper_pearson(k, n)
            found = gaffke(np.repeat([1.0, 0.0], [k, n - k]), 0.0, 1.0)
            # The approximation is never narrower, and wider by at most 3 % of a limit's distance from its bound.
            assert found[0] <= exact.low + 1e-6
            assert found[1] >= exact.high - 1e-6
            assert found[0] == pytest.approx(exact.low, rel=0.06)
            assert 1.0 - found[1] == pytest.approx(1.0 - exact.high, rel=0.06)


def test_gaffkes_limits_are_quantiles_of_dirichlet_weighted_means():
    rng = np.random.default_rng(0)
    values = np.where(rng.random(30) < 0.2, rng.random(30), 0.0)
    weights = rng.exponential(size=(100_000, 31))
    below, total = weights[:, 1:] @ values, weights.sum(axis=1)
    low, high = np.quantile(below / total, 0.025), np.quantile((below + weights[:, 0]) / total, 0.975)
    assert gaffke(values, 0.0, 1.0) == pytest.approx((low, high), rel=0.02)


def test_one_problem_says_little_and_how_many_would_say_more():
    one = mean_of_problems([0.5])
    assert one.low < 0.02 < 0.98 < one.high
    assert "1 problem: too few to say much, 97 give ±10 points" in one.method
    assert "385 give ±10 points" in paired_difference([1.0] * 3, [1.0] * 3).method
    assert mean_of_problems([1.0] * 97 + [0.0] * 97).method == "clopper-pearson"


def test_a_choice_among_several_widens_the_interval_and_is_noted():
    alone, best = mean_of_problems([0.5, 1.0] * 30), mean_of_problems([0.5, 1.0] * 30, chosen_of=20)
    assert best.low < alone.low < alone.high < best.high
    assert (best.chosen_of, alone.chosen_of) == (20, 1)
    assert clopper_pearson(30, 60, 20).low < clopper_pearson(30, 60).low


def test_pairing_narrows_a_comparison_on_the_same_problems():
    rng = np.random.default_rng(0)
    difficulty = rng.random(400)
    a = (difficulty < 0.55).astype(float)
    b = (difficulty < 0.50).astype(float)
    paired = paired_difference(a, b)
    assert paired.low > 0
    assert clopper_pearson(int(a.sum()), 400).low < clopper_pearson(int(b.sum()), 400).high
    assert paired_difference([1, math.nan, 0], [0, 1, 0]).n == 2
    with pytest.raises(ValueError, match="not pairs"):
        paired_difference([1.0], [1.0, 0.0])


def test_mcnemar_is_the_exact_sign_test():
    a, b = [1] * 10 + [0] * 2 + [1] * 50, [0] * 10 + [1] * 2 + [1] * 50
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert mcnemar([1, 0], [1, 0]) == 1.0
    assert mcnemar([1, 0], [0, 1]) == 1.0
    assert 0.0 <= mcnemar([1] * 3000, [0] * 3000) < 1e-300
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar([0.5], [1])


def test_a_mean_without_bounds_is_wider_towards_the_longer_tail():
    rng = np.random.default_rng(0)
    values = rng.exponential(100, 60)
    found, mirrored = mean_unbounded(values), mean_unbounded(-values)
    assert found.high - found.value > found.value - found.low
    assert (-mirrored.high, -mirrored.low) == pytest.approx((found.low, found.high))
    # Not narrower than Student's t on either side.
    error = student_quantile(0.975, 59) * values.std(ddof=1) / math.sqrt(60)
    assert found.high >= found.value + error
    assert found.low <= found.value - error
    assert mean_unbounded([*values, math.nan]).n == 60


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([7.0], "1 problem, 10 can carry one"),
        (list(range(9)), "9 problems, 10 can carry one"),
        ([7.0] * 40, "all 40 problems have the same value, 5 that differ can carry one"),
        ([7.0] * 38 + [8.0, 9.0], "all but 2 of 40 problems have the same value, about 100 can carry one"),
    ],
)
def test_where_the_data_carry_no_interval_it_says_so_and_how_many_could(values, why):
    found = mean_unbounded(values)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.value == pytest.approx(np.mean(values))
    assert found.method == f"no interval: {why}"


def test_fewer_than_five_seeds_are_points():
    few = over_seeds([[0.2, 0.4], [0.5, 0.5]])
    assert (few.value, few.n) == pytest.approx((0.4, 2))
    assert math.isnan(few.low)
    assert math.isnan(few.high)
    assert few.method == "no interval: 2 seeds from 0.3 to 0.5, 5 can carry one"
    assert "1 seed from 0.4 to 0.4" in over_seeds([0.4]).method
    rng = np.random.default_rng(0)
    skill = 0.4 + 0.1 * rng.standard_normal(6)
    values = (rng.random((6, 300)) < skill[:, None]).astype(float)
    many = over_seeds(values)
    assert (many.n, many.low < many.value < many.high) == (6, True)
    # What differs between seeds is part of the interval, not only what differs between problems.
    pooled = mean_of_problems(values.mean(axis=0))
    assert many.high - many.low > pooled.high - pooled.low


def test_seeds_without_problems_have_students_interval():
    found = over_seeds([0.3, 0.4, 0.5, 0.6, 0.7])
    half = 2.7764 * np.std([0.3, 0.4, 0.5, 0.6, 0.7], ddof=1) / math.sqrt(5)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)
    assert math.isnan(over_seeds([0.5] * 5).low)
    # Equal seeds still answered some problems only.
    assert over_seeds(np.ones((5, 20))).low == pytest.approx(clopper_pearson(20, 20).low)


def test_seeds_of_what_has_no_bounds_have_an_interval_too():
    tokens = np.random.default_rng(0).exponential(100, (5, 50))
    found = over_seeds(tokens)
    assert found.low < found.value < found.high
    assert "no interval" in over_seeds(np.full((5, 50), 7.0)).method


def test_shares_have_the_exact_interval_and_means_of_samples_gaffkes():
    assert mean_of_problems([1.0] * 20).low == clopper_pearson(20, 20).low < 1.0
    assert mean_of_problems([1.0 - 1e-15] * 30 + [0.0] * 30).method == "clopper-pearson"
    assert mean_of_problems([0.5] * 30 + [1.0, math.nan]).method == "Gaffke"
    assert mean_of_problems([0.5, 1.0, math.nan]).n == 2


def test_what_cannot_be_estimated_is_refused():
    for values in ([], [math.nan]):
        for mean in (mean_of_problems, mean_unbounded):
            with pytest.raises(ValueError, match="nothing to estimate"):
                mean(values)
    with pytest.raises(ValueError, match="3 of 2"):
        clopper_pearson(3, 2)
    with pytest.raises(ValueError, match="not within"):
        mean_in_bounds([0.5, 1.2])
    with pytest.raises(ValueError, match="infinite"):
        mean_unbounded([1.0, math.inf])
    assert math.isnan(differences([math.nan], [1.0])[0])
