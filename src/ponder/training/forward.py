"""Log-probabilities of sampled tokens under the trainer's weights, each prompt computed once for its whole group.

Two kinds of passes: the prompts of some groups (a wave), whose keys and values are kept, then micro-batches of their
responses, which attend to them. Rows are packed (`packing`), so that nothing but attention sees padding. The gradient
flows through both: the responses leave theirs at the prompts' keys and values, and one backward pass through the
prompts ends the wave. So each prompt is computed once an update, however many micro-batches its group is spread over.
Models whose attention does not go through `models.cache.Cache` take whole rows, padded to like length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ponder.training import packing
from ponder.training.attention import attend, probabilities
from ponder.training.batch import TokenBatch
from ponder.training.head import token_logprobs
from ponder.training.packing import Packed, Responses, Wave
from ponder.training.recompute import recomputed

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Of the trained tokens of some rows, flat, in the order of rows and then of positions."""

    rows: Tensor
    """Numbers of the rows."""
    logprobs_N: Tensor
    """With gradient, at the sampling temperature."""
    entropy_N: Tensor
    """Of each token's distribution, nats; without gradient."""
    computed: int
    """Ids that went through the network, padding included."""


def micro_batches(
    model: LoadedModel,
    batch: TokenBatch,
    rows_B: Tensor,
    temperature: float,
    *,
    tokens: int,
    gradient_checkpointing: bool = False,
) -> Iterator[TokenLogprobs]:
    """Log-probabilities of the ids that `batch.mask_N` marks in these rows, micro-batch by micro-batch.

    Each holds at most `tokens` ids with its prompts, unless one row or one prompt alone has more. The caller runs
    `backward` on the loss of a micro-batch before it asks for the next, and iterates to the end: the gradient through
    the prompts is added last. Logits are made for trained tokens only. Raises
    `Unsupported` if `gradient_checkpointing` is on and the module has no list of layers.
    """
    with recomputed(model.module, gradient_checkpointing):
        if not model.supports_cache:
            for rows in _alike(batch, rows_B, tokens):
                yield _padded(model, batch, rows, temperature)
            return
        for wave in packing.waves(batch, rows_B[_order(batch, rows_B)], tokens):
            prompts = _Prompts.of(model, wave)
            apart = prompts.detached() if torch.is_grad_enabled() else prompts
            computed = len(wave.prompts)
            for part in wave.parts:
                yield _responses(model, part, apart, temperature, computed)
                computed = 0
            prompts.backward(apart)


def row_logprobs(model: LoadedModel, batch: TokenBatch, rows: Tensor, temperature: float) -> TokenLogprobs:
    """The same for all of `rows` at once and in their order, as one graph."""
    if not model.supports_cache:
        return _padded(model, batch, rows, temperature)
    order = _order(batch, rows)
    local_B = torch.unique_consecutive(batch.prompt_B[rows[order]], return_inverse=True)[1]
    wave = packing.wave(batch, rows[order], local_B)
    new = _responses(model, wave.parts[0], _Prompts.of(model, wave), temperature, len(wave.prompts))
    counts = batch.trained_B[rows[order]].tolist()
    back = torch.argsort(order).tolist()
    logprobs, entropy = (torch.cat([x.split(counts)[i] for i in back]) for x in (new.logprobs_N, new.entropy_N))
    return TokenLogprobs(rows, logprobs, entropy, new.computed)


# Whole rows -------------------------------------------------------------------------------------------------------


def _alike(batch: TokenBatch, rows_B: Tensor, tokens: int) -> Iterator[Tensor]:
    """Rows of like length, each batch of at most `tokens` ids with padding, or of one row."""
    order = rows_B[torch.argsort(batch.lengths_B[rows_B], stable=True)]
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and int(batch.lengths_B[order[end]]) * (end + 1 - start) <= tokens:
            end += 1
        yield order[start:end]
        start = end


def _padded(model: LoadedModel, batch: TokenBatch, rows: Tensor, temperature: float) -> TokenLogprobs:
    at_M, row_M, column_M = batch.places(rows)
    shape = len(rows), int(batch.lengths_B[rows].max())
    ids_BT = torch.zeros(shape, dtype=torch.long).index_put((row_M, column_M), batch.ids_N[at_M]).to(model.device)
    mask_BT = torch.zeros(shape, dtype=torch.bool).index_put((row_M, column_M), batch.mask_N[at_M])
    chosen_BT = mask_BT[:, 1:].to(model.device)
    hidden_BTD = model.module(ids_BT[:, :-1])
    targets_N = ids_BT[:, 1:][chosen_BT]
    logprobs_N, entropy_N = token_logprobs(model.module, hidden_BTD[chosen_BT], targets_N, temperature)
    return TokenLogprobs(rows, logprobs_N, entropy_N, ids_BT.numel())


def _order(batch: TokenBatch, rows_B: Tensor) -> Tensor:
    """Siblings together, and among them those of one length: attention takes these in one call."""
    by_length = torch.argsort(batch.lengths_B[rows_B], stable=True)
    return by_length[torch.argsort(batch.prompt_B[rows_B][by_length], stable=True)]


# Packed rows ------------------------------------------------------------------------------------------------------


@dataclass
class _Rows:
    """A `Cache` for packed rows that continue prompts, or begin a text."""

    layout: Packed
    prompts: _Prompts | None = None
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor) -> Tensor:
        query, key, value = (x[0].transpose(0, 1) for x in (query_BHTD, key_BKTD, value_BKTD))
        if self.prompts is None:
            # A layer that is recomputed in the backward pass must not replace what others hold already.
            self.keys.setdefault(layer, key)
            self.values.setdefault(layer, value)
            out = attend(query, key, value, self.layout)
        else:
            out = attend(query, key, value, self.layout, self.prompts.keys[layer], self.prompts.values[layer])
        return out.transpose(0, 1).unsqueeze(0)

    def rows(self) -> Tensor:
        lengths = torch.tensor([run.length for run in self.layout.runs for _ in range(run.rows)])
        return torch.arange(len(lengths)).repeat_interleave(lengths)

    def attention(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor) -> Tensor:
        query, key = (x[0].transpose(0, 1) for x in (query_BHTD, key_BKTD))
        prefix_key = None if self.prompts is None else self.prompts.keys[layer]
        return probabilities(query, key, self.layout, self.layout.positions_N, prefix_key)


@dataclass(frozen=True)
class _Prompts:
    """What responses need of the prompts of their wave."""

    keys: dict[int, Tensor]
    """Of each layer, all prompts packed: tokens, heads, width."""
    values: dict[int, Tensor]
    last_PD: Tensor
    """Hidden state of each prompt's last token: it predicts the first one of each response."""

    @classmethod
    def of(cls, model: LoadedModel, wave: Wave) -> _Prompts:
        rows = _Rows(wave.prompts)
        hidden_ND = _run(model, wave.prompts, rows)
        return cls(rows.keys, rows.values, hidden_ND[wave.last_P.to(hidden_ND.device)])

    def detached(self) -> _Prompts:
        """A copy whose gradients stay with it, so that the prompts' graph outlives many backward passes."""

        def leaf(x: Tensor) -> Tensor:
            return x.detach().requires_grad_(x.requires_grad)

        return _Prompts(
            {i: leaf(x) for i, x in self.keys.items()}, {i: leaf(x) for i, x in self.values.items()}, leaf(self.last_PD)
        )

    def backward(self, apart: _Prompts) -> None:
        """Backpropagate through the prompts what gradients `apart` has gathered."""
        pairs = [(x, y.grad) for x, y in zip(self._tensors, apart._tensors, strict=True) if y.grad is not None]
        if pairs:
            torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return (*self.values.values(), *self.keys.values(), self.last_PD)


def _responses(
    model: LoadedModel, part: Responses, prompts: _Prompts, temperature: float, computed: int
) -> TokenLogprobs:
    states = [prompts.last_PD]
    if len(part.packed):
        states.append(_run(model, part.packed, _Rows(part.packed, prompts)))
    source, targets = part.source_K.to(model.device), part.targets_K.to(model.device)
    hidden_KD = torch.cat(states).index_select(0, source)
    logprobs_N, entropy_N = token_logprobs(model.module, hidden_KD, targets, temperature)
    return TokenLogprobs(part.rows, logprobs_N, entropy_N, computed + len(part.packed))


def _run(model: LoadedModel, packed: Packed, cache: _Rows) -> Tensor:
    cache.layout = packed = packed.to(model.device)
    return model.module(packed.ids_N.unsqueeze(0), packed.positions_N.unsqueeze(0), cache)[0]
