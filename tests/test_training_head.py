"""The head: the same log-probabilities, entropy and gradients as autograd's, with fewer tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ponder.models.tiny import new_model
from ponder.training import head
from ponder.training.head import plain_head, summed_logprob, token_logprobs

TOKENS, WIDTH, VOCABULARY = 75, 128, 512


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Module, hidden states, ids and weights of the tokens; the weights of the head are large enough to matter."""
    module, g = new_model(1).module, torch.Generator().manual_seed(0)
    with torch.no_grad():
        module.lm_head.weight.mul_(12)
    hidden = torch.randn(TOKENS, WIDTH, generator=g).to(dtype).requires_grad_()
    ids = torch.randint(VOCABULARY, (TOKENS,), generator=g)
    ids[1] = ids[0]  # two tokens with the same id
    return module.to(dtype), hidden, ids, torch.randn(TOKENS, generator=g)


def by_autograd(module: Any, hidden: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logprobs = torch.log_softmax(module.logits(hidden) / temperature, dim=-1)
    return logprobs.gather(1, ids.unsqueeze(1)).squeeze(1), -(logprobs.exp() * logprobs).sum(-1)


def gradients(out: Tensor, hidden: Tensor, module: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, (hidden, module.lm_head.weight))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_BYTES", 4 * VOCABULARY * 7)  # the last chunk is not full


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("kept_bytes", [head.KEPT_BYTES, 4 * VOCABULARY * 31, 0])
def test_chosen_logprobs_and_gradients_equal_autograds(temperature: float, kept_bytes: int, small_chunks: None) -> None:
    module, hidden, ids, weights = inputs()
    want, entropy = by_autograd(module, hidden, ids, temperature)
    got, got_entropy = token_logprobs(module, hidden, ids, temperature, kept_bytes=kept_bytes)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(got_entropy, entropy, rtol=1e-5, atol=2e-5)
    assert not got_entropy.requires_grad
    for a, b in zip(
        gradients((got * weights).sum(), hidden, module), gradients((want * weights).sum(), hidden, module), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_the_derivative_by_finite_differences() -> None:
    g = torch.Generator().manual_seed(1)
    hidden = torch.randn(4, 3, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, generator=g, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 4, 4, 2])
    # The probabilities are float32, hence the step and the tolerance.
    torch.autograd.gradcheck(
        lambda h, w: head._Chosen.apply(h, w, ids, 0.8, 1 << 20)[0], (hidden, weight), eps=1e-2, atol=1e-3
    )
    torch.autograd.gradcheck(lambda h, w: head._Summed.apply(h, w, ids), (hidden, weight), eps=1e-2, atol=1e-3)


def test_a_sum_has_the_gradient_of_autograds_cross_entropy(small_chunks: None) -> None:
    module, hidden, ids, _ = inputs()
    want = -torch.nn.functional.cross_entropy(module.logits(hidden), ids, reduction="sum")
    got = summed_logprob(module, hidden, ids)
    assert float(got.detach()) == pytest.approx(float(want.detach()), rel=1e-5)
    for a, b in zip(gradients(got * 0.3, hidden, module), gradients(want * 0.3, hidden, module), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_head_that_is_more_than_a_matrix_goes_through_its_own_logits(small_chunks: None) -> None:
    module, hidden, ids, weights = inputs()
    bias = torch.linspace(-3, 3, VOCABULARY)
    module.logits = lambda h: 5 * torch.tanh(module.lm_head(h) / 5) + bias
    assert plain_head(module) is None
    want, entropy = by_autograd(module, hidden, ids, 0.9)
    got, got_entropy = token_logprobs(module, hidden, ids, 0.9)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_entropy, entropy.detach(), rtol=1e-5, atol=1e-5)
    for a, b in zip(
        gradients((got * weights).sum(), hidden, module), gradients((want * weights).sum(), hidden, module), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(summed_logprob(module, hidden, ids), by_autograd(module, hidden, ids, 1.0)[0].sum())


def test_a_hook_on_the_head_makes_it_go_through_its_own_logits() -> None:
    module, hidden, ids, _ = inputs()
    head = module.lm_head
    assert plain_head(module) is not None
    for hook in (head.register_forward_hook, head.register_forward_pre_hook):
        handle = hook(lambda *_: None)
        assert plain_head(module) is None
        handle.remove()
    handle = head.register_full_backward_hook(lambda *x: seen.append(x))
    seen: list[object] = []
    assert plain_head(module) is None
    token_logprobs(module, hidden, ids)[0].sum().backward()
    assert seen
    handle.remove()
    head.forward = lambda h: torch.nn.Linear.forward(head, h)
    assert plain_head(module) is None
    del head.forward
    assert plain_head(module) is head.weight


def test_without_gradients_the_numbers_are_the_same(small_chunks: None) -> None:
    module, hidden, ids, _ = inputs()
    want, entropy = token_logprobs(module, hidden, ids, 0.7)
    with torch.no_grad():
        got, got_entropy = token_logprobs(module, hidden, ids, 0.7)
        total = summed_logprob(module, hidden, ids)
    torch.testing.assert_close(got, want.detach())
    torch.testing.assert_close(got_entropy, entropy, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(total, by_autograd(module, hidden, ids, 1.0)[0].sum().detach(), rtol=1e-5, atol=1e-3)


def test_a_frozen_head_gets_no_gradient_and_keeps_no_probabilities() -> None:
    module, hidden, ids, weights = inputs()
    want = torch.autograd.grad((by_autograd(module, hidden, ids, 1.0)[0] * weights).sum(), hidden)[0]
    module.lm_head.weight.requires_grad_(False)
    logprobs, _ = token_logprobs(module, hidden, ids)
    assert not any(t.numel() >= TOKENS * VOCABULARY for t in saved(logprobs) if t is not module.lm_head.weight)
    torch.testing.assert_close(torch.autograd.grad((logprobs * weights).sum(), hidden)[0], want, rtol=1e-4, atol=1e-5)


def test_half_precision_stays_close_to_autograd() -> None:
    module, hidden, ids, weights = inputs(torch.bfloat16)
    want, _ = by_autograd(module, hidden, ids, 1.0)
    got, _ = token_logprobs(module, hidden, ids)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want)
    for a, b in zip(
        gradients((got * weights).sum(), hidden, module), gradients((want * weights).sum(), hidden, module), strict=True
    ):
        assert float((a - b).norm() / b.norm()) < 0.02


class Made(TorchDispatchMode):
    """Counts the tensors of at least some size that operations allocate."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.seen, self.count = numel, {}, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor) and t.numel() >= self.numel:
                key = t.untyped_storage().data_ptr()
                if key not in self.seen:
                    self.count += 1
                    self.seen[key] = t  # held, so that no address is used twice
        return out


def saved(out: Tensor) -> list[Tensor]:
    return [t for t in out.grad_fn.saved_tensors if isinstance(t, Tensor)]  # type: ignore[union-attr]


@pytest.mark.parametrize("kept_bytes", [head.KEPT_BYTES, 0])
def test_tokens_times_vocabulary_is_made_at_most_once(kept_bytes: int, small_chunks: None) -> None:
    module, hidden, ids, weights = inputs()
    hidden = hidden.detach().repeat(4, 1).requires_grad_()  # more tokens than the head is wide
    ids, weights = ids.repeat(4), weights.repeat(4)
    with Made(len(ids) * VOCABULARY) as made:
        logprobs, _ = token_logprobs(module, hidden, ids, 0.9, kept_bytes=kept_bytes)
        (logprobs * weights).sum().backward()
    assert made.count == (1 if kept_bytes else 0)
    with Made(len(ids) * VOCABULARY) as made:
        summed_logprob(module, hidden, ids).backward()
    assert made.count == 0
    with Made(len(ids) * VOCABULARY) as made:
        (by_autograd(module, hidden, ids, 0.9)[0] * weights).sum().backward()
    assert made.count > 4  # what it would be without


def test_softmax_may_be_written_over_its_input() -> None:
    """The head relies on it: `log_softmax` with `out` equal to its input."""
    for shape in ((3, 7), (33, 512), (5, 49153)):
        logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 20
        want = torch.log_softmax(logits, dim=-1)
        torch.log_softmax(logits, dim=-1, out=logits)
        assert torch.equal(logits, want)
