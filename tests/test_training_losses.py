"""What a loss is given, and what becomes of what it returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from training_play import dense, random_batch

from ponder.errors import UserError
from ponder.models.adapter import LoraConfig
from ponder.models.lora import new_adapter
from ponder.models.tiny import new_model
from ponder.training.forward import row_logprobs
from ponder.training.losses.base import BaseLoss, Divisor, LossInput, LossOutput
from ponder.training.losses.dapo import Dapo
from ponder.training.losses.grpo import Grpo
from ponder.training.policy import Known, measure, update
from ponder.training.reference import Reference


def gradients(loss, batch, *, micro_tokens: int = 1_000_000, known: Known | None = None):
    model = new_model(3)
    stats = update(
        model,
        torch.optim.SGD(model.module.parameters(), lr=0.0),
        loss,
        batch,
        temperature=1.0,
        max_grad_norm=0.0,
        micro_tokens=micro_tokens,
        known=known or Known(),
    )
    return [p.grad.clone() for p in model.module.parameters()], stats


def noisy(batch, seed: int, scale: float) -> torch.Tensor:
    """Log-probabilities near those of the model of `gradients`."""
    g = torch.Generator().manual_seed(seed)
    logprobs, _ = measure(new_model(3), batch, temperature=1.0, micro_tokens=10**6)
    return logprobs + scale * torch.randn(logprobs.shape, generator=g)


@pytest.mark.parametrize("cap", [0.0, 1.5])
def test_grpo_is_equation_3_computed_plainly(cap: float) -> None:
    """Per sequence the mean of min(r A, clip(r) A) - beta k3, and their mean; r is against the old policy."""
    batch = random_batch()
    batch = dataclasses.replace(batch, logprobs_N=torch.where(batch.mask_N, noisy(batch, 0, 0.4), 0.0))
    old, reference = noisy(batch, 1, 0.3), noisy(batch, 2, 0.3)
    got, stats = gradients(Grpo(clip=0.2, kl=0.1), batch, known=Known(old, reference, cap))

    model, d = new_model(3), dense(batch)
    full = torch.log_softmax(model.module.logits(model.module(d.ids_BT)), dim=-1)
    spread = [dense(dataclasses.replace(batch, logprobs_N=x)).logprobs_BT for x in (old, reference)]
    spread_old, spread_reference = spread
    total, sequences, clipped, tokens = torch.zeros(()), 0, 0, 0
    for i in range(len(batch)):
        terms = []
        for t in d.mask_BT[i].nonzero().squeeze(1).tolist():
            new, a = full[i, t - 1, d.ids_BT[i, t]], d.credit_BT[i, t]
            ratio = torch.exp(new - spread_old[i, t])
            bounded = ratio.clamp(0.8, 1.2)
            weight = min(float(torch.exp(spread_old[i, t] - d.logprobs_BT[i, t])), cap) if cap else 1.0
            apart = spread_reference[i, t] - new
            terms.append(weight * torch.minimum(ratio * a, bounded * a) - 0.1 * (apart.exp() - apart - 1))
            clipped += bool(bounded * a < ratio * a)
            tokens += 1
        if terms:
            total, sequences = total + torch.stack(terms).mean(), sequences + 1
    loss = -total / sequences
    loss.backward()
    assert stats.loss == pytest.approx(float(loss.detach()), rel=1e-4)
    assert stats.metrics["clipped"] == pytest.approx(clipped / tokens)
    assert 0 < clipped < tokens
    assert stats.metrics["kl"] > 0.01
    for a, p in zip(got, model.module.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(a, p.grad, rtol=1e-3, atol=1e-6)


@dataclass(frozen=True)
class Per(BaseLoss):
    """A loss with a given divisor."""

    per: Divisor = "tokens"

    def __call__(self, tokens: LossInput) -> LossOutput:
        total = -(tokens.logprobs_N * tokens.advantages_N).sum()
        return LossOutput(total, self.per, {"ones": float(len(tokens.row_N))})


@pytest.mark.parametrize("loss", [Dapo(), Grpo(), Per("sequences"), Per(50.0)])
def test_micro_batches_change_neither_gradient_nor_loss_nor_metrics(loss) -> None:
    batch = random_batch()
    known = Known(noisy(batch, 1, 0.3), noisy(batch, 2, 0.3))
    whole, one = gradients(loss, batch, known=known)
    parts, many = gradients(loss, batch, micro_tokens=40, known=known)
    assert many.loss == pytest.approx(one.loss, abs=1e-6)
    assert many.metrics == pytest.approx(dict(one.metrics), abs=1e-6)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_a_loss_says_what_its_sum_is_divided_by() -> None:
    batch = random_batch()
    trained = batch.trained_B
    sums = {per: gradients(Per(per), batch)[1].loss for per in ("tokens", "sequences", 7.0)}
    total = sums[7.0] * 7.0
    assert total != 0
    assert sums["tokens"] == pytest.approx(total / int(trained.sum()))
    assert sums["sequences"] == pytest.approx(total / int((trained > 0).sum()))
    assert int((trained > 0).sum()) < len(trained)  # rows without a signal are not counted
    assert gradients(Per(), batch, micro_tokens=40)[1].metrics == {"ones": pytest.approx(1.0)}


@pytest.mark.parametrize("per", [0.0, -1.0, float("nan")])
def test_a_divisor_that_is_no_positive_number_is_refused(per: float) -> None:
    with pytest.raises(UserError, match="is to be divided by"):
        gradients(Per(per), random_batch())


@pytest.mark.parametrize("needs", ["old", "reference", "weights", "nothing"])
def test_a_loss_gets_what_it_declares_and_no_more(needs: str) -> None:
    seen: list[LossInput] = []

    class Spy(BaseLoss):
        needs_old: ClassVar[bool] = needs == "old"
        needs_reference: ClassVar[bool] = needs == "reference"

        def __call__(self, tokens: LossInput) -> LossOutput:
            seen.append(tokens)
            return LossOutput(tokens.logprobs_N.sum())

    batch = random_batch()
    known = Known(noisy(batch, 1, 0.3), noisy(batch, 2, 0.3), 2.0 if needs == "weights" else 0.0, version=5)
    gradients(Spy(), batch, known=known)
    given = {
        "old": seen[0].old_logprobs_N,
        "reference": seen[0].reference_logprobs_N,
        "weights": seen[0].weights_N,
    }
    assert {k for k, v in given.items() if v is not None} == {needs} - {"nothing"}
    assert seen[0].staleness_N.tolist() == [5] * int(batch.mask_N.sum())


def test_in_the_first_update_the_old_policy_is_the_one_that_is_updated() -> None:
    """No pass of its own is needed: the ratio is exactly 1, so nothing is clipped."""
    seen = []

    class Spy(Grpo):
        def __call__(self, tokens: LossInput) -> LossOutput:
            seen.append(torch.equal(tokens.old_logprobs_N, tokens.logprobs_N))
            return super().__call__(tokens)

    _, stats = gradients(Spy(), random_batch(), known=Known(reference_N=noisy(random_batch(), 2, 0.3)))
    assert seen == [True]
    assert stats.metrics["clipped"] == 0.0


def test_measured_log_probabilities_stand_at_their_tokens() -> None:
    batch, model = random_batch(), new_model(3)
    measured, computed = measure(model, batch, temperature=0.8, micro_tokens=40)
    rows = batch.trained_B.nonzero().squeeze(1)
    want = row_logprobs(model, batch, rows, 0.8).logprobs_N.detach()
    torch.testing.assert_close(measured[batch.trained(rows)[0]], want)
    assert not measured[~batch.mask_N].any()
    assert computed > 0
    assert not measured.requires_grad


@pytest.mark.parametrize("adapter", [False, True])
def test_the_reference_is_what_training_began_with_and_is_removed_again(adapter: bool) -> None:
    model, batch = new_model(3), random_batch()
    if adapter:
        new_adapter(model, LoraConfig(4, 8.0, ("q_proj",)), seed=2)
        with torch.no_grad():
            for name, p in model.module.named_parameters():
                if name.endswith("adapter.B"):
                    p.add_(0.1)
    reference = Reference(model.module)
    began, _ = measure(model, batch, temperature=1.0, micro_tokens=10**6)
    moving = [p for p in model.module.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in moving:
            p.mul_(1.1)
    moved, _ = measure(model, batch, temperature=1.0, micro_tokens=10**6)
    with reference.in_place():
        held, _ = measure(model, batch, temperature=1.0, micro_tokens=10**6)
    after, _ = measure(model, batch, temperature=1.0, micro_tokens=10**6)
    assert torch.equal(held, began)
    assert torch.equal(after, moved)
    assert not torch.equal(moved, began)
    if adapter:
        assert sum(w.numel() for w in reference._weights.values()) == sum(p.numel() for p in moving)
        assert len(moving) < len(list(model.module.parameters()))


@pytest.mark.parametrize("options", [{"clip": 0.0}, {"kl": -0.1}, {"kl": float("inf")}])
def test_bad_options_of_grpo_are_refused_by_name(options) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        Grpo(**options)
