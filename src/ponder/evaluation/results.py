"""What comes out of an evaluation: small results of searches, counted with their intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ponder import figures, numbers, show
from ponder.evaluation.intervals import mean_of_problems, mean_unbounded
from ponder.types import Estimate, Outcome, Problem, Prompt, Spend, StopReason, Verdict, VerdictKind, to_json


@dataclass(frozen=True, slots=True)
class Row:
    """What came out for one problem; the tuples have one entry per sample."""

    id: str
    correct: float | None
    """Mean over the samples that could be judged; None if none could."""
    kinds: tuple[VerdictKind, ...]
    tokens: tuple[int, ...]
    """Response tokens of everything that was generated, discarded branches too."""
    spent: tuple[int, ...]
    """The same with prompt tokens."""
    texts: tuple[str, ...]
    """Of the chosen responses; empty beyond `keep_texts`."""
    answers: tuple[str | None, ...]
    """As the judge extracted them."""
    reasons: tuple[str, ...]
    rewards: tuple[float | None, ...]
    prompt: Prompt = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an evaluation is."""

    done: int
    """Searches that are finished and judged."""
    total: int
    correct: int
    masked: int
    """Infrastructure errors so far."""
    response_tokens: int
    """Sampled and forced since this process began."""
    seconds: float
    """Since this process began."""
    label: str = ""
    spend: Spend = field(default_factory=Spend)
    """Everything, what was spent before a resume too."""

    def so_far(self) -> dict[str, Any]:
        """What is right of what is done, and between what the accuracy will end.

        The share of what is done is no estimate of the accuracy: short responses end first, and are more often right.
        """
        judged, possible = self.done - self.masked, self.total - self.masked
        if not judged:
            return {}
        right = f"{self.correct:,} of {judged:,}"
        if self.done == self.total:
            return {"correct": right}
        low, high = self.correct / possible, (self.correct + self.total - self.done) / possible
        return {"correct": right, "accuracy": f"will be {100 * low:.0f} to {100 * high:.0f} %"}


@dataclass(frozen=True, slots=True)
class Judged:
    """What an evaluation keeps of a search: small, so that thousands fit in memory."""

    verdict: Verdict
    text: str
    spend: Spend
    stop: StopReason
    starved: bool = False
    """The budget of the whole evaluation cut it short, not its own."""
    seconds: float = field(default=0.0, compare=False)
    """Wall-clock time of the search, since its first call was worked on."""

    @property
    def again(self) -> bool:
        """True if a resumed evaluation runs it again: it failed by an infrastructure error, or was refused

        or cut short by the budget of the whole evaluation.
        """
        failed = self.verdict.kind is VerdictKind.JUDGE_ERROR or self.stop is StopReason.FAILED
        return failed or self.starved or self.refused

    @property
    def refused(self) -> bool:
        """True if a budget refused it before anything was spent."""
        return self.stop is StopReason.BUDGET and not self.spend.tokens and not self.spend.verifier_calls


@dataclass(frozen=True, slots=True)
class Searched:
    """A search that has just been judged, with everything that it generated."""

    index: int
    """Of the problem, in the order that they were given."""
    sample: int
    problem: Problem
    outcome: Outcome
    """Its trace holds the judge's verdicts, on the chosen response at least."""
    judged: Judged
    at: float
    """When it ended: seconds since the evaluation began, those before a resume included."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """What was found and spent before the first search.

    That is what a stopped evaluation has left (see `rollouts.earlier`), and what opening the engines has cost.
    """

    results: Mapping[tuple[int, int], Judged] = field(default_factory=dict)
    """By index of the problem and number of the sample."""
    lost: Spend = field(default_factory=Spend)
    """Of searches that are run again."""
    seconds: float = 0.0
    """That it took before, without the openings of its engines."""
    opening: Spend = field(default_factory=Spend)
    """What opening its engines has cost (`opening` of those that say it), in this process too."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a strategy reaches on some problems, and what it cost. `ponder.figures` says what each number counts."""

    accuracy: Estimate
    """Share of problems solved (with several samples: mean over problems of the share of samples)."""
    no_answer: float
    """Share of judged responses without an answer."""
    mean_tokens_per_search: Estimate
    """Prompt and response tokens of a search, every branch counted."""
    mean_response_tokens_per_search: Estimate
    """The same without prompts."""
    mean_seconds_per_search: Estimate
    """Wall-clock time of a search, while others ran beside it."""
    kinds: dict[str, int]
    """Verdicts by kind, `judge_error` (left out of the shares) too."""
    problems: int
    samples: int
    """Per problem."""
    stops: dict[str, int]
    """Why the searches stopped."""
    starved: int
    """Searches that the budget of the whole evaluation cut short or refused; a resume with more runs them again."""
    spend: Spend
    """Of the searches that are counted here, and of opening the engines."""
    opening: Spend
    """The part of `spend` that opening the engines has cost: asking endpoints what they can do, in every process that
    did."""
    lost: Spend
    """What was spent besides: on searches that failed or were stopped; a resume runs them again."""
    tokens_per_correct: float | None
    """Prompt and response tokens spent for one correct response; None if there was none."""
    dollars_per_correct: float | None
    """None where no price is known, too."""
    run_seconds_per_correct: float | None
    """Of the wall-clock time of the evaluation, whose searches ran side by side."""
    run_seconds: float
    """Wall-clock time of the evaluation, in all processes so far."""
    at_once: int
    """Most searches in flight at the same time."""
    seed: int
    weights_version: int
    rows: tuple[Row, ...]
    """One per problem, in the order that they were given."""

    @property
    def correct_P(self) -> tuple[float, ...]:
        """Per problem, NaN where it was left out: what `paired_difference` takes."""
        return tuple(math.nan if r.correct is None else r.correct for r in self.rows)

    @property
    def failures(self) -> str:
        """How many responses could not be generated or judged, with the first reason; empty if there is none."""
        failed = VerdictKind.JUDGE_ERROR
        first = next((r.reasons[r.kinds.index(failed)] for r in self.rows if failed in r.kinds), "")
        count, total = self.kinds.get(failed.value, 0), sum(self.kinds.values())
        return unjudged(count, total, show.visible(first, 300)) if count else ""

    def to_json(self) -> dict[str, Any]:
        return to_json(self)

    def facts(self) -> list[tuple[str, str]]:
        """Label and text of each figure, for people."""
        method, _, few = self.accuracy.method.partition("; ")
        many = f"n = {numbers.counted(self.accuracy.n, 'problem')}" + (
            f" × {self.samples} samples" if self.samples > 1 else ""
        )
        accuracy = f"{figures.text('accuracy', self.accuracy)}, 95 % interval ({method}), {many}"
        beside = f" ({figures.label('at_once')}: {self.at_once:,})" if self.at_once > 1 else ""
        found = [
            (figures.label("accuracy"), accuracy + (f"; {few}" if few else "")),
            ("verdicts", _counted(self.kinds)),
            *([("failures", said)] if (said := self.failures) else []),
            *(figures.line(key, getattr(self, key)) for key in _PLAIN),
            (figures.label("spend"), figures.spend(self.spend)),
        ]
        if self.opening.tokens:
            opened = f"{numbers.quantity(self.opening.tokens)} tokens of that, to find out what the model can do"
            found.append(("opening", opened))
        if self.lost.tokens:
            lost = f"{numbers.quantity(self.lost.tokens)} tokens, on searches that failed or were stopped"
            found.append(("lost", lost))
        found.append((figures.label("run_seconds"), figures.text("run_seconds", self.run_seconds) + beside))
        if self.run_seconds > 0:
            rate = self.spend.response_tokens / self.run_seconds
            found.append(figures.line("response_tokens_per_second", rate))
        if set(self.stops) != {StopReason.FINISHED.value}:
            found.append(("stopped", _counted(self.stops)))
        if not self.kinds.get(VerdictKind.CORRECT.value):
            return [*found, (figures.label("tokens_per_correct"), "no response is correct")]
        return [*found, *(figures.line(key, value) for key in _PER if (value := getattr(self, key)) is not None)]

    def __repr__(self) -> str:
        accuracy = show.estimate(self.accuracy, 100, " %")
        return f"Evaluation(accuracy {accuracy}, {self.spend.tokens:,} tokens, {self.run_seconds:.1f} s)"

    def _repr_html_(self) -> str:
        rows = [(r.id, r.kinds[0].value, r.answers[0], r.reasons[0], r.tokens[0]) for r in self.rows[: show.MOST_NODES]]
        listed = show.table(rows, ("problem", "verdict", "answer", "reason", "tokens"))
        label = f"{len(rows)} of {self.problems:,} problems"
        return f"{show.table(self.facts())}<details><summary>{label}</summary>{listed}</details>"


_PLAIN = ("no_answer", "mean_tokens_per_search", "mean_response_tokens_per_search", "mean_seconds_per_search")

_PER = ("tokens_per_correct", "dollars_per_correct", "run_seconds_per_correct")


def unjudged(count: int, total: int, first: object) -> str:
    """What is said of responses that are no result: `2 of 4 responses could not be … judged; the first: …`."""
    return f"{count:,} of {total:,} responses could not be generated or judged; the first: {first}"


def _counted(kinds: Mapping[str, int]) -> str:
    return " · ".join(f"{kind} {count:,}" for kind, count in kinds.items())


def row(problem: Problem, results: Sequence[Judged]) -> Row:
    """The row of a problem from the results of its samples."""
    scored = [r.verdict.correct for r in results if r.verdict.kind is not VerdictKind.JUDGE_ERROR]
    return Row(
        problem.id,
        sum(scored) / len(scored) if scored else None,
        tuple(r.verdict.kind for r in results),
        tuple(r.spend.response_tokens for r in results),
        tuple(r.spend.tokens for r in results),
        tuple(r.text for r in results),
        tuple(r.verdict.answer for r in results),
        tuple(r.verdict.reason for r in results),
        tuple(r.verdict.reward for r in results),
        problem.prompt,
    )


def so_far(problems: Sequence[Problem], found: Earlier, samples: int, at_once: int, seed: int) -> Evaluation | None:
    """Count what a stopped evaluation has: the problems of which a search has ended; None if none has.

    `rows` has these problems alone, each with the samples that there are.
    """
    by_problem: dict[int, list[Judged]] = {}
    for (index, _), judged in sorted(found.results.items(), key=lambda item: item[0]):
        by_problem.setdefault(index, []).append(judged)
    if not by_problem:
        return None
    rows = tuple(row(problems[index], results) for index, results in by_problem.items())
    results = tuple(by_problem.values())
    return summarise(rows, results, samples, found.lost, found.opening, found.seconds, at_once, seed, 0)


def summarise(
    rows: tuple[Row, ...],
    by_problem: Sequence[Sequence[Judged]],
    samples: int,
    lost: Spend,
    opening: Spend,
    seconds: float,
    at_once: int,
    seed: int,
    weights_version: int,
) -> Evaluation:
    """Count. `rows` and `by_problem` are of the same problems in the same order; `seconds` are those of the run."""
    results = [r for of in by_problem for r in of]
    kinds = Counter(k for r in rows for k in r.kinds)
    stops = Counter(r.stop for r in results)
    # Summed in the order of the problems: floats must not depend on which search finished first.
    spend = sum((r.spend for r in results), opening)
    correct = kinds[VerdictKind.CORRECT]
    judged = sum(kinds.values()) - kinds[VerdictKind.JUDGE_ERROR]
    scored = [math.nan if r.correct is None else r.correct for r in rows]
    return Evaluation(
        accuracy=mean_of_problems(scored),
        no_answer=kinds[VerdictKind.NO_ANSWER] / judged,
        mean_tokens_per_search=_per_search(by_problem, lambda r: r.spend.tokens),
        mean_response_tokens_per_search=_per_search(by_problem, lambda r: r.spend.response_tokens),
        mean_seconds_per_search=_per_search(by_problem, lambda r: r.seconds),
        kinds={k.value: kinds[k] for k in VerdictKind if kinds[k]},
        problems=len(rows),
        samples=samples,
        stops={s.value: stops[s] for s in StopReason if stops[s]},
        starved=sum(r.starved for r in results),
        spend=spend,
        opening=opening,
        lost=lost,
        tokens_per_correct=spend.tokens / correct if correct else None,
        dollars_per_correct=spend.dollars / correct if correct and spend.dollars else None,
        run_seconds_per_correct=seconds / correct if correct else None,
        run_seconds=seconds,
        at_once=at_once,
        seed=seed,
        weights_version=weights_version,
        rows=rows,
    )


def _per_search(by_problem: Sequence[Sequence[Judged]], of: Callable[[Judged], float]) -> Estimate:
    """A mean over problems of the mean over those of their searches that could be judged."""
    means = []
    for results in by_problem:
        values = [of(r) for r in results if r.verdict.kind is not VerdictKind.JUDGE_ERROR]
        means.append(sum(values) / len(values) if values else math.nan)
    return mean_unbounded(means)


def cost(phase: str, spend: Spend, run_seconds: float) -> dict[str, Any]:
    """A row of `summary.json`'s `cost`. The spend's own seconds are of calls that ran side by side: left out."""
    spent = {key: value for key, value in to_json(spend).items() if key != "seconds"}
    return {"phase": phase, **spent, "run_seconds": run_seconds}
