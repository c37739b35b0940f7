"""Drawing one token from logits in numpy, by the rules of `engines.torch.sampler`.

The same uniform number gives the same token as there. Needs no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ponder.errors import PonderError
from ponder.types import SamplingParams

_CANDIDATES = 256
"""Number of largest logits that are searched first for a nucleus."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token with its log-probability, and the most likely ids with theirs, best first, if asked for."""

    id: int
    logprob: float
    best: tuple[tuple[int, float], ...] = ()


def draw(logits_V: np.ndarray, p: SamplingParams, u: float) -> Drawn:
    """The token where the cumulative probability passes `u` in [0, 1).

    Temperature first, then top-k, top-p within it (Holtzman et al. 2020, arXiv:1904.09751) and min-p; ties with the
    last one kept stay. The log-probability is of the distribution that was drawn from (a point mass if greedy), or
    the model's own with `logprobs_of="raw"`. Raises `PonderError` if the logits are not finite.
    """
    top = int(np.argmax(logits_V))
    if not math.isfinite(logits_V[top]):
        raise PonderError("the model's logits are not finite: its weights are broken")
    greedy, wants_raw = p.temperature == 0, p.logprobs_of == "raw"
    x_V = logits_V.astype(np.float64) - float(logits_V[top])
    raw_V = x_V - math.log(float(np.exp(x_V).sum())) if wants_raw else None
    best: tuple[tuple[int, float], ...]
    if greedy:
        token, logprob = top, 0.0
        best = () if wants_raw or not p.top_logprobs else ((top, 0.0),)
    else:
        # A temperature near 0 makes -inf of what is far below the top, which is what it means.
        with np.errstate(over="ignore"):
            x_V = x_V / p.temperature
        floor = _floor(x_V, p) if p.truncates else -math.inf
        if floor > -math.inf:
            x_V = np.where(x_V < floor, -np.inf, x_V)
        cumulated_V = np.cumsum(np.exp(x_V))
        total = float(cumulated_V[-1])
        # Rounding may lift u · total to total, past the last token that has weight.
        token = int(np.searchsorted(cumulated_V, min(u * total, math.nextafter(total, 0.0)), side="right"))
        logprob = float(x_V[token]) - math.log(total)
        best = () if wants_raw else _best(x_V, math.log(total), p.top_logprobs)
    if raw_V is not None:
        return Drawn(token, float(raw_V[token]), _best(raw_V, 0.0, p.top_logprobs))
    return Drawn(token, logprob, best)


def _floor(x_V: np.ndarray, p: SamplingParams) -> float:
    """The smallest value that is kept; the largest of `x_V` is 0."""
    floor = math.log(p.min_p) if p.min_p else -math.inf
    k = min(p.top_k, len(x_V)) if p.top_k else len(x_V)
    if k == len(x_V) and p.top_p >= 1:
        return floor
    size = min(len(x_V), max(_CANDIDATES, k if p.top_k else 0))
    while True:
        values = np.sort(np.partition(x_V, len(x_V) - size)[len(x_V) - size :])[::-1][:k]
        weights = np.exp(values)
        total = float(weights.sum()) if k < len(x_V) else float(np.exp(x_V).sum())
        kept = int(np.count_nonzero(np.cumsum(weights) - weights < p.top_p * total))
        if kept < len(values) or len(values) == k:
            return max(floor, float(values[kept - 1]))
        size = min(len(x_V), 16 * size)


def _best(x_V: np.ndarray, total: float, count: int) -> tuple[tuple[int, float], ...]:
    """The largest that have weight, with the logarithm of their total taken off; ties to the smallest id."""
    count = min(count, len(x_V))
    if not count:
        return ()
    least = np.partition(x_V, len(x_V) - count)[len(x_V) - count]
    ids = np.flatnonzero((x_V >= least) & (x_V > -np.inf))
    ids = ids[np.argsort(-x_V[ids], kind="stable")][:count]
    return tuple((int(i), float(x_V[i]) - total) for i in ids)
