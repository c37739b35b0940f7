"""How the next hidden state of every row is computed: with a cache of keys and values, or by recomputing whole rows.

`Native` is for modules whose attention goes through `models.cache.Cache`. `Recompute` is for any other
`module(ids_BT)`: correct, slow and without a cache; it runs each row from its first token at every step.

Prompts end at the last block's keys and values: its output is not needed for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from ponder.engines.torch.attention import PromptPass, Shared, Step, Stretch
from ponder.engines.torch.cache import CacheShape, KVCache, rounded
from ponder.engines.torch.choosing import Choice, choose, fixed_by_environment
from ponder.engines.torch.compiled import CompiledDecoder
from ponder.engines.torch.packed import PackedDecoder, can_pack, copy_fits
from ponder.engines.torch.products import PLAIN, Plan, candidates, named, refuse_precision
from ponder.engines.torch.weights import lay_out
from ponder.errors import Unsupported
from ponder.models.as_written import AsWritten
from ponder.models.base import forward_flops

if TYPE_CHECKING:
    from ponder.models.base import CausalLM, LoadedModel
    from ponder.models.cache import Cache
    from ponder.models.decoder import DecoderLM


class _Costs:
    """FLOPs of one token at a context length, from the model's own estimate."""

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
    """Prefill in chunks, then one token a row per decode step, with keys and values kept in slots and nodes."""

    path = "native"

    def __init__(self, model: LoadedModel, products: str | None = None, precision: str = "float32") -> None:
        """`products` are those of `products.KINDS`, or `plain`; None takes the fastest of the precision that fit.

        Raises `UserError` and `Unsupported` as `products.named` does.
        """
        module: Any = model.module
        self.module = cast("CausalLM", module)
        config = module.config
        weight = next(module.parameters())
        self.device = weight.device
        self.precision = precision
        self.choice: Choice | None = None
        """What was measured, where products were chosen so."""
        self.plan, self.head = self._plans(model, products)
        """The packed products of the blocks and of the head; an empty plan is the module's own."""
        self.copy: PackedDecoder | None = None
        self.compiled: CompiledDecoder | None = None
        """The compiled decode steps, if asked for (`compile`)."""
        self.as_written = AsWritten(module)
        self._structure = self.as_written.structure
        if self.device.type == "cpu" and not self.plan:
            lay_out(module)
        self.shape = CacheShape(
            config.num_hidden_layers, config.num_key_value_heads, config.head_dim, weight.dtype, weight.device
        )
        self.slots = KVCache(self.shape)
        self.costs = _Costs(model)

    @property
    def products(self) -> str:
        """The name of the products in use."""
        return "+".join(kind.name for _, kind in self.plan) or PLAIN

    def _plans(self, model: LoadedModel, products: str | None) -> tuple[Plan, Plan]:
        module: Any = model.module
        refuse_precision(self.precision)
        if not can_pack(module):
            if self.precision != "float32" or products not in (None, PLAIN):
                raise Unsupported(
                    f"{model.info.name} has no products in {self.precision} or by name: that takes a native model in "
                    "float32 on a CPU (dtype and device)"
                )
            return (), ()
        plan = self._fastest(module, self.precision) if products is None else named(products, self.precision)
        if self.precision == "float32":
            return plan, plan
        # Rounding the results of the head costs most of the mismatch (docs/LOG.md), so they stay in float32.
        return plan, self._fastest(module, "float32")

    def _fastest(self, module: DecoderLM, precision: str) -> Plan:
        """The fastest products of a precision; in float32 only of a copy that fits, else the module's own."""
        fixed = fixed_by_environment()
        if fixed is not None and precision == "float32":
            plan = named(fixed, precision)
            return plan if copy_fits(module, [kind for _, kind in plan]) else ()
        fitting = [kind for kind in candidates(precision) if precision != "float32" or copy_fits(module, [kind])]
        if not fitting:
            return ()
        choice = choose(module, precision, fitting)
        if precision == self.precision:
            self.choice = choice
        plan = choice.plan()
        return plan if copy_fits(module, {kind for _, kind in plan}) else choice.single()

    def prompts(self, stretches: Sequence[Stretch], ids: Sequence[np.ndarray]) -> None:
        """Compute keys and values of stretches of prompts (`ids[i]` are those of `stretches[i]`), in one pass."""
        view = PromptPass(self.shape, stretches)
        positions = np.concatenate([np.arange(s.first, s.first + s.count) for s in stretches])
        copy = self._copy()
        if copy is None:
            self.network(np.concatenate(ids), positions, 1, view)
        else:
            copy.store(torch.from_numpy(np.concatenate(ids)), torch.from_numpy(positions), view)

    def network(self, ids_N: np.ndarray, positions_N: np.ndarray, rows: int, view: Cache) -> Tensor:
        """Hidden states (N D) of `rows` rows of contiguous tokens."""
        ids = torch.as_tensor(ids_N, device=self.device)
        positions = torch.as_tensor(positions_N, device=self.device)
        copy = self._copy()
        if copy is not None:
            return copy(ids, positions, rows, view)
        return self.module(ids.view(rows, -1), positions.view(rows, -1), view).flatten(0, 1)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Shape N V, in float32."""
        copy = self._copy()
        return self.module.logits(hidden_ND) if copy is None else copy.logits(hidden_ND)

    def _stands_in(self) -> bool:
        """Whether a fast form of the module may compute; drops forms of modules that were replaced."""
        if not self.as_written():
            return False
        if self._structure != self.as_written.structure:
            self._structure = self.as_written.structure
            self.copy = None
            if self.compiled is not None:
                self.compiled.gather()
        return True

    def _copy(self) -> PackedDecoder | None:
        if not self.plan or not self._stands_in():
            return None
        if self.copy is None or not self.copy.fits():
            self.copy = None  # first, so that there are never two copies
            self.copy = PackedDecoder(cast("DecoderLM", self.module), self.plan, self.head)
        return self.copy

    def compile(self) -> None:
        """Run decode steps through `torch.compile` from now on; prompts stay eager.

        Call it on the decoding thread: CUDA graphs belong to it. Raises `Unsupported` where compiling fails.
        """
        compiled = CompiledDecoder(cast("DecoderLM", self.module))
        compiled.warm_up()
        self.compiled = compiled

    def weights_changed(self) -> None:
        """Rebuild what was made from the weights: now, so that publishing includes the cost."""
        self.copy = None
        self._copy()

    def step(self, ids_B: np.ndarray, positions_B: np.ndarray, bases_B: np.ndarray, shared: Sequence[Shared]) -> Tensor:
        """Hidden states (B D) of the tokens at these positions of the slots 0 … B - 1; stores their keys and values."""
        view = Step(self.slots, positions_B, bases_B, shared)
        if self.compiled is not None and self._stands_in():
            return self.compiled(ids_B, positions_B, view)
        return self.network(ids_B, positions_B, len(ids_B), view)

    def flops(self, computed_from: int, first: int, last: int) -> float:
        """Of a sample whose prompt was computed from `computed_from` on and whose response is `first` … `last - 1`."""
        return self.costs.tokens(computed_from, max(first, last - 1))


class Recompute:
    """Runs whole rows at every step; nothing is kept between steps, so there is nothing to copy or to drop."""

    path = "transformers"

    def __init__(self, model: LoadedModel) -> None:
        self.module = cast("CausalLM", model.module)
        self.device = model.device
        self.pad = model.pad_id
        self.costs = _Costs(model)

    def step(self, table_BT: np.ndarray, positions_B: np.ndarray) -> Tensor:
        """Hidden states (B D) at the positions; causal attention does not read what is to the right of them."""
        width = min(rounded(int(positions_B.max()) + 1, 8), table_BT.shape[1])
        ids = np.where(np.arange(width) <= positions_B[:, None], table_BT[:, :width], self.pad)
        hidden = self.module(torch.as_tensor(ids, device=self.device))
        return hidden[torch.arange(len(ids), device=self.device), torch.as_tensor(positions_B, device=self.device)]

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Shape N V, in float32."""
        return self.module.logits(hidden_ND)

    def flops(self, computed_from: int, first: int, last: int) -> float:
        """FLOPs actually computed: the whole row again for each token of the response."""
        return sum(self.costs.tokens(0, length) for length in range(first, last))
