"""Attention over packed rows that share prefixes, without copies of a prefix's keys and values.

A row's queries attend to its prefix and to the row itself. The two parts are computed separately and merged by
log-sum-exp; for the prefix the queries of all rows of a group are one matrix (Hydragen, Juravsky et al. 2024,
arXiv:2402.05099, §3.1). The backward pass is split alike: with the merged output and log-sum-exp, the kernel's own
gradient of each part (FlashAttention-2, Dao 2023, arXiv:2307.08691, alg. 2) is its share of the whole.

On a CPU this is built on torch's flash kernel, which keeps no scores. On other devices `plainly` copies the prefixes to
their rows, pads rows of like length and lets torch choose a kernel; the tests compare with it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ponder.models.cache import causal
from ponder.training.packing import Packed, Run

LANES = 16
"""The kernel reads scores in vectors of this many keys and the remainder one by one: 48 keys, 5 of them hidden, take
less than half the time of 43."""
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend(
    query_NHD: Tensor,
    key_NKD: Tensor,
    value_NKD: Tensor,
    layout: Packed,
    prefix_key_MKD: Tensor | None = None,
    prefix_value_MKD: Tensor | None = None,
) -> Tensor:
    """Causal attention of packed rows, and to the prefixes that the layout names; shape N H D.

    H is a multiple of K (grouped queries). The scale is 1 / sqrt(D).
    """
    if query_NHD.device.type != "cpu":
        return plainly(query_NHD, key_NKD, value_NKD, layout, prefix_key_MKD, prefix_value_MKD)
    return _PackedAttention.apply(query_NHD, key_NKD, value_NKD, prefix_key_MKD, prefix_value_MKD, layout)


def plainly(
    query_NHD: Tensor,
    key_NKD: Tensor,
    value_NKD: Tensor,
    layout: Packed,
    prefix_key_MKD: Tensor | None = None,
    prefix_value_MKD: Tensor | None = None,
) -> Tensor:
    """The same by padded rows, each with a copy of its prefix."""
    parts = []
    device, grouped = query_NHD.device, query_NHD.shape[1] != key_NKD.shape[1]
    for bucket in layout.buckets:
        index_BT = layout.index_M[bucket.at].view(bucket.rows, bucket.length)
        query, key, value = (x[index_BT] for x in (query_NHD, key_NKD, value_NKD))
        visible = torch.ones(bucket.length, bucket.length, dtype=torch.bool, device=device).tril()
        visible = visible.expand(bucket.rows, -1, -1)
        if prefix_key_MKD is not None and prefix_value_MKD is not None:
            starts, stops, ends = (
                torch.tensor(list(x), device=device)
                for x in zip(*((p.source.start, p.source.stop, p.tokens.stop) for p in layout.prefixes), strict=True)
            )
            own_B = torch.searchsorted(ends, index_BT[:, 0].contiguous(), right=True)
            at_BW = starts[own_B].unsqueeze(1) + torch.arange(int((stops - starts).max()), device=device)
            inside_BW = at_BW < stops[own_B].unsqueeze(1)
            at_BW = torch.where(inside_BW, at_BW, 0)
            key = torch.cat((prefix_key_MKD[at_BW], key), dim=1)
            value = torch.cat((prefix_value_MKD[at_BW], value), dim=1)
            visible = torch.cat((inside_BW.unsqueeze(1).expand(-1, bucket.length, -1), visible), dim=2)
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=visible.unsqueeze(1),
            enable_gqa=grouped,
        )
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[layout.place_N]


@torch.no_grad()
def probabilities(
    query_NHD: Tensor, key_NKD: Tensor, layout: Packed, positions_N: Tensor, prefix_key_MKD: Tensor | None = None
) -> Tensor:
    """What each token attends to, shape N H S, float32; column s is the place s in its own text. Row by row."""
    out_NHS = query_NHD.new_zeros(*query_NHD.shape[:2], int(positions_N.max()) + 1, dtype=torch.float32)
    prefixes = iter(layout.prefixes)
    prefix = next(prefixes, None)
    for run in layout.runs:
        for start in range(run.at.start, run.at.stop, run.length):
            tokens, key = slice(start, start + run.length), key_NKD[start : start + run.length]
            while prefix is not None and prefix.tokens.stop <= start:
                prefix = next(prefixes, None)
            if prefix is not None and prefix_key_MKD is not None:
                key = torch.cat((prefix_key_MKD[prefix.source], key))
            weights = causal(_one(query_NHD[tokens]), _one(key))[0]
            out_NHS[tokens, :, : weights.shape[-1]] = weights.transpose(0, 1)
    return out_NHS


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_NHD: Tensor,
        key_NKD: Tensor,
        value_NKD: Tensor,
        prefix_key_MKD: Tensor | None,
        prefix_value_MKD: Tensor | None,
        layout: Packed,
    ) -> Tensor:
        groups = query_NHD.shape[1] // key_NKD.shape[1]
        own = query_NHD, _widen(key_NKD, groups), _widen(value_NKD, groups)
        found = [_forward(*x, 0.0, True) for x in zip(*(_rows(x, layout.runs) for x in own), strict=True)]
        out_NHD, sum_NH = _joined(found, layout)
        if prefix_key_MKD is not None and prefix_value_MKD is not None:
            key, value = (_widen(_longer(x), groups) for x in (prefix_key_MKD, prefix_value_MKD))
            for p in layout.prefixes:
                seen, bias = _rounded(p.source, key)
                other, more = _forward(
                    _one(query_NHD[p.tokens]), _one(key[seen]), _one(value[seen]), 0.0, False, attn_mask=bias
                )
                total, more = sum_NH[p.tokens], more[0].T
                share = torch.sigmoid(more - total).unsqueeze(2).to(out_NHD.dtype)
                out_NHD[p.tokens].lerp_(other[0].transpose(0, 1), share)
                torch.logaddexp(total, more, out=total)
        ctx.save_for_backward(query_NHD, key_NKD, value_NKD, prefix_key_MKD, prefix_value_MKD, out_NHD, sum_NH)
        ctx.layout = layout
        return out_NHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NHD: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, prefix_key, prefix_value, out, total = ctx.saved_tensors
        layout, groups = ctx.layout, query.shape[1] // key.shape[1]
        own = grad_NHD, query, _widen(key, groups), _widen(value, groups), out, total
        found = [_backward(*x, 0.0, True) for x in zip(*(_rows(x, layout.runs) for x in own), strict=True)]
        grad_query, grad_key, grad_value = _joined(found, layout)
        grad_key, grad_value = _narrow(grad_key, groups), _narrow(grad_value, groups)
        if prefix_key is None or prefix_value is None:
            return grad_query, grad_key, grad_value, None, None, None
        wide_key, wide_value = (_widen(_longer(x), groups) for x in (prefix_key, prefix_value))
        grads = torch.zeros_like(prefix_key), torch.zeros_like(prefix_value)
        for p in layout.prefixes:
            g, q, o, s = (_one(x[p.tokens]) for x in (grad_NHD, query, out, total))
            seen, bias = _rounded(p.source, wide_key)
            part, *parts = _backward(
                g, q, _one(wide_key[seen]), _one(wide_value[seen]), o, s, 0.0, False, attn_mask=bias
            )
            grad_query[p.tokens] += part[0].transpose(0, 1)
            length = p.source.stop - p.source.start
            for whole, part in zip(grads, parts, strict=True):
                whole[p.source] = _narrow(part[0].transpose(0, 1)[:length], groups)
        return grad_query, grad_key, grad_value, *grads, None


def _rows(x_NHD: Tensor, runs: Sequence[Run]) -> list[Tensor]:
    """The rows of each run as B H T D (B H T where there is no D)."""
    # One operation for all runs: with short rows it is the number of operations that costs.
    parts = _one(x_NHD).split([r.rows * r.length for r in runs], dim=2)
    return [
        x if r.rows == 1 else x[0].unflatten(1, (r.rows, r.length)).transpose(0, 1)
        for x, r in zip(parts, runs, strict=True)
    ]


def _joined(found: Sequence[tuple[Tensor, ...]], layout: Packed) -> tuple[Tensor, ...]:
    """What the kernel gave for each run, as N H D (N H where there is no D)."""
    if len(found) == 1:
        return tuple(x.transpose(1, 2).flatten(0, 1) for x in found[0])
    joined = []
    for parts in zip(*found, strict=True):
        _, heads, _, *width = parts[0].shape
        whole = parts[0].new_empty(len(layout), heads, *width)
        torch._foreach_copy_(_rows(whole, layout.runs), parts)
        joined.append(whole)
    return tuple(joined)


def _one(x_NHD: Tensor) -> Tensor:
    """One row as B H T D (B H T where there is no D)."""
    return x_NHD.transpose(0, 1).unsqueeze(0)


def _longer(x_NKD: Tensor) -> Tensor:
    """Padded, so that a kernel may read past the end."""
    return F.pad(x_NKD, (0, 0, 0, 0, 0, LANES - 1))


def _rounded(source: slice, key_NHD: Tensor) -> tuple[slice, Tensor | None]:
    """A prefix up to a multiple of `LANES`, and the bias of the scores that hides what is not its own."""
    length = source.stop - source.start
    more = -length % LANES
    bias = key_NHD.new_zeros(1, 1, 1, length + more)
    bias[..., length:] = -torch.inf
    return slice(source.start, source.stop + more), bias if more else None


def _widen(x_NKD: Tensor, groups: int) -> Tensor:
    """Each key-value head once for each of its query heads."""
    return x_NKD if groups == 1 else x_NKD.repeat_interleave(groups, dim=1)


def _narrow(x_NHD: Tensor, groups: int) -> Tensor:
    return x_NHD if groups == 1 else x_NHD.unflatten(1, (-1, groups)).sum(2)
