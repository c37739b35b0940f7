"""Recorded sample pools: reading one (`read_pool`), and writing one as problems are solved (`Writer`).

The format is said in `engines.recorded`; `evaluation.pools.judging` judges a pool, `evaluation.pools.analysis` says
what strategies would have made of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ponder.engines.recorded import RecordedPool, RecordedRow, RecordedSample, read_pool
from ponder.errors import UserError
from ponder.runs.files import append_line, mend_tail
from ponder.search.trace import samples, spent_tokens
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
    with it whoever reads the pool tells thought from answer. Raises `UserError` if the file cannot be written or is no
    pool.
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

        Responses that were cancelled or failed are left out; if none is left, nothing is written. `verdict` of a node
        (of the judge) becomes `correct`, its `score` the sample's. Raises `UserError` for a problem that is recorded.
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
    """The line of a pool for one problem; what is not known is left out."""
    row: dict[str, Any] = {"problem_id": problem.id, "prompt": to_json(problem.prompt)}
    if gold is not None:
        row["gold"] = to_json(gold.answer)
    if problem.metadata.get("difficulty") is not None:
        row["difficulty"] = to_json(problem.metadata["difficulty"])
    if thought is not None:
        row["thought"] = to_json(thought)
    row["samples"] = [_sample(trace, node) for trace in traces for node in samples(trace) if _whole(node)]
    return row


def _whole(node: Node) -> bool:
    return node.completion.error is None and node.completion.finish_reason is not FinishReason.CANCELLED


def _sample(trace: Trace, node: Node) -> Mapping[str, Any]:
    verdict = node.verdict
    known = {
        "mean_logprob": _mean_logprob(trace, node),
        "score": node.score,
        "correct": None if verdict is None or verdict.reward is None else verdict.correct,
    }
    return {
        "text": node.completion.text,
        "tokens": spent_tokens(trace, node),
        "finish_reason": node.completion.finish_reason.value,
        **{key: value for key, value in known.items() if value is not None},
    }


def _mean_logprob(trace: Trace, node: Node) -> float | None:
    """Of the tokens that were sampled in all calls of a response; None where the engine gave no log-probabilities."""
    calls = [n.completion for n in trace.path(node.id)]
    logprobs = [x for c in calls for s in c.segments if s.logprobs is not None for x in s.logprobs]
    return math.fsum(logprobs) / len(logprobs) if logprobs else None
