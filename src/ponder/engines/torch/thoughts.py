"""Bounded thoughts inside the batch: the end is forced at the limit; a thought that is too short continues."""

from __future__ import annotations

import numpy as np

from ponder.engines.random_streams import again
from ponder.engines.requests import Markers
from ponder.engines.torch.endings import Endings
from ponder.engines.torch.jobs import NO_LIMIT
from ponder.engines.torch.rows import Rows


class Thoughts:
    """Which rows are inside a thought, and for how many tokens."""

    def __init__(self, rows: Rows, markers: Markers, endings: Endings) -> None:
        self.markers = markers
        self.any = False
        """Whether any row's thought is bounded."""
        self._rows, self._endings = rows, endings

    def begin(self, slot: int) -> None:
        """Add a row."""
        rows, job = self._rows, self._rows[slot].job
        thinking = job.params.thinking
        limit = None if thinking is None else thinking.max_tokens
        rows.inside[slot], rows.thought[slot], rows.closing[slot] = job.inside, job.thought, False
        rows.thought_max[slot] = NO_LIMIT if limit is None else limit
        rows.thought_min[slot] = 0 if thinking is None else thinking.min_tokens
        if thinking is not None and job.inside and job.thought >= rows.thought_max[slot]:
            self._close(np.array([slot]))

    def changed(self) -> None:
        """Update after rows joined or left."""
        self.any = any(row.job.params.thinking is not None for row in self._rows)

    def override(self, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The next tokens, drawn or forced; and which were drawn."""
        rows, tokens = self._rows, drawn.copy()
        self._extend_early(tokens)
        forcing = rows.forcing()
        held = np.flatnonzero(forcing)
        tokens[held] = rows.pending[held, rows.pending_at[held]]
        rows.pending_at[held] += 1
        return tokens, ~forcing

    def _close(self, slots: np.ndarray) -> None:
        """Queue the end-of-thought marker."""
        self._rows.force(slots, self.markers.close)
        self._rows.closing[slots] = True

    def _extend_early(self, tokens: np.ndarray) -> None:
        """Replace an end drawn before the minimum length by the text that makes the model continue."""
        rows, n = self._rows, len(tokens)
        early = ~rows.forcing() & rows.inside[:n] & (rows.thought[:n] < rows.thought_min[:n])
        if not early.any():
            return
        early &= self._endings.ends(tokens) | (tokens == self.markers.close[0])
        for slot in np.flatnonzero(early).tolist():
            rows.force(slot, rows[slot].job.extend)
        rows.keys[:n][early] = again(rows.keys[:n][early])

    def follow(self, tokens: np.ndarray, free: np.ndarray, ended: np.ndarray) -> None:
        """Update which rows are inside a thought and for how long; queue the end marker at the limit."""
        rows, n = self._rows, len(tokens)
        if not self.markers.single:
            self._read_markers(tokens, free)
        inside = rows.inside[:n]
        idle = ~rows.forcing()
        closed = rows.closing[:n] & idle
        opened = np.zeros(n, dtype=bool)
        if self.markers.single:
            closed |= inside & (tokens == self.markers.close[0])
            opened = ~inside & (tokens == self.markers.open[0])
        counted = inside & ~closed & ~rows.closing[:n]
        rows.thought[:n][counted] += 1
        rows.closing[:n][closed] = False
        inside[closed] = False
        inside[opened] = True
        full = inside & idle & ~rows.closing[:n] & ~ended & (rows.thought[:n] >= rows.thought_max[:n])
        if full.any():
            self._close(np.flatnonzero(full))

    def _read_markers(self, tokens: np.ndarray, free: np.ndarray) -> None:
        """Follow markers of several tokens, by the text."""
        rows = self._rows
        for slot in np.flatnonzero(free & ~rows.closing[: len(tokens)]).tolist():
            if rows[slot].job.params.thinking is None:
                continue
            mark = self.markers.close_text if rows.inside[slot] else self.markers.open_text
            may_end = self._endings.vocabulary.enders(mark)[tokens[slot]]
            if may_end and self._endings.vocabulary.stop_at(rows.response(slot), (mark,)) is not None:
                rows.inside[slot] = not rows.inside[slot]
                rows.thought[slot] -= rows.inside[slot]  # this token still belongs to the marker
