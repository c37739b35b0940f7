"""The key-value cache of a running batch, and the attention that reads it.

One slot per running sample. Keys lie as [slot, kv head, dimension, position] and values as [slot, kv head, position,
dimension]: with one query a row, `bmm` on that layout was the fastest of the variants measured on a CPU (bmm on
untransposed keys 1.4 times, torch's scaled_dot_product_attention with a mask 1.4 to 1.7 times as long). Attention
reads blocks of slots, each only up to its own longest row, and slots are sorted by length now and then, so that one
long row does not make all others pay.

Memory is bounded by the caller, which admits no more rows than fit; `reserve` grows in steps of `CHUNK` positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
"""Positions by which the cache grows."""
UNIT = 16
"""Slots are cut into blocks at multiples of this."""
ROUND = 16
"""Attention lengths are rounded up to this, so that few shapes occur."""
PADDING_WORTH_A_BLOCK = 1 << 16
"""Numbers of padding that cost about as much to read as one more block costs to start."""


def rounded(length: int, to: int = CHUNK) -> int:
    return -(-length // to) * to


def cut_blocks(lengths_B: np.ndarray, numbers_per_position: int) -> list[tuple[int, int, int]]:
    """Cut slots into (first, end, length) blocks that attend together, each padded to its longest row.

    Neighbours share a block unless the padding would cost more than the block.
    """
    starts = np.arange(0, len(lengths_B), UNIT)
    longest = np.maximum.reduceat(lengths_B, starts)
    blocks: list[tuple[int, int, int]] = []
    for start, length in zip(starts.tolist(), rounded_array(longest).tolist(), strict=True):
        end = min(start + UNIT, len(lengths_B))
        if blocks:
            first, middle, other = blocks[-1]
            both = max(length, other)
            padding = (both - other) * (middle - first) + (both - length) * (end - start)
            if padding * numbers_per_position <= PADDING_WORTH_A_BLOCK:
                blocks[-1] = (first, end, both)
                continue
        blocks.append((start, end, length))
    return blocks


def rounded_array(lengths: np.ndarray) -> np.ndarray:
    return -(-lengths // ROUND) * ROUND


def better_order(lengths_B: np.ndarray, numbers_per_position: int) -> np.ndarray | None:
    """The order of slots by length, longest first, if it would save much of what attention reads; else None."""

    def read(lengths: np.ndarray) -> int:
        return sum((end - start) * length for start, end, length in cut_blocks(lengths, numbers_per_position))

    now = read(lengths_B)
    if now <= 1.25 * int(lengths_B.sum()):
        return None
    order = np.argsort(-lengths_B, kind="stable")
    return order if read(lengths_B[order]) < 0.75 * now else None


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one position of one row takes."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        return self.layers * self.numbers_per_position * self.dtype.itemsize

    @property
    def numbers_per_position(self) -> int:
        """Of one layer: keys and values."""
        return 2 * self.kv_heads * self.head_dim


class KVCache:
    """Keys and values of the slots 0 … rows - 1, for all layers."""

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self.rows = self.length = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._allocate(0, 0, 0, 0)

    @property
    def bytes(self) -> int:
        return self.rows * self.length * self.shape.bytes_per_token

    def _allocate(self, rows: int, length: int, live_rows: int, live_length: int) -> None:
        s = self.shape
        if not self.keys:
            self.keys = [torch.empty(0, device=s.device)] * s.layers
            self.values = list(self.keys)
        for i in range(s.layers):
            # zeros, not empty: masked positions are multiplied by a weight of 0, and 0 · NaN is NaN.
            keys = torch.zeros(rows, s.kv_heads, s.head_dim, length, dtype=s.dtype, device=s.device)
            values = torch.zeros(rows, s.kv_heads, length, s.head_dim, dtype=s.dtype, device=s.device)
            if live_rows and live_length:
                keys[:live_rows, :, :, :live_length] = self.keys[i][:live_rows, :, :, :live_length]
                values[:live_rows, :, :live_length] = self.values[i][:live_rows, :, :live_length]
            self.keys[i], self.values[i] = keys, values
        self.rows, self.length = rows, length

    def reserve(self, rows: int, length: int, *, live_rows: int, live_length: int, limit: int) -> None:
        """Make room for `rows` slots of `length` positions; the live ones are kept.

        `limit` is the longest that any of these rows may become: growth goes no further than that.
        """
        if rows <= self.rows and length <= self.length:
            return
        goal = min(rounded(limit), rounded(max(length, length + length // 4)))
        self._allocate(rows, max(goal, rounded(length)), live_rows, live_length)

    def clear(self) -> None:
        """Give the memory back."""
        self._allocate(0, 0, 0, 0)

    def copy(self, sources: Sequence[int] | np.ndarray, targets: Sequence[int] | np.ndarray, length: int) -> None:
        """Copy the first `length` positions of slots to other slots (none of them a source)."""
        if not len(targets) or not length:
            return
        source = torch.as_tensor(sources, device=self.shape.device)
        target = torch.as_tensor(targets, device=self.shape.device)
        for keys, values in zip(self.keys, self.values, strict=True):
            keys[:, :, :, :length].index_copy_(0, target, keys[:, :, :, :length].index_select(0, source))
            values[:, :, :length].index_copy_(0, target, values[:, :, :length].index_select(0, source))

    def permute(self, order: np.ndarray, length: int) -> None:
        """Slot `i` becomes what slot `order[i]` was, for the first `len(order)` slots."""
        index = torch.as_tensor(order, device=self.shape.device)
        n = len(order)
        for keys, values in zip(self.keys, self.values, strict=True):
            keys[:n, :, :, :length] = keys[:, :, :, :length].index_select(0, index)
            values[:n, :, :length] = values[:, :, :length].index_select(0, index)

    def save(self, slot: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """A copy of the first `length` positions of a slot, per layer."""
        return [
            (k[slot, :, :, :length].clone(), v[slot, :, :length].clone())
            for k, v in zip(self.keys, self.values, strict=True)
        ]

    def restore(self, saved: list[tuple[Tensor, Tensor]], slot: int) -> None:
        for (k, v), keys, values in zip(saved, self.keys, self.values, strict=True):
            keys[slot, :, :, : k.shape[-1]] = k
            values[slot, :, : v.shape[1]] = v


class Prefill:
    """Writes whole prompts (right-padded) into slots; attention is causal within the prompt."""

    def __init__(self, cache: KVCache, slots: Tensor) -> None:
        self.cache, self.slots = cache, slots

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor) -> Tensor:
        length = key_BKTD.shape[2]
        self.cache.keys[layer][:, :, :, :length].index_copy_(0, self.slots, key_BKTD.transpose(2, 3))
        self.cache.values[layer][:, :, :length].index_copy_(0, self.slots, value_BKTD)
        return F.scaled_dot_product_attention(
            query_BHTD, key_BKTD, value_BKTD, is_causal=True, enable_gqa=query_BHTD.shape[1] != key_BKTD.shape[1]
        )


class Step:
    """One token a row for the slots 0 … n - 1, at the given positions; rows attend to positions up to their own."""

    def __init__(self, cache: KVCache, positions_B: np.ndarray) -> None:
        self.cache = cache
        device = cache.shape.device
        self.rows_B = torch.arange(len(positions_B), device=device)
        self.positions_B = torch.as_tensor(positions_B, device=device)
        self.scale = 1.0 / math.sqrt(cache.shape.head_dim)
        self.blocks: list[tuple[int, int, int, Tensor]] = []
        for start, end, length in cut_blocks(positions_B + 1, cache.shape.numbers_per_position):
            hidden = torch.arange(length, device=device) > self.positions_B[start:end, None]
            bias = torch.zeros(hidden.shape, dtype=cache.shape.dtype, device=device).masked_fill_(hidden, -torch.inf)
            self.blocks.append((start, end, length, bias[:, None, None, :]))

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.rows_B, :, :, self.positions_B] = key_BKTD[:, :, 0]
        values[self.rows_B, :, self.positions_B] = value_BKTD[:, :, 0]
        rows, heads, _, dim = query_BHTD.shape
        kv_heads = keys.shape[1]
        group = heads // kv_heads
        query = (query_BHTD * self.scale).reshape(rows * kv_heads, group, dim)
        out = torch.empty_like(query)
        for start, end, length, bias in self.blocks:
            a, b = start * kv_heads, end * kv_heads
            scores = torch.bmm(query[a:b], keys.flatten(0, 1)[a:b, :, :length]).view(-1, kv_heads, group, length)
            scores += bias
            weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype).view(b - a, group, length)
            torch.bmm(weights, values.flatten(0, 1)[a:b, :length], out=out[a:b])
        return out.view(rows, heads, 1, dim)
