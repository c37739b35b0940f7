import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.evaluation import estimators
from ponder.evaluation.estimators import best_of_k, pass_at_k


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    for n, c, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if c > n or k > n:
            continue
        subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, [c], k)[0] == pytest.approx(sum(any(s) for s in subsets) / len(subsets), abs=1e-12)


def test_pass_at_k_agrees_with_the_papers_formula_and_does_not_overflow():
    for n, c, k in ((64, 3, 16), (200, 17, 100), (1000, 2, 999)):
        exact = 1 - math.comb(n - c, k) / math.comb(n, k)
        assert pass_at_k(n, [c], k)[0] == pytest.approx(exact, rel=1e-12)
    assert list(pass_at_k([4, 8], [1, 8], 2)) == [0.5, 1.0]


@pytest.mark.parametrize(
    ("n", "c", "k", "said"),
    [(4, [1], 5, "k = 5"), (4, [1], 0, "k = 0"), (4, [5], 2, "correct"), (4, [-1], 2, "correct")],
)
def test_pass_at_k_refuses_the_impossible(n, c, k, said):
    with pytest.raises(ValueError, match=said):
        pass_at_k(n, c, k)


def drawn(correct, rank, k):
    """Best of k by enumerating every subset, ties split evenly."""
    gains = []
    for subset in itertools.combinations(range(len(correct)), k):
        top = max(rank[i] for i in subset)
        tied = [correct[i] for i in subset if rank[i] == top]
        gains.append(0.0 if top == -math.inf else sum(tied) / len(tied))
    return sum(gains) / len(gains)


samples = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([-math.inf, 0.0, 0.5, 2.0])), min_size=1, max_size=7
)


@settings(max_examples=100, deadline=None)
@given(samples, st.integers(1, 7))
def test_best_of_k_is_what_enumerating_every_draw_gives(pool, k):
    correct, rank = [c for c, _ in pool], [r for _, r in pool]
    k = min(k, len(pool))
    assert best_of_k([correct], [rank], k)[0] == pytest.approx(drawn(correct, rank, k), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=8, max_size=8), min_size=1, max_size=5), st.integers(1, 8)
)
def test_with_an_exact_checker_the_best_of_k_is_the_coverage(correct, k):
    assert best_of_k(correct, correct, k) == pytest.approx(pass_at_k(8, np.sum(correct, axis=1), k))


def test_samples_that_could_not_be_judged_are_as_if_never_drawn():
    nan = math.nan
    with_gap = best_of_k([[1, nan, 0, 0], [nan, nan, nan, 1]], [[1, 9, 0, 0], [0, 0, nan, 0]], 2)
    assert with_gap[0] == best_of_k([[1, 0, 0]], [[1, 0, 0]], 2)[0]
    assert math.isnan(with_gap[1])


def test_the_memory_for_a_large_pool_does_not_grow_with_its_problems_and_they_are_not_taken_one_by_one(monkeypatch):
    steps, peaks = [], []
    whole = estimators._best_of_k
    monkeypatch.setattr(estimators, "_best_of_k", lambda *given: (steps.append(len(given[0])), whole(*given))[1])
    for problems in (3_000, 12_000):
        steps.clear()
        correct = (np.random.default_rng(0).random((problems, 64)) < 0.1).astype(float)
        tracemalloc.start()
        try:
            found = best_of_k(correct, correct, 64)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert found == pytest.approx(correct.max(axis=1))
        assert sum(steps) == problems
        assert len(steps) <= problems / 500
    # All pairs of samples at once would be 25 MB of masks for the smaller pool, and four times that for the larger.
    assert max(peaks) < 15e6
    assert peaks[1] < 1.2 * peaks[0]


def test_best_of_k_refuses_shapes_and_ranks_that_do_not_fit():
    with pytest.raises(ValueError, match="problems × samples"):
        best_of_k([1, 0], [1, 0], 1)
    with pytest.raises(ValueError, match="k = 3"):
        best_of_k([[1, 0]], [[1, 0]], 3)
    with pytest.raises(ValueError, match="not a number"):
        best_of_k([[1, 0]], [[1, math.nan]], 1)
