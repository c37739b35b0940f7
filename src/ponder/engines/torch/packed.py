"""A second copy of a decoder's matrices in MKL's packed order, for products with few rows in float32 on a CPU.

A product with the 64 rows of a decode step spends half of its time on reordering the matrix for the processor. Packed
once, it comes near the rate of a large product (docs/LOG.md compares both with the machine's peak). Projections that
read the same input are packed as one: fewer operations, which counts at one row.

The copy belongs to the engine and costs as much memory as the weights. It is rebuilt when weights are published, and
before any pass that finds a changed matrix (`fits` compares addresses and the tensors' version counters, so that an
unannounced optimiser step is seen too). Adapters, norms and embeddings are read from the module's own tensors. Where
the module does more than its classes say (`models.as_written`: a hook, a tap, an overridden `forward`), the module
computes. So it does for any other dtype or device, and unless asked where the copy takes more than a quarter of the
free memory (on a CPU then with its matrices stored column by column, `weights.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor, nn

from ponder.models import fused, rope
from ponder.models.cache import Attends
from ponder.models.decoder import Block, DecoderLM

if TYPE_CHECKING:
    from ponder.engines.torch.attention import PromptPass

PACKED_FOR = 64
"""Rows that MKL is told to expect; results are correct, and the speed within a few per cent, from 1 to 2,048."""
MOST_OF_FREE = 0.25
"""Largest share of the free memory that the copy may take without being asked for."""


def can_pack(module: nn.Module) -> bool:
    """Whether products can be packed: it takes a native decoder in float32 on a CPU, and torch with MKL."""
    if not isinstance(module, DecoderLM) or not torch.backends.mkl.is_available():
        return False
    weight = module.lm_head.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and hasattr(torch.ops.mkl, "_mkl_linear")


def copy_fits(module: nn.Module) -> bool:
    """Whether the copy would take at most `MOST_OF_FREE` of the free memory."""
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    return size <= MOST_OF_FREE * psutil.virtual_memory().available


class Product:
    """`x W^T + b` of one or several projections of the same input; the results are concatenated."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.layers = layers
        weight = layers[0].weight.detach() if len(layers) == 1 else torch.cat([y.weight.detach() for y in layers])
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), PACKED_FOR)
        # The operator takes the plain matrix too, and reads only its shape.
        self.shape = weight.new_zeros(()).expand(weight.shape)
        self.bias = None
        if any(y.bias is not None for y in layers):
            biases = [weight.new_zeros(y.out_features) if y.bias is None else y.bias.detach() for y in layers]
            self.bias = torch.cat(biases)

    def __call__(self, x_ND: Tensor) -> Tensor:
        y_NE = torch.ops.mkl._mkl_linear(x_ND, self.packed, self.shape, self.bias, len(x_ND))
        first = 0
        for layer in self.layers:
            adapter = getattr(layer, "adapter", None)
            if adapter is not None:
                y_NE[:, first : first + layer.out_features] += adapter(x_ND)
            first += layer.out_features
        return y_NE


class PackedBlock:
    """The products of one block, and its forward pass with them."""

    def __init__(self, block: Block) -> None:
        self.block, attention, mlp = block, block.self_attn, block.mlp
        self.qkv = Product([attention.q_proj, attention.k_proj, attention.v_proj])
        self.output = Product([attention.o_proj])
        self.gate_up = Product([mlp.gate_proj, mlp.up_proj])
        self.down = Product([mlp.down_proj])

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

    def __init__(self, module: DecoderLM) -> None:
        self.module = module
        self.blocks = [PackedBlock(b) for b in module.model.layers if isinstance(b, Block)]
        self.head = Product([module.lm_head])
        products = [self.head, *(p for b in self.blocks for p in (b.qkv, b.output, b.gate_up, b.down))]
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
        return self.head(hidden_ND)
