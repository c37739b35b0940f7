"""Parts of a block with a hand-written backward pass: the derivative of what they compute, in every dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.models import rope
from ponder.models.fused import rms_norm, swiglu

EPS = torch.tensor(1e-5)


def angles(tokens: int, size: int) -> tuple[Tensor, Tensor]:
    turn = torch.arange(tokens, dtype=torch.float64).outer(torch.linspace(1, 0.01, size // 2, dtype=torch.float64))
    return rope.widened(torch.stack((turn.cos(), turn.sin()), dim=1).unsqueeze(1))


def turned(x: Tensor) -> Tensor:
    cos, sin = angles(len(x), x.shape[-1])
    return rope.rotate(x, cos.to(x.dtype), sin.to(x.dtype))


def turned_plainly(x: Tensor) -> Tensor:
    cos, sin = (t.to(x.dtype) for t in angles(len(x), x.shape[-1]))
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return rms_norm(x, weight, EPS)


def normed_plainly(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.double()
    return ((wide * (wide.pow(2).mean(-1, keepdim=True) + EPS.double()).rsqrt()).to(x.dtype)) * weight


PARTS = {
    "swiglu": (swiglu, lambda gate, up: F.silu(gate) * up, ((5, 8), (5, 8))),
    "norm": (normed, normed_plainly, ((5, 8), (8,))),
    "norm of heads": (normed, normed_plainly, ((5, 3, 8), (8,))),
    "rotation": (turned, turned_plainly, ((5, 3, 8),)),
}
Part = tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[tuple[int, ...], ...]]


def inputs(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(s, generator=g, dtype=torch.float64) * 2).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_the_backward_pass_is_the_derivative_by_finite_differences(part: Part) -> None:
    function, plainly, shapes = part
    tensors = inputs(shapes, torch.float64)
    torch.testing.assert_close(function(*tensors), plainly(*tensors))
    assert torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_values_and_gradients_equal_autograds(part: Part, dtype: torch.dtype, tolerance: float) -> None:
    function, plainly, shapes = part
    tensors = inputs(shapes, dtype)
    got, want = function(*tensors), plainly(*tensors)
    with torch.no_grad():
        assert torch.equal(function(*tensors), got)
    weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    pairs = zip(
        (got, *torch.autograd.grad((got * weights).sum(), tensors)),
        (want, *torch.autograd.grad((want * weights).sum(), tensors)),
        strict=True,
    )
    for a, b in pairs:
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_inputs_and_incoming_gradients_stay_as_they_are(part: Part) -> None:
    """The backward passes reuse memory, but never that of a tensor they do not own."""
    function, _, shapes = part
    tensors = inputs(shapes, torch.float32)
    before = [t.detach().clone() for t in tensors]
    out = function(*tensors)
    grad = torch.ones_like(out)
    first = torch.autograd.grad(out, tensors, grad, retain_graph=True)
    second = torch.autograd.grad(out, tensors, grad)
    assert (grad == 1).all()
    assert all(torch.equal(a, b) for a, b in zip((*first, *before), (*second, *tensors), strict=True))


def test_a_frozen_norm_gives_a_gradient_to_its_input_alone() -> None:
    x, weight = inputs(((5, 8), (8,)), torch.float64)
    want = torch.autograd.grad(normed(x, weight).sum(), x)[0]
    out = normed(x, weight.detach())
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], want)


def test_swiglu_keeps_its_inputs_alone() -> None:
    gate, up = inputs(((5, 8), (5, 8)), torch.float32)
    saved = swiglu(gate, up).grad_fn.saved_tensors  # type: ignore[union-attr]
    assert {t.data_ptr() for t in saved} == {gate.data_ptr(), up.data_ptr()}
