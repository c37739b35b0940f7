"""How the next hidden state of every row is computed: with our own cache, or by running whole rows again.

`Native` is for modules whose attention goes through `models.llama.Cache`. `Recompute` is for any other
`module(ids_BT)`: right, slow, and without memory; it runs each row from its first token at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from ponder.engines.torch.cache import CacheShape, KVCache, Prefill, Step, better_order, rounded
from ponder.models.base import forward_flops

if TYPE_CHECKING:
    from ponder.models.base import CausalLM, LoadedModel

PREFILL_TOKENS = 8192
"""Most tokens, padding counted, of one prefill pass of several prompts."""

Saved = list[tuple[Tensor, Tensor]]


class Forward(Protocol):
    """What the batch asks of a way to compute. Slots are 0 … n - 1."""

    path: str
    shares: bool
    """A prompt that was computed once can be copied to other slots."""
    bytes_per_token: int

    def reserve(self, rows: int, length: int, *, live_rows: int, live_length: int, limit: int) -> None: ...

    def prefill(self, prompts: Sequence[np.ndarray], slots: Sequence[int]) -> None: ...

    def copy(self, sources: Sequence[int] | np.ndarray, targets: Sequence[int] | np.ndarray, length: int) -> None: ...

    def better_order(self, lengths_B: np.ndarray) -> np.ndarray | None: ...

    def permute(self, order: np.ndarray, length: int) -> None: ...

    def save(self, slot: int, length: int) -> Saved: ...

    def restore(self, saved: Saved, slot: int) -> None: ...

    def step(self, table_BT: np.ndarray, positions_B: np.ndarray) -> Tensor: ...

    def flops(self, computed_from: int, first: int, last: int) -> float: ...

    def clear(self) -> None: ...


def forward_of(model: LoadedModel) -> Forward:
    """The fast way if the module supports it, else the general one."""
    return Native(model) if model.supports_cache else Recompute(model)


class _Costs:
    """FLOPs of one token at a context length, from what the model says of itself."""

    def __init__(self, model: LoadedModel) -> None:
        module: Any = model.module
        config = model.config or {}

        def of(name: str) -> int:
            return int(config.get(name) or getattr(getattr(module, "config", None), name, 0) or 0)

        self.layers, self.width, vocab = of("num_hidden_layers"), of("hidden_size"), of("vocab_size")
        self.base = model.info.flops_per_token
        if not self.base:
            inner = sum(
                p.numel() for n, p in module.named_parameters() if "embed_tokens" not in n and "lm_head" not in n
            )
            self.base = forward_flops(self.width, self.layers, inner, vocab, 0)

    def tokens(self, first: int, last: int) -> float:
        """Of the tokens at positions `first` … `last - 1`, each attending to all up to itself."""
        count = max(0, last - first)
        mean = (first + last + 1) / 2
        return count * (self.base + forward_flops(self.width, self.layers, 0, 0, mean))


class Native:
    """Prefill once, then one token a row and step, with keys and values kept in a `KVCache`."""

    path = "native"
    shares = True

    def __init__(self, model: LoadedModel) -> None:
        module: Any = model.module
        self.module = cast("CausalLM", module)
        config = module.config
        weight = next(module.parameters())
        self.device = weight.device
        shape = CacheShape(
            config.num_hidden_layers, config.num_key_value_heads, config.head_dim, weight.dtype, weight.device
        )
        self.cache = KVCache(shape)
        self.bytes_per_token = shape.bytes_per_token
        self.costs = _Costs(model)

    def reserve(self, rows: int, length: int, *, live_rows: int, live_length: int, limit: int) -> None:
        self.cache.reserve(rows, length, live_rows=live_rows, live_length=live_length, limit=limit)

    def prefill(self, prompts: Sequence[np.ndarray], slots: Sequence[int]) -> None:
        """Compute keys and values of prompts, shortest with shortest, in passes of bounded size."""
        order = sorted((i for i in range(len(prompts)) if len(prompts[i])), key=lambda i: len(prompts[i]))
        while order:
            count = 1
            while count < len(order) and (count + 1) * len(prompts[order[count]]) <= PREFILL_TOKENS:
                count += 1
            chosen, order = order[:count], order[count:]
            ids = np.zeros((count, max(len(prompts[i]) for i in chosen)), dtype=np.int64)
            for row, i in enumerate(chosen):
                ids[row, : len(prompts[i])] = prompts[i]
            target = torch.tensor([slots[i] for i in chosen], device=self.device)
            positions = torch.arange(ids.shape[1], device=self.device).expand(count, -1)
            self.module(torch.as_tensor(ids, device=self.device), positions, Prefill(self.cache, target))

    def copy(self, sources: Sequence[int] | np.ndarray, targets: Sequence[int] | np.ndarray, length: int) -> None:
        self.cache.copy(sources, targets, length)

    def better_order(self, lengths_B: np.ndarray) -> np.ndarray | None:
        """An order of the slots in which attention reads much less; None if today's is good enough."""
        return better_order(lengths_B, self.cache.shape.numbers_per_position)

    def permute(self, order: np.ndarray, length: int) -> None:
        self.cache.permute(order, length)

    def save(self, slot: int, length: int) -> Saved:
        return self.cache.save(slot, length)

    def restore(self, saved: Saved, slot: int) -> None:
        self.cache.restore(saved, slot)

    def step(self, table_BT: np.ndarray, positions_B: np.ndarray) -> Tensor:
        """Hidden states (B D) of the tokens that the table holds at the positions; their keys and values are kept."""
        view = Step(self.cache, positions_B)
        ids = torch.as_tensor(table_BT[np.arange(len(positions_B)), positions_B], device=self.device)
        return self.module(ids.unsqueeze(1), view.positions_B.unsqueeze(1), view)[:, 0]

    def flops(self, computed_from: int, first: int, last: int) -> float:
        """Of a sample whose prompt was computed from `computed_from` on and whose response is `first` … `last - 1`."""
        return self.costs.tokens(computed_from, max(first, last - 1))

    def clear(self) -> None:
        self.cache.clear()


class Recompute:
    """Runs whole rows at every step; nothing is kept between steps, so that there is nothing to copy or to drop."""

    path = "transformers"
    shares = False
    bytes_per_token = 0

    def __init__(self, model: LoadedModel) -> None:
        self.module = cast("CausalLM", model.module)
        self.device = model.device
        self.pad = model.pad_id
        self.costs = _Costs(model)

    def reserve(self, rows: int, length: int, *, live_rows: int, live_length: int, limit: int) -> None: ...

    def prefill(self, prompts: Sequence[np.ndarray], slots: Sequence[int]) -> None: ...

    def copy(self, sources: Sequence[int] | np.ndarray, targets: Sequence[int] | np.ndarray, length: int) -> None: ...

    def better_order(self, lengths_B: np.ndarray) -> np.ndarray | None:
        return None

    def permute(self, order: np.ndarray, length: int) -> None: ...

    def save(self, slot: int, length: int) -> Saved:
        return []

    def restore(self, saved: Saved, slot: int) -> None: ...

    def step(self, table_BT: np.ndarray, positions_B: np.ndarray) -> Tensor:
        """Hidden states (B D) at the positions; what lies to the right of them is hidden by causal attention."""
        width = min(rounded(int(positions_B.max()) + 1, 8), table_BT.shape[1])
        ids = np.where(np.arange(width) <= positions_B[:, None], table_BT[:, :width], self.pad)
        hidden = self.module(torch.as_tensor(ids, device=self.device))
        return hidden[torch.arange(len(ids), device=self.device), torch.as_tensor(positions_B, device=self.device)]

    def flops(self, computed_from: int, first: int, last: int) -> float:
        """What was really computed: the whole row again for each token of the response."""
        return sum(self.costs.tokens(0, length) for length in range(first, last))

    def clear(self) -> None: ...
