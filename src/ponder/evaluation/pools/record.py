"""Recorded sample pools: reading one (`read_pool`), and writing one as problems are solved (`Writer`).

The format is that of `search.record`; `evaluation.pools.judging` judges a pool, `evaluation.pools.analysis` says
what strategies would have reached on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ponder.engines.recorded import RecordedPool, RecordedRow, RecordedSample, read_pool
from ponder.errors import UserError
from ponder.runs.files import append_line, mend_tail
from ponder.search.record import problem_row, sample_row
from ponder.search.trace import samples
from ponder.types import FinishReason, Gold, Node, Problem, ThoughtFormat, Trace, to_json

__all__ = ["RecordedPool", "RecordedRow", "RecordedSample", "Writer", "at_least", "read_pool", "to_row"]


def at_least(pool: RecordedPool, samples: int) -> RecordedPool:
    """The pool without problems that have fewer samples; a note says how many. Raises `UserError` if none is left."""
    rows = tuple(row for row in pool.rows if len(row.samples) >= samples)
    if not rows:
        most = max(len(row.samples) for row in pool.rows)
        raise UserError(f"{pool.path}: no problem has {samples} samples, the most are {most}; give --at-least {most}")
    gone = len(pool.rows) - len(rows)
    note = (f"{gone} of {len(pool.rows)} problems have fewer than {samples} samples and are left out",) if gone else ()
    return dataclasses.replace(pool, rows=rows, notes=(*pool.notes, *note))


class Writer:
    """Appends problems to a pool file, each as one whole line as soon as it is there.

    A file that exists is continued: a torn last line is cut off (`notes` says so) and `done` holds what is there, so
    that the caller asks only for what is missing. `thought` is how the model marks its thought (`engine.info.thought`);
    with it a reader of the pool can separate thought and answer. Raises `UserError` if the file cannot be written or is
    not a pool.
    """

    def __init__(self, path: str | Path, thought: ThoughtFormat | None = None) -> None:
        self.path = Path(path)
        self._thought = thought
        torn = mend_tail(self.path)
        self.notes: tuple[str, ...] = (torn,) if torn else ()
        whole = self.path.is_file() and self.path.stat().st_size > 0
        rows = read_pool(self.path).rows if whole else ()
        self.done: dict[str, int] = {row.id: len(row.samples) for row in rows}
        """Samples that are recorded, by problem id."""

    @property
    def done_ids(self) -> frozenset[str]:
        """Problems that are recorded."""
        return frozenset(self.done)

    def add(self, problem: Problem, gold: Gold | None, traces: Trace | Sequence[Trace]) -> int:
        """Append a problem with the whole responses of one or more searches, in that order; returns how many.

        Responses that were cancelled or failed are left out; if none is left, nothing is written. Raises `UserError`
        for a problem that is recorded.
        """
        if problem.id in self.done:
            raise UserError(f"{self.path}: problem {problem.id!r} is recorded already; leave out what is in done_ids")
        row = to_row(problem, gold, [traces] if isinstance(traces, Trace) else traces, self._thought)
        count = len(row["samples"])
        if count:
            append_line(self.path, row)
            self.done[problem.id] = count
        return count


def to_row(
    problem: Problem, gold: Gold | None, traces: Sequence[Trace], thought: ThoughtFormat | None = None
) -> dict[str, Any]:
    """The line of a pool for one problem. Its samples stand alone: they are numbered by their place."""
    row = problem_row(problem, thought)
    if gold is not None:
        row["gold"] = to_json(gold.answer)
    paths = [trace.path(node.id) for trace in traces for node in samples(trace) if _whole(node)]
    row["samples"] = [sample_row(path) | {"id": place, "parent": None} for place, path in enumerate(paths)]
    return row


def _whole(node: Node) -> bool:
    return node.completion.error is None and node.completion.finish_reason is not FinishReason.CANCELLED
