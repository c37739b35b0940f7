"""State of the running batch: one slot a sample, all bookkeeping of a step as arrays over slots.

Slots are always 0 … n - 1; arrays may be longer. `table` holds prompt and response of each slot by absolute position,
so that the input of the next step is `table[slot, at]`, and a completion is a slice of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ponder.engines.torch.jobs import Job
from ponder.engines.torch.prefix import Node


@dataclass(eq=False)
class Row:
    """The state of a slot that is not in arrays."""

    job: Job
    index: int
    found: int
    """Positions of the prompt and prefix that this sample did not have to compute."""
    begun: float
    node: Node | None = None
    """The node that it hangs on and holds."""
    versions: list[tuple[int, int]] = field(default_factory=list)
    """(first absolute position, weights version), ascending."""
    best: list[tuple[tuple[int, float], ...]] | None = None
    """The most likely ids at each token of the response, if asked for; empty where a token was forced."""


class Rows:
    """The rows by slot, and their arrays."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self.table = np.zeros((0, 0), dtype=np.int64)
        self.logprobs = np.zeros((0, 0), dtype=np.float64)
        self.forced = np.zeros((0, 0), dtype=bool)
        self.pending = np.zeros((0, 1), dtype=np.int64)
        """Ids to be forced next: columns `pending_at` … `pending_end - 1`."""
        integers, flags = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
        self.at, self.start, self.end, self.base = integers, integers, integers, integers
        """Position of the last known token; of the first and one past the last possible token of the response; of the
        slot's first column."""
        self.thought, self.thought_max, self.thought_min = integers, integers, integers
        self.pending_at, self.pending_end = integers, integers
        self.device = np.zeros(0)
        """Device seconds booked to each row; the first row of a request has those of its prompt too."""
        self.inside, self.closing = flags, flags
        self.keys = np.zeros(0, dtype=np.uint64)

    _PLAIN = ("at", "start", "end", "base", "thought", "thought_max", "thought_min", "pending_at", "pending_end")
    _ALL = (*_PLAIN, "device", "inside", "closing", "keys", "table", "logprobs", "forced", "pending")

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __getitem__(self, slot: int) -> Row:
        return self._rows[slot]

    @property
    def columns(self) -> np.ndarray:
        """Columns of each row that are in use; its last token is not computed yet."""
        n = len(self)
        return self.at[:n] - self.base[:n]

    @property
    def longest(self) -> int:
        """Most columns that any row may need."""
        n = len(self)
        return int((self.end[:n] - self.base[:n]).max()) if n else 0

    def forcing(self) -> np.ndarray:
        """Which rows have ids to be forced."""
        n = len(self)
        return self.pending_at[:n] < self.pending_end[:n]

    def response(self, slot: int) -> list[int]:
        return self.table[slot, self.start[slot] : self.at[slot] + 1].tolist()

    # Coming and going -----------------------------------------------------------------------------------------------

    def grow(self, rows: int, width: int) -> None:
        """Make room for this many rows and positions."""
        old_rows, old_width = self.table.shape
        rows, width = max(rows, old_rows), max(width, old_width)
        if (rows, width) == (old_rows, old_width):
            return
        for name in self._ALL:
            old = getattr(self, name)
            shape = (rows,) if old.ndim == 1 else (rows, width if name != "pending" else old.shape[1])
            new = np.zeros(shape, dtype=old.dtype)
            new[tuple(slice(0, s) for s in old.shape)] = old
            setattr(self, name, new)

    def add(self, row: Row, base: int, device: float) -> int:
        """Put a row into the next slot, for which there is room; its prompt and prefix are known. Returns the slot."""
        slot, job = len(self), row.job
        context = job.context
        self._rows.append(row)
        self.table[slot, : len(context)] = context
        self.start[slot], self.at[slot], self.end[slot] = len(job.prompt), len(context) - 1, job.total
        self.base[slot], self.device[slot] = base, device
        self.forced[slot, len(job.prompt) : len(context)] = True
        self.logprobs[slot, len(job.prompt) : len(context)] = 0.0
        self.keys[slot] = job.keys[row.index]
        self.pending_at[slot] = self.pending_end[slot] = 0
        return slot

    def force(self, slots: np.ndarray | int, ids: Sequence[int]) -> None:
        """Force these ids next, in place of what is drawn."""
        if self.pending.shape[1] < len(ids):
            wider = np.zeros((len(self.pending), len(ids)), dtype=np.int64)
            wider[:, : self.pending.shape[1]] = self.pending
            self.pending = wider
        self.pending[slots, : len(ids)] = ids
        self.pending_at[slots], self.pending_end[slots] = 0, len(ids)

    def append(self, tokens: np.ndarray, logprobs: np.ndarray, free: np.ndarray) -> None:
        """The next token of every row, and which of them were drawn."""
        n = len(self)
        slots = np.arange(n)
        self.at[:n] += 1
        at = self.at[:n]
        self.table[slots, at] = tokens
        self.logprobs[slots, at] = np.where(free, logprobs, 0.0)
        self.forced[slots, at] = ~free

    def remove(self, leaving: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Free slots at once: rows from the end move into the gaps. Returns which moved where."""
        n = len(self)
        left = n - len(leaving)
        gone = np.zeros(n, dtype=bool)
        gone[leaving] = True
        holes = np.flatnonzero(gone[:left])
        movers = left + np.flatnonzero(~gone[left:])
        if len(holes):
            for name in self._ALL:
                array = getattr(self, name)
                array[holes] = array[movers]
            for hole, mover in zip(holes, movers, strict=True):
                self._rows[hole] = self._rows[mover]
        del self._rows[left:]
        return movers, holes

    def permute(self, order: np.ndarray) -> None:
        n = len(self)
        for name in self._ALL:
            array = getattr(self, name)
            array[:n] = array[order]
        self._rows = [self._rows[i] for i in order.tolist()]

    def clear(self) -> None:
        self._rows.clear()
