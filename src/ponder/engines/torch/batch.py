"""The running batch: one slot a sample, all bookkeeping of a step as arrays over slots.

Slots are always 0 … n - 1. Python runs per row only when a row joins, finishes, streams, or may have completed a stop
string. `table` holds prompt and response of each slot by absolute position, so that the input of the next step is
`table[slot, at]`, and a completion is a slice of it.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from ponder.engines._requests import Markers
from ponder.engines._streams import again, uniforms
from ponder.engines._text import Vocabulary
from ponder.engines.torch.attention import Shared, shared_parts
from ponder.engines.torch.cache import better_order
from ponder.engines.torch.exact import Exact
from ponder.engines.torch.forward import Native, Recompute
from ponder.engines.torch.jobs import NO_LIMIT, Job, stop_table
from ponder.engines.torch.pool import Pool
from ponder.engines.torch.prefix import Node
from ponder.engines.torch.sampler import Rules, sample
from ponder.types import Completion, FinishReason, SamplingParams, Segment, SegmentKind, Spend

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel

TIDY_STEPS = 16
"""How often slots are sorted by length, if it pays."""
WORTH_KEEPING = 64
"""Positions of a response from which on its keys and values are left in the tree."""
_NEUTRAL = SamplingParams(1)
_Best = list[tuple[Sequence[int], Sequence[float]]]


@dataclass(eq=False)
class Row:
    """What a slot holds besides numbers."""

    job: Job
    index: int
    found: int
    """Positions of the prompt and prefix that this sample did not have to compute."""
    begun: float
    node: Node | None = None
    """What it hangs on; it holds this node."""
    versions: list[tuple[int, str]] = field(default_factory=list)
    """(first absolute position, weights version), ascending."""
    ends: np.ndarray | None = None
    """Ids that may complete a stop string; None without stop strings."""
    best: list[tuple[tuple[int, float], ...]] | None = None
    """The most likely ids at each token of the response, if asked for; nothing where a token was forced."""


class Batch:
    """The slots and one decoding step over them. Used by one thread only."""

    def __init__(
        self,
        model: LoadedModel,
        vocabulary: Vocabulary,
        markers: Markers,
        version: str,
        *,
        memory: int,
        exact: bool = False,
        packed: bool | None = None,
    ) -> None:
        self.model, self.vocabulary, self.markers, self.version = model, vocabulary, markers, version
        native = Exact if exact else Native
        self.forward: Native | Recompute = native(model, packed) if model.supports_cache else Recompute(model)
        self.pool = Pool(self.forward, memory) if isinstance(self.forward, Native) else None
        """None where nothing is kept between steps."""
        self.rows: list[Row] = []
        self.cache_rows = self._steps = 0
        self._shared: list[Shared] = []
        self._splits = 0
        self.is_end_V = np.zeros(vocabulary.size, dtype=bool)
        self.is_end_V[[i for i in model.end_ids if 0 <= i < vocabulary.size]] = True
        self._rules: list[Rules] = []
        self._stop_ids: list[tuple[int, np.ndarray]] = []
        self._thinks = self._watches = self._streams = False
        self.table = np.zeros((0, 0), dtype=np.int64)
        self.logprobs = np.zeros((0, 0), dtype=np.float64)
        self.forced = np.zeros((0, 0), dtype=bool)
        self.pending = np.zeros((0, max(1, len(markers.close))), dtype=np.int64)
        """Ids to be put in by force next: columns `pending_at` … `pending_end - 1`."""
        integers, flags = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
        self.at, self.start, self.end, self.base = integers, integers, integers, integers
        """Position of the last known token; of the first and one past the last possible token of the response; of the
        slot's first column."""
        self.thought, self.thought_max, self.thought_min = integers, integers, integers
        self.pending_at, self.pending_end = integers, integers
        self.device = np.zeros(0)
        """Seconds of the machine that each row had, the first of a request those of its prompt too."""
        self.inside, self.closing = flags, flags
        self.keys = np.zeros(0, dtype=np.uint64)

    _PLAIN = ("at", "start", "end", "base", "thought", "thought_max", "thought_min", "pending_at", "pending_end")
    _ALL = (*_PLAIN, "device", "inside", "closing", "keys", "table", "logprobs", "forced", "pending")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def longest(self) -> int:
        """Most columns that any row may come to need."""
        n = len(self)
        return int((self.end[:n] - self.base[:n]).max()) if n else 0

    def _columns(self) -> int:
        """Columns that are in use; the last known token of a row is not computed yet."""
        n = len(self)
        return int((self.at[:n] - self.base[:n]).max()) if n else 0

    def _grow(self, rows: int, width: int) -> None:
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

    @torch.inference_mode()
    def join(self, samples: Sequence[tuple[Job, int]], *, cache_rows: int) -> None:
        """Give slots to samples whose prompts are there, in order. `cache_rows` is how many rows to make room for."""
        now = time.perf_counter()
        first, count = len(self), len(self) + len(samples)
        if not first:
            self._steps = 0  # when slots are sorted must not depend on what ran before
        groups = [(job, [i for _, i in same]) for job, same in itertools.groupby(samples, key=lambda s: s[0])]
        bases = [self._base(job) for job, _ in groups]
        needs = [len(job.context) - 1 - base for (job, _), base in zip(groups, bases, strict=True)]
        longest = max(self.longest, *(job.total - base for (job, _), base in zip(groups, bases, strict=True)))
        columns = max(self._columns() + 1, *needs, 1)
        self._grow(count, max(job.total for job, _ in groups))
        self.cache_rows = cache_rows
        if self.pool is not None:
            self.pool.live = (first, self._columns())
            self.pool.reserve(count, columns, longest, spare_rows=cache_rows)
        slot = first
        for (job, indices), base in zip(groups, bases, strict=True):
            for index in indices:
                self._seat(slot, job, index, base, now)
                slot += 1
        self._fill(first, count)
        self._changed()

    def _fill(self, first: int, last: int) -> None:
        """Write prompts into slots, one that neighbours share once for all of them."""
        if self.pool is None:
            return

        def prompt(slot: int) -> tuple[int, int, int]:
            load = self.rows[slot].job.load
            return (id(load.node), len(load.ids), int(self.base[slot])) if load is not None else (0, 0, 0)

        for (_, length, base), alike in itertools.groupby(range(first, last), key=prompt):
            slots = list(alike)
            load = self.rows[slots[0]].job.load
            if load is not None and base < length:
                self.pool.seat(load, base, slots[0], slots[-1] + 1)

    def _base(self, job: Job) -> int:
        if self.pool is None or job.load is None:
            return 0
        return job.total - job.private if job.hangs else self.pool.best_base(job.load)

    def _seat(self, slot: int, job: Job, index: int, base: int, now: float) -> None:
        context, load = job.context, job.load
        found = 0
        if load is not None and self.pool is not None:
            found = len(context) if load.paid or load.matched == len(load.ids) else load.matched
            self.device[slot] = 0.0 if load.paid else load.seconds
            load.paid = True
        else:
            self.device[slot] = 0.0
        row = Row(job, index, found, now, versions=[(len(job.prompt), self.version)])
        if base and load is not None and self.pool is not None:
            row.node = load.node
            self.pool.tree.hold(row.node)
        if job.params.top_logprobs:
            row.best = [()] * len(job.prefix)
        if job.params.stop:
            row.ends = stop_table(job.params.stop, self.vocabulary)
        self.rows.append(row)
        self.table[slot, : len(context)] = context
        self.start[slot], self.at[slot], self.end[slot] = len(job.prompt), len(context) - 1, job.total
        self.base[slot] = base
        self.forced[slot, len(job.prompt) : len(context)] = True
        self.logprobs[slot, len(job.prompt) : len(context)] = 0.0
        self.keys[slot] = job.keys[index]
        self.inside[slot], self.thought[slot] = job.inside, job.thought
        thinking = job.params.thinking
        limit = None if thinking is None else thinking.max_tokens
        self.thought_max[slot] = NO_LIMIT if limit is None else limit
        self.thought_min[slot] = 0 if thinking is None else thinking.min_tokens
        self.pending_at[slot] = self.pending_end[slot] = 0
        self.closing[slot] = False
        if thinking is not None and job.inside and job.thought >= self.thought_max[slot]:
            self._close(np.array([slot]))

    def _changed(self) -> None:
        params = [r.job.params for r in self.rows]
        kinds = {id(p): p for p in params}.values()
        # In the exact mode a tile at a time, its padding too, so that nothing depends on how many rows there are.
        exact = isinstance(self.forward, Exact)
        size = self.forward.tile if isinstance(self.forward, Exact) else max(1, len(params))
        padded = params + [_NEUTRAL] * (-len(params) % size)
        device, firsts = self.model.device, range(0, len(padded), size)
        self._rules = [Rules.of(padded[i : i + size], device, alike=exact) for i in firsts]
        self._stop_ids = [(s, np.array(p.stop_ids)) for s, p in enumerate(params) if p.stop_ids]
        self._thinks = any(p.thinking is not None for p in kinds)
        self._watches = any(p.stop for p in kinds) or (self._thinks and not self.markers.single)
        self._streams = any(r.job.streams for r in self.rows)
        self._share()

    def _share(self) -> None:
        """Find out anew which rows hang on what."""
        if self.pool is not None:
            self.pool.live = (len(self), self._columns())
            self._splits = self.pool.tree.splits
            nodes = [r.node for r in self.rows]
            hang = any(node is not None for node in nodes)
            self._shared = shared_parts(nodes, self.base, self.model.device) if hang else []

    def _close(self, slots: np.ndarray) -> None:
        """Queue the end-of-thought marker."""
        close = self.markers.close
        self.pending[slots, : len(close)] = close
        self.pending_at[slots], self.pending_end[slots], self.closing[slots] = 0, len(close), True

    def step(self) -> list[tuple[Row, Completion]]:
        """Give every row its next token; rows that ended leave. Returns them with their completions, in slot order."""
        n, begun = len(self), time.perf_counter()
        slots = np.arange(n)
        self._steps += 1
        if self._steps % TIDY_STEPS == 0:
            self._tidy()
        with torch.inference_mode():
            tokens, logprob, best = self._draw(self._hidden(n))
        free = self.pending_at[:n] >= self.pending_end[:n]
        if self._thinks:
            tokens = tokens.copy()
            self._extend_early(tokens, free)
            free = self.pending_at[:n] >= self.pending_end[:n]
            held = np.flatnonzero(~free)
            tokens[held] = self.pending[held, self.pending_at[held]]
            self.pending_at[held] += 1
        self.at[:n] += 1
        at = self.at[:n]
        self.table[slots, at] = tokens
        self.logprobs[slots, at] = np.where(free, logprob, 0.0)
        self.forced[slots, at] = ~free
        if best is not None:
            self._note_best(best, free)
        ended = free & self._ends(tokens)
        stopped = self._stops(tokens, free) if self._watches else {}
        if self._thinks:
            self._follow_thought(tokens, ended)
        over = ended | (at + 1 >= self.end[:n])
        if stopped:
            over[list(stopped)] = True
        if self._streams:
            for s in np.flatnonzero(~over):
                if self.rows[s].job.streams:
                    self.rows[s].job.sink.tokens(self.rows[s].index, [int(tokens[s])])
        self.device[:n] += (time.perf_counter() - begun) / n
        leaving = np.flatnonzero(over)
        if not len(leaving):
            return []
        finished = [(self.rows[s], self._completion(s, bool(ended[s]), stopped.get(s))) for s in leaving.tolist()]
        self.leave(leaving, keep=True)
        return finished

    def _hidden(self, n: int) -> torch.Tensor:
        at, base = self.at[:n], self.base[:n]
        if self.pool is None:
            assert isinstance(self.forward, Recompute)
            return self.forward.step(self.table[:n], at)
        assert isinstance(self.forward, Native)
        if self._splits != self.pool.tree.splits:
            self._share()
        columns = self._columns()
        self.pool.live = (n, columns)
        self.pool.reserve(n, columns + 1, self.longest, spare_rows=self.cache_rows)
        self.pool.live = (n, columns + 1)
        return self.forward.step(self.table[np.arange(n), at], at, base, self._shared)

    def _draw(self, hidden: torch.Tensor) -> tuple[np.ndarray, np.ndarray, _Best | None]:
        """Ids, log-probabilities and, if some row wants them, the most likely ids with theirs."""
        n = len(self)
        keys, at = np.zeros(len(hidden), dtype=np.uint64), np.zeros(len(hidden), dtype=np.int64)
        keys[:n], at[:n] = self.keys[:n], self.at[:n] + 1 - self.start[:n]
        chance = torch.as_tensor(uniforms(keys, at), device=hidden.device)
        size = len(hidden) // len(self._rules)
        parts, start, logits = [], 0, hidden[:0]
        cuts = iter(self.forward.cuts(len(hidden)) if isinstance(self.forward, Exact) else (size,))
        for i, rules in enumerate(self._rules):
            if not len(logits):
                logits = self.forward.logits(hidden[start : start + next(cuts)])
                start += len(logits)
            parts.append(sample(logits[:size], rules, chance[i * size : (i + 1) * size]))
            logits = logits[size:]
        ids = torch.cat([p.ids_B for p in parts])[:n].cpu().numpy()
        logprobs = torch.cat([p.logprobs_B for p in parts])[:n].cpu().numpy()
        if not any(r.best for r in self._rules):
            return ids, logprobs, None
        best: _Best = []
        for p in parts:
            if p.best_ids_BK is None or p.best_logprobs_BK is None:
                best += [((), ())] * size
            else:
                best += zip(p.best_ids_BK.tolist(), p.best_logprobs_BK.tolist(), strict=True)
        return ids, logprobs, best

    def _note_best(self, best: _Best, free: np.ndarray) -> None:
        for slot, row in enumerate(self.rows):
            if row.best is not None:
                pairs = zip(*best[slot], strict=True) if free[slot] else ()
                wanted = itertools.islice(pairs, row.job.params.top_logprobs)
                row.best.append(tuple((i, x) for i, x in wanted if x > -np.inf))

    def _ends(self, tokens: np.ndarray) -> np.ndarray:
        """Where a token ends its response."""
        ends = self.is_end_V[tokens]
        for slot, ids in self._stop_ids:
            ends[slot] |= bool((ids == tokens[slot]).any())
        return ends

    def _extend_early(self, tokens: np.ndarray, free: np.ndarray) -> None:
        """Replace an end that was drawn before the least thought by the text that makes the model go on."""
        n = len(tokens)
        early = free & self.inside[:n] & (self.thought[:n] < self.thought_min[:n])
        if not early.any():
            return
        early &= self._ends(tokens) | (tokens == self.markers.close[0])
        for s in np.flatnonzero(early):
            extend = self.rows[s].job.extend
            if self.pending.shape[1] < len(extend):
                wider = np.zeros((len(self.pending), len(extend)), dtype=np.int64)
                wider[:, : self.pending.shape[1]] = self.pending
                self.pending = wider
            self.pending[s, : len(extend)] = extend
            self.pending_at[s], self.pending_end[s] = 0, len(extend)
        self.keys[:n][early] = again(self.keys[:n][early])

    def _follow_thought(self, tokens: np.ndarray, ended: np.ndarray) -> None:
        """Keep track of who is inside a thought and for how long; queue the marker where a thought is full."""
        n = len(tokens)
        inside = self.inside[:n]
        idle = self.pending_at[:n] >= self.pending_end[:n]
        closed = self.closing[:n] & idle
        opened = np.zeros(n, dtype=bool)
        if self.markers.single:
            closed |= inside & (tokens == self.markers.close[0])
            opened = ~inside & (tokens == self.markers.open[0])
        counted = inside & ~closed & ~self.closing[:n]
        self.thought[:n][counted] += 1
        self.closing[:n][closed] = False
        inside[closed] = False
        inside[opened] = True
        full = inside & idle & ~self.closing[:n] & ~ended & (self.thought[:n] >= self.thought_max[:n])
        if full.any():
            self._close(np.flatnonzero(full))

    def _stops(self, tokens: np.ndarray, free: np.ndarray) -> dict[int, int]:
        """Rows that completed a stop string, with where it begins in their text; follows markers of several tokens."""
        stopped = {}
        for s in np.flatnonzero(free).tolist():
            row = self.rows[s]
            if row.ends is not None and row.ends[tokens[s]]:
                found = self.vocabulary.stop_at(self._response(s), row.job.params.stop)
                if found is not None:
                    stopped[s] = found
            if row.job.params.thinking is not None and not self.markers.single and not self.closing[s]:
                mark = self.markers.close_text if self.inside[s] else self.markers.open_text
                if (
                    self.vocabulary.enders(mark)[tokens[s]]
                    and self.vocabulary.stop_at(self._response(s), (mark,)) is not None
                ):
                    self.inside[s] = not self.inside[s]
                    self.thought[s] -= self.inside[s]  # this token still belongs to the marker
        return stopped

    def _response(self, slot: int) -> list[int]:
        return self.table[slot, self.start[slot] : self.at[slot] + 1].tolist()

    def cut_short(self, slot: int) -> Completion:
        """What a running row has so far."""
        return dataclasses.replace(self._completion(slot, False, None), finish_reason=FinishReason.CANCELLED)

    def _completion(self, slot: int, ended: bool, cut: int | None) -> Completion:
        row, start, stop = self.rows[slot], int(self.start[slot]), int(self.at[slot]) + 1
        ids = self._response(slot)
        text = self.model.tokenizer.decode(ids[:-1] if ended else ids)
        finish = FinishReason.STOP if ended or cut is not None else FinishReason.LENGTH
        segments = self._segments(slot) if ids else ()
        job = row.job
        sampled = int((~self.forced[slot, start:stop]).sum())
        spend = Spend(
            prompt_tokens=len(job.context) - min(row.found, len(job.context)),
            cached_tokens=min(row.found, len(job.context)),
            sampled_tokens=sampled,
            forced_tokens=stop - start - sampled - len(job.prefix),
            seconds=time.perf_counter() - row.begun,
            flops=self.forward.flops(min(row.found, len(job.context) - 1), len(job.context), stop),
            device_seconds=float(self.device[slot]),
        )
        return Completion(
            text=text if cut is None else text[:cut],
            finish_reason=finish,
            spend=spend,
            segments=segments,
            prompt_ids=job.prompt,
            weights_version=segments[-1].weights_version if segments else row.versions[-1][1],
            stopped_by=None if cut is None else next(s for s in job.params.stop if text.startswith(s, cut)),
        )

    def _segments(self, slot: int) -> tuple[Segment, ...]:
        """The response as runs of one kind and one weights version."""
        start, stop = int(self.start[slot]), int(self.at[slot]) + 1
        forced = self.forced[slot, start:stop]
        versions = self.rows[slot].versions
        cuts = {start, stop, *(np.flatnonzero(np.diff(forced)) + 1 + start).tolist()}
        cuts.update(v for v, _ in versions if start < v < stop)
        edges = sorted(cuts)
        segments = []
        for a, b in itertools.pairwise(edges):
            version = [v for first, v in versions if first <= a][-1]
            ids = tuple(self.table[slot, a:b].tolist())
            if forced[a - start]:
                segments.append(Segment(SegmentKind.FORCED, ids, None, version))
            else:
                row = self.rows[slot]
                logprobs = tuple(self.logprobs[slot, a:b].tolist())
                best = None if row.best is None else tuple(row.best[a - start : b - start])
                kind = row.job.params.logprobs_of
                segments.append(Segment(SegmentKind.SAMPLED, ids, logprobs, version, kind, best))
        return tuple(segments)

    @torch.inference_mode()
    def leave(self, leaving: np.ndarray, *, keep: bool = False) -> None:
        """Free slots at once: rows from the end move into the gaps. With `keep`, long responses stay in the tree."""
        n = len(self)
        left = n - len(leaving)
        if self.pool is not None:
            self.pool.live = (n, self._columns())
            for s in leaving.tolist():
                row, at, base = self.rows[s], int(self.at[s]), int(self.base[s])
                young = len(row.versions) == 1 and row.versions[0][1] == self.version
                if keep and young and at - max(base, len(row.job.context)) >= WORTH_KEEPING:
                    self.pool.keep(self.table[s, :at], base, s)
                if row.node is not None:
                    self.pool.tree.release(row.node)
        gone = np.zeros(n, dtype=bool)
        gone[leaving] = True
        holes = np.flatnonzero(gone[:left])
        movers = left + np.flatnonzero(~gone[left:])
        if len(holes):
            if self.pool is not None:
                self.pool.slots.copy(movers, holes, int((self.at - self.base)[movers].max()))
            for name in self._ALL:
                array = getattr(self, name)
                array[holes] = array[movers]
            for hole, mover in zip(holes, movers, strict=True):
                self.rows[hole] = self.rows[mover]
        del self.rows[left:]
        self._changed()

    @torch.inference_mode()
    def _tidy(self) -> None:
        n = len(self)
        if self.pool is None:
            return
        columns = self.at[:n] - self.base[:n] + 1
        order = better_order(columns, self.pool.shape.numbers_per_position)
        if order is None:
            return
        self.pool.slots.permute(order, int(columns.max()) - 1)
        for name in self._ALL:
            array = getattr(self, name)
            array[:n] = array[order]
        self.rows = [self.rows[i] for i in order.tolist()]
        self._changed()

    def set_version(self, version: str) -> None:
        """Mark that what rows sample from now on comes from other weights; nothing cached is found any more."""
        self.version = version
        for slot, row in enumerate(self.rows):
            row.versions.append((int(self.at[slot]) + 1, version))
        if self.pool is not None:
            self.pool.native.weights_changed()
            self.pool.tree.drop()

    def reset(self) -> None:
        """Forget all rows and all that is cached."""
        self.rows.clear()
        if self.pool is not None:
            self.pool.clear()
        self._changed()
