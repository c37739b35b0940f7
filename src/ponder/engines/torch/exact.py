"""The exact (batch-invariant) mode: a token's numbers do not depend on what else is computed, or when.

Floating-point sums depend on their order, and matrix libraries choose the order by the shape; so a row's logits change
in the last bits with the size of its batch (He et al. 2025, "Defeating Nondeterminism in LLM Inference", Thinking
Machines). Here every token, of a prompt or of a response, goes through the network in a tile of a given number of
tokens, padded where there are fewer, and its attention is a sum over whole pages of absolute positions in fixed order.
A page is first read into a buffer of fixed shape, wherever it is stored. So batch composition, order, chunking, sharing
and splitting change no bit; pages that a token must not see are added as exact zeros.

Holds for a fixed number of threads on one machine. When the engine opens, it checks that a row's
result does not depend on its place in the tile; if it does, the next size is tried, one row last. Wider tiles that give
the same bits (those of packed products do) are used where there are enough tokens, since a product of more rows is
faster per row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ponder.engines.torch.attention import Shared, Stretch
from ponder.engines.torch.cache import CacheShape, KVCache, rounded
from ponder.engines.torch.forward import Native
from ponder.engines.torch.prefix import PAGE, spans
from ponder.engines.torch.products import KINDS
from ponder.errors import UserError

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel

TILES = (16, 32, 8, 1)
"""Sizes that are tried; products of a single row cannot depend on other rows."""
WIDER = (64, 32)
"""Wider tiles that are also used if they give the same bits."""
_CHECKED = 3 * PAGE - 5
"""Position of the tokens in the checks: keys and values of several pages, the last one not full."""


class Exact(Native):
    """`Native`, one tile of tokens at a time."""

    def __init__(self, model: LoadedModel, products: str | None = None, precision: str = "float32") -> None:
        """Of several products, the fastest that do not depend on the batch are taken.

        Raises `UserError` for a model that is not in float32 on a CPU.
        """
        super().__init__(model, products, precision)
        if self.device.type != "cpu" or self.shape.dtype != torch.float32:
            raise UserError(
                f"the exact mode runs on a CPU in float32, but {model.info.name} is in {str(self.shape.dtype)[6:]} on "
                f"{self.device}: load it with device='cpu' and dtype='float32', or leave out exact"
            )
        self.stage = torch.zeros(0)
        self.tile = self._smallest()
        """The smallest tile."""
        wider = [s for s in WIDER if s > self.tile and self.tile > 1]
        self.tiles = [*(s for s in wider if self._same([self.tile] * (s // self.tile), [s])), self.tile]
        """All tiles in use, widest first."""

    def _smallest(self) -> int:
        """The smallest tile in which no row depends on its place, of the fastest products that have one."""
        others = [] if self.choice is None else [((math.inf, KINDS[name]),) for name in self.choice.ranked]
        for plan in dict.fromkeys((*([self.plan] if len(self.plan) < 2 else []), *others)):
            self.plan, self.copy = plan, None
            self.head = plan if self.precision == "float32" else self.head
            tile = next((size for size in TILES if size > 1 and self._same([size], [size], turn=1)), 1)
            if tile > 1:
                return tile
        return 1

    def _same(self, first: Sequence[int], second: Sequence[int], turn: int = 0) -> bool:
        """Whether tokens in tiles of these sizes get the same bits, the second time shifted by `turn` places."""
        total = sum(first)
        vocab = int(self.module.config.vocab_size)  # type: ignore[attr-defined]
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(vocab, (total,), generator=generator).numpy()
        positions, bases = np.full(total, _CHECKED), np.zeros(total, dtype=np.int64)
        seen = []
        with torch.inference_mode():
            for sizes, by in ((first, 0), (second, turn)):
                slots = KVCache(self.shape)
                slots.resize(total, rounded(_CHECKED + 1, PAGE), 0, 0)
                for kv in (*slots.keys, *slots.values):
                    kv.normal_(generator=torch.Generator().manual_seed(1))
                    kv.copy_(kv[:1].expand_as(kv).clone())  # all slots are equal, so that tokens may swap them
                turned, hidden, logits, at = np.roll(ids, by), [], [], 0
                for size in sizes:
                    view = _StepTile(self, slots, at, positions[at : at + size], bases[at : at + size], [], size)
                    hidden.append(self._run(turned[at : at + size], positions[at : at + size], view))
                    logits.append(self.logits(hidden[-1]))
                    at += size
                seen.append((torch.roll(torch.cat(hidden), -by, 0), torch.roll(torch.cat(logits), -by, 0)))
        return all(torch.equal(a, b) for a, b in zip(*seen, strict=True))

    def cuts(self, count: int) -> list[int]:
        """Sizes of the tiles for this many tokens, as wide as possible without a tile of padding only."""
        left, sizes = -(-count // self.tile) * self.tile, []
        while left > 0:
            sizes.append(next(s for s in self.tiles if s <= left))
            left -= sizes[-1]
        return sizes

    def _run(self, ids: np.ndarray, positions: np.ndarray, view: _Tile) -> Tensor:
        """Hidden states of one tile, padded with tokens whose results are discarded."""
        ids_M, positions_M = (np.zeros(view.tile, dtype=np.int64) for _ in range(2))
        ids_M[: len(ids)], positions_M[: len(ids)] = ids, positions
        return self.network(ids_M, positions_M, view.tile, view)

    def prompts(self, stretches: Sequence[Stretch], ids: Sequence[np.ndarray]) -> None:
        # A pass has one stretch per prompt; later tiles of a stretch read its earlier ones.
        places = [(s, offset) for s in stretches for offset in range(s.count)]
        packed = np.concatenate(ids)
        first = 0
        for tile in self.cuts(len(places)):
            chosen = places[first : first + tile]
            positions = np.array([s.first + offset for s, offset in chosen])
            self._run(packed[first : first + tile], positions, _PromptTile(self, chosen, positions, tile))
            first += tile

    def step(self, ids_B: np.ndarray, positions_B: np.ndarray, bases_B: np.ndarray, shared: Sequence[Shared]) -> Tensor:
        """As in `Native`, but padded to whole tiles."""
        parts, a = [], 0
        for tile in self.cuts(len(ids_B)):
            b = a + tile
            view = _StepTile(self, self.slots, a, positions_B[a:b], bases_B[a:b], shared, tile)
            parts.append(self._run(ids_B[a:b], positions_B[a:b], view))
            a = b
        return torch.cat(parts)

    def buffer(self, pages: int, tile: int) -> Tensor:
        """Keys and values of some pages for each token of a tile: (2, pages, tile, kv heads, page, head dimension)."""
        if len(self.stage) == 0 or self.stage.shape[1] < pages or self.stage.shape[2] < tile:
            s = self.shape
            pages_too = 0 if len(self.stage) == 0 else self.stage.shape[1]
            wide = tile if len(self.stage) == 0 else max(tile, self.stage.shape[2])
            # zeros: what no token may read is multiplied by a weight of 0.
            self.stage = torch.zeros(2, max(pages + pages // 4, pages_too), wide, s.kv_heads, PAGE, s.head_dim)
        return self.stage[:, :pages, :tile]


class _Tile:
    """A `Cache` for one tile of tokens. Subclasses say where keys and values are kept."""

    def __init__(self, owner: Exact, positions: np.ndarray, tile: int) -> None:
        self.shape: CacheShape = owner.shape
        self.count, self.tile = len(positions), tile
        self.seen = int(positions.max()) + 1
        self.pages = (self.seen - 1) // PAGE + 1
        self.stage = owner.buffer(self.pages, tile)
        last = np.zeros(tile, dtype=np.int64)
        last[: self.count] = positions
        at = np.arange(self.pages * PAGE).reshape(self.pages, 1, 1, PAGE)
        self.bias = torch.from_numpy(np.where(at > last[None, :, None, None], -np.inf, 0.0).astype(np.float32))
        self.scale = 1.0 / math.sqrt(self.shape.head_dim)

    def write(self, layer: int, key_MKD: Tensor, value_MKD: Tensor) -> None:
        raise NotImplementedError

    def read(self, layer: int) -> None:
        """Fill `stage` with what the tokens attend to."""
        raise NotImplementedError

    def stage_node(self, kv: Tensor, start: int, first: int, last: int) -> None:
        """Put a stretch (2, kv heads, positions, head dimension) that begins at a page in front of some tokens."""
        heads, length, dim = kv.shape[1:]
        page, whole = start // PAGE, length // PAGE
        if whole:
            pages = kv[:, :, : whole * PAGE].view(2, heads, whole, PAGE, dim).transpose(1, 2)
            self.stage[:, page : page + whole, first:last] = pages.unsqueeze(2)
        if length > whole * PAGE:
            self.stage[:, page + whole, first:last, :, : length - whole * PAGE] = kv[:, None, :, whole * PAGE :]

    def rows(self) -> Tensor:
        """Without the padding of the tile."""
        raise NotImplementedError

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor) -> Tensor:
        self.write(layer, key_BKTD[: self.count, :, 0], value_BKTD[: self.count, :, 0])
        self.read(layer)
        tile, heads, _, dim = query_BHTD.shape
        kv_heads = self.shape.kv_heads
        query = (query_BHTD * self.scale).reshape(tile * kv_heads, heads // kv_heads, dim)
        scores = query.new_empty(self.pages, tile * kv_heads, heads // kv_heads, PAGE)
        keys, values = self.stage.flatten(2, 3)
        for page in range(self.pages):
            torch.bmm(query, keys[page].transpose(1, 2), out=scores[page])
        scores = scores.view(self.pages, tile, heads, PAGE) + self.bias
        # A maximum is the same in any order; the sums below go page by page.
        weights = (scores - scores.amax((0, 3), keepdim=True)).exp_()
        sums = weights.sum(-1)
        weights = weights.view(self.pages, tile * kv_heads, heads // kv_heads, PAGE)
        total, out = sums[0], torch.bmm(weights[0], values[0])
        for page in range(1, self.pages):
            total = total + sums[page]
            out = out + torch.bmm(weights[page], values[page])
        return (out.view(tile, heads, dim) / total.unsqueeze(-1)).unsqueeze(2)

    def attention(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor) -> Tensor:
        self.read(layer)
        query = query_BHTD[: self.count].unflatten(1, (self.shape.kv_heads, -1)).squeeze(3)
        keys = self.stage[0, :, : self.count]
        scores = torch.einsum("mkgd,pmksd->mkgps", query * self.scale, keys).flatten(1, 2)
        scores = (scores + self.bias[:, : self.count].permute(1, 2, 0, 3)).flatten(2)
        return scores.softmax(-1)[..., : self.seen]


class _StepTile(_Tile):
    """The tokens of the slots from `first` on."""

    def __init__(
        self,
        owner: Exact,
        slots: KVCache,
        first: int,
        positions: np.ndarray,
        bases: np.ndarray,
        shared: Sequence[Shared],
        tile: int,
    ) -> None:
        super().__init__(owner, positions, tile)
        self.slots = slots
        self.slots_M = torch.arange(first, first + self.count)
        self.columns = torch.from_numpy(positions - bases)
        self.own: list[tuple[int, int, Tensor, Tensor]] = []
        for base in np.unique(bases).tolist():
            members = np.flatnonzero(bases == base)
            pages = int((positions[members] - base).max()) // PAGE + 1
            self.own.append((base // PAGE, pages, torch.from_numpy(members), torch.from_numpy(members + first)))
        self.nodes: list[tuple[Tensor, int, Tensor]] = []
        for part in shared:
            members = np.arange(self.count) if part.rows is None else part.rows.numpy() - first
            members = members[(members >= 0) & (members < self.count)]
            if len(members):
                self.nodes.append((part.kv, part.start, torch.from_numpy(members)))

    def rows(self) -> Tensor:
        return self.slots_M

    def write(self, layer: int, key_MKD: Tensor, value_MKD: Tensor) -> None:
        self.slots.keys[layer][self.slots_M, :, :, self.columns] = key_MKD
        self.slots.values[layer][self.slots_M, :, self.columns] = value_MKD

    def read(self, layer: int) -> None:
        keys, values = self.slots.keys[layer], self.slots.values[layer]
        heads, dim = self.shape.kv_heads, self.shape.head_dim
        for page, pages, members, slots in self.own:
            k = keys[:, :, :, : pages * PAGE].index_select(0, slots).view(-1, heads, dim, pages, PAGE)
            v = values[:, :, : pages * PAGE].index_select(0, slots).view(-1, heads, pages, PAGE, dim)
            self.stage[0, page : page + pages].index_copy_(1, members, k.permute(3, 0, 1, 4, 2))
            self.stage[1, page : page + pages].index_copy_(1, members, v.permute(2, 0, 1, 3, 4))
        for kv, start, members in self.nodes:
            whole = kv.shape[3] // PAGE
            pages_kv = kv[layer].view(2, heads, whole, PAGE, dim).transpose(1, 2).unsqueeze(2)
            page = start // PAGE
            self.stage[:, page : page + whole].index_copy_(
                2, members, pages_kv.expand(-1, -1, len(members), -1, -1, -1)
            )


class _PromptTile(_Tile):
    """Tokens of stretches of prompts, each stretch contiguous."""

    def __init__(self, owner: Exact, places: Sequence[tuple[Stretch, int]], positions: np.ndarray, tile: int) -> None:
        super().__init__(owner, positions, tile)
        self.runs: list[tuple[Stretch, int, int, int]] = []
        """(stretch, first and last token of the tile, column of the first)."""
        first = 0
        while first < len(places):
            stretch, offset = places[first]
            last = first
            while last < len(places) and places[last][0] is stretch:
                last += 1
            self.runs.append((stretch, first, last, stretch.first + offset - stretch.base))
            first = last
        self.past = [spans(s.parent, 0, s.base) for s, *_ in self.runs]

    def rows(self) -> Tensor:
        counts = torch.tensor([last - first for _, first, last, _ in self.runs])
        return torch.arange(len(counts)).repeat_interleave(counts)

    def write(self, layer: int, key_MKD: Tensor, value_MKD: Tensor) -> None:
        both = torch.stack((key_MKD, value_MKD)).transpose(1, 2)
        for stretch, first, last, column in self.runs:
            stretch.kv[layer, :, :, column : column + last - first] = both[:, :, first:last]

    def read(self, layer: int) -> None:
        for (stretch, first, last, column), past in zip(self.runs, self.past, strict=True):
            for node, a, b in past:
                self.stage_node(node.kv[layer, :, :, a:b], node.start + a, first, last)
            self.stage_node(stretch.kv[layer, :, :, : column + last - first], stretch.base, first, last)
