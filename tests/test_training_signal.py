"""Training without a signal says so, with the likely cause."""

from __future__ import annotations

import pytest

from ponder.training.signal import rewards, signal, warning


def row(verdicts: dict[str, int], without: int, truncated: float = 0.0, replaced: int = 0) -> dict:
    return {
        "verdicts": verdicts,
        "groups": 4,
        "groups_without_signal": without,
        "groups_replaced": replaced,
        "truncated": truncated,
    }


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row({"correct": 16}, 4)], "no group of the one step had rewards that differ"),
        ([row({"correct": 16}, 4)] * 3, "100.0 % of the responses are right; take harder problems"),
        ([row({"wrong": 16}, 4, 0.75)], "75.0 % of the responses are cut off before they end"),
        ([row({"no_answer": 12, "wrong": 4}, 4)], "in 75.0 % of the responses no answer is found"),
        ([row({"wrong": 15, "timeout": 1}, 4)], "0.0 % of the responses are right; take easier problems"),
        ([row({"judge_error": 3, "wrong": 1}, 4)], "75.0 % of the responses could not be judged"),
        ([row({"correct": 8, "wrong": 8}, 4)], "the samples of a problem hardly differ; raise the temperature"),
        ([row({"wrong": 16}, 4)] * 9 + [row({"wrong": 15, "correct": 1}, 3)], "only 1 of 40 groups of 10 steps"),
        ([row({"correct": 79, "wrong": 1}, 3, replaced=16)], "only 1 of 20 groups"),
    ],
)
def test_the_likely_cause_is_named(rows, says) -> None:
    assert says in warning(signal(rows))


def test_groups_that_differ_are_no_reason_to_warn() -> None:
    assert not warning(signal([row({"correct": 2, "wrong": 14}, 3)]))
    assert not warning(signal([]))


@pytest.mark.parametrize(
    ("of_steps", "says"),
    [
        ([0.5], {"Reward of the one step": "0.500"}),
        ([0.25, 0.5], {"Reward, first and last step": "0.250 and 0.500"}),
        ([0.25, 1.0, 0.5], {"Reward, first and last step": "0.250 and 0.500"}),
        ([0.0, 0.5, 0.5, 1.0], {"Mean reward, first and last 2 steps": "0.250 and 0.750"}),
        ([0.0] * 5 + [1.0] * 5, {"Mean reward, first and last 5 steps": "0.000 and 1.000"}),
        ([0.0] * 50 + [1.0] * 50, {"Mean reward, first and last 5 steps": "0.000 and 1.000"}),
    ],
)
def test_a_mean_of_steps_never_claims_more_of_them_than_there_are_nor_one_twice(of_steps, says) -> None:
    assert rewards(of_steps) == says
