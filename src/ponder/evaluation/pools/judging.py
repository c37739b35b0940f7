"""Judging a recorded pool: a verdict for each text, votes by answer, and where a recorded judgement differs.

A truncated response (`finish_reason` length) abstains: it is wrong and never votes. A sample that the judge failed on
is left out, as if it had never been drawn. What a response votes for is what the judge reads as its answer; equal
answers are found as in `search.clusters`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder import threads
from ponder.engines.recorded import RecordedPool, RecordedRow, RecordedSample
from ponder.errors import UserError
from ponder.evaluation.estimators import Floats
from ponder.evaluation.pools.judges import EnvironmentJudge, Judge
from ponder.responses import split_response
from ponder.search.clusters import TextAnswers, cluster_answers
from ponder.types import FinishReason, Problem, Response, ThoughtFormat, Verdict, VerdictKind


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A sample whose recorded judgement differs from the verdict."""

    problem_id: str
    sample: int
    """Its place in the row, from 0."""
    recorded: bool
    judged: bool
    verdict: str
    reason: str
    answer: str | None
    gold: Any


@dataclass(frozen=True, slots=True)
class JudgedProblem:
    """The judged samples of one problem, in recorded order; samples that the judge failed on are left out."""

    problem: Problem
    row: RecordedRow
    kept: tuple[int, ...]
    """Their places in the row."""
    responses: tuple[Response, ...]
    correct_G: Floats
    """1 or 0."""
    cluster_G: NDArray[np.int64]
    """What each votes for, numbered from 0; -1 abstains."""
    tokens_G: Floats
    """Response tokens."""
    score_G: Floats
    """NaN where none was recorded."""
    logprob_G: Floats
    votes: Mapping[Response, str | None]
    """What each response votes for."""

    @property
    def n(self) -> int:
        return len(self.correct_G)

    @property
    def answered_G(self) -> NDArray[np.bool_]:
        """False for a truncated response or an unclosed thought: it may not win."""
        return np.array([r.answer is not None for r in self.responses], dtype=bool)


@dataclass(frozen=True, slots=True)
class JudgedPool:
    """A pool with its verdicts."""

    problems: tuple[JudgedProblem, ...]
    judge: Judge
    kinds: dict[str, int]
    """Verdicts by kind."""
    disagreements: tuple[Disagreement, ...]
    notes: tuple[str, ...] = field(default=())


def judge_pool(
    pool: RecordedPool,
    judge: Judge,
    *,
    trust_recorded: bool = False,
    thought: ThoughtFormat | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> JudgedPool:
    """Judge every text of a pool. `thought` is for rows that do not say how their model marks its thought.

    Rows without a gold are left out with a note, or with `trust_recorded` judged by what was recorded. Raises
    `UserError` as `judgeable` does, or if a row cannot be judged by this judge.
    """
    pool = judgeable(pool, judge, trust_recorded)
    rows, notes = pool.rows, list(pool.notes)
    problems = [judge.problem(row, f"{pool.path}: line {row.line}") for row in rows]
    done = 0

    def one(pair: tuple[RecordedRow, Problem]) -> tuple[JudgedProblem, list[Disagreement], Counter[str]]:
        return _judged(*pair, judge, thought)

    results = []
    with ThreadPoolExecutor(threads.count() if judge.threads else 1) as executor:
        pairs = zip(rows, problems, strict=True)
        for result in executor.map(one, pairs) if judge.threads else map(one, pairs):
            results.append(result)
            done += 1
            if on_progress is not None:
                on_progress(done, len(rows))
    kinds = sum((r[2] for r in results), Counter[str]())
    broken = kinds[VerdictKind.JUDGE_ERROR.value]
    if broken:
        notes.append(f"{broken} samples could not be judged (infrastructure errors) and are left out")
    unsaid = sum(s.finish is None for row in rows for s in row.samples)
    if unsaid:
        notes.append(f"{unsaid} samples have no finish_reason and are taken as finished")
    judged = tuple(r[0] for r in results)
    if not any(p.n for p in judged):
        raise UserError(f"{pool.path}: the judge {judge.name} failed on every sample; choose another --verifier")
    known = {k.value: kinds[k.value] for k in VerdictKind if kinds[k.value]}
    return JudgedPool(judged, judge, known, tuple(d for r in results for d in r[1]), tuple(notes))


def judgeable(pool: RecordedPool, judge: Judge, trust_recorded: bool = False) -> RecordedPool:
    """The rows that can be judged, with a note about the others. Raises `UserError` if there is none."""
    bare = [row for row in pool.rows if row.gold is None]
    if not bare or isinstance(judge, EnvironmentJudge):
        return pool
    what = f"{len(bare)} of {len(pool.rows)} rows have no gold (the first: line {bare[0].line})"
    if trust_recorded:
        unjudged = next((r for r in bare if any(s.correct is None for s in r.samples)), None)
        if unjudged is not None:
            raise UserError(
                f"{pool.path}: line {unjudged.line} has neither a gold nor a recorded 'correct' for each sample; "
                "remove it, or judge by --environment"
            )
        note = f"{what} and are judged by what was recorded"
        return dataclasses.replace(pool, notes=(*pool.notes, note))
    kept = tuple(row for row in pool.rows if row.gold is not None)
    if not kept:
        raise UserError(
            f"{pool.path}: no row has a gold to judge by; judge by --environment if the problem ids are of one, or "
            "take the recorded judgements with --trust-recorded"
        )
    return dataclasses.replace(pool, rows=kept, notes=(*pool.notes, f"{what} and are left out"))


def _judged(
    row: RecordedRow, problem: Problem, judge: Judge, thought: ThoughtFormat | None
) -> tuple[JudgedProblem, list[Disagreement], Counter[str]]:
    kinds: Counter[str] = Counter()
    disagreements: list[Disagreement] = []
    trusted = row.gold is None and not isinstance(judge, EnvironmentJudge)
    cache: dict[Response, Verdict] = {}
    kept: list[int] = []
    responses: list[Response] = []
    correct: list[bool] = []
    for i, sample in enumerate(row.samples):
        response = split_response(sample.text, sample.finish or FinishReason.STOP, row.thought or thought)
        if response not in cache:
            cache[response] = judge.verdict(row, problem, response)
        verdict = cache[response]
        right = bool(sample.correct) if trusted else verdict.correct
        kinds[_kind(verdict, right) if trusted else verdict.kind.value] += 1
        if verdict.kind is VerdictKind.JUDGE_ERROR:
            continue
        kept.append(i)
        responses.append(response)
        correct.append(right)
        if sample.correct is not None and sample.correct != right:
            disagreements.append(
                Disagreement(
                    row.id, i, sample.correct, right, verdict.kind.value, verdict.reason, verdict.answer, row.gold
                )
            )
    answers = judge.answers or _Read(cache)
    votes = cluster_answers(answers, problem, responses)
    numbers = {cluster: i for i, cluster in enumerate(dict.fromkeys(v.cluster for v in votes if v is not None))}
    samples = [row.samples[i] for i in kept]
    judged = JudgedProblem(
        problem,
        row,
        tuple(kept),
        tuple(responses),
        np.array(correct, dtype=np.float64),
        np.array([-1 if v is None else numbers[v.cluster] for v in votes], dtype=np.int64),
        np.array([s.tokens for s in samples], dtype=np.float64),
        _column(samples, "score"),
        _column(samples, "mean_logprob"),
        {r: None if v is None else v.answer for r, v in zip(responses, votes, strict=True)},
    )
    return judged, disagreements, kinds


def _kind(verdict: Verdict, right: bool) -> str:
    """The kind of a verdict whose rightness was recorded."""
    if verdict.kind is VerdictKind.JUDGE_ERROR:
        return verdict.kind.value
    return (VerdictKind.CORRECT if right else VerdictKind.WRONG).value


def _column(samples: Sequence[RecordedSample], name: str) -> Floats:
    values = (getattr(s, name) for s in samples)
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


_READ = (VerdictKind.CORRECT, VerdictKind.WRONG)


@dataclass(frozen=True)
class _Read:
    """Answers as the verdicts read them: no text is judged a second time."""

    verdicts: Mapping[Response, Verdict]

    def extract(self, problem: Problem, response: Response) -> str | None:
        verdict = self.verdicts.get(response)
        # What could not be judged in time, or is no answer, has no vote.
        return verdict.answer if verdict is not None and verdict.kind in _READ else None

    def same(self, a: str, b: str) -> bool:
        return TextAnswers().same(a, b)
