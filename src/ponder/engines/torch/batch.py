"""The running batch: which samples have a slot, and one decode step over all of them.

Python runs per row only when a row joins, finishes, streams, or may have completed a stop string.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ponder.engines.requests import Markers
from ponder.engines.text import Vocabulary
from ponder.engines.torch.attention import Shared, shared_parts
from ponder.engines.torch.cache import better_order
from ponder.engines.torch.drawing import Drawing
from ponder.engines.torch.endings import Endings
from ponder.engines.torch.exact import Exact
from ponder.engines.torch.forward import Native, Recompute
from ponder.engines.torch.jobs import Job
from ponder.engines.torch.pool import Pool
from ponder.engines.torch.rows import Row, Rows
from ponder.engines.torch.thoughts import Thoughts
from ponder.types import Completion, FinishReason

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel

TIDY_STEPS = 16
"""Steps between sorting slots by length, where that pays."""
WORTH_KEEPING = 64
"""Responses of at least this many positions leave their keys and values in the tree, for the next turn or branch."""


class Batch:
    """The slots and one decode step over them. Used by one thread only."""

    def __init__(
        self,
        model: LoadedModel,
        vocabulary: Vocabulary,
        markers: Markers,
        version: int,
        *,
        memory: int,
        exact: bool = False,
        products: str | None = None,
        precision: str = "float32",
    ) -> None:
        self.model, self.version = model, version
        native = Exact if exact else Native
        self.forward: Native | Recompute = (
            native(model, products, precision) if model.supports_cache else Recompute(model)
        )
        self.pool = Pool(self.forward, memory) if isinstance(self.forward, Native) else None
        """None where nothing is kept between steps."""
        self.rows = Rows()
        self.cache_rows = self._steps = 0
        self._shared: list[Shared] = []
        self._splits = 0
        self._streams = False
        self._drawing = Drawing(self.rows, self.forward, model.device)
        self._endings = Endings(self.rows, vocabulary, model.end_ids)
        self._thoughts = Thoughts(self.rows, markers, self._endings)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def longest(self) -> int:
        """Most columns that any row may need."""
        return self.rows.longest

    def _columns(self) -> int:
        """Columns that are in use."""
        return int(self.rows.columns.max()) if len(self) else 0

    @torch.inference_mode()
    def join(self, samples: Sequence[tuple[Job, int]], *, cache_rows: int) -> None:
        """Give slots to samples with computed prompts, in order. `cache_rows` is how many rows to make room for."""
        now = time.perf_counter()
        first, count = len(self), len(self) + len(samples)
        if not first:
            self._steps = 0  # when slots are sorted must not depend on what ran before
        groups = [(job, [i for _, i in same]) for job, same in itertools.groupby(samples, key=lambda s: s[0])]
        bases = [self._base(job) for job, _ in groups]
        needs = [len(job.context) - 1 - base for (job, _), base in zip(groups, bases, strict=True)]
        longest = max(self.longest, *(job.total - base for (job, _), base in zip(groups, bases, strict=True)))
        columns = max(self._columns() + 1, *needs, 1)
        self.rows.grow(count, max(job.total for job, _ in groups))
        self.cache_rows = cache_rows
        if self.pool is not None:
            self.pool.live = (first, self._columns())
            self.pool.reserve(count, columns, longest, spare_rows=cache_rows)
        for (job, indices), base in zip(groups, bases, strict=True):
            for index in indices:
                self._seat(job, index, base, now)
        self._fill(first, count)
        self._changed()

    def _fill(self, first: int, last: int) -> None:
        """Write prompts into slots; a prompt that neighbouring slots share is written once."""
        if self.pool is None:
            return

        def prompt(slot: int) -> tuple[int, int, int]:
            load = self.rows[slot].job.load
            return (id(load.node), len(load.ids), int(self.rows.base[slot])) if load is not None else (0, 0, 0)

        for (_, length, base), alike in itertools.groupby(range(first, last), key=prompt):
            slots = list(alike)
            load = self.rows[slots[0]].job.load
            if load is not None and base < length:
                self.pool.seat(load, base, slots[0], slots[-1] + 1)

    def _base(self, job: Job) -> int:
        if self.pool is None or job.load is None:
            return 0
        return job.total - job.private if job.hangs else self.pool.best_base(job.load)

    def _seat(self, job: Job, index: int, base: int, now: float) -> None:
        context, load = job.context, job.load
        found, seconds = 0, 0.0
        if load is not None and self.pool is not None:
            found = len(context) if load.paid or load.matched == len(load.ids) else load.matched
            seconds = 0.0 if load.paid else load.seconds
            load.paid = True
        row = Row(job, index, found, now, versions=[(len(job.prompt), self.version)])
        if base and load is not None and self.pool is not None:
            row.node = load.node
            self.pool.tree.hold(row.node)
        if job.params.top_logprobs:
            row.best = [()] * len(job.prefix)
        self._thoughts.begin(self.rows.add(row, base, seconds))

    def _changed(self) -> None:
        self._drawing.changed()
        self._endings.changed()
        self._thoughts.changed()
        self._streams = any(row.job.streams for row in self.rows)
        self._share()

    def _share(self) -> None:
        """Recompute which rows hang on which nodes."""
        if self.pool is not None:
            self.pool.live = (len(self), self._columns())
            self._splits = self.pool.tree.splits
            nodes = [r.node for r in self.rows]
            hang = any(node is not None for node in nodes)
            self._shared = shared_parts(nodes, self.rows.base, self.model.device) if hang else []

    def step(self) -> list[tuple[Row, Completion]]:
        """Give every row its next token; rows that ended leave. Returns them with their completions, in slot order."""
        rows, n, begun = self.rows, len(self), time.perf_counter()
        self._steps += 1
        if self._steps % TIDY_STEPS == 0:
            self._tidy()
        with torch.inference_mode():
            tokens, logprobs, best = self._drawing.draw(self._hidden(n))
        free = ~rows.forcing()
        if self._thoughts.any:
            tokens, free = self._thoughts.override(tokens)
        rows.append(tokens, logprobs, free)
        if best is not None:
            self._drawing.note(best, free)
        ended = free & self._endings.ends(tokens)
        stopped = self._endings.stopped(tokens, free)
        if self._thoughts.any:
            self._thoughts.follow(tokens, free, ended)
        over = ended | (rows.at[:n] + 1 >= rows.end[:n])
        if stopped:
            over[list(stopped)] = True
        if self._streams:
            for s in np.flatnonzero(~over).tolist():
                if rows[s].job.streams:
                    rows[s].job.sink.tokens(rows[s].index, [int(tokens[s])])
        rows.device[:n] += (time.perf_counter() - begun) / n
        leaving = np.flatnonzero(over)
        if not len(leaving):
            return []
        finished = [(rows[s], self._completion(s, bool(ended[s]), stopped.get(s))) for s in leaving.tolist()]
        self.leave(leaving, keep=True)
        return finished

    def _hidden(self, n: int) -> torch.Tensor:
        at, base, table = self.rows.at[:n], self.rows.base[:n], self.rows.table
        if self.pool is None:
            assert isinstance(self.forward, Recompute)
            return self.forward.step(table[:n], at)
        assert isinstance(self.forward, Native)
        if self._splits != self.pool.tree.splits:
            self._share()
        columns = self._columns()
        self.pool.live = (n, columns)
        self.pool.reserve(n, columns + 1, self.longest, spare_rows=self.cache_rows)
        self.pool.live = (n, columns + 1)
        return self.forward.step(table[np.arange(n), at], at, base, self._shared)

    def cut_short(self, slot: int) -> Completion:
        """What a running row has so far."""
        return dataclasses.replace(self._completion(slot, False, None), finish_reason=FinishReason.CANCELLED)

    def _completion(self, slot: int, ended: bool, cut: int | None) -> Completion:
        row, context = self.rows[slot], len(self.rows[slot].job.context)
        flops = self.forward.flops(min(row.found, context - 1), context, int(self.rows.at[slot]) + 1)
        return self._endings.completion(slot, ended=ended, cut=cut, flops=flops)

    @torch.inference_mode()
    def leave(self, leaving: np.ndarray, *, keep: bool = False) -> None:
        """Free slots at once: rows from the end move into the gaps. With `keep`, long responses stay in the tree."""
        rows = self.rows
        if self.pool is not None:
            self.pool.live = (len(self), self._columns())
            for s in leaving.tolist():
                row, at, base = rows[s], int(rows.at[s]), int(rows.base[s])
                young = len(row.versions) == 1 and row.versions[0][1] == self.version
                if keep and young and at - max(base, len(row.job.context)) >= WORTH_KEEPING:
                    self.pool.keep(rows.table[s, :at], base, s)
                if row.node is not None:
                    self.pool.tree.release(row.node)
        columns = rows.columns
        movers, holes = rows.remove(leaving)
        if self.pool is not None and len(holes):
            self.pool.slots.copy(movers, holes, int(columns[movers].max()))
        self._changed()

    @torch.inference_mode()
    def _tidy(self) -> None:
        if self.pool is None:
            return
        columns = self.rows.columns + 1
        order = better_order(columns, self.pool.shape.numbers_per_position)
        if order is None:
            return
        self.pool.slots.permute(order, int(columns.max()) - 1)
        self.rows.permute(order)
        self._changed()

    def set_version(self, version: int) -> None:
        """Mark that tokens sampled from now on come from other weights; nothing cached is found any more."""
        self.version = version
        for slot, row in enumerate(self.rows):
            row.versions.append((int(self.rows.at[slot]) + 1, version))
        if self.pool is not None:
            self.pool.native.weights_changed()
            self.pool.tree.drop()

    def reset(self) -> None:
        """Forget all rows and all that is cached."""
        self.rows.clear()
        if self.pool is not None:
            self.pool.clear()
        self._changed()
