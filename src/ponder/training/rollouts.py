"""What RL trains on: groups of judged samples, each group with the tree that its search grew.

A sample is a leaf of the tree: its transcript is what the model was given and what it sampled on the path there. The
samples of a flat group are the roots of their own paths, a tree of depth one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ponder.errors import PonderError, Unsupported, UserError
from ponder.search.trace import samples, with_verdicts
from ponder.types import (
    FinishReason,
    Outcome,
    Problem,
    Response,
    SamplingParams,
    SegmentKind,
    Spend,
    Trace,
    Transcript,
    Verdict,
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One judged response to one problem."""

    problem: Problem
    leaf: int
    """Its node in the trace of the group."""
    transcript: Transcript
    response: Response
    verdict: Verdict
    reward: float | None
    """What it is trained with: any number, where the verdict's is in [0, 1]. None if the judge failed: such a sample
    is left out everywhere."""
    truncated: bool
    params: tuple[SamplingParams | None, ...]
    """How it was sampled, call by call; None where the engine does not say."""
    trainable: bool = True
    """False: none of its ids are trained on, while its reward counts for the others (`mask_truncated`)."""


@dataclass(frozen=True, slots=True)
class Group:
    """The samples of one problem, and the search that drew them."""

    problem: Problem
    outcome: Outcome
    """With the judge's verdicts on its leaves."""
    samples: tuple[Sample, ...]

    @property
    def trace(self) -> Trace:
        return self.outcome.trace

    @property
    def spend(self) -> Spend:
        """What the search has spent, on every branch."""
        return self.outcome.spend


def judged_group(
    problem: Problem,
    outcome: Outcome,
    verdicts: Mapping[int, Verdict],
    rewards: Mapping[int, float | None] | None = None,
) -> Group:
    """The group of a search, with the verdicts of its leaves by node id; rewards are the verdicts' unless given.

    Raises `Unsupported` if a leaf cannot be trained on: its engine knows no ids, or its path has several
    transcripts, since a call did not continue the ids before it. Training on the last of them would silently leave the
    calls before it without their share of the credit. Raises `PonderError` for a reward that is no number.
    """
    trace = with_verdicts(outcome.trace, verdicts)
    found = []
    for node in samples(trace):
        try:
            transcript = trace.transcript(node.id)
        except ValueError as error:
            raise Unsupported(f"{problem.id}: cannot be trained on: {error}") from None
        verdict = verdicts[node.id]
        reward = verdict.reward if rewards is None or verdict.reward is None else rewards[node.id]
        if reward is not None and not math.isfinite(reward):
            raise PonderError(f"{problem.id}: a reward of {reward} cannot be trained on")
        params = tuple(n.completion.params for n in trace.path(node.id))
        cut = node.completion.finish_reason is not FinishReason.STOP
        found.append(Sample(problem, node.id, transcript, node.response, verdict, reward, cut, params))
    return Group(problem, dataclasses.replace(outcome, trace=trace), tuple(found))


def without_truncated(group: Group) -> Group:
    """The group with its truncated samples marked as not trainable."""
    marked = (dataclasses.replace(s, trainable=s.trainable and not s.truncated) for s in group.samples)
    return dataclasses.replace(group, samples=tuple(marked))


def has_signal(group: Group) -> bool:
    """True if the rewards of a group differ: else there is nothing to learn from it."""
    return len({s.reward for s in group.samples if s.reward is not None}) > 1


def temperature_of(groups: Sequence[Group]) -> float:
    """The temperature that all samples were drawn at.

    Raises `UserError` or `Unsupported` if the trainer cannot compute the distribution that was sampled from: it was
    cut, greedy, of several temperatures, or without log-probabilities.
    """
    found: set[float] = set()
    for group in groups:
        for sample in group.samples:
            for params in sample.params:
                if params is None:
                    raise Unsupported("the engine of the rollouts does not say how it samples: train with another one")
                refuse_untrainable(params)
                found.add(params.temperature)
            if any(s.kind is SegmentKind.SAMPLED and s.logprobs is None for s in sample.transcript.segments):
                raise Unsupported("the engine of the rollouts gives no log-probabilities: train with one that does")
    if len(found) > 1:
        low, high = min(found), max(found)
        raise UserError(f"samples of temperatures {low:g} to {high:g} in one step: RL needs a strategy that has one")
    return found.pop() if found else 1.0


def refuse_untrainable(params: SamplingParams) -> None:
    """Raises `UserError` if what is sampled so cannot be trained on."""
    cut = [f for f, off in (("top_p", 1.0), ("top_k", 0), ("min_p", 0.0)) if getattr(params, f) != off]
    if cut:
        raise UserError(
            f"{cut[0]} cuts the distribution that is sampled from, so its log-probabilities are not the model's: "
            f"train without it (temperature is fine)"
        )
    if not (params.temperature > 0 and math.isfinite(params.temperature)):
        raise UserError(f"temperature = {params.temperature}: RL needs samples that differ; give more than 0")
    if params.logprobs_of == "raw" and params.temperature != 1.0:
        raise UserError(
            f"temperature = {params.temperature:g} with log-probabilities before temperature: RL needs those of the "
            "distribution that was sampled from; train with temperature 1 or another strategy"
        )
