"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864) in Hugging Face's half-split convention.

The kinds of scaling that Llama, Qwen and Mistral models come with. `dynamic` (NTK) changes nothing up to
`max_position_embeddings` tokens, and ponder never runs a model beyond its context, so it equals the default.
`longrope` and partial rotation are left to transformers' forward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ponder.models.decoder_config import DecoderConfig


def frequencies(config: DecoderConfig) -> tuple[Tensor, float]:
    """Inverse frequencies, shape (head_dim / 2,), and the factor of cosine and sine, scaled as the config says."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
    inverse = 1.0 / (config.rope_theta**exponent)
    scaling = config.rope_scaling
    kind = scaling.get("rope_type", "default")
    if kind == "linear":
        return inverse / float(scaling["factor"]), 1.0
    if kind == "llama3":
        return _llama3(inverse, scaling), 1.0
    if kind == "yarn":
        return _yarn(inverse, scaling, config.rope_theta), attention_factor(scaling)
    assert kind in ("default", "dynamic"), f"rope type {kind!r} must be refused at load"
    return inverse, 1.0


def _llama3(inverse: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Llama 3.1: long wavelengths divided by `factor`, short ones kept, a linear blend between."""
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    old, factor = float(scaling["original_max_position_embeddings"]), float(scaling["factor"])
    wavelength = 2 * math.pi / inverse
    smooth = ((old / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return inverse * (smooth + (1 - smooth) / factor)


def _yarn(inverse: Tensor, scaling: Mapping[str, Any], theta: float) -> Tensor:
    """YaRN, "NTK-by-parts" (Peng et al. 2023, arXiv:2309.00071, §3.2)."""
    factor, old = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    half = len(inverse)

    def dimension(rotations: float) -> float:
        """The pair of dimensions that turns this many times within the original context."""
        return half * math.log(old / (rotations * 2 * math.pi)) / math.log(theta)

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    ramp = (torch.arange(half, dtype=torch.float32, device="cpu") - low) / ((high - low) or 0.001)
    ramp = ramp.clamp(0.0, 1.0)
    return inverse / factor * ramp + inverse * (1 - ramp)


def attention_factor(scaling: Mapping[str, Any]) -> float:
    """The temperature of YaRN's attention (§3.3) as a factor of both queries and keys."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return temperature(scaling["mscale"]) / temperature(scaling["mscale_all_dim"])
    return temperature(1.0)


def table(config: DecoderConfig) -> Tensor:
    """Cosine and sine of every position's angles, shape (max_position_embeddings, 2, head_dim / 2), float32."""
    inverse, factor = frequencies(config)
    angles = torch.outer(torch.arange(config.max_position_embeddings, device="cpu").float(), inverse)
    return torch.stack((angles.cos(), angles.sin()), dim=1) * factor


def widened(rows: Tensor) -> tuple[Tensor, Tensor]:
    """From rows of `table` (… 2 head_dim/2) what `rotate` takes: cosine and signed sine, shape … head_dim."""
    cos, sin = rows.unbind(-2)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the last dimension of `x` by angles that broadcast to it; `sin` is signed as `widened` gives it."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _Rotation.apply(x, cos, sin)
    # With few tokens the cost is the number of operations.
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


class _Rotation(torch.autograd.Function):
    """Its backward pass is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    # Each half separately: a roll would write and read one more tensor.
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out
