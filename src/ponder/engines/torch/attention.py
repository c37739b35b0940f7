"""Attention over the cache: one token a row (`Step`), and packed stretches of prompts (`PromptPass`).

Rows that hang on the same node (`prefix.py`) attend to it in one matrix product. Each row's own columns are one padded
product, and the parts are merged by log-sum-exp, which gives the softmax over all positions (Hydragen, Juravsky et al.
2024, arXiv:2402.05099; the merge as in FlashAttention, Dao et al. 2022, arXiv:2205.14135). There are no pages to
gather: on a CPU that would cost bandwidth at every step. A step reads blocks of slots, each only up to its own longest
row. Slots are sorted by length now and then, so that one long row does not slow down all others.

On a GPU keys are stored in the slots column by column (`KVCache.by_column`), and a block without shared stretches is
one call of torch's fused attention. The queries of a group are passed as positions of one key-value head: with
`enable_gqa` torch has no fused kernel that takes a mask. Shared stretches keep their products and the merge; prompts go
through the fused kernel as on a CPU. The same code runs on a CPU in the tests. Which kernel torch chooses on a GPU, and
its speed, are untested.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.engines.torch.cache import CacheShape, KVCache, cut_blocks
from ponder.engines.torch.prefix import Node, spans
from ponder.models.cache import causal

PADDING = 1.25
"""New prompts attend together as long as padding lengthens them by no more than this factor."""


@dataclass(frozen=True, slots=True)
class Shared:
    """A stretch of a node that several rows attend to."""

    start: int
    """Position of its first id."""
    kv: Tensor
    rows: Tensor | None
    """Which rows; None means all."""


def shared_parts(nodes: Sequence[Node | None], bases: np.ndarray, device: torch.device) -> list[Shared]:
    """The stretches that rows hang on, each with its rows: row `i` on `nodes[i]` and its ancestors up to `bases[i]`."""
    rows: dict[tuple[int, int], list[int]] = {}
    parts: dict[tuple[int, int], tuple[int, Tensor]] = {}
    for row, node in enumerate(nodes):
        if node is None:
            continue
        for part, first, last in spans(node, 0, int(bases[row])):
            key = (id(part), last)
            parts[key] = part.start, part.kv[:, :, :, first:last]
            rows.setdefault(key, []).append(row)
    return [
        Shared(start, kv, None if len(rows[key]) == len(nodes) else torch.tensor(rows[key], device=device))
        for key, (start, kv) in parts.items()
    ]


class Step:
    """One token a row for the slots 0 … n - 1; each row attends to its shared stretches and to its own columns."""

    def __init__(self, cache: KVCache, positions_B: np.ndarray, bases_B: np.ndarray, shared: Sequence[Shared]) -> None:
        self.cache, self.shared = cache, shared
        device = cache.shape.device
        self.rows_B = torch.arange(len(positions_B), device=device)
        self.positions_B = torch.as_tensor(positions_B, device=device)
        columns = positions_B - bases_B
        self.bases_B = torch.as_tensor(bases_B, device=device)
        self.columns_B = torch.as_tensor(columns, device=device)
        self.scale = 1.0 / math.sqrt(cache.shape.head_dim)
        self.blocks: list[tuple[int, int, int, Tensor]] = []
        for start, end, length in cut_blocks(columns + 1, cache.shape.numbers_per_position):
            hidden = torch.arange(length, device=device) > self.columns_B[start:end, None]
            bias = torch.zeros(hidden.shape, dtype=cache.shape.dtype, device=device).masked_fill_(hidden, -torch.inf)
            # Per key-value head; all queries of a group see the same keys.
            self.blocks.append((start, end, length, bias.repeat_interleave(cache.shape.kv_heads, 0).unsqueeze(1)))

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.rows_B, :, :, self.columns_B] = key_BKTD[:, :, 0]
        values[self.rows_B, :, self.columns_B] = value_BKTD[:, :, 0]
        rows, heads, _, dim = query_BHTD.shape
        kv_heads = keys.shape[1]
        group = heads // kv_heads
        query = query_BHTD.reshape(rows * kv_heads, group, dim)
        out = torch.empty_like(query)
        # Log-sum-exp of the scores of each part, needed only where there is more than one.
        total = query.new_empty(rows * kv_heads, group, 1, dtype=torch.float32) if self.shared else None
        for start, end, length, bias in self.blocks:
            a, b = start * kv_heads, end * kv_heads
            own_keys, own_values = keys.flatten(0, 1)[a:b, :, :length], values.flatten(0, 1)[a:b, :length]
            if total is None and self.cache.by_column:
                out[a:b] = _fused(query[a:b], own_keys, own_values, self.scale, bias)
                continue
            if total is not None:
                out[a:b], total[a:b] = _part(query[a:b], own_keys, own_values, self.scale, bias)
                continue
            scores = torch.baddbmm(bias, query[a:b], own_keys, alpha=self.scale)
            weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
            torch.bmm(weights, own_values, out=out[a:b])
        if total is not None:
            out = self._merge(layer, query, out, total)
        return out.view(rows, heads, 1, dim)

    def rows(self) -> Tensor:
        return self.rows_B

    def attention(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor) -> Tensor:
        query = query_BHTD.unflatten(1, (self.cache.shape.kv_heads, -1)).squeeze(3)
        columns = [(start, end, torch.arange(length, device=query.device)) for start, end, length, _ in self.blocks]
        seen = int(self.positions_B.max()) + 1
        # A block reads columns that its shorter rows have not reached: the bias has room for them, cut off at the end.
        width = max([seen, *(int(self.bases_B[a:b].max()) + len(at) for a, b, at in columns)])
        scores_BKGS = query.new_full((*query.shape[:3], width), -torch.inf, dtype=torch.float32)
        for a, b, at in columns:
            own = (query[a:b] @ self.cache.keys[layer][a:b, :, :, : len(at)]).float() * self.scale
            own.masked_fill_((at > self.columns_B[a:b, None])[:, None, None], -torch.inf)
            places = (self.bases_B[a:b, None] + at)[:, None, None].expand_as(own)
            scores_BKGS[a:b].scatter_(3, places, own)
        for part in self.shared:
            rows = self.rows_B if part.rows is None else part.rows
            length = part.kv.shape[3]
            scores = (query[rows] @ part.kv[layer, 0].transpose(1, 2)).float() * self.scale
            scores_BKGS[rows, :, :, part.start : part.start + length] = scores
        return scores_BKGS[..., :seen].softmax(-1).flatten(1, 2)

    def _merge(self, layer: int, query: Tensor, out: Tensor, total: Tensor) -> Tensor:
        kv_heads = self.cache.shape.kv_heads
        _, group, dim = query.shape
        query_B = query.view(-1, kv_heads, group, dim)
        out_B, total_B = out.view(-1, kv_heads, group, dim), total.view(-1, kv_heads, group, 1)
        for part in self.shared:
            chosen = query_B if part.rows is None else query_B.index_select(0, part.rows)
            stacked = chosen.transpose(0, 1).reshape(kv_heads, -1, dim)
            other, more = _part(stacked, part.kv[layer, 0].transpose(1, 2), part.kv[layer, 1], self.scale)
            other = other.view(kv_heads, -1, group, dim).transpose(0, 1)
            more = more.view(kv_heads, -1, group, 1).transpose(0, 1)
            mine = total_B if part.rows is None else total_B.index_select(0, part.rows)
            # The share of the new part in the softmax over both.
            share = torch.sigmoid(more - mine).to(out.dtype)
            if part.rows is None:
                out_B = torch.lerp(out_B, other, share)
                total_B = torch.logaddexp(mine, more)
            else:
                out_B.index_copy_(0, part.rows, torch.lerp(out_B.index_select(0, part.rows), other, share))
                total_B.index_copy_(0, part.rows, torch.logaddexp(mine, more))
        return out_B


def _part(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of queries (N G D) over keys (N D T) and values (N T D), and the log-sum-exp of its scores (N G 1).

    Divided by the sum at the end, where there are fewer values: half the time of a softmax and its log-sum-exp.
    """
    # Without a bias the first argument is not read.
    nothing = query.new_empty(()).expand(len(query), 1, 1)
    scores = torch.baddbmm(nothing if bias is None else bias, query, keys, beta=int(bias is not None), alpha=scale)
    top = scores.amax(-1, keepdim=True)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True, dtype=torch.float32)
    return torch.bmm(weights, values).div_(total), top.float() + total.log()


def _fused(query: Tensor, keys: Tensor, values: Tensor, scale: float, bias: Tensor) -> Tensor:
    """Attention of queries (N G D) over keys (N D T) and values (N T D) with a bias (N 1 T), in one kernel on a GPU.

    The queries of a group are passed as positions of one head: they see the same keys. With `enable_gqa` torch would
    fall back to separate products, since it has no fused kernel that takes a mask.
    """
    mask = bias.expand(-1, query.shape[1], -1).unsqueeze(0)
    keys = keys.transpose(1, 2).unsqueeze(0)
    return F.scaled_dot_product_attention(query.unsqueeze(0), keys, values.unsqueeze(0), mask, scale=scale)[0]


@dataclass(eq=False)
class Stretch:
    """A part of one prompt in a pass: `count` ids from position `first` on, whose keys and values go into `kv`."""

    parent: Node
    base: int
    """Positions before it are read from `parent` and its ancestors."""
    kv: Tensor
    """Shape (layers, 2, kv heads, positions, head dimension), from `base` on."""
    first: int
    count: int

    @property
    def fresh(self) -> bool:
        """Whether it is the beginning of its prompt."""
        return self.first == 0

    def keys_and_values(self, layer: int) -> Tensor:
        """Of one layer, of all positions up to its last id, once it is stored: (2, kv heads, positions, head dim)."""
        past = [node.kv[layer, :, :, a:b] for node, a, b in spans(self.parent, 0, self.base)]
        own = self.kv[layer, :, :, : self.first + self.count - self.base]
        return torch.cat([*past, own], dim=2) if past else own


class PromptPass:
    """Stretches of several prompts packed into one row, one after another, without padding between them."""

    def __init__(self, shape: CacheShape, stretches: Sequence[Stretch]) -> None:
        self.places: list[tuple[Stretch, int]] = []
        at = 0
        for stretch in stretches:
            self.places.append((stretch, at))
            at += stretch.count
        self.tokens = at
        self._groups = [_Group(places, shape.device) for places in _groups([p for p in self.places if p[0].fresh])]
        self._later = [_Continued(s, at, shape) for s, at in self.places if not s.fresh]

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor) -> Tensor:
        query, key, value = query_BHTD[0], key_BKTD[0], value_BKTD[0]
        self.store(layer, key, value)
        out = torch.empty_like(query)
        for group in self._groups:
            group.attend(query, key, value, out)
        for later in self._later:
            later.attend(layer, query, out)
        return out.unsqueeze(0)

    def rows(self) -> Tensor:
        counts = torch.tensor([s.count for s, _ in self.places])
        return torch.arange(len(counts)).repeat_interleave(counts)

    def attention(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor) -> Tensor:
        seen = max(s.first + s.count for s, _ in self.places)
        out_NHS = query_BHTD.new_zeros(self.tokens, query_BHTD.shape[1], seen, dtype=torch.float32)
        for s, at in self.places:
            key_KSD = s.keys_and_values(layer)[0]
            weights = causal(query_BHTD[:, :, at : at + s.count], key_KSD.unsqueeze(0))[0]
            out_NHS[at : at + s.count, :, : weights.shape[-1]] = weights.transpose(0, 1)
        return out_NHS

    def store(self, layer: int, key_KND: Tensor, value_KND: Tensor) -> None:
        """Store keys and values of all stretches."""
        both = torch.stack((key_KND, value_KND))
        for s, at in self.places:
            begin = s.first - s.base
            s.kv[layer, :, :, begin : begin + s.count] = both[:, :, at : at + s.count]


def _groups(places: list[tuple[Stretch, int]]) -> list[list[tuple[Stretch, int]]]:
    """New stretches of similar length."""
    groups: list[list[tuple[Stretch, int]]] = []
    for place in sorted(places, key=lambda p: p[0].count):
        if groups and place[0].count <= PADDING * groups[-1][0][0].count:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


class _Group:
    """New stretches that attend together, padded on the right, which causal attention never reads."""

    def __init__(self, places: list[tuple[Stretch, int]], device: torch.device) -> None:
        self.rows, self.length = len(places), max(s.count for s, _ in places)
        last = places[0][1] + places[0][0].count - 1
        columns = np.arange(self.length)
        starts = np.array([at for _, at in places])[:, None]
        counts = np.array([s.count for s, _ in places])[:, None]
        inside = columns < counts
        self.whole = bool(inside.all()) and bool((np.diff(starts[:, 0]) == self.length).all())
        self.first = int(starts[0, 0])
        index = np.where(inside, starts + columns, last)
        self.index = torch.as_tensor(index.reshape(-1), device=device)
        self.kept = torch.as_tensor(np.flatnonzero(inside.reshape(-1)), device=device)
        self.targets = torch.as_tensor(index[inside], device=device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        def padded(x: Tensor) -> Tensor:
            if self.whole:
                x = x[:, self.first : self.first + self.rows * self.length]
            else:
                x = x.index_select(1, self.index)
            return x.reshape(len(x), self.rows, self.length, -1).transpose(0, 1)

        gqa = len(query) != len(key)
        got = F.scaled_dot_product_attention(padded(query), padded(key), padded(value), is_causal=True, enable_gqa=gqa)
        got = got.transpose(0, 1).reshape(len(query), self.rows * self.length, -1)
        if self.whole:
            out[:, self.first : self.first + self.rows * self.length] = got
        else:
            out.index_copy_(1, self.targets, got.index_select(1, self.kept))


class _Continued:
    """A stretch with a prefix: keys and values of its nodes, of its earlier chunks, and its own."""

    def __init__(self, stretch: Stretch, at: int, shape: CacheShape) -> None:
        s = self.stretch = stretch
        self.at = at
        end = s.first + s.count
        rows = torch.arange(s.first, end, device=shape.device)
        hidden = torch.arange(end, device=shape.device) > rows[:, None]
        self.bias = torch.zeros(hidden.shape, dtype=shape.dtype, device=shape.device).masked_fill_(hidden, -torch.inf)

    def attend(self, layer: int, query: Tensor, out: Tensor) -> None:
        s = self.stretch
        kv = s.keys_and_values(layer)
        mine = slice(self.at, self.at + s.count)
        out[:, mine] = F.scaled_dot_product_attention(
            query[None, :, mine], kv[None, 0], kv[None, 1], attn_mask=self.bias, enable_gqa=len(query) != kv.shape[1]
        )[0]
