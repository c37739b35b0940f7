"""Importance weights in closed form, and what a sampler of less precision needs."""

from __future__ import annotations

import math

import pytest
import torch

from ponder.engines.torch.products import candidates
from ponder.errors import UserError
from ponder.training import importance
from ponder.training.rl import parts_of
from ponder.training.rl_config import RLConfig

RATIOS = torch.tensor([0.25, 1.0, 3.0, 0.5, 2.0, 8.0])
ROWS = torch.tensor([4, 4, 4, 7, 7, 7])


def weights(kind: importance.Importance, cap: float = 2.0) -> list[float]:
    sampler = torch.full((6,), -1.5)
    return importance.weights(sampler + RATIOS.log(), sampler, ROWS, cap, kind).tolist()


def test_truncated_weights_are_ratios_up_to_the_cap() -> None:
    assert weights("truncated") == pytest.approx([0.25, 1.0, 2.0, 0.5, 2.0, 2.0])


def test_masked_weights_are_zero_outside_of_the_band() -> None:
    assert weights("masked") == pytest.approx([0.0, 1.0, 0.0, 0.5, 2.0, 0.0], abs=1e-6)


def test_sequence_weights_are_the_product_over_the_sample() -> None:
    assert weights("sequence", 100.0) == pytest.approx([0.75] * 3 + [8.0] * 3)
    assert weights("sequence") == pytest.approx([0.75] * 3 + [2.0] * 3)


@pytest.mark.parametrize("kind", ["truncated", "masked", "sequence"])
def test_without_a_mismatch_every_weight_is_one(kind) -> None:
    same = torch.randn(6)
    assert importance.weights(same, same, ROWS, 2.0, kind).tolist() == pytest.approx([1.0] * 6)


def test_the_mean_truncated_gain_is_what_the_trainers_policy_earns() -> None:
    """Σ q min(p/q, c) f = Σ p f while no ratio passes the cap: the estimate is of the trainer's policy."""
    p, q, f = (torch.tensor(x) for x in ([0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [1.0, -2.0, 3.0]))
    w = importance.weights(p.log(), q.log(), torch.arange(3), 2.0, "truncated")
    assert float((q * w * f).sum()) == pytest.approx(float((p * f).sum()))
    assert math.isclose(float((q * w).sum()), 1.0, rel_tol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_an_uncorrected_pair_is_refused_and_a_corrected_one_is_not(precision) -> None:
    parts_of(RLConfig(precision=precision))  # dapo: its ratio is against the sampler
    parts_of(RLConfig(precision=precision, loss="grpo", importance_cap=2.0))
    with pytest.raises(UserError, match=r"'grpo' does not correct for it: give importance_cap \(2.0\), or loss"):
        parts_of(RLConfig(precision=precision, loss="grpo"))


@pytest.mark.parametrize("precision", [p for p in ("bfloat16", "int8") if candidates(p)])
def test_rl_with_a_sampler_of_less_precision_logs_the_mismatch(precision, tmp_path) -> None:
    import ponder

    run = ponder.train_rl(
        out=str(tmp_path / "run"),
        environment="countdown",
        precision=precision,
        steps=2,
        problems=4,
        group_size=4,
        eval_problems=0,
        strategy_options={"thought_tokens": 12},
    )
    rows = run.metrics
    assert all(1e-4 < row["mismatch_mean"] < 0.1 for row in rows)
    assert all(0.9 < row["effective_samples"] < 1.0 for row in rows)
