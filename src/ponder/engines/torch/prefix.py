"""Prefixes that were computed once: a radix tree whose nodes own the keys and values of a stretch of ids.

Rows that begin alike hang on the same nodes. A node begins at a multiple of `PAGE`, so that two prompts share storage
where at least a page of them is equal; a shorter common part is copied, not computed. What nobody holds stays until
the memory is needed (least recently used leaves go first) or the weights change.

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

    They have less than a page in common, so the one that has most in common with given ids stands next to where these
    would stand: thousands of prompts and responses are told apart in a few comparisons.
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
        """Put another node that begins with the same page in a node's place."""
        self._nodes[self._place(node)] = other

    def closest(self, ids: np.ndarray) -> tuple[Node | None, int]:
        """The node with most leading ids in common with these, and how many; None if there is none in common."""
        i = bisect_left(self._keys, _page(ids))
        best, most = None, 0
        # What stands after comes first: only there can all of `ids` be found.
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
    """The first page of ids, such that bytes stand in the order of the ids."""
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
    """Rows, prompts in the making and leases that need this node or one below."""
    used: int = 0
    """When it was last matched or let go; a count, not a time."""
    findable: bool = True
    """False once the weights have changed: only those who hold it still read it."""

    @property
    def end(self) -> int:
        return self.start + len(self.ids)


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading elements are equal."""
    size = min(len(a), len(b))
    differ = a[:size] != b[:size]
    first = int(differ.argmax()) if size else 0
    return first if size and differ[first] else size


def aligned(length: int) -> int:
    """The last multiple of `PAGE` that is not above."""
    return length // PAGE * PAGE


class PrefixTree:
    """The nodes, who holds them, and how much they store. Used by one thread only."""

    def __init__(self) -> None:
        self.root = Node(np.zeros(0, dtype=np.int64), 0, torch.empty(0), None)
        self.tokens = 0
        """Positions stored, those of nodes that can no longer be found but are still held included."""
        self.held_tokens = 0
        """Positions that somebody holds; the others may be evicted."""
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
        """Positions before `end` on the way to a node that nobody holds yet."""
        return sum(max(0, min(n.end, end) - n.start) for n in _upwards(node) if not n.held)

    def add(self, ids: np.ndarray, start: int, kv: Tensor) -> Node:
        """Store the keys and values of `ids[start:]`; the tree must hold `ids[:start]`, `start` a multiple of `PAGE`.

        Returns the node that holds the last id: a new one, or one that was there already.
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
        """The node on the way to `node` that ends at a multiple of `PAGE`; one is split if it must."""
        while node.parent is not None and node.start >= position:
            node = node.parent
        if node.end <= position:
            return node
        # The lower half stays the same object: whoever holds it finds the upper half among its ancestors.
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
        """Drop least recently used leaves that nobody holds until so many positions are free; returns how many are."""
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
        """Forget everything: nothing is found any more, and what nobody holds is freed."""
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
    """What the nodes down to `node` have of positions `first` … `last - 1`, as (node, from, to) within each node."""
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
