"""Advantages, losses and updates: what must hold of the gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_play import dense, random_batch, random_groups, replaced

from ponder.errors import TrainingDiverged, Unsupported
from ponder.models.tiny import new_model
from ponder.training import forward
from ponder.training.batch import TokenBatch, token_batch
from ponder.training.credit import Credit
from ponder.training.forward import micro_batches, row_logprobs
from ponder.training.losses.base import LossInput
from ponder.training.losses.dapo import Dapo
from ponder.training.optim import adamw, clip_gradients, step
from ponder.training.policy import update


def gradients(
    micro_tokens: int, batch: TokenBatch, *, packed: bool = True, gradient_checkpointing: bool = False
) -> tuple[list[torch.Tensor], float]:
    model = new_model(3)
    model.supports_cache = packed
    optimiser = torch.optim.SGD(model.module.parameters(), lr=0.0)
    stats = update(
        model,
        optimiser,
        Dapo(),
        batch,
        temperature=1.0,
        max_grad_norm=0.0,
        micro_tokens=micro_tokens,
        gradient_checkpointing=gradient_checkpointing,
    )
    return [p.grad.clone() for p in model.module.parameters() if p.grad is not None], stats.loss


@pytest.mark.parametrize("packed", [True, False])
def test_neither_packing_nor_micro_batching_changes_the_gradient_or_the_loss(packed: bool) -> None:
    batch = random_batch()
    whole, loss_whole = gradients(1_000_000, batch, packed=False)
    for micro_tokens in (1, 40, 100, 1_000_000):
        parts, loss_parts = gradients(micro_tokens, batch, packed=packed)
        assert loss_parts == pytest.approx(loss_whole, abs=1e-6)
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("packed", [True, False])
def test_gradient_checkpointing_changes_nothing(packed: bool) -> None:
    batch = random_batch()
    plain, loss = gradients(100, batch, packed=packed)
    again, loss_again = gradients(100, batch, packed=packed, gradient_checkpointing=True)
    assert loss == loss_again
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_gradient_checkpointing_keeps_a_layers_input_only() -> None:
    """Of a micro-batch's activations autograd keeps so much less that the layers' own are gone."""
    model, batch, kept = new_model(3), random_batch(rows=24, everything=True), []
    for on in (False, True):
        size = 0

        def pack(t: torch.Tensor) -> torch.Tensor:
            nonlocal size
            size += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            for new in micro_batches(model, batch, torch.arange(24), 1.0, tokens=10**6, gradient_checkpointing=on):
                new.logprobs_N.sum().backward()
        kept.append(size)
    assert kept[1] < 0.5 * kept[0]
    assert not any("forward" in vars(m) for m in model.module.modules())


def test_gradient_checkpointing_of_an_unknown_architecture_is_refused_with_the_fix() -> None:
    model = new_model(0)
    model.module = torch.nn.Linear(2, 2)
    with pytest.raises(Unsupported, match=r"gradient_checkpointing: .* leave it off"):
        next(micro_batches(model, random_batch(), torch.arange(4), 1.0, tokens=64, gradient_checkpointing=True))


def test_each_prompt_is_computed_once_and_nothing_is_padded() -> None:
    """Also where a group is spread over many micro-batches."""
    r = random_batch(rows=16, group=8, everything=True)
    model = new_model(0)
    before_last = dense(r).mask_BT.long().cumsum(1).argmax(1) - r.prompt_lengths_B
    exact = int(before_last.sum()) + int(r.prompt_lengths_B[::8].sum())
    parts = list(micro_batches(model, r, torch.arange(16), 1.0, tokens=60))
    assert len(parts) > 3
    assert sum(p.computed for p in parts) == exact


def test_without_a_graph_micro_batches_are_only_measured() -> None:
    r, model = random_batch(everything=True), new_model(0)
    with torch.no_grad():
        parts = list(micro_batches(model, r, torch.arange(12), 0.9, tokens=60))
    want = row_logprobs(model, r, torch.cat([p.rows for p in parts]), 0.9)
    torch.testing.assert_close(torch.cat([p.logprobs_N for p in parts]), want.logprobs_N.detach())
    torch.testing.assert_close(torch.cat([p.entropy_N for p in parts]), want.entropy_N, rtol=1e-5, atol=1e-5)
    assert not any(p.logprobs_N.requires_grad for p in parts)


def test_the_gradient_is_the_reinforce_gradient_over_all_trained_tokens() -> None:
    """On policy the clipped loss has the gradient of -(1/N) sum A log p, N the tokens of the whole batch."""
    batch, model = random_batch(), new_model(3)
    rows = batch.trained_B.nonzero().squeeze(1)
    with torch.no_grad():
        on_policy = batch.logprobs_N.clone()
        on_policy[batch.trained(rows)[0]] = row_logprobs(model, batch, rows, 1.0).logprobs_N
    batch = replaced(batch, logprobs_N=on_policy)
    got, _ = gradients(64, batch)
    d = dense(batch)
    row, column = d.mask_BT.nonzero(as_tuple=True)
    full = torch.log_softmax(model.module.logits(model.module(d.ids_BT)), dim=-1)
    logprobs = full[row, column - 1, d.ids_BT[row, column]]
    (-(d.credit_BT[row, column] * logprobs).sum() / len(row)).backward()
    for a, p in zip(got, model.module.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(a, p.grad, rtol=1e-3, atol=1e-6)


def test_only_sampled_tokens_have_a_gradient() -> None:
    """The log-probability of a given or forced id may be anything without a change of the gradient."""
    r = random_batch()
    noisy = replaced(r, logprobs_N=torch.where(r.mask_N, r.logprobs_N, torch.full_like(r.logprobs_N, -50.0)))
    for a, b in zip(gradients(64, r)[0], gradients(64, noisy)[0], strict=True):
        assert torch.equal(a, b)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_padded_micro_batches_hold_every_row_once_within_the_limit(lengths: list[int], limit: int) -> None:
    n = torch.tensor(lengths)
    none = torch.zeros(0)
    batch = TokenBatch(none.long(), none.bool(), none, none, none.long(), n, n, torch.zeros_like(n))
    parts = list(forward._alike(batch, torch.arange(len(lengths)), limit))
    assert sorted(int(i) for p in parts for i in p) == list(range(len(lengths)))
    assert all(len(p) == 1 or len(p) * int(n[p].max()) <= limit for p in parts)


def loss_of(ratio: float, advantage: float) -> tuple[float, float, int]:
    logprobs = torch.tensor([math.log(ratio)], requires_grad=True)
    out = Dapo()(LossInput(logprobs, torch.zeros(1), torch.tensor([advantage]), torch.zeros(1)))
    out.sum.backward()
    assert logprobs.grad is not None
    return float(out.sum.detach()), float(logprobs.grad), int(out.metrics["clipped"])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 1.0, -1.0, -1.0, 0),
        (1.0, -1.0, 1.0, 1.0, 0),
        (1.25, 1.0, -1.25, -1.25, 0),  # below the higher upper clip
        (1.5, 1.0, -1.28, 0.0, 1),
        (0.5, 1.0, -0.5, -0.5, 0),  # a fall of a good token is never clipped
        (0.5, -1.0, 0.8, 0.0, 1),
        (1.5, -1.0, 1.5, 1.5, 0),  # a rise of a bad token is never clipped
    ],
)
def test_dapo_clips_as_equation_8_says(
    ratio: float, advantage: float, loss: float, gradient: float, clipped: int
) -> None:
    got = loss_of(ratio, advantage)
    assert got[0] == pytest.approx(loss, rel=1e-5)
    assert got[1] == pytest.approx(gradient, rel=1e-5, abs=1e-9)
    assert got[2] == clipped


def test_what_is_not_marked_moves_nothing() -> None:
    """Whatever its advantages are: the mask decides."""
    r = random_batch()
    nothing = replaced(r, mask_N=torch.zeros_like(r.mask_N))
    model = new_model(0)
    before = [p.clone() for p in model.module.parameters()]
    optimiser = adamw(model.module, learning_rate=0.1, weight_decay=0.1, betas=(0.9, 0.95))
    stats = update(model, optimiser, Dapo(), nothing, temperature=1.0, max_grad_norm=1.0, micro_tokens=4096)
    assert stats.tokens == 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.module.parameters(), strict=True))


def test_a_sample_of_no_advantage_is_in_the_divisor_and_nothing_else() -> None:
    """Marked with credit 0: the same gradient as without it, divided by more tokens."""
    groups = random_groups()
    both = [[Credit.of_sample(s, float(i % 2)) for i, s in enumerate(g.samples)] for g in groups]
    ones = [[Credit.of_sample(s, 1.0) if i % 2 else Credit.none(s) for i, s in enumerate(g.samples)] for g in groups]
    whole, part = token_batch(groups, both), token_batch(groups, ones)
    share = int(part.mask_N.sum()) / int(whole.mask_N.sum())
    assert share < 0.7
    for a, b in zip(gradients(100, whole)[0], gradients(100, part)[0], strict=True):
        torch.testing.assert_close(a, b * share, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("limit", [0.0, 0.5, 10.0])
def test_gradients_are_clipped_to_the_limit_and_untouched_below_it(limit: float) -> None:
    module = torch.nn.Linear(3, 2)
    module.weight.grad, module.bias.grad = torch.full((2, 3), 2.0), None  # of norm sqrt(24)
    assert clip_gradients(module, limit) == pytest.approx(math.sqrt(24))
    got = float(module.weight.grad.norm())
    assert got == pytest.approx(limit if limit == 0.5 else math.sqrt(24), rel=1e-5)


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched() -> None:
    broken = replaced(random_batch(), logprobs_N=torch.full_like(random_batch().logprobs_N, math.nan))
    model = new_model(0)
    before = [p.clone() for p in model.module.parameters()]
    optimiser = adamw(model.module, learning_rate=0.1, weight_decay=0.1, betas=(0.9, 0.95))
    with pytest.raises(TrainingDiverged, match="nan"):
        update(model, optimiser, Dapo(), broken, temperature=1.0, max_grad_norm=1.0, micro_tokens=4096)
    assert all(torch.equal(a, b) for a, b in zip(before, model.module.parameters(), strict=True))


@pytest.mark.parametrize("shared", [True, False])
def test_log_probabilities_are_those_of_a_plain_softmax_at_the_sampling_temperature(shared: bool) -> None:
    model, r = new_model(1), random_batch(rows=6, group=2, everything=True)
    d = dense(r)
    model.supports_cache = shared
    asked = torch.tensor([5, 1, 3, 0])  # siblings are not neighbours, and not in order
    got = row_logprobs(model, r, asked, 0.7)
    with torch.no_grad():
        full = torch.log_softmax(model.module.logits(model.module(d.ids_BT)) / 0.7, dim=-1)
    rows, columns = d.mask_BT[asked].nonzero(as_tuple=True)
    rows = asked[rows]
    at = full[rows, columns - 1]
    torch.testing.assert_close(got.logprobs_N.detach(), at.gather(1, d.ids_BT[rows, columns, None])[:, 0])
    torch.testing.assert_close(got.entropy_N, -(at.exp() * at).sum(-1))


def test_sharing_prompts_does_not_change_the_gradient() -> None:
    r = random_batch(rows=16, everything=True)
    grads = []
    for shared in (True, False):
        model = new_model(1)
        model.supports_cache = shared
        row_logprobs(model, r, torch.arange(16), 1.0).logprobs_N.sum().backward()
        grads.append([p.grad for p in model.module.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("between", ["weights", "moments", "gradient", "nothing"])
def test_a_step_does_not_depend_on_how_weights_moments_and_gradients_lie_in_memory(between: str) -> None:
    def columns(x: torch.Tensor) -> torch.Tensor:
        return x.t().contiguous().t()

    generator = torch.Generator().manual_seed(0)
    start, first, second = (torch.randn(6, 4, generator=generator) for _ in range(3))
    module = torch.nn.Linear(4, 6, bias=False)
    module.weight.data = start.clone()
    optimiser = adamw(module, learning_rate=0.1, weight_decay=0.0, betas=(0.9, 0.95))
    reference = torch.nn.Parameter(start.clone())
    plain = torch.optim.AdamW([reference], lr=0.1, weight_decay=0.0, betas=(0.9, 0.95), foreach=False, fused=False)
    for gradient in (first, second):
        module.weight.grad, reference.grad = gradient.clone(), gradient.clone()
        if between == "gradient":
            module.weight.grad = columns(gradient)
        step(optimiser)
        plain.step()
        moments = optimiser.state[module.weight]
        if between == "weights":
            module.weight.data = columns(module.weight.data)
        if between == "moments":
            moments["exp_avg"] = columns(moments["exp_avg"])
    torch.testing.assert_close(module.weight.data, reference.data, rtol=1e-6, atol=1e-6)
