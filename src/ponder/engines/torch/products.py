"""Linear layers packed for decoding, several ways: which is fastest depends on the processor (`choosing.py`).

A product with the few rows of a decode step spends much of its time on reordering the matrix for the processor. Packed
once, it comes near the rate of a large product. Each class here packs one matrix W (E D) and a bias (E), and gives
`x W^T + b` (N E) for x (N D), in float32 whatever it computes in. docs/LOG.md has their rates.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor

from ponder.errors import Unsupported, UserError, nearest
from ponder.models.weights import all_finite

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
PLAIN = "plain"
"""The module's own products: no copy of the matrices."""
_EXPECTED_ROWS = 64
"""Rows that packing is told to expect; results are correct for any number."""


class Packed(Protocol):
    """One packed matrix."""

    name: str
    precision: Precision
    bytes: float
    """Of one weight of the copy."""

    def __init__(self, weight_ED: Tensor, bias_E: Tensor | None) -> None: ...

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Shape N E, in float32."""
        ...

    @staticmethod
    def missing() -> str:
        """What this torch or this processor lacks for it; empty if nothing."""
        ...


class Mkl:
    """Intel MKL's packed order, in float32. On processors of other makers it takes a generic path."""

    name = "mkl"
    precision: Precision = "float32"
    bytes = 4.0

    def __init__(self, weight_ED: Tensor, bias_E: Tensor | None) -> None:
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(weight_ED.contiguous(), _EXPECTED_ROWS)
        # The operator takes the plain matrix too, and reads only its shape.
        self.shape = weight_ED.new_zeros(()).expand(weight_ED.shape)
        self.bias = bias_E

    def __call__(self, x_ND: Tensor) -> Tensor:
        return torch.ops.mkl._mkl_linear(x_ND, self.packed, self.shape, self.bias, len(x_ND))

    @staticmethod
    def missing() -> str:
        there = torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")
        return "" if there else "this torch has no MKL"


def _one_dnn(x_ND: Tensor, packed: Tensor, bias_E: Tensor | None) -> Tensor:
    """oneDNN compiles a kernel for every number of rows and keeps a thousand: rows are padded to fewer numbers."""
    rows = len(x_ND)
    step = 1 if rows <= 8 else 8 if rows <= 64 else 32
    whole = -(-rows // step) * step
    if whole > rows:
        padded_ND = x_ND.new_zeros(whole, x_ND.shape[1])
        padded_ND[:rows] = x_ND
        x_ND = padded_ND
    return torch.ops.mkldnn._linear_pointwise(x_ND, packed, bias_E, "none", [], "")[:rows]


class OneDnn:
    """oneDNN's blocked order, in float32."""

    name = "onednn"
    precision: Precision = "float32"
    bytes = 4.0

    def __init__(self, weight_ED: Tensor, bias_E: Tensor | None) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_ED.contiguous(), _EXPECTED_ROWS)
        self.bias = bias_E

    def __call__(self, x_ND: Tensor) -> Tensor:
        return _one_dnn(x_ND, self.packed, self.bias)

    @staticmethod
    def missing() -> str:
        there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        return "" if there else "this torch has no oneDNN"


class OneDnnBf16:
    """The same in bfloat16: weights and inputs are rounded, sums are float32, results are rounded once."""

    name = "onednn-bf16"
    precision: Precision = "bfloat16"
    bytes = 2.0

    def __init__(self, weight_ED: Tensor, bias_E: Tensor | None) -> None:
        half = weight_ED.to(torch.bfloat16)
        refuse_overflow(half)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(half, _EXPECTED_ROWS)
        self.bias = bias_E

    def __call__(self, x_ND: Tensor) -> Tensor:
        y = _one_dnn(x_ND.to(torch.bfloat16), self.packed, None).float()
        return y if self.bias is None else y.add_(self.bias)

    @staticmethod
    def missing() -> str:
        if reason := OneDnn.missing():
            return reason
        there = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return "" if there else "this processor has no AVX-512, which oneDNN needs for bfloat16"


class Int8:
    """Weights in 8 bits with a scale for each output (symmetric, round to nearest), inputs in bfloat16."""

    name = "int8"
    precision: Precision = "int8"
    bytes = 1.0

    def __init__(self, weight_ED: Tensor, bias_E: Tensor | None) -> None:
        scale_E = weight_ED.abs().amax(1).clamp_(min=torch.finfo(torch.float32).tiny) / 127
        refuse_overflow(scale_E)
        self.packed = (weight_ED / scale_E.unsqueeze(1)).round_().to(torch.int8).contiguous()
        # The operator wants a scale of the input's type; the part that rounding it loses is multiplied in afterwards.
        self.scale = scale_E.to(torch.bfloat16)
        self.rest = scale_E / self.scale.float()
        self.bias = bias_E

    def __call__(self, x_ND: Tensor) -> Tensor:
        y = torch.ops.aten._weight_int8pack_mm(x_ND.to(torch.bfloat16), self.packed, self.scale).float()
        y.mul_(self.rest)
        return y if self.bias is None else y.add_(self.bias)

    @staticmethod
    def missing() -> str:
        return "" if hasattr(torch.ops.aten, "_weight_int8pack_mm") else "this torch has no product with int8 weights"


Plan = tuple[tuple[float, type[Packed]], ...]
"""Which kind multiplies up to how many rows, in rising order; the last one is for any number."""
_ALL: tuple[type[Packed], ...] = (Mkl, OneDnn, OneDnnBf16, Int8)
KINDS = {kind.name: kind for kind in _ALL}


def refuse_overflow(weights: Tensor) -> None:
    """Raises `OverflowError` if a weight is not finite."""
    if not all_finite(weights):
        raise OverflowError


def candidates(precision: str) -> list[type[Packed]]:
    """The packed products of a precision that this machine has."""
    return [kind for kind in KINDS.values() if kind.precision == precision and not kind.missing()]


def named(name: str, precision: str) -> Plan:
    """The products of this name for any number of rows; an empty plan for the module's own.

    Raises `UserError` for an unknown name or another precision, `Unsupported` for what this machine lacks.
    """
    if name == PLAIN:
        if precision != "float32":
            raise UserError(
                f"products = 'plain' are in float32, and the precision is {precision}: leave out one of them"
            )
        return ()
    if name not in KINDS:
        raise UserError(f"products = {name!r}: unknown{nearest(name, [PLAIN, *KINDS])}")
    kind = KINDS[name]
    if reason := kind.missing():
        raise Unsupported(f"products = {name!r}: {reason}")
    if kind.precision != precision:
        raise UserError(
            f"products = {name!r} compute in {kind.precision}, and the precision is {precision}: "
            f"give precision = {kind.precision!r} with them, or other products"
        )
    return ((math.inf, kind),)


def refuse_precision(precision: str) -> None:
    """Raises `UserError` for an unknown precision, `Unsupported` for one that this machine has no products for."""
    if precision not in PRECISIONS:
        raise UserError(f"precision = {precision!r}: unknown{nearest(precision, PRECISIONS)}")
    if precision != "float32" and not candidates(precision):
        reasons = {k.missing() for k in KINDS.values() if k.precision == precision}
        raise Unsupported(f"precision = {precision!r} cannot be had here: {' and '.join(sorted(reasons))}")
