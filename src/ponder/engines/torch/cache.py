"""The slots of the running batch: keys and values that belong to one row each.

Keys are stored as [slot, kv head, dimension, column] and values as [slot, kv head, column, dimension]: with one query a
row, `bmm` on that layout was the fastest of the variants measured on a CPU (bmm on untransposed keys 1.4 times, torch's
scaled_dot_product_attention with a mask 1.4 to 1.7 times as long); on a GPU keys are stored as values are. Column `c`
of a slot is position `base + c` of its row, where the positions before `base` are read from shared nodes (`prefix.py`).

Memory is bounded by the caller, which admits no more rows than fit; `reserve` grows in steps of `CHUNK` columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CHUNK = 64
"""Columns by which slots grow."""
UNIT = 16
"""Slots are cut into blocks at multiples of this."""
ROUND = 16
"""Attention lengths are rounded up to this, so that few shapes occur."""
PADDING_WORTH_A_BLOCK = 1 << 16
"""Padding values that cost about as much to read as starting one more block."""


def rounded(length: int, to: int = CHUNK) -> int:
    return -(-length // to) * to


def cut_blocks(lengths_B: np.ndarray, numbers_per_position: int) -> list[tuple[int, int, int]]:
    """Cut slots into (first, end, length) blocks that attend together, each padded to its longest row.

    Neighbours share a block unless the padding would cost more than the block.
    """
    starts = np.arange(0, len(lengths_B), UNIT)
    longest = np.maximum.reduceat(lengths_B, starts)
    blocks: list[tuple[int, int, int]] = []
    for start, length in zip(starts.tolist(), _rounded_array(longest).tolist(), strict=True):
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


def _rounded_array(lengths: np.ndarray) -> np.ndarray:
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
    """Size of one position of one row."""

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

    def node(self, length: int) -> Tensor:
        """Room for a stretch of positions as nodes keep it: (layers, 2, kv heads, length, head dimension)."""
        size = (self.layers, 2, self.kv_heads, length, self.head_dim)
        return torch.zeros(size, dtype=self.dtype, device=self.device)


class KVCache:
    """Keys and values of the slots 0 … rows - 1, for all layers."""

    def __init__(self, shape: CacheShape, by_column: bool | None = None) -> None:
        """`by_column`: whether the values of a key are contiguous in memory; None means where fused attention kernels

        need it: not on a CPU. The tensors look the same either way.
        """
        self.shape = shape
        self.by_column = shape.device.type != "cpu" if by_column is None else by_column
        self.rows = self.length = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.resize(0, 0, 0, 0)

    @property
    def tokens(self) -> int:
        """Positions with allocated memory."""
        return self.rows * self.length

    def resize(self, rows: int, length: int, live_rows: int, live_length: int) -> None:
        """Take other dimensions; the live slots and columns are kept."""
        s = self.shape
        if not self.keys:
            self.keys = [torch.empty(0, device=s.device)] * s.layers
            self.values = list(self.keys)
        for i in range(s.layers):
            # zeros, not empty: masked positions are multiplied by a weight of 0, and 0 · NaN is NaN.
            values = torch.zeros(rows, s.kv_heads, length, s.head_dim, dtype=s.dtype, device=s.device)
            if self.by_column:
                keys = torch.zeros_like(values).transpose(2, 3)
            else:
                keys = torch.zeros(rows, s.kv_heads, s.head_dim, length, dtype=s.dtype, device=s.device)
            if live_rows and live_length:
                keys[:live_rows, :, :, :live_length] = self.keys[i][:live_rows, :, :, :live_length]
                values[:live_rows, :, :live_length] = self.values[i][:live_rows, :, :live_length]
            self.keys[i], self.values[i] = keys, values
        self.rows, self.length = rows, length

    def clear(self) -> None:
        """Free the memory."""
        self.resize(0, 0, 0, 0)

    def copy(self, sources: Sequence[int] | np.ndarray, targets: Sequence[int] | np.ndarray, length: int) -> None:
        """Copy the first `length` columns of slots to other slots (none of them a source)."""
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

    def fill(self, first: int, last: int, column: int, kv: Tensor) -> None:
        """Write a stretch of a node into the slots `first` … `last - 1`, from a column on."""
        end = column + kv.shape[3]
        for i, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            keys[first:last, :, :, column:end] = kv[i, 0].transpose(1, 2)
            values[first:last, :, column:end] = kv[i, 1]

    def take(self, slot: int, first: int, last: int) -> Tensor:
        """A copy of the columns `first` … `last - 1` of a slot, in the shape of a node."""
        kv = self.shape.node(last - first)
        for i, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            kv[i, 0] = keys[slot, :, :, first:last].transpose(1, 2)
            kv[i, 1] = values[slot, :, first:last]
        return kv
