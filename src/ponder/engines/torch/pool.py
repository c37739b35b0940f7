"""The memory of keys and values: slots of running rows, shared nodes, and prompts that are being computed.

All sizes are counted in positions, of which `limit` may exist at a time. What somebody needs (slots, held nodes,
prompts in the making) is admitted only if its worst case fits; nodes that nobody holds fill what is left and are
evicted when it is needed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ponder.engines.torch.attention import Stretch
from ponder.engines.torch.cache import CHUNK, KVCache, rounded
from ponder.engines.torch.forward import Native
from ponder.engines.torch.prefix import PAGE, Node, PrefixTree, aligned, common_length, spans

HANG_WORTH = 1 << 19
"""Numbers of one layer that a step must read less to be worth attending to a shared stretch on its own."""


def slot_length(rows: int, longest: int) -> int:
    """Columns that so many slots get, at most, if none of their rows becomes longer."""
    return rounded(longest, PAGE if rows == 1 else CHUNK)


@dataclass(eq=False)
class Load:
    """A prompt on its way into the cache, held for those who wait for it."""

    ids: np.ndarray
    count: int
    """How many rows or leases will use it."""
    node: Node
    matched: int
    """Positions that were found, not computed."""
    done: int = 0
    base: int = 0
    kv: Tensor | None = None
    """Its keys and values from `base` on, while it is computed."""
    claim: int = 0
    """Positions that it takes, or may still take, besides what it holds."""
    seconds: float = 0.0
    """Of the machine, for what was computed."""
    paid: bool = False
    """A sample was told that it paid for what was computed."""

    @property
    def ready(self) -> bool:
        return self.done == len(self.ids)


class Pool:
    """Slots, tree and prompts in the making within one limit. Used by one thread only."""

    def __init__(self, native: Native, memory: int) -> None:
        self.native, self.shape = native, native.shape
        self.limit = memory // self.shape.bytes_per_token
        self.slots = KVCache(self.shape)
        native.slots = self.slots
        self.tree = PrefixTree()
        self.loads: list[Load] = []
        """Not ready yet, in the order in which they were opened."""
        self.making = 0
        """Positions that prompts in the making have memory for."""
        self.claims = 0
        """Sum of what `loads` claim."""
        self.live = (0, 0)
        """Slots and columns that are in use."""

    @property
    def tokens(self) -> int:
        """Positions that memory is taken for; never above `limit`."""
        return self.slots.tokens + self.tree.tokens + self.making

    def fits(self, rows: int, longest: int, more: int = 0) -> bool:
        """Whether so many rows of so many columns at most could run beside all that is held, and `more` positions."""
        need = rows * slot_length(rows, longest) + self.tree.held_tokens + self.claims
        return need + more <= self.limit

    def look(self, ids: np.ndarray) -> int:
        """Positions that `open` with these ids would take from what may be evicted or is free."""
        node, length = self.tree.match(ids)
        if length == len(ids):
            return self.tree.newly_held(node, rounded(length, PAGE))
        return self.tree.newly_held(node, aligned(length)) + rounded(len(ids), PAGE) - aligned(length)

    def open(self, ids: np.ndarray, count: int) -> Load:
        """Hold what is there of a prompt and queue the rest for computation."""
        load = Load(ids, count, self.tree.root, 0)
        self._match(load)
        if not load.ready:
            self.loads.append(load)
        return load

    def _match(self, load: Load) -> Node:
        """Hold the whole pages of what is found of a prompt, and no more; returns the node where the find ends."""
        node, length = self.tree.match(load.ids)
        whole = length == len(load.ids)
        end = rounded(length, PAGE) if whole else aligned(length)
        if node.start < end < node.end:
            # Both halves are copied before the whole is let go.
            missing = self.tokens + len(node.ids) - self.limit
            self.tree.hold(node)
            if missing > 0:
                self.tree.evict(missing)
            self.tree.release(node)
        kept = self.tree.boundary(node, end) if node.end > end else node
        self.tree.hold(kept, load.count)
        self.tree.release(load.node, load.count)
        load.node, load.matched, load.done, load.base = kept, length, length, aligned(length)
        # Whole pages: by the time it is ready a longer prompt may have been stored, which is cut at a page.
        self._claim(load, 0 if whole else rounded(len(load.ids), PAGE) - load.base)
        return node

    def _claim(self, load: Load, positions: int) -> None:
        self.claims += positions - load.claim
        load.claim = positions

    def give_back(self, load: Load, count: int) -> None:
        """So many of those who waited have what they need, or need it no more."""
        load.count -= count
        self.tree.release(load.node, count)
        if not load.count and load in self.loads:
            self.loads.remove(load)
            self._unmake(load)
            self._claim(load, 0)

    def _unmake(self, load: Load) -> None:
        if load.kv is not None:
            self.making -= load.kv.shape[3]
            load.kv = None

    def work(self, most: int) -> None:
        """Compute up to `most` ids of the prompts that wait, in one pass; the oldest first."""
        started = time.perf_counter()
        stretches, ids, left, counts = [], [], most, []
        begun = [load for load in self.loads if load.kv is not None]
        for load in list(self.loads):
            if load.kv is None:
                if self._better_wait(load, begun):
                    continue
                self._begin(load)
                if load.ready:
                    continue
                begun.append(load)
            assert load.kv is not None
            count = min(left, len(load.ids) - load.done)
            stretches.append(Stretch(load.node, load.base, load.kv, load.done, count))
            ids.append(load.ids[load.done : load.done + count])
            counts.append((load, count))
            load.done += count
            left -= count
            if not left:
                break
        if stretches:
            self.native.prompts(stretches, ids)
            share = (time.perf_counter() - started) / (most - left)
            for load, count in counts:
                load.seconds += share * count
        for load in begun:
            if load.ready:
                self._finish(load)

    def _better_wait(self, load: Load, begun: list[Load]) -> bool:
        """True if a prompt that is being computed will leave more of this one than is there now."""
        common = max((common_length(load.ids, other.ids) for other in begun), default=0)
        return aligned(common) > aligned(load.matched) and aligned(common) > aligned(self.tree.match(load.ids)[1])

    def _begin(self, load: Load) -> None:
        node = self._match(load)
        if load.ready:
            self.loads.remove(load)
            return
        # Less than a page; nobody holds it, so making room may evict it.
        tail = [part.kv[:, :, :, a:b].clone() for part, a, b in spans(node, load.base, load.matched)]
        size = len(load.ids) - load.base
        self.make_room(size)
        load.kv = self.shape.node(size)
        self.making += size
        if tail:
            load.kv[:, :, :, : load.matched - load.base] = torch.cat(tail, dim=3)

    def _finish(self, load: Load) -> None:
        kv = load.kv
        assert kv is not None
        self._unmake(load)
        self._claim(load, 0)
        node = self.tree.add(load.ids, load.base, kv)
        end = rounded(len(load.ids), PAGE)
        node = self.tree.boundary(node, end) if node.end > end else node
        self.tree.hold(node, load.count)
        self.tree.release(load.node, load.count)
        load.node = node
        self.loads.remove(load)

    def make_room(self, tokens: int) -> None:
        """Evict, and shrink slots that are larger than they need be, until so many positions are free."""
        missing = self.tokens + tokens - self.limit
        if missing > 0:
            missing -= self.tree.evict(missing)
        if missing > 0:
            rows, length = self.live
            self.slots.resize(rows, rounded(length, PAGE), rows, length)
        assert self.tokens + tokens <= self.limit, "admission promised this memory"

    def reserve(self, rows: int, length: int, longest: int, *, spare_rows: int = 0) -> None:
        """Make room for `rows` slots of `length` columns, and for more of both if memory is free; live ones are kept.

        `longest` is the most columns that any of these rows may come to need: growth goes no further than that.
        """
        if rows <= self.slots.rows and length <= self.slots.length:
            return
        free = self.limit - self.tree.held_tokens - self.making
        cap = slot_length(rows, longest)
        ahead = min(cap, rounded(length + length // 4))
        wide = max(rows, spare_rows)
        choices = [(wide, ahead), (rows, ahead), (rows, min(cap, rounded(length))), (rows, rounded(length, PAGE))]
        rows, length = next((c for c in choices if c[0] * c[1] <= free), choices[-1])
        missing = rows * length + self.tree.tokens + self.making - self.limit
        if missing > 0:
            self.tree.evict(missing)
        self.slots.resize(rows, length, *self.live)
        assert self.tokens <= self.limit, "admission promised this memory"

    def seat(self, load: Load, base: int, first: int, last: int) -> None:
        """Write what lies after `base` of a prompt that is ready into the slots `first` … `last - 1`."""
        for part, a, b in spans(load.node, base, len(load.ids)):
            self.slots.fill(first, last, part.start + a - base, part.kv[:, :, :, a:b])

    def best_base(self, load: Load) -> int:
        """Up to where a row should hang on the nodes of its prompt: where others hang too, and it saves enough."""
        best = gain = base = 0
        for part, a, b in spans(load.node, 0, aligned(len(load.ids))):
            gain += (part.held - 1) * (b - a) * self.shape.numbers_per_position - HANG_WORTH
            if gain > best:
                best, base = gain, part.start + b
        return base

    def hanging_pays(self, rows: int, length: int) -> bool:
        """Whether so many rows should hang on one prompt of this length."""
        return (rows - 1) * aligned(length) * self.shape.numbers_per_position > HANG_WORTH

    def keep(self, ids: np.ndarray, base: int, slot: int) -> None:
        """Leave what a finished row computed in the tree, if memory is free or taken by what was used longer ago."""
        node, length = self.tree.match(ids)
        start = aligned(length)
        size = len(ids) - start
        spare = self.limit - self.slots.tokens - self.tree.held_tokens - self.claims
        # A split copies both halves before the whole is let go.
        size += len(node.ids)
        if start < base or length == len(ids) or size > spare:
            return
        missing = self.tokens + size - self.limit
        if missing > 0:
            self.tree.hold(node)
            missing -= self.tree.evict(missing)
            self.tree.release(node)
        if missing <= 0:
            self.tree.add(ids, start, self.slots.take(slot, start - base, len(ids) - base))

    def clear(self) -> None:
        """Forget everything; nobody may need it any more."""
        self.loads.clear()
        self.tree = PrefixTree()
        self.making, self.claims, self.live = 0, 0, (0, 0)
        self.slots.clear()
