"""Drawing one token a row: temperature, truncation, and an inverse-CDF draw from a stream of `engines.random_streams`.

Each row draws one uniform number: the token is where the cumulative probability passes it, found in two levels (blocks,
then within one block), in float64, without a sort and without noise over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.errors import PonderError
from ponder.types import SamplingParams

_RARE = 1e-30
"""Below this, probabilities are too close to the smallest float32 for an accurate logarithm."""
_CANDIDATES = 64
"""Number of largest logits that are searched first for a nucleus."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How each row of a batch samples, as tensors on the model's device; None where no row needs it."""

    inverse_temperature_B1: Tensor | None
    greedy_B: Tensor | None
    all_greedy: bool
    cut_rows: Tensor | None
    """Rows with a truncated distribution; the next three fields belong to them, in this order."""
    top_k: Tensor | None
    top_p: Tensor | None
    min_p: Tensor | None
    raw_B: Tensor | None = None
    """Rows whose log-probabilities are of the model's own distribution."""
    best: int = 0
    """Most top log-probabilities that any row asks for."""

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device, *, alike: bool = False) -> Rules:
        """The rules of some rows. With `alike` all rows take the same code path as soon as one of them is truncated."""
        kinds = {id(p): p for p in params}.values()
        best = max((p.top_logprobs for p in kinds), default=0)
        raw = None
        if any(p.logprobs_of == "raw" for p in kinds):
            raw = torch.tensor([p.logprobs_of == "raw" for p in params], device=device)
        if all(p.temperature == 1.0 and not p.truncates for p in kinds):
            return cls(None, None, False, None, None, None, None, raw, best)
        temperature = np.array([p.temperature for p in params])
        greedy = temperature == 0.0
        inverse = None
        if (temperature != 1.0).any():
            scale = np.where(greedy, 1.0, 1.0 / np.where(greedy, 1.0, temperature))
            inverse = torch.tensor(scale, dtype=torch.float32, device=device).unsqueeze(1)
        cut = [i for i, p in enumerate(params) if p.truncates and p.temperature > 0.0]
        cut = list(range(len(params))) if cut and alike else cut
        chosen = [params[i] for i in cut]

        def column(values: list[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)

        return cls(
            inverse,
            torch.tensor(greedy, device=device) if greedy.any() else None,
            bool(greedy.all()),
            torch.tensor(cut, device=device) if cut else None,
            column([p.top_k for p in chosen], torch.int64) if any(p.top_k for p in chosen) else None,
            column([p.top_p for p in chosen], torch.float64) if any(p.top_p < 1.0 for p in chosen) else None,
            column([p.min_p for p in chosen], torch.float64) if any(p.min_p for p in chosen) else None,
            raw,
            best,
        )


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token of each row."""

    ids_B: Tensor
    logprobs_B: Tensor
    """float64, of the distribution that each row asks for."""
    best_ids_BK: Tensor | None = None
    """The most likely ids, best first, if any row asks for them."""
    best_logprobs_BK: Tensor | None = None


def sample(logits_BV: Tensor, rules: Rules, uniforms_B: Tensor) -> Drawn:
    """`draw`, and what else the rules ask for. `logits_BV` (float32) is overwritten."""
    raw_BV = None if rules.raw_B is None else torch.log_softmax(logits_BV, -1)
    ids_B, logprobs_B = draw(logits_BV, rules, uniforms_B)
    if rules.raw_B is None and not rules.best:
        return Drawn(ids_B, logprobs_B)
    if raw_BV is not None and rules.raw_B is not None:
        own_B = raw_BV.gather(1, ids_B.unsqueeze(1)).squeeze(1).double()
        logprobs_B = torch.where(rules.raw_B, own_B, logprobs_B)
    if not rules.best:
        return Drawn(ids_B, logprobs_B)
    sampled_BV = torch.log_softmax(logits_BV, -1)
    if rules.greedy_B is not None:
        point_BV = torch.full_like(sampled_BV, -torch.inf).scatter_(1, ids_B.unsqueeze(1), 0.0)
        sampled_BV = torch.where(rules.greedy_B.unsqueeze(1), point_BV, sampled_BV)
    if raw_BV is not None and rules.raw_B is not None:
        sampled_BV = torch.where(rules.raw_B.unsqueeze(1), raw_BV, sampled_BV)
    best = sampled_BV.topk(min(rules.best, sampled_BV.shape[1]), dim=-1)
    return Drawn(ids_B, logprobs_B, best.indices, best.values)


def draw(logits_BV: Tensor, rules: Rules, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a token a row; returns ids (int64) and log-probabilities (float64), both of shape B.

    The log-probability is of the distribution that was drawn from: after temperature, top-k, top-p and min-p. A greedy
    row draws from a point mass, so its log-probability is 0. `logits_BV` (float32) is overwritten. Raises
    `PonderError` if a row has no finite distribution.
    """
    if rules.inverse_temperature_B1 is not None:
        logits_BV.mul_(rules.inverse_temperature_B1)
    greedy_ids = logits_BV.argmax(-1) if rules.greedy_B is not None else None
    if rules.all_greedy and greedy_ids is not None:
        chosen_B = logits_BV.gather(1, greedy_ids.unsqueeze(1)).squeeze(1).double()
        _refuse_broken(chosen_B)
        return greedy_ids, torch.zeros_like(chosen_B)
    if rules.cut_rows is not None:
        _truncate(logits_BV, rules)
    # One pass over memory instead of four, as softmax works a row at a time in the processor's cache.
    probabilities_BV = torch.softmax(logits_BV, -1)
    ids_B, total_B = _inverse_cdf(probabilities_BV, uniforms_B)
    chosen_B = probabilities_BV.gather(1, ids_B.unsqueeze(1)).squeeze(1).double()
    logprobs_B = chosen_B.log() - total_B.log()
    rare_B = chosen_B < _RARE
    if bool(rare_B.any()):
        exact = torch.log_softmax(logits_BV[rare_B].double(), -1)
        logprobs_B[rare_B] = exact.gather(1, ids_B[rare_B].unsqueeze(1)).squeeze(1)
    if rules.greedy_B is not None and greedy_ids is not None:
        ids_B = torch.where(rules.greedy_B, greedy_ids, ids_B)
        logprobs_B = logprobs_B.masked_fill(rules.greedy_B, 0.0)
    return ids_B, logprobs_B


def _inverse_cdf(weights_BV: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """First id whose cumulative weight passes `u · total`; and the totals."""
    rows, vocab = weights_BV.shape
    width = 32 if vocab <= 4096 else 256
    blocks = -(-vocab // width)
    if blocks * width != vocab:
        weights_BV = F.pad(weights_BV, (0, blocks * width - vocab))
    weights = weights_BV.view(rows, blocks, width)
    # A block in float32: with dtype=float64 torch would first copy all of it.
    cumulated = weights.sum(-1).double().cumsum(-1)
    total_B = cumulated[:, -1].contiguous()
    _refuse_broken(total_B)
    # Rounding may lift u · total to total, past the last token that has weight.
    target_B = torch.minimum(uniforms_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    block_B = (cumulated <= target_B.unsqueeze(1)).sum(-1)
    before_B = torch.where(
        block_B > 0, cumulated.gather(1, (block_B - 1).clamp_min(0).unsqueeze(1)).squeeze(1), torch.zeros_like(total_B)
    )
    inner = weights[torch.arange(rows, device=weights.device), block_B].double()
    inside_B = (inner.cumsum(-1) <= (target_B - before_B).unsqueeze(1)).sum(-1)
    last_B = width - 1 - (inner.flip(-1) > 0).to(torch.uint8).argmax(-1)
    return block_B * width + torch.minimum(inside_B, last_B), total_B


def _refuse_broken(numbers_B: Tensor) -> None:
    if not bool(torch.isfinite(numbers_B).all()):
        raise PonderError("the model's logits are not finite: its weights are broken or training has diverged")


def _truncate(logits_BV: Tensor, rules: Rules) -> None:
    """Set what top-k, then top-p, then min-p leave out to -inf, in place; ties with the last one kept stay."""
    whole = len(rules.cut_rows) == len(logits_BV)  # type: ignore[arg-type]
    x = logits_BV if whole else logits_BV[rules.cut_rows]
    top = x.amax(-1, keepdim=True)
    floor = torch.full_like(top, -torch.inf)
    if rules.top_k is not None or rules.top_p is not None:
        floor = _nucleus_floor(x, top, rules)
    if rules.min_p is not None:
        floor = torch.maximum(floor, (top.double() + rules.min_p.log()).to(x.dtype))
    x.masked_fill_(x < floor, -torch.inf)
    if not whole:
        logits_BV[rules.cut_rows] = x


def _nucleus_floor(x: Tensor, top: Tensor, rules: Rules) -> Tensor:
    """The smallest logit that top-k and top-p keep, shape (rows, 1); -inf where both are off.

    Top-p counts within what top-k keeps (Holtzman et al. 2020, arXiv:1904.09751).
    """
    vocab = x.shape[-1]
    k = torch.full((len(x), 1), vocab, dtype=torch.int64, device=x.device)
    if rules.top_k is not None:
        k = torch.where(rules.top_k > 0, rules.top_k.clamp_max(vocab), k)
    p = rules.top_p if rules.top_p is not None else torch.ones(len(x), 1, dtype=torch.float64, device=x.device)
    total = (x - top).exp_().sum(-1, keepdim=True, dtype=torch.float64)
    limited = int(torch.where(k < vocab, k, 0).max())
    floor = _floor_among(x, top, k, p, total, min(vocab, max(limited, _CANDIDATES)))
    return torch.where((k == vocab) & (p >= 1.0), torch.full_like(floor, -torch.inf), floor)


def _floor_among(x: Tensor, top: Tensor, k: Tensor, p: Tensor, total: Tensor, size: int) -> Tensor:
    """The floor, looked for among the `size` largest; rows whose nucleus is larger try again with more."""
    vocab = x.shape[-1]
    values = x.sort(-1, descending=True).values if size == vocab else x.topk(size, dim=-1).values
    kept_by_k = torch.arange(size, device=x.device) < k
    weights = (values - top).double().exp() * kept_by_k
    cumulated = weights.cumsum(-1)
    total_of_k = torch.where(k < vocab, cumulated[:, -1:], total)
    kept = (kept_by_k & (cumulated - weights < p * total_of_k)).sum(-1, keepdim=True)
    floor = values.gather(1, kept - 1)
    if size < vocab:
        again = ((kept == size) & (k > size) & (p < 1.0)).squeeze(1)
        if bool(again.any()):
            more = min(vocab, 16 * size)
            floor[again] = _floor_among(x[again], top[again], k[again], p[again], total[again], more)
    return floor
