"""Parts of a block with a hand-written backward pass: fewer memory passes and saved tensors than autograd's.

On a CPU these parts are bound by memory bandwidth. Each function is the plain computation where no gradient is needed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up` (Shazeer 2020, arXiv:2002.05202); saves only its two inputs."""
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        return _SwiGLU.apply(gate, up)
    return F.silu(gate).mul_(up)


def rms_norm(x: Tensor, weight_D: Tensor, eps: Tensor) -> Tensor:
    """Root-mean-square norm over the last dimension, in float32 at least; `eps` has no dimension."""
    if torch.is_grad_enabled() and (x.requires_grad or weight_D.requires_grad):
        return _RMSNorm.apply(x, weight_D, eps)
    return _normed(x, weight_D, _scale(_wide(x), eps))


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate = grad * up
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_gate, F.silu(gate).mul_(grad)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: Tensor) -> Tensor:
        scale = _scale(_wide(x), eps)
        ctx.save_for_backward(x, weight_D, scale)
        return _normed(x, weight_D, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """With s the scale: dx = s w g - x s³ ⟨w, x g⟩ / D, and dw is the sum over tokens of s x g."""
        x, weight_D, scale = ctx.saved_tensors
        size = x.shape[-1]
        x_ND, grad_ND, scale_N1 = _wide(x).reshape(-1, size), _wide(grad).reshape(-1, size), scale.reshape(-1, 1)
        wide_D = weight_D.to(x_ND.dtype)
        both_ND = x_ND * grad_ND
        grad_weight = (both_ND.T @ scale_N1).squeeze(1).to(weight_D.dtype) if ctx.needs_input_grad[1] else None
        inward_N1 = (both_ND @ wide_D).unsqueeze(1).mul_(scale_N1.pow(3)).div_(-size)
        grad_x = torch.mul(grad_ND, wide_D, out=both_ND).mul_(scale_N1).addcmul_(x_ND, inward_N1)
        return grad_x.to(x.dtype).view(x.shape), grad_weight, None


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x


def _scale(x: Tensor, eps: Tensor) -> Tensor:
    # Torch's own norm is nine small operations on a CPU.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]).rsqrt()


def _normed(x: Tensor, weight_D: Tensor, scale: Tensor) -> Tensor:
    return (_wide(x) * scale).to(x.dtype).mul_(weight_D)
