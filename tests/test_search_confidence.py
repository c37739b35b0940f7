"""Measures of certainty, on responses whose probabilities are written down."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.search.confidence import (
    lowest_confidence,
    mean_logprob,
    self_certainty,
    tail_confidence,
    token_confidences,
)
from ponder.types import Completion, FinishReason, Segment, SegmentKind, Spend


def response(*distributions, forced=0):
    """A completion of one token a distribution (a list of probabilities, the sampled id's first)."""
    ids = tuple(range(len(distributions)))
    tops = tuple(tuple((i, math.log(p)) for i, p in enumerate(d)) for d in distributions)
    sampled = Segment(SegmentKind.SAMPLED, ids, tuple(math.log(d[0]) for d in distributions), top_logprobs=tops)
    before = (Segment(SegmentKind.FORCED, tuple(range(forced))),) if forced else ()
    return Completion("", FinishReason.STOP, Spend(), (*before, sampled))


def test_the_mean_is_over_the_sampled_tokens_of_all_calls():
    first, second = response([0.5, 0.5]), response([0.125, 0.875], [0.25, 0.75], forced=3)
    assert mean_logprob([first, second]) == pytest.approx(math.log(0.5 * 0.125 * 0.25) / 3)
    assert mean_logprob([Completion("", FinishReason.STOP, Spend())]) is None


def test_token_confidence_is_high_where_one_id_has_almost_everything():
    sure, unsure = token_confidences([response([0.98, 0.01, 0.01], [0.34, 0.33, 0.33])])
    assert sure == pytest.approx(-(math.log(0.98) + 2 * math.log(0.01)) / 3)
    assert sure > unsure


def test_tail_and_lowest_group_are_means_over_a_window():
    tokens = [[p, 1 - p] for p in (0.9, 0.5, 0.6, 0.99, 0.999)]
    values = token_confidences([response(*tokens)])
    assert tail_confidence([response(*tokens)], 2) == pytest.approx((values[3] + values[4]) / 2)
    assert lowest_confidence([response(*tokens)], 2) == pytest.approx((values[1] + values[2]) / 2)
    assert tail_confidence([response(*tokens)], 99) == pytest.approx(sum(values) / 5)


def test_self_certainty_is_the_divergence_from_the_uniform_distribution():
    assert self_certainty([response([0.25] * 4)]) == pytest.approx(0.0, abs=1e-12)
    p = [0.7, 0.2, 0.1]
    kl = sum(1 / 3 * math.log((1 / 3) / x) for x in p)
    assert self_certainty([response(p)]) == pytest.approx(kl)
    # What the engine did not report is left out: the rest is renormalised.
    assert self_certainty([response([0.35, 0.1, 0.05])]) == pytest.approx(kl)


@given(st.lists(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=5), min_size=1, max_size=20), st.integers(1, 25))
def test_the_lowest_group_is_no_surer_than_the_whole_and_the_tail_no_less_sure_than_it(weights, window):
    calls = [response(*([w / sum(ws) for w in ws] for ws in weights))]
    tokens = token_confidences(calls)
    groups = [tokens[i : i + window] for i in range(max(1, len(tokens) - window + 1))]
    lowest = lowest_confidence(calls, window)
    assert lowest == pytest.approx(min(sum(g) / len(g) for g in groups))
    assert lowest <= tail_confidence(calls, window) + 1e-9
    assert self_certainty(calls) >= -1e-9
