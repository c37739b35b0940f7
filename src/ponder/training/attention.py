"""Attention over packed rows that share prefixes, without copies of a prefix's keys and values.

A row's queries look at its prefix and at the row itself. The two are computed apart and merged by their log-sum-exp;
for the prefix the queries of all rows of a group are one matrix (Hydragen, Juravsky et al. 2024, arXiv:2402.05099,
§3.1). The way back is the same split: with the merged output and log-sum-exp, the kernel's own gradient of each part
(FlashAttention-2, Dao 2023, arXiv:2307.08691, alg. 2) is its share of the whole.

On a CPU this is built on torch's flash kernel, which keeps no scores. Elsewhere `plainly` copies the prefixes to their
rows and lets torch choose a kernel; it is also what the tests compare with.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ponder.training.packing import Bucket, Packed

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
        padded = _padded(layout, groups, query_NHD, key_NKD, value_NKD)
        found = [_forward(*(_rows(x, b) for x in padded), 0.0, True) for b in layout.buckets]
        out_NHD, sum_NH = (
            torch.cat([x.transpose(1, 2).flatten(0, 1) for x in part]).index_select(0, layout.place_N)
            for part in zip(*found, strict=True)
        )
        if prefix_key_MKD is not None and prefix_value_MKD is not None:
            key, value = _widen(prefix_key_MKD, groups), _widen(prefix_value_MKD, groups)
            found = [
                _forward(_one(query_NHD[p.tokens]), _one(key[p.source]), _one(value[p.source]), 0.0, False)
                for p in layout.prefixes
            ]
            other_NHD, other_NH = (torch.cat([x[0].transpose(0, 1) for x in part]) for part in zip(*found, strict=True))
            share_NH1 = torch.sigmoid(other_NH - sum_NH).unsqueeze(2).to(out_NHD.dtype)
            out_NHD = torch.lerp(out_NHD, other_NHD, share_NH1)
            sum_NH = torch.logaddexp(sum_NH, other_NH)
        ctx.save_for_backward(query_NHD, key_NKD, value_NKD, prefix_key_MKD, prefix_value_MKD, out_NHD, sum_NH)
        ctx.layout = layout
        return out_NHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NHD: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, prefix_key, prefix_value, out, total = ctx.saved_tensors
        layout, groups = ctx.layout, query.shape[1] // key.shape[1]
        padded = _padded(layout, groups, query, key, value)
        grad, outs = grad_NHD.index_select(0, layout.index_M), out.index_select(0, layout.index_M)
        grad.index_fill_(0, layout.padding, 0.0)
        totals = total.index_select(0, layout.index_M)
        found = [
            _backward(_rows(grad, b), *(_rows(x, b) for x in padded), _rows(outs, b), _rows(totals, b), 0.0, True)
            for b in layout.buckets
        ]
        grad_query, grad_key, grad_value = (
            torch.cat([x.transpose(1, 2).flatten(0, 1) for x in part]).index_select(0, layout.place_N)
            for part in zip(*found, strict=True)
        )
        grad_key, grad_value = _narrow(grad_key, groups), _narrow(grad_value, groups)
        if prefix_key is None or prefix_value is None:
            return grad_query, grad_key, grad_value, None, None, None
        wide_key, wide_value = _widen(prefix_key, groups), _widen(prefix_value, groups)
        grads = torch.zeros_like(wide_key), torch.zeros_like(wide_value)
        queries = []
        for p in layout.prefixes:
            g, q, o, s = (_one(x[p.tokens]) for x in (grad_NHD, query, out, total))
            found_one = _backward(g, q, _one(wide_key[p.source]), _one(wide_value[p.source]), o, s, 0.0, False)
            queries.append(found_one[0][0].transpose(0, 1))
            for whole, part in zip(grads, found_one[1:], strict=True):
                whole[p.source] = part[0].transpose(0, 1)
        grad_query += torch.cat(queries)
        return grad_query, grad_key, grad_value, _narrow(grads[0], groups), _narrow(grads[1], groups), None


def _padded(layout: Packed, groups: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the padded tokens, one head of each for each query head."""
    index = layout.index_M
    return (
        query.index_select(0, index),
        _widen(key.index_select(0, index), groups),
        _widen(value.index_select(0, index), groups),
    )


def _rows(x_MHD: Tensor, bucket: Bucket) -> Tensor:
    """The rows of a bucket as B H T D (B H T where there is no D)."""
    return x_MHD[bucket.at].unflatten(0, (bucket.rows, bucket.length)).transpose(1, 2)


def _one(x_NHD: Tensor) -> Tensor:
    """One row as B H T D (B H T where there is no D)."""
    return x_NHD.transpose(0, 1).unsqueeze(0)


def _widen(x_KD: Tensor, groups: int) -> Tensor:
    """Each key-value head once for each of its query heads; any leading shape."""
    return x_KD if groups == 1 else x_KD.repeat_interleave(groups, dim=-2)


def _narrow(x_NHD: Tensor, groups: int) -> Tensor:
    return x_NHD if groups == 1 else x_NHD.unflatten(1, (-1, groups)).sum(2)
