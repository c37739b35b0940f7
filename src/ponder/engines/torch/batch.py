"""The running batch: one slot a sample, all bookkeeping of a step as arrays over slots.

Slots are always 0 … n - 1. Python runs per row only when a row joins, finishes, streams, or may have completed a stop
string. `table` holds prompt and response of each slot by absolute position, so that the input of the next step is
`table[slot, at]`, and a completion is a slice of it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from ponder.engines.torch.forward import Forward, Saved, forward_of
from ponder.engines.torch.jobs import NO_LIMIT, Job, Markers, stop_table
from ponder.engines.torch.sampler import Rules, draw, mix, uniforms
from ponder.engines.torch.text import Vocabulary
from ponder.types import Completion, FinishReason, Segment, SegmentKind, Spend

if TYPE_CHECKING:
    from ponder.models.base import CausalLM, LoadedModel

TIDY_STEPS = 16
"""How often slots are sorted by length, if it pays."""
_REDRAW = np.uint64(0xD1B54A32D192ED03)


@dataclass(eq=False)
class Row:
    """What a slot holds besides numbers."""

    job: Job
    index: int
    cached: bool
    """The prompt was copied, not computed."""
    begun: float
    versions: list[tuple[int, str]] = field(default_factory=list)
    """(first absolute position, weights version), ascending."""
    ends: np.ndarray | None = None
    """Ids that may complete a stop string; None without stop strings."""

    def born(self, version: str) -> list[tuple[int, str]]:
        """What `versions` is if the row was computed with these weights only."""
        return [(len(self.job.prompt), version)]


class Batch:
    """The slots and one decoding step over them. Used by one thread only."""

    def __init__(self, model: LoadedModel, vocabulary: Vocabulary, markers: Markers, version: str) -> None:
        self.model, self.vocabulary, self.markers, self.version = model, vocabulary, markers, version
        self.module = cast("CausalLM", model.module)
        self.forward: Forward = forward_of(model)
        self.rows: list[Row] = []
        self.cache_rows = self._steps = 0
        self.is_end_V = np.zeros(vocabulary.size, dtype=bool)
        self.is_end_V[[i for i in model.end_ids if 0 <= i < vocabulary.size]] = True
        self._rules: Rules | None = None
        self._thinks = self._watches = self._streams = False
        self.table = np.zeros((0, 0), dtype=np.int64)
        self.logprobs = np.zeros((0, 0), dtype=np.float64)
        self.forced = np.zeros((0, 0), dtype=bool)
        self.pending = np.zeros((0, max(1, len(markers.close))), dtype=np.int64)
        """Ids to be put in by force next: columns `pending_at` … `pending_end - 1`."""
        integers, flags = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
        self.at, self.start, self.end = integers, integers, integers
        """Position of the last known token; of the first and one past the last possible token of the response."""
        self.thought, self.thought_max, self.thought_min = integers, integers, integers
        self.pending_at, self.pending_end = integers, integers
        self.inside, self.closing = flags, flags
        self.keys = np.zeros(0, dtype=np.uint64)

    _PLAIN = ("at", "start", "end", "thought", "thought_max", "thought_min", "pending_at", "pending_end")
    _ALL = (*_PLAIN, "inside", "closing", "keys", "table", "logprobs", "forced", "pending")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def longest_total(self) -> int:
        """Longest that any row may become."""
        return int(self.end[: len(self)].max()) if self.rows else 0

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
    def join(self, samples: Sequence[tuple[Job, int]], *, cache_rows: int, limit: int) -> None:
        """Admit samples, in order. Each prompt is computed once and copied to its siblings.

        `cache_rows` is how many rows to make room for, `limit` the longest that any row may become.
        """
        now = time.perf_counter()
        first, count = len(self), len(self) + len(samples)
        if not first:
            self._steps = 0  # when slots are sorted must not depend on what ran before
        contexts = [job.context for job, _ in samples]
        live = int(self.at[:first].max()) if first else 0  # the last known token is not computed yet
        longest = max(live + 1, max(map(len, contexts)))
        self._grow(count, max(job.total for job, _ in samples))
        self.cache_rows = cache_rows
        self.forward.reserve(cache_rows, longest, live_rows=first, live_length=live, limit=limit)
        # Only rows whose whole prompt was computed with today's weights may lend it.
        lenders = {
            r.job.context: s for s, r in enumerate(self.rows) if r.versions == [(len(r.job.prompt), self.version)]
        }
        compute: dict[tuple[int, ...], int] = {}
        copies: dict[int, tuple[list[int], list[int]]] = {}
        for slot, ((job, index), context) in enumerate(zip(samples, contexts, strict=True), first):
            cached = self.forward.shares
            length = len(context) - 1
            if not cached:
                pass
            elif job.saved is not None:
                self.forward.restore(job.saved, slot)  # type: ignore[arg-type]
            elif (source := lenders.get(context)) is not None or (source := compute.get(context)) is not None:
                sources, targets = copies.setdefault(length, ([], []))
                sources.append(source)
                targets.append(slot)
            else:
                compute[context] = slot
                cached = False
            self._seat(slot, job, index, context, cached, now)
        if compute:
            self.forward.prefill([np.array(c[:-1], dtype=np.int64) for c in compute], list(compute.values()))
        for length, (sources, targets) in copies.items():
            self.forward.copy(sources, targets, length)
        self._changed()

    def _seat(self, slot: int, job: Job, index: int, context: tuple[int, ...], cached: bool, now: float) -> None:
        row = Row(job, index, cached, now, [(len(job.prompt), self.version)])
        if job.params.stop:
            row.ends = stop_table(job.params.stop, self.vocabulary)
        self.rows.append(row)
        self.table[slot, : len(context)] = context
        self.start[slot], self.at[slot], self.end[slot] = len(job.prompt), len(context) - 1, job.total
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
        self._rules = Rules.of(params, self.model.device) if params else None
        self._thinks = any(p.thinking is not None for p in kinds)
        self._watches = any(p.stop for p in kinds) or (self._thinks and not self.markers.single)
        self._streams = any(r.job.streams for r in self.rows)

    def _close(self, slots: np.ndarray) -> None:
        """Queue the end-of-thought marker."""
        close = self.markers.close
        self.pending[slots, : len(close)] = close
        self.pending_at[slots], self.pending_end[slots], self.closing[slots] = 0, len(close), True

    def step(self) -> list[tuple[Row, Completion]]:
        """Give every row its next token; rows that ended leave. Returns them with their completions, in slot order."""
        n = len(self)
        slots = np.arange(n)
        self._steps += 1
        if self._steps % TIDY_STEPS == 0:
            self._tidy()
        with torch.inference_mode():
            hidden = self._hidden(n)
            logits = self.module.logits(hidden)
            chance = uniforms(self.keys[:n], self.at[:n] + 1 - self.start[:n])
            assert self._rules is not None
            ids, logprobs = draw(logits, self._rules, torch.as_tensor(chance, device=logits.device))
        tokens, logprob = ids.cpu().numpy(), logprobs.cpu().numpy()
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
        ended = free & self.is_end_V[tokens]
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
        leaving = np.flatnonzero(over)
        if not len(leaving):
            return []
        finished = [(self.rows[s], self._completion(s, bool(ended[s]), stopped.get(s))) for s in leaving.tolist()]
        self.leave(leaving)
        return finished

    def _hidden(self, n: int) -> torch.Tensor:
        longest = int(self.at[:n].max()) + 1
        self.forward.reserve(self.cache_rows, longest, live_rows=n, live_length=longest - 1, limit=self.longest_total)
        return self.forward.step(self.table[:n], self.at[:n])

    def _extend_early(self, tokens: np.ndarray, free: np.ndarray) -> None:
        """Replace an end that was drawn before the least thought by the text that makes the model go on."""
        n = len(tokens)
        early = free & self.inside[:n] & (self.thought[:n] < self.thought_min[:n])
        if not early.any():
            return
        early &= self.is_end_V[tokens] | (tokens == self.markers.close[0])
        for s in np.flatnonzero(early):
            extend = self.rows[s].job.extend
            if self.pending.shape[1] < len(extend):
                wider = np.zeros((len(self.pending), len(extend)), dtype=np.int64)
                wider[:, : self.pending.shape[1]] = self.pending
                self.pending = wider
            self.pending[s, : len(extend)] = extend
            self.pending_at[s], self.pending_end[s] = 0, len(extend)
        # What replaced a draw must not meet the same number again.
        self.keys[:n][early] = mix(self.keys[:n][early] ^ _REDRAW)

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

    def _completion(self, slot: int, ended: bool, cut: int | None) -> Completion:
        row, start, stop = self.rows[slot], int(self.start[slot]), int(self.at[slot]) + 1
        ids = self._response(slot)
        text = self.model.tokenizer.decode(ids[:-1] if ended else ids)
        finish = FinishReason.STOP if ended or cut is not None else FinishReason.LENGTH
        segments = self._segments(slot)
        job = row.job
        sampled = int((~self.forced[slot, start:stop]).sum())
        spend = Spend(
            prompt_tokens=0 if row.cached else len(job.prompt),
            cached_tokens=len(job.prompt) if row.cached else 0,
            sampled_tokens=sampled,
            forced_tokens=stop - start - sampled,
            seconds=time.perf_counter() - row.begun,
            flops=self.forward.flops(len(job.context) - 1 if row.cached else 0, len(job.context), stop),
        )
        return Completion(
            text=text if cut is None else text[:cut],
            finish_reason=finish,
            spend=spend,
            segments=segments,
            prompt_ids=job.prompt,
            weights_version=segments[-1].weights_version,
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
                logprobs = tuple(self.logprobs[slot, a:b].tolist())
                segments.append(Segment(SegmentKind.SAMPLED, ids, logprobs, version))
        return tuple(segments)

    @torch.inference_mode()
    def leave(self, leaving: np.ndarray) -> None:
        """Free slots at once: rows from the end move into the gaps."""
        n = len(self)
        left = n - len(leaving)
        gone = np.zeros(n, dtype=bool)
        gone[leaving] = True
        holes = np.flatnonzero(gone[:left])
        movers = left + np.flatnonzero(~gone[left:])
        if len(holes):
            self.forward.copy(movers, holes, int(self.at[movers].max()))
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
        order = self.forward.better_order(self.at[:n] + 1)
        if order is None:
            return
        self.forward.permute(order, int(self.at[:n].max()))
        for name in self._ALL:
            array = getattr(self, name)
            array[:n] = array[order]
        self.rows = [self.rows[i] for i in order.tolist()]
        self._changed()

    def set_version(self, version: str) -> None:
        """Mark that what rows sample from now on comes from other weights."""
        self.version = version
        for slot, row in enumerate(self.rows):
            row.versions.append((int(self.at[slot]) + 1, version))

    @torch.inference_mode()
    def save_prompt(self, slot: int) -> Saved:
        """Keys and values of the prompt of a slot, for siblings that join later."""
        return self.forward.save(slot, len(self.rows[slot].job.context) - 1)

    def reset(self) -> None:
        """Forget all rows."""
        self.rows.clear()
        self._changed()
