"""A second copy of a decoder's matrices in packed order (`products.py`), for products with few rows on a CPU.

Projections that read the same input are packed as one: fewer operations, which counts at one row.

The copy belongs to the engine. It is rebuilt when weights are published, and before any pass that finds a changed
matrix (`fits` compares addresses and the tensors' version counters, so that an unannounced optimiser step is seen too).
Adapters, norms and embeddings are read from the module's own tensors, in float32 as attention and its keys and values
are, whatever the products compute in. The head has products of its own: rounding its results costs most of the mismatch
with the trainer (docs/LOG.md). Where the module does more than its classes say (`models.as_written`: a hook, a tap, an
overridden `forward`), the module computes. So it does for any other dtype or device, and unless asked where the copy
takes more than a quarter of the free memory (on a CPU then with its matrices stored column by column, `weights.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor, nn

from ponder.engines.torch.products import Packed, Plan
from ponder.errors import UserError
from ponder.models import fused, rope
from ponder.models.cache import Attends
from ponder.models.decoder import Block, DecoderLM

if TYPE_CHECKING:
    from ponder.engines.torch.attention import PromptPass

MOST_OF_FREE = 0.25
"""Largest share of the free memory that the copy may take without being asked for."""


def can_pack(module: nn.Module) -> bool:
    """Whether products can be packed: it takes a native decoder in float32 on a CPU."""
    if not isinstance(module, DecoderLM):
        return False
    weight = module.lm_head.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def copy_fits(module: nn.Module, kinds: Iterable[type[Packed]]) -> bool:
    """Whether a copy of each of these kinds would take at most `MOST_OF_FREE` of the free memory together."""
    size = sum(p.numel() for p in module.parameters()) * sum(kind.bytes for kind in kinds)
    return size <= MOST_OF_FREE * psutil.virtual_memory().available


class Product:
    """`x W^T + b` of one or several projections of the same input; the results are concatenated."""

    def __init__(self, layers: Sequence[nn.Linear], plan: Plan) -> None:
        self.layers = layers
        weight = layers[0].weight.detach() if len(layers) == 1 else torch.cat([y.weight.detach() for y in layers])
        bias = None
        if any(y.bias is not None for y in layers):
            biases = [weight.new_zeros(y.out_features) if y.bias is None else y.bias.detach() for y in layers]
            bias = torch.cat(biases)
        self.packed = [(most, kind(weight, bias)) for most, kind in plan]

    def __call__(self, x_ND: Tensor) -> Tensor:
        y_NE = next(packed for most, packed in self.packed if len(x_ND) <= most)(x_ND)
        first = 0
        for layer in self.layers:
            adapter = getattr(layer, "adapter", None)
            if adapter is not None:
                y_NE[:, first : first + layer.out_features] += adapter(x_ND)
            first += layer.out_features
        return y_NE


class PackedBlock:
    """The products of one block, and its forward pass with them."""

    def __init__(self, block: Block, plan: Plan) -> None:
        self.block, attention, mlp = block, block.self_attn, block.mlp
        self.qkv = Product([attention.q_proj, attention.k_proj, attention.v_proj], plan)
        self.output = Product([attention.o_proj], plan)
        self.gate_up = Product([mlp.gate_proj, mlp.up_proj], plan)
        self.down = Product([mlp.down_proj], plan)

    def __call__(self, x_ND: Tensor, rows: int, cos_N1D: Tensor, sin_N1D: Tensor, cache: Attends) -> Tensor:
        """`Block.forward`; `x_ND` is overwritten."""
        query, key, value = self._project(x_ND, rows, cos_N1D, sin_N1D)
        out = cache.attend(self.block.self_attn.layer, query, key, value)
        x_ND += self.output(out.transpose(1, 2).reshape(len(x_ND), -1))
        gate_up = self.gate_up(self.block.post_attention_layernorm(x_ND))
        inner = gate_up.shape[1] // 2
        x_ND += self.down(fused.swiglu(gate_up[:, :inner], gate_up[:, inner:]))
        return x_ND

    def store(self, x_ND: Tensor, rows: int, cos_N1D: Tensor, sin_N1D: Tensor, cache: PromptPass) -> None:
        """Only store this block's keys and values in the cache."""
        _, key, value = self._project(x_ND, rows, cos_N1D, sin_N1D)
        cache.store(self.block.self_attn.layer, key[0], value[0])

    def _project(self, x_ND: Tensor, rows: int, cos_N1D: Tensor, sin_N1D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (B H T D) and keys, and values (both B K T D)."""
        a = self.block.self_attn
        heads, dim, turning = a.heads, a.head_dim, a.heads + a.kv_heads
        qkv = self.qkv(self.block.input_layernorm(x_ND)).view(len(x_ND), -1, dim)
        both = qkv[:, :turning]
        if not isinstance(a.q_norm, nn.Identity):
            both = torch.cat((a.q_norm(qkv[:, :heads]), a.k_norm(qkv[:, heads:turning])), dim=1)
        turned = rope.rotate(both, cos_N1D, sin_N1D).view(rows, -1, turning, dim).transpose(1, 2)
        value = qkv[:, turning:].unflatten(0, (rows, -1)).transpose(1, 2)
        return turned[:, :heads], turned[:, heads:], value


class PackedDecoder:
    """The forward pass of a `DecoderLM` for sampling. Used under `torch.inference_mode` only."""

    def __init__(self, module: DecoderLM, plan: Plan, head: Plan) -> None:
        """`plan` is of the blocks, `head` of the head; an empty one is the module's own.

        Raises `UserError` for weights that overflow in a kind's precision.
        """
        self.module = module
        try:
            self.blocks = [PackedBlock(b, plan) for b in module.model.layers if isinstance(b, Block)]
            self.head = Product([module.lm_head], head) if head else None
        except OverflowError:
            precision = plan[0][1].precision
            raise UserError(f"{_overflowing(module, plan)} overflows in {precision}: use float32") from None
        products = [p for b in self.blocks for p in (b.qkv, b.output, b.gate_up, b.down)]
        products += [] if self.head is None else [self.head]
        layers = [layer for product in products for layer in product.layers]
        # Through the dictionaries, as `nn.Module.__getattr__` is slow and this is checked before every step.
        self.places = [layer._parameters for layer in layers]
        self.made_of = self._state()

    def _state(self) -> list[tuple[int, int]]:
        """Address and version counter of each packed matrix."""
        weights = [place["weight"] for place in self.places]
        return [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights if w is not None]

    def fits(self) -> bool:
        """Whether the matrices are still those that were packed."""
        return self.made_of == self._state()

    def __call__(self, ids_N: Tensor, positions_N: Tensor, rows: int, cache: Attends) -> Tensor:
        """Hidden states after the last norm, shape N D, of `rows` contiguous rows."""
        x_ND, cos, sin = self._embedded(ids_N, positions_N)
        for block in self.blocks:
            x_ND = block(x_ND, rows, cos, sin, cache)
        return self.module.model.norm(x_ND)

    def store(self, ids_N: Tensor, positions_N: Tensor, cache: PromptPass) -> None:
        """Store keys and values of prompts in the cache; the output of the last block is not needed for that."""
        x_ND, cos, sin = self._embedded(ids_N, positions_N)
        for block in self.blocks[:-1]:
            x_ND = block(x_ND, 1, cos, sin, cache)
        self.blocks[-1].store(x_ND, 1, cos, sin, cache)

    def _embedded(self, ids_N: Tensor, positions_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cos, sin = rope.widened(self.module.rope_table[positions_N].unsqueeze(1))
        return self.module.model.embed_tokens(ids_N), cos, sin

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Shape N V."""
        return self.module.logits(hidden_ND) if self.head is None else self.head(hidden_ND)


def _overflowing(module: DecoderLM, plan: Plan) -> str:
    """The name of the first matrix that cannot be packed."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            try:
                Product([layer], plan)
            except OverflowError:
                return f"{name}.weight"
    return "a weight"
