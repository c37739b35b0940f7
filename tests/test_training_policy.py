"""Advantages, losses and updates: what must hold of the gradient."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.errors import TrainingDiverged, Unsupported
from ponder.models.tiny import new_model
from ponder.training import forward
from ponder.training.advantages.mean_only import MeanOnly
from ponder.training.forward import micro_batches, row_logprobs
from ponder.training.losses.base import LossInput
from ponder.training.losses.dapo import Dapo
from ponder.training.optim import adamw, clip_gradients, step
from ponder.training.policy import update
from ponder.training.rollouts import Rollouts


def random_rollouts(rows: int = 12, group: int = 4, seed: int = 0) -> Rollouts:
    """Rows of unequal length, the first third of each given, one forced id in the middle."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(9, 24, (rows,), generator=g)
    width = int(lengths.max())
    ids = torch.randint(20, 400, (rows, width), generator=g)
    prompts = 2 + torch.arange(rows) // group % 2
    for i in range(rows):  # siblings share their prompt
        ids[i, : prompts[i]] = ids[i - i % group, : prompts[i]]
    mask = torch.zeros(rows, width, dtype=torch.bool)
    for i, n in enumerate(lengths.tolist()):
        mask[i, n // 3 : n] = True
        mask[i, n // 2] = False
    rewards = torch.randint(0, 2, (rows,), generator=g).float()
    groups = torch.arange(rows) // group
    return Rollouts(ids, mask, -torch.rand(rows, width, generator=g) * mask, rewards, groups, lengths, prompts)


def gradients(
    micro_tokens: int, rollouts: Rollouts, *, packed: bool = True, gradient_checkpointing: bool = False
) -> tuple[list[torch.Tensor], float]:
    model = new_model(3)
    model.supports_cache = packed
    optimiser = torch.optim.SGD(model.module.parameters(), lr=0.0)
    stats = update(
        model,
        optimiser,
        Dapo(),
        rollouts,
        MeanOnly()(rollouts),
        temperature=1.0,
        max_grad_norm=0.0,
        micro_tokens=micro_tokens,
        gradient_checkpointing=gradient_checkpointing,
    )
    return [p.grad.clone() for p in model.module.parameters() if p.grad is not None], stats.loss


@pytest.mark.parametrize("packed", [True, False])
def test_neither_packing_nor_micro_batching_changes_the_gradient_or_the_loss(packed: bool) -> None:
    rollouts = random_rollouts()
    whole, loss_whole = gradients(1_000_000, rollouts, packed=False)
    for micro_tokens in (1, 40, 100, 1_000_000):
        parts, loss_parts = gradients(micro_tokens, rollouts, packed=packed)
        assert loss_parts == pytest.approx(loss_whole, abs=1e-6)
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_padding_does_not_change_the_gradient() -> None:
    r = random_rollouts()
    extra = torch.full((len(r), 7), 0)
    wider = Rollouts(
        torch.cat([r.ids_BT, extra], 1),
        torch.cat([r.mask_BT, extra.bool()], 1),
        torch.cat([r.logprobs_BT, extra.float()], 1),
        r.rewards_B,
        r.group_B,
        r.lengths_B,
        r.prompt_lengths_B,
    )
    for a, b in zip(gradients(100, r)[0], gradients(100, wider)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("packed", [True, False])
def test_gradient_checkpointing_changes_nothing(packed: bool) -> None:
    rollouts = random_rollouts()
    plain, loss = gradients(100, rollouts, packed=packed)
    again, loss_again = gradients(100, rollouts, packed=packed, gradient_checkpointing=True)
    assert loss == loss_again
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_gradient_checkpointing_keeps_a_layers_input_only() -> None:
    """Of a micro-batch's activations autograd keeps so much less that the layers' own are gone."""
    model, rollouts, kept = new_model(3), random_rollouts(rows=24), []
    for on in (False, True):
        size = 0

        def pack(t: torch.Tensor) -> torch.Tensor:
            nonlocal size
            size += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            for new in micro_batches(model, rollouts, torch.arange(24), 1.0, tokens=10**6, gradient_checkpointing=on):
                new.logprobs_N.sum().backward()
        kept.append(size)
    assert kept[1] < 0.5 * kept[0]
    assert not any("forward" in vars(m) for m in model.module.modules())


def test_gradient_checkpointing_of_an_unknown_architecture_is_refused_with_the_mend() -> None:
    model = new_model(0)
    model.module = torch.nn.Linear(2, 2)
    with pytest.raises(Unsupported, match=r"gradient_checkpointing: .* leave it off"):
        next(micro_batches(model, random_rollouts(), torch.arange(4), 1.0, tokens=64, gradient_checkpointing=True))


def test_each_prompt_is_computed_once_and_nothing_is_padded() -> None:
    """Also where a group is spread over many micro-batches."""
    r = random_rollouts(rows=16, group=8)
    model = new_model(0)
    before_last = r.mask_BT.long().cumsum(1).argmax(1) - r.prompt_lengths_B
    exact = int(before_last.sum()) + int(r.prompt_lengths_B[::8].sum())
    parts = list(micro_batches(model, r, torch.arange(16), 1.0, tokens=60))
    assert len(parts) > 3
    assert sum(p.computed for p in parts) == exact


def test_without_a_graph_micro_batches_are_only_measured() -> None:
    r, model = random_rollouts(), new_model(0)
    with torch.no_grad():
        parts = list(micro_batches(model, r, torch.arange(12), 0.9, tokens=60))
    want = row_logprobs(model, r, torch.cat([p.rows for p in parts]), 0.9)
    torch.testing.assert_close(torch.cat([p.logprobs_N for p in parts]), want.logprobs_N.detach())
    torch.testing.assert_close(torch.cat([p.entropy_N for p in parts]), want.entropy_N, rtol=1e-5, atol=1e-5)
    assert not any(p.logprobs_N.requires_grad for p in parts)


def test_the_gradient_is_the_reinforce_gradient_over_all_trained_tokens() -> None:
    """On policy the clipped loss has the gradient of -(1/N) sum A log p, N the tokens of the whole batch."""
    rollouts, model = random_rollouts(), new_model(3)
    with torch.no_grad():
        on_policy = torch.zeros_like(rollouts.logprobs_BT)
        on_policy[rollouts.mask_BT] = row_logprobs(model, rollouts, torch.arange(len(rollouts)), 1.0).logprobs_N
    rollouts = dataclasses.replace(rollouts, logprobs_BT=on_policy)
    advantages = MeanOnly()(rollouts)
    got, _ = gradients(64, rollouts)
    rows, columns = ((advantages != 0).any(dim=1).unsqueeze(1) & rollouts.mask_BT).nonzero(as_tuple=True)
    full = torch.log_softmax(model.module.logits(model.module(rollouts.ids_BT)), dim=-1)
    logprobs = full[rows, columns - 1, rollouts.ids_BT[rows, columns]]
    (-(advantages[rows, columns] * logprobs).sum() / len(rows)).backward()
    for a, p in zip(got, model.module.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(a, p.grad, rtol=1e-3, atol=1e-6)


def test_only_sampled_tokens_have_a_gradient() -> None:
    """The log-probability of a given or forced id may be anything without a change of the gradient."""
    r = random_rollouts()
    noise = torch.where(r.mask_BT, r.logprobs_BT, torch.full_like(r.logprobs_BT, -50.0))
    noisy = Rollouts(r.ids_BT, r.mask_BT, noise, r.rewards_B, r.group_B, r.lengths_B, r.prompt_lengths_B)
    for a, b in zip(gradients(64, r)[0], gradients(64, noisy)[0], strict=True):
        assert torch.equal(a, b)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_padded_micro_batches_hold_every_row_once_within_the_limit(lengths: list[int], limit: int) -> None:
    n = torch.tensor(lengths)
    empty = torch.zeros(len(lengths), 1)
    rollouts = Rollouts(empty.long(), empty.bool(), empty, empty[:, 0], empty[:, 0].long(), n, n)
    parts = list(forward._alike(rollouts, torch.arange(len(lengths)), limit))
    assert sorted(int(i) for p in parts for i in p) == list(range(len(lengths)))
    assert all(len(p) == 1 or len(p) * int(n[p].max()) <= limit for p in parts)


@given(st.lists(st.sampled_from([0.0, 0.25, 1.0, math.nan]), min_size=8, max_size=8))
@settings(max_examples=100, deadline=None)
def test_mean_only_advantages_sum_to_zero_in_each_group_and_skip_failed_judgements(rewards: list[float]) -> None:
    mask = torch.ones(8, 3, dtype=torch.bool)
    rollouts = Rollouts(
        torch.zeros(8, 3).long(),
        mask,
        torch.zeros(8, 3),
        torch.tensor(rewards),
        torch.arange(8) // 4,
        torch.full((8,), 3),
        torch.ones(8).long(),
    )
    advantages = MeanOnly()(rollouts)
    assert advantages.isfinite().all()
    assert (advantages[rollouts.rewards_B.isnan()] == 0).all()
    for group in (advantages[:4, 0], advantages[4:, 0]):
        assert float(group.sum()) == pytest.approx(0.0, abs=1e-6)


def loss_of(ratio: float, advantage: float) -> tuple[float, float, int]:
    logprobs = torch.tensor([math.log(ratio)], requires_grad=True)
    out = Dapo()(LossInput(logprobs, torch.zeros(1), torch.tensor([advantage]), torch.zeros(1)))
    out.sum.backward()
    assert logprobs.grad is not None
    return float(out.sum.detach()), float(logprobs.grad), out.clipped


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


def test_a_group_without_signal_moves_nothing() -> None:
    r = random_rollouts()
    same = Rollouts(r.ids_BT, r.mask_BT, r.logprobs_BT, torch.ones(len(r)), r.group_B, r.lengths_B, r.prompt_lengths_B)
    model = new_model(0)
    before = [p.clone() for p in model.module.parameters()]
    optimiser = adamw(model.module, learning_rate=0.1, weight_decay=0.1, betas=(0.9, 0.95))
    stats = update(
        model, optimiser, Dapo(), same, MeanOnly()(same), temperature=1.0, max_grad_norm=1.0, micro_tokens=4096
    )
    assert stats.tokens == 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.module.parameters(), strict=True))


@pytest.mark.parametrize("limit", [0.0, 0.5, 10.0])
def test_gradients_are_clipped_to_the_limit_and_untouched_below_it(limit: float) -> None:
    module = torch.nn.Linear(3, 2)
    module.weight.grad, module.bias.grad = torch.full((2, 3), 2.0), None  # of norm sqrt(24)
    assert clip_gradients(module, limit) == pytest.approx(math.sqrt(24))
    got = float(module.weight.grad.norm())
    assert got == pytest.approx(limit if limit == 0.5 else math.sqrt(24), rel=1e-5)


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched() -> None:
    r = random_rollouts()
    broken = Rollouts(
        r.ids_BT,
        r.mask_BT,
        torch.full_like(r.logprobs_BT, math.nan),
        r.rewards_B,
        r.group_B,
        r.lengths_B,
        r.prompt_lengths_B,
    )
    model = new_model(0)
    before = [p.clone() for p in model.module.parameters()]
    optimiser = adamw(model.module, learning_rate=0.1, weight_decay=0.1, betas=(0.9, 0.95))
    with pytest.raises(TrainingDiverged, match="nan"):
        update(model, optimiser, Dapo(), broken, MeanOnly()(r), temperature=1.0, max_grad_norm=1.0, micro_tokens=4096)
    assert all(torch.equal(a, b) for a, b in zip(before, model.module.parameters(), strict=True))


@pytest.mark.parametrize("shared", [True, False])
def test_log_probabilities_are_those_of_a_plain_softmax_at_the_sampling_temperature(shared: bool) -> None:
    model, r = new_model(1), random_rollouts(rows=6, group=2)
    model.supports_cache = shared
    asked = torch.tensor([5, 1, 3, 0])  # siblings apart, and not in order
    got = row_logprobs(model, r, asked, 0.7)
    with torch.no_grad():
        full = torch.log_softmax(model.module.logits(model.module(r.ids_BT)) / 0.7, dim=-1)
    rows, columns = r.mask_BT[asked].nonzero(as_tuple=True)
    rows = asked[rows]
    at = full[rows, columns - 1]
    torch.testing.assert_close(got.logprobs_N.detach(), at.gather(1, r.ids_BT[rows, columns, None])[:, 0])
    torch.testing.assert_close(got.entropy_N, -(at.exp() * at).sum(-1))


def test_sharing_prompts_does_not_change_the_gradient() -> None:
    r = random_rollouts(rows=16)
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
