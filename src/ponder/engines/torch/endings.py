"""Which rows end, and their completions."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable

import numpy as np

from ponder.engines.text import Vocabulary
from ponder.engines.torch.jobs import stop_table
from ponder.engines.torch.rows import Rows
from ponder.types import Completion, FinishReason, Segment, SegmentKind, Spend


class Endings:
    """End ids and stop strings of the rows."""

    def __init__(self, rows: Rows, vocabulary: Vocabulary, end_ids: Iterable[int]) -> None:
        self.vocabulary = vocabulary
        self._rows = rows
        self._is_end_V = np.zeros(vocabulary.size, dtype=bool)
        self._is_end_V[[i for i in end_ids if 0 <= i < vocabulary.size]] = True
        self._stop_ids: list[tuple[int, np.ndarray]] = []
        self._tables: dict[tuple[str, ...], np.ndarray] = {}
        """Ids that may complete one of these stop strings, as bool of shape V."""
        self._stopping_S = self._table_of_S = np.zeros(0, dtype=np.int64)
        """Slots with stop strings, and their row of `_tables_KV`."""
        self._tables_KV = np.zeros((0, vocabulary.size), dtype=bool)

    def changed(self) -> None:
        """Update after rows joined or left."""
        params = [row.job.params for row in self._rows]
        self._stop_ids = [(s, np.array(p.stop_ids)) for s, p in enumerate(params) if p.stop_ids]
        texts = [tuple(p.stop) for p in params]
        stops = list(dict.fromkeys(t for t in texts if t))
        self._stopping_S = np.array([s for s, t in enumerate(texts) if t], dtype=np.int64)
        self._table_of_S = np.array([stops.index(t) for t in texts if t], dtype=np.int64)
        if stops != list(self._tables):
            known = self._tables
            self._tables = {s: known[s] if s in known else stop_table(s, self.vocabulary) for s in stops}
            self._tables_KV = np.array([*self._tables.values()], dtype=bool)

    def ends(self, tokens: np.ndarray) -> np.ndarray:
        """Which tokens end their response."""
        ends = self._is_end_V[tokens]
        for slot, ids in self._stop_ids:
            ends[slot] |= bool((ids == tokens[slot]).any())
        return ends

    def stopped(self, tokens: np.ndarray, free: np.ndarray) -> dict[int, int]:
        """Rows that completed a stop string with what they drew, and where in their text it begins."""
        stopped: dict[int, int] = {}
        slots = self._stopping_S
        if not len(slots):
            return stopped
        may_S = free[slots] & self._tables_KV[self._table_of_S, tokens[slots]]
        for slot in slots[may_S].tolist():
            found = self.vocabulary.stop_at(self._rows.response(slot), self._rows[slot].job.params.stop)
            if found is not None:
                stopped[slot] = found
        return stopped

    def completion(self, slot: int, *, ended: bool, cut: int | None, flops: float) -> Completion:
        """The completion of a row so far; `ended` by its last id, or `cut` where a stop string begins in its text."""
        rows, row, job = self._rows, self._rows[slot], self._rows[slot].job
        start, stop = int(rows.start[slot]), int(rows.at[slot]) + 1
        ids = rows.response(slot)
        text = self.vocabulary.tokenizer.decode(ids[:-1] if ended else ids)
        segments = self._segments(slot) if ids else ()
        sampled = int((~rows.forced[slot, start:stop]).sum())
        spend = Spend(
            prompt_tokens=len(job.context) - min(row.found, len(job.context)),
            cached_tokens=min(row.found, len(job.context)),
            sampled_tokens=sampled,
            forced_tokens=stop - start - sampled - len(job.prefix),
            seconds=time.perf_counter() - row.begun,
            flops=flops,
            device_seconds=float(rows.device[slot]),
        )
        return Completion(
            text=text if cut is None else text[:cut],
            finish_reason=FinishReason.STOP if ended or cut is not None else FinishReason.LENGTH,
            spend=spend,
            segments=segments,
            prompt_ids=job.prompt,
            weights_version=segments[-1].weights_version if segments else row.versions[-1][1],
            stopped_by=None if cut is None else next(s for s in job.params.stop if text.startswith(s, cut)),
            params=job.params,
        )

    def _segments(self, slot: int) -> tuple[Segment, ...]:
        """The response as runs of one kind and one weights version."""
        rows, row = self._rows, self._rows[slot]
        start, stop = int(rows.start[slot]), int(rows.at[slot]) + 1
        forced = rows.forced[slot, start:stop]
        cuts = {start, stop, *(np.flatnonzero(np.diff(forced)) + 1 + start).tolist()}
        cuts.update(v for v, _ in row.versions if start < v < stop)
        segments = []
        for a, b in itertools.pairwise(sorted(cuts)):
            version = [v for first, v in row.versions if first <= a][-1]
            ids = tuple(rows.table[slot, a:b].tolist())
            if forced[a - start]:
                segments.append(Segment(SegmentKind.FORCED, ids, None, version))
            else:
                logprobs = tuple(rows.logprobs[slot, a:b].tolist())
                best = None if row.best is None else tuple(row.best[a - start : b - start])
                kind = row.job.params.logprobs_of
                segments.append(Segment(SegmentKind.SAMPLED, ids, logprobs, version, kind, best))
        return tuple(segments)
