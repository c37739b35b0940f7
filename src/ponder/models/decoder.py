"""The decoder that Llama, Mistral, Qwen2 and Qwen3 share, with Hugging Face parameter names, for sampler and trainer.

One module with switches: biases of the projections (Qwen2), norms of queries and keys (Qwen3), scaled rotary embeddings
(`models.rope`), grouped queries, tied or untied head. `models.architecture` says which family has which.

Leaves out what neither sampler nor trainer needs: dropout, quantisation, sliding windows (a model whose window is
shorter than its context runs through transformers). Attention passes its rotated queries, keys and values to
`cache.attend` (`models.cache`), so that an engine may keep them padded or shared without a change here. Without a cache
attention is causal over whole rows, padded on the right, which causal attention never reads. `models.taps` shows hidden
states and attention probabilities.

Source: Touvron et al. 2023 (arXiv:2302.13971); Jiang et al. 2023 (arXiv:2310.06825); Qwen2 (arXiv:2407.10671) and
Qwen3 (arXiv:2505.09388) technical reports.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.models import fused, rope
from ponder.models.cache import Attends, Cache, WholeRows
from ponder.models.decoder_config import DecoderConfig
from ponder.models.taps import Taps, Watch


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, in float32 whatever the dtype (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.size, self.eps = size, eps
        self._eps = torch.tensor(eps, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return F.rms_norm(x, (self.size,), self.weight, self.eps)
        return fused.rms_norm(x, self.weight, self._eps)


class Linear(nn.Linear):
    """A projection that may have a low-rank adapter (`models.lora`)."""

    adapter: nn.Module | None

    def __init__(self, inner: int, outer: int, bias: bool) -> None:
        super().__init__(inner, outer, bias=bias)
        self.adapter = None

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if self.adapter is None else y + self.adapter(x)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = Linear(width, self.heads * self.head_dim, bias)
        self.k_proj = Linear(width, self.kv_heads * self.head_dim, bias)
        self.v_proj = Linear(width, self.kv_heads * self.head_dim, bias)
        self.o_proj = Linear(self.heads * self.head_dim, width, config.output_bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_ND: Tensor, rows: int, cos_N1D: Tensor, sin_N1D: Tensor, cache: Attends) -> Tensor:
        def split(x_ND: Tensor) -> Tensor:
            return x_ND.view(rows, -1, x_ND.shape[1] // self.head_dim, self.head_dim).transpose(1, 2)

        query_NHD = self.q_norm(self.q_proj(x_ND).view(-1, self.heads, self.head_dim))
        key_NKD = self.k_norm(self.k_proj(x_ND).view(-1, self.kv_heads, self.head_dim))
        query, key = (split(rope.rotate(x, cos_N1D, sin_N1D).flatten(1)) for x in (query_NHD, key_NKD))
        value = split(self.v_proj(x_ND))
        out = cache.attend(self.layer, query, key, value)
        return self.o_proj(out.transpose(1, 2).reshape(len(x_ND), self.heads * self.head_dim))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(width, inner, bias)
        self.up_proj = Linear(width, inner, bias)
        self.down_proj = Linear(inner, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(fused.swiglu(self.gate_proj(x), self.up_proj(x)))


class Block(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_ND: Tensor, rows: int, cos_N1D: Tensor, sin_N1D: Tensor, cache: Attends) -> Tensor:
        x_ND = x_ND + self.self_attn(self.input_layernorm(x_ND), rows, cos_N1D, sin_N1D, cache)
        return x_ND + self.mlp(self.post_attention_layernorm(x_ND))


class Decoder(nn.Module):
    """Embeddings, blocks and the last norm; Hugging Face calls it `model`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, ids_BT: Tensor, positions_BT: Tensor, rope_table: Tensor, cache: Cache, taps: tuple[Taps, ...] = ()
    ) -> Tensor:
        """Hidden states after the last norm, shape B T D."""
        rows, length = ids_BT.shape
        watch = Watch(taps, ids_BT, positions_BT, cache) if taps else None
        seen: Attends = cache if watch is None else watch
        # Without the row dimension: the blocks compute over tokens, and only attention depends on their order.
        x_ND = self.embed_tokens(ids_BT.reshape(-1))
        cos, sin = rope.widened(rope_table[positions_BT.reshape(-1)].to(x_ND.dtype).unsqueeze(1))
        for layer, block in enumerate(self.layers):
            if watch is not None:
                watch.hidden(layer, x_ND)
            x_ND = block(x_ND, rows, cos, sin, seen)
        x_ND = self.norm(x_ND)
        if watch is not None:
            watch.hidden(len(self.layers), x_ND)
        return x_ND.view(rows, length, -1)


class DecoderLM(nn.Module):
    """A causal language model. `forward` gives hidden states, `logits` the head: callers choose the positions."""

    rope_table: Tensor
    taps: tuple[Taps, ...] = ()
    """The taps in place; set by `models.taps.tapped`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.register_buffer("rope_table", rope.table(config), persistent=False)

    def forward(self, ids_BT: Tensor, positions_BT: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Hidden states after the last norm, shape B T D.

        `positions_BT` defaults to 0, 1, 2, … in each row; with a cache it must be given.
        """
        rows, length = ids_BT.shape
        if positions_BT is None:
            positions_BT = torch.arange(length, device=ids_BT.device).expand(rows, length)
        if cache is None:
            cache = WholeRows(rows, length)
        return self.model(ids_BT, positions_BT, self.rope_table, cache, self.taps)

    @property
    def layer_count(self) -> int:
        return self.config.num_hidden_layers

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Unnormalised log-probabilities over the vocabulary, shape N V (any leading shape), in float32."""
        return self.lm_head(hidden_ND).float()

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Random weights: normal with `initializer_range`, output projections scaled by 1/sqrt(2 layers) (GPT-2)."""
        std = self.config.initializer_range
        for name, p in self.named_parameters():
            if p.dim() == 1:
                p.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            scale = (
                1 / math.sqrt(2 * self.config.num_hidden_layers)
                if name.endswith(("o_proj.weight", "down_proj.weight"))
                else 1
            )
            p.normal_(0.0, std * scale, generator=generator)
