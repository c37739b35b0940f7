"""The prefix cache: a radix tree whose nodes own the keys and values of a stretch of ids.

A prompt is looked up in the tree, the missing part is computed straight into a new node, and the node stays in the
tree. A row either *hangs on* nodes, which means that it attends to them in place and its slot begins where they end, or
has them copied into its slot (`pool.py` chooses). A node begins at a multiple of `PAGE`, so that two prompts share
storage where at least a page of them is equal; a shorter common part is copied, not computed. A node without a holder
(a row, a prompt being computed, a lease) stays until the memory is needed (least recently used leaves go first) or the
weights change. Long responses are stored in the tree too, for the next turn or branch.

Radix trees for key-value reuse: SGLang's RadixAttention (Zheng et al. 2024, arXiv:2312.07104).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

PAGE = 32
"""Nodes begin at multiples of this."""


class Siblings:
    """Nodes that begin at the same position after the same ids, in the order of their first page.

    They have less than a page in common, so the one that shares most with given ids is next to where these would be
    inserted: a lookup among thousands of prompts and responses takes a few comparisons.
    """

    __slots__ = ("_keys", "_nodes")

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._nodes: list[Node] = []

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    def add(self, node: Node) -> None:
        key = _page(node.ids)
        i = bisect_left(self._keys, key)
        self._keys.insert(i, key)
        self._nodes.insert(i, node)

    def remove(self, node: Node) -> None:
        i = self._place(node)
        del self._keys[i], self._nodes[i]

    def replace(self, node: Node, other: Node) -> None:
        """Replace a node by another that begins with the same page."""
        self._nodes[self._place(node)] = other

    def closest(self, ids: np.ndarray) -> tuple[Node | None, int]:
        """The node with the longest common prefix with these ids, and its length; None if there is none."""
        i = bisect_left(self._keys, _page(ids))
        best, most = None, 0
        # The next node is tried first: only there can all of `ids` be found.
        for node in (*self._nodes[i : i + 1], *self._nodes[max(0, i - 1) : i]):
            common = common_length(node.ids, ids)
            if common > most:
                best, most = node, common
        return best, most

    def _place(self, node: Node) -> int:
        i = bisect_left(self._keys, _page(node.ids))
        assert self._nodes[i] is node
        return i


def _page(ids: np.ndarray) -> bytes:
    """The first page of ids, as bytes that sort like the ids."""
    return ids[:PAGE].astype(">u8").tobytes()


@dataclass(eq=False)
class Node:
    """Keys and values of the ids at positions `start` … `end - 1`, after those of its ancestors."""

    ids: np.ndarray
    start: int
    kv: Tensor
    """Shape (layers, 2, kv heads, positions, head dimension): keys, then values."""
    parent: Node | None
    children: Siblings = field(default_factory=Siblings)
    held: int = 0
    """Number of rows, prompts being computed and leases that need this node or one below."""
    used: int = 0
    """When it was last matched or released; a count, not a time."""
    findable: bool = True
    """False once the weights have changed: only its holders still read it."""

    @property
    def end(self) -> int:
        return self.start + len(self.ids)


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """Number of equal leading elements."""
    size = min(len(a), len(b))
    differ = a[:size] != b[:size]
    first = int(differ.argmax()) if size else 0
    return first if size and differ[first] else size


def aligned(length: int) -> int:
    """The largest multiple of `PAGE` that is not above."""
    return length // PAGE * PAGE


class PrefixTree:
    """The nodes, their holders, and how much they store. Used by one thread only."""

    def __init__(self) -> None:
        self.root = Node(np.zeros(0, dtype=np.int64), 0, torch.empty(0), None)
        self.tokens = 0
        """Positions stored, those of nodes that can no longer be found but are still held included."""
        self.held_tokens = 0
        """Positions with a holder; the others may be evicted."""
        self.splits = 0
        """Counts changes of what a held node covers."""
        self._clock = 0

    def match(self, ids: np.ndarray) -> tuple[Node, int]:
        """The node that holds the last position of the longest stored prefix, and that prefix's length."""
        self._clock += 1
        node, at = self.root, 0
        while at < len(ids):
            best, most = node.children.closest(ids[at:])
            if best is None:
                break
            node, at = best, at + most
            node.used = self._clock
            if most < len(node.ids):
                break
        return node, at

    def hold(self, node: Node, count: int = 1) -> None:
        """Keep a node and its ancestors; to be undone by `release` with the same count."""
        for n in _upwards(node):
            if not n.held:
                self.held_tokens += len(n.ids)
            n.held += count

    def release(self, node: Node, count: int = 1) -> None:
        self._clock += 1
        for n in _upwards(node):
            n.held -= count
            n.used = self._clock
            assert n.held >= 0
            if not n.held:
                self.held_tokens -= len(n.ids)
                if not n.findable:
                    self.tokens -= len(n.ids)

    def newly_held(self, node: Node, end: int) -> int:
        """Positions before `end` on the path to a node that have no holder yet."""
        return sum(max(0, min(n.end, end) - n.start) for n in _upwards(node) if not n.held)

    def add(self, ids: np.ndarray, start: int, kv: Tensor) -> Node:
        """Store the keys and values of `ids[start:]`; the tree must hold `ids[:start]`, `start` a multiple of `PAGE`.

        Returns the node that holds the last id: a new one, or an existing one.
        """
        node, length = self.match(ids)
        assert start % PAGE == 0
        assert aligned(length) >= start or length == len(ids)
        if length == len(ids):
            return node
        boundary = aligned(length)
        if boundary > start:
            kv = kv[:, :, :, boundary - start :].clone()
        parent = self.boundary(node, boundary)
        new = Node(ids[boundary:].copy(), boundary, kv, parent, used=self._clock)
        parent.children.add(new)
        self.tokens += len(new.ids)
        return new

    def boundary(self, node: Node, position: int) -> Node:
        """The node on the path to `node` that ends at a multiple of `PAGE`; a node is split if needed."""
        while node.parent is not None and node.start >= position:
            node = node.parent
        if node.end <= position:
            return node
        # The lower half stays the same object: its holders find the upper half among its ancestors.
        cut, parent = position - node.start, node.parent
        assert parent is not None
        upper = Node(node.ids[:cut].copy(), node.start, node.kv[:, :, :, :cut].clone(), parent)
        upper.held, upper.used = node.held, node.used
        parent.children.replace(node, upper)
        node.ids, node.start, node.kv, node.parent = (
            node.ids[cut:].copy(),
            position,
            node.kv[:, :, :, cut:].clone(),
            upper,
        )
        upper.children.add(node)
        self.splits += 1
        return upper

    def evict(self, tokens: int) -> int:
        """Evict least recently used leaves without a holder until `tokens` positions are free; returns how many are."""
        freed = 0
        while freed < tokens:
            leaves = sorted((n for n in self.nodes() if not n.children and not n.held), key=lambda n: n.used)
            if not leaves:
                break
            for leaf in leaves:
                self._remove(leaf)
                freed += len(leaf.ids)
                if freed >= tokens:
                    break
        return freed

    def _remove(self, leaf: Node) -> None:
        assert leaf.parent is not None
        leaf.parent.children.remove(leaf)
        self.tokens -= len(leaf.ids)
        leaf.findable = False

    def drop(self) -> None:
        """Forget everything: nothing is found any more, and nodes without a holder are freed."""
        for node in list(self.nodes()):
            node.findable = False
            if not node.held:
                self.tokens -= len(node.ids)
        self.root.children = Siblings()

    def nodes(self) -> Iterator[Node]:
        """All nodes that can be found."""
        stack = list(self.root.children)
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children)


def spans(node: Node, first: int, last: int) -> list[tuple[Node, int, int]]:
    """The parts of the nodes down to `node` that cover positions `first` … `last - 1`, as (node, from, to)."""
    parts = []
    for n in _upwards(node):
        a, b = max(first, n.start), min(last, n.end)
        if a < b:
            parts.append((n, a - n.start, b - n.start))
    return parts[::-1]


def _upwards(node: Node) -> Iterator[Node]:
    """The node and its ancestors, without the root."""
    while node.parent is not None:
        yield node
        node = node.parent
