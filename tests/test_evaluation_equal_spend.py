"""Strategies at equal spend: what majority has for the same tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.evaluation.equal_spend import Yardstick, at_equal_spend, counts_up_to


def yardstick(most: int = 4):
    rng = np.random.default_rng(0)
    return Yardstick(np.arange(1, most + 1), np.sort(rng.random((30, most)), axis=1), rng.uniform(5, 15, 30))


@given(st.integers(1, 4))
def test_majority_itself_is_no_better_than_majority_at_equal_spend(k) -> None:
    stick = yardstick()
    found = at_equal_spend(stick.accuracy_PK[:, k - 1], k * stick.tokens_P, stick)
    assert found.samples == pytest.approx(k)
    assert found.within
    assert found.difference.value == pytest.approx(0, abs=1e-9)
    # What equal results on 30 problems leave open, for one side as for the other.
    assert -0.13 < found.difference.low < -0.1 < 0.1 < found.difference.high < 0.13


def test_between_two_counts_of_samples_majority_lies_between_their_accuracies() -> None:
    stick = yardstick()
    found = at_equal_spend(np.ones(30), 1.5 * stick.tokens_P, stick)
    assert found.majority == pytest.approx(stick.accuracy_PK[:, :2].mean())
    assert found.difference.value == pytest.approx(1 - found.majority)
    assert found.difference.low < found.difference.value < found.difference.high


def test_tokens_that_buy_no_sample_or_more_than_were_drawn_are_said() -> None:
    stick = yardstick()
    less = at_equal_spend(np.ones(30), 0.5 * stick.tokens_P, stick)
    more = at_equal_spend(np.ones(30), 9 * stick.tokens_P, stick)
    assert not less.within
    assert not more.within
    assert less.majority == pytest.approx(stick.accuracy_PK[:, 0].mean())
    assert more.majority == pytest.approx(stick.accuracy_PK[:, -1].mean())
    with pytest.raises(ValueError, match="same problems"):
        at_equal_spend(np.ones(29), np.ones(29), stick)


@given(st.integers(1, 500))
def test_the_counts_of_a_yardstick_rise_from_one_to_all(most) -> None:
    counts = counts_up_to(most)
    assert (counts[0], counts[-1]) == (1, most)
    assert (np.diff(counts) > 0).all()
    assert len(counts) <= 66


def test_a_yardstick_with_gaps_goes_along_the_line_between_its_counts() -> None:
    stick = Yardstick(np.array([1, 4, 16]), np.array([[0.1, 0.4, 0.8]] * 3), np.ones(3))
    assert at_equal_spend(np.ones(3), np.full(3, 10.0), stick).majority == pytest.approx(0.6)
    alone = Yardstick(np.array([1]), np.array([[0.5]] * 3), np.ones(3))
    assert at_equal_spend(np.ones(3), np.full(3, 10.0), alone).majority == pytest.approx(0.5)
