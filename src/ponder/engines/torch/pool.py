"""The memory of keys and values: slots of running rows, shared nodes, and prompts that are being computed.

All sizes are counted in positions, of which `limit` may exist at a time. What is in use (slots, held nodes, prompts
being computed) is admitted only if its worst case fits: slots as long as the longest row may become, held nodes,
prompts still to be computed. Nodes without a holder fill the rest and are evicted when it is needed.

New weights make every node unfindable. Rows that hang on one keep it until they end; prompts being computed and leases
go back to the queue.
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
"""A row hangs on a shared stretch if that saves a step at least this many values to read per layer.

Hanging costs a matrix product and a merge for each node and step, so it pays where many rows read the same long
stretch; else the stretch is copied into the slot. Rows also hang where the memory allows nothing else."""


def slot_length(rows: int, longest: int) -> int:
    """Most columns that this many slots get if none of their rows becomes longer."""
    return rounded(longest, PAGE if rows == 1 else CHUNK)


@dataclass(eq=False)
class Load:
    """A prompt being computed into the cache, held for the jobs that wait for it."""

    ids: np.ndarray
    count: int
    """Number of rows or leases that will use it."""
    node: Node
    matched: int
    """Positions that were found in the cache, not computed."""
    done: int = 0
    base: int = 0
    kv: Tensor | None = None
    """Its keys and values from `base` on, while it is computed."""
    claim: int = 0
    """Positions that it takes or may still take, besides what it holds."""
    seconds: float = 0.0
    """Device seconds for what was computed."""
    paid: bool = False
    """The cost of computing it was booked to a sample."""

    @property
    def ready(self) -> bool:
        return self.done == len(self.ids)


class Pool:
    """Slots, tree and prompts being computed, within one limit. Used by one thread only."""

    def __init__(self, native: Native, memory: int) -> None:
        self.native, self.shape = native, native.shape
        self.limit = memory // self.shape.bytes_per_token
        self.slots = KVCache(self.shape)
        native.slots = self.slots
        self.tree = PrefixTree()
        self.loads: list[Load] = []
        """Not ready yet, in the order in which they were opened."""
        self.making = 0
        """Positions allocated for prompts being computed."""
        self.claims = 0
        """Sum of what `loads` claim."""
        self.live = (0, 0)
        """Slots and columns that are in use."""

    @property
    def tokens(self) -> int:
        """Positions with allocated memory; never above `limit`."""
        return self.slots.tokens + self.tree.tokens + self.making

    def fits(self, rows: int, longest: int, more: int = 0) -> bool:
        """Whether `rows` rows of at most `longest` columns could run besides what is held and `more` positions."""
        need = rows * slot_length(rows, longest) + self.tree.held_tokens + self.claims
        return need + more <= self.limit

    def look(self, ids: np.ndarray) -> int:
        """Positions that `open` with these ids would take from evictable or free memory."""
        node, length = self.tree.match(ids)
        if length == len(ids):
            return self.tree.newly_held(node, rounded(length, PAGE))
        return self.tree.newly_held(node, aligned(length)) + rounded(len(ids), PAGE) - aligned(length)

    def open(self, ids: np.ndarray, count: int) -> Load:
        """Hold the cached part of a prompt and queue the rest for prefill."""
        load = Load(ids, count, self.tree.root, 0)
        self._match(load)
        if not load.ready:
            self.loads.append(load)
        return load

    def _match(self, load: Load) -> Node:
        """Hold only the whole pages that are cached of a prompt; returns the node where the match ends."""
        node, length = self.tree.match(load.ids)
        whole = length == len(load.ids)
        end = rounded(length, PAGE) if whole else aligned(length)
        if node.start < end < node.end:
            # Both halves are copied before the whole is released.
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
        """This many of the waiting rows or leases have what they need, or no longer need it."""
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

    def work(self, most: int) -> int:
        """Prefill up to `most` ids of the waiting prompts, several packed into one pass, the oldest first.

        Returns how many there were.
        """
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
        return most - left

    def _better_wait(self, load: Load, begun: list[Load]) -> bool:
        """True if a prompt being computed will cache more of this one than is cached now."""
        common = max((common_length(load.ids, other.ids) for other in begun), default=0)
        return aligned(common) > aligned(load.matched) and aligned(common) > aligned(self.tree.match(load.ids)[1])

    def _begin(self, load: Load) -> None:
        node = self._match(load)
        if load.ready:
            self.loads.remove(load)
            return
        # Less than a page; it has no holder, so making room may evict it.
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
        """Evict, and shrink slots that are larger than needed, until this many positions are free."""
        missing = self.tokens + tokens - self.limit
        if missing > 0:
            missing -= self.tree.evict(missing)
        if missing > 0:
            rows, length = self.live
            self.slots.resize(rows, rounded(length, PAGE), rows, length)
        assert self.tokens + tokens <= self.limit, "admission promised this memory"

    def reserve(self, rows: int, length: int, longest: int, *, spare_rows: int = 0) -> None:
        """Make room for `rows` slots of `length` columns, and for more of both if memory is free; live ones are kept.

        `longest` is the most columns that any of these rows may need: slots grow no further than that.
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
        """Write the part after `base` of a computed prompt into the slots `first` … `last - 1`."""
        for part, a, b in spans(load.node, base, len(load.ids)):
            self.slots.fill(first, last, part.start + a - base, part.kv[:, :, :, a:b])

    def best_base(self, load: Load) -> int:
        """How far a row should hang on the nodes of its prompt: as far as other rows do too, where it saves enough."""
        best = gain = base = 0
        for part, a, b in spans(load.node, 0, aligned(len(load.ids))):
            gain += (part.held - 1) * (b - a) * self.shape.numbers_per_position - HANG_WORTH
            if gain > best:
                best, base = gain, part.start + b
        return base

    def hanging_pays(self, rows: int, length: int) -> bool:
        """Whether this many rows should hang on one prompt of this length."""
        return (rows - 1) * aligned(length) * self.shape.numbers_per_position > HANG_WORTH

    def keep(self, ids: np.ndarray, base: int, slot: int) -> None:
        """Store what a finished row computed in the tree, if memory is free or held by less recently used nodes."""
        node, length = self.tree.match(ids)
        start = aligned(length)
        size = len(ids) - start
        spare = self.limit - self.slots.tokens - self.tree.held_tokens - self.claims
        # A split copies both halves before the whole is released.
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
        """Forget everything; nothing may be in use."""
        self.loads.clear()
        self.tree = PrefixTree()
        self.making, self.claims, self.live = 0, 0, (0, 0)
        self.slots.clear()
