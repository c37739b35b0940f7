"""Confidence in a response: the model's own certainty, and a checker's verdict.

All measures are taken over the sampled tokens of the calls that a response took; forced tokens, and prefixes that a
later call was given, do not count. Where the engine gave no log-probabilities a measure is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from ponder.types import Completion, Verdict, VerdictKind

TOP_LOGPROBS = 20
"""Ids whose log-probabilities token confidence is taken over: 20 as in DeepConf, and what hosted endpoints give."""

Measure = Callable[[Sequence[Completion]], float | None]


def mean_logprob(calls: Sequence[Completion]) -> float | None:
    """Mean log-probability of the sampled tokens, in nats; None where the engine gave none."""
    logprobs = [x for c in calls for run in _logprobs(c) for x in run]
    return math.fsum(logprobs) / len(logprobs) if logprobs else None


def token_confidences(calls: Sequence[Completion]) -> list[float]:
    """For each token −1/k Σ_j log p_j over its k most likely ids: high where one id has almost all of the probability.

    Fu et al. 2025 (DeepConf), arXiv:2508.15260, eq. 2. In nats; empty where the engine gave no `top_logprobs`.
    """
    return [-math.fsum(top) / len(top) for top in _tops(calls)]


def self_certainty(calls: Sequence[Completion]) -> float | None:
    """Mean over tokens of KL(uniform ‖ p), in nats; None without `top_logprobs`.

    Kang et al. 2025, arXiv:2502.18581, eq. 5, whose sum runs over the whole vocabulary: here over the ids that the
    engine reports, their probabilities renormalised. 0 is a uniform distribution.
    """
    values = [
        math.log(math.fsum(map(math.exp, top))) - math.log(len(top)) - math.fsum(top) / len(top) for top in _tops(calls)
    ]
    return math.fsum(values) / len(values) if values else None


def tail_confidence(calls: Sequence[Completion], window: int) -> float | None:
    """Mean token confidence of the last `window` tokens (DeepConf, §3.2); None without `top_logprobs`."""
    tail = token_confidences(calls)[-window:]
    return math.fsum(tail) / len(tail) if tail else None


def lowest_confidence(calls: Sequence[Completion], window: int) -> float | None:
    """Mean token confidence of the least confident `window` tokens in a row (DeepConf's lowest group confidence)."""
    tokens = token_confidences(calls)
    if not tokens:
        return None
    window = min(window, len(tokens))
    total = math.fsum(tokens[:window])
    lowest = total
    for out, new in zip(tokens, tokens[window:], strict=False):
        total += new - out
        lowest = min(lowest, total)
    return lowest / window


def usable(check: Verdict | None) -> bool:
    """True if a checker has decided."""
    return check is not None and check.kind is not VerdictKind.JUDGE_ERROR


def check_rank(check: Verdict | None) -> tuple[int, float]:
    """Accepted before unchecked before rejected; then by reward."""
    if check is None or check.reward is None:
        return 1, 0.0
    return (2 if check.correct else 0), check.reward


def _logprobs(completion: Completion) -> list[tuple[float, ...]]:
    if completion.logprobs is not None and not completion.segments:
        return [completion.logprobs]
    return [s.logprobs for s in completion.segments if s.logprobs is not None]


def _tops(calls: Sequence[Completion]) -> Iterator[list[float]]:
    """For each sampled token the log-probabilities of its most likely ids; one alone is left out."""
    for completion in calls:
        for segment in completion.segments:
            for pairs in segment.top_logprobs or ():
                top = [x for _, x in pairs if math.isfinite(x)]
                if len(top) > 1:
                    yield top
