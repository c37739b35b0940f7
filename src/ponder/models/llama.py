"""The Llama architecture with Hugging Face parameter names, one module for sampler and trainer alike.

Leaves out what neither needs: dropout, attention maps, gradient checkpointing hooks, quantisation. The key-value cache
belongs to the engine: attention hands its rotated queries, keys and values to `cache.attend`, so that an engine may
keep them padded, paged or shared without a change here. Without a cache attention is causal over the whole row, which
is all that training needs: rows are padded on the right, where causal attention never looks.

Source: Touvron et al. 2023 (arXiv:2302.13971); rotary embeddings Su et al. 2021 (arXiv:2104.09864) in Hugging Face's
half-split convention; Llama 3 frequency scaling as in transformers' `modeling_rope_utils`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The fields of Hugging Face's `config.json` that shape the network."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    """Empty, or Hugging Face's dictionary with `rope_type` `linear` or `llama3`."""
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02


class Cache(Protocol):
    """What an engine gives a forward pass with a key-value cache."""

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor) -> Tensor:
        """Store the new keys and values of this layer and return the attention output, shape B H T D.

        The rotation is already applied. H is the number of query heads, K that of key-value heads.
        """
        ...


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """Inverse frequencies of the rotary embedding, shape (head_dim / 2,), scaled as the config says."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    inverse = 1.0 / (config.rope_theta**exponent)
    scaling = config.rope_scaling
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        return inverse / float(scaling["factor"])
    if kind == "llama3":
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        old, factor = float(scaling["original_max_position_embeddings"]), float(scaling["factor"])
        wavelength = 2 * math.pi / inverse
        smooth = ((old / wavelength - low) / (high - low)).clamp(0.0, 1.0)
        return inverse * (smooth + (1 - smooth) / factor)
    assert kind == "default", f"rope type {kind!r} must be refused at load"
    return inverse


def rope_tables(config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles, each of shape (max_position_embeddings, head_dim)."""
    angles = torch.outer(torch.arange(config.max_position_embeddings).float(), rope_frequencies(config))
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> Tensor:
    """Apply the rotary embedding (half-split convention)."""
    half = x_BHTD.shape[-1] // 2
    turned = torch.cat((-x_BHTD[..., half:], x_BHTD[..., :half]), dim=-1)
    return x_BHTD * cos_BTD.unsqueeze(1) + turned * sin_BTD.unsqueeze(1)


class RMSNorm(nn.Module):
    """Root-mean-square norm, in float32 whatever the dtype (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self.weight * F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023)."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, self.heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, width, bias=bias)

    def forward(self, x_BTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, cache: Cache | None) -> Tensor:
        rows, length, _ = x_BTD.shape
        query = self.q_proj(x_BTD).view(rows, length, self.heads, self.head_dim).transpose(1, 2)
        key = self.k_proj(x_BTD).view(rows, length, self.kv_heads, self.head_dim).transpose(1, 2)
        value = self.v_proj(x_BTD).view(rows, length, self.kv_heads, self.head_dim).transpose(1, 2)
        query, key = rotate(query, cos_BTD, sin_BTD), rotate(key, cos_BTD, sin_BTD)
        if cache is None:
            out = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=self.heads != self.kv_heads
            )
        else:
            out = cache.attend(self.layer, query, key, value)
        return self.o_proj(out.transpose(1, 2).reshape(rows, length, self.heads * self.head_dim))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_BTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, cache: Cache | None) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos_BTD, sin_BTD, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Decoder(nn.Module):
    """Embeddings, blocks and the last norm; Hugging Face calls it `model`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """A causal language model. `forward` gives hidden states, `logits` the head: callers choose the positions."""

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        cos_TD, sin_TD = rope_tables(config)
        self.register_buffer("rope_cos", cos_TD, persistent=False)
        self.register_buffer("rope_sin", sin_TD, persistent=False)

    def forward(self, ids_BT: Tensor, positions_BT: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Hidden states after the last norm, shape B T D.

        `positions_BT` defaults to 0, 1, 2, … in each row; with a cache it must be given.
        """
        x_BTD = self.model.embed_tokens(ids_BT)
        if positions_BT is None:
            cos, sin = self.rope_cos[: ids_BT.shape[1]].unsqueeze(0), self.rope_sin[: ids_BT.shape[1]].unsqueeze(0)
        else:
            cos, sin = self.rope_cos[positions_BT], self.rope_sin[positions_BT]
        cos, sin = cos.to(x_BTD.dtype), sin.to(x_BTD.dtype)
        for block in self.model.layers:
            x_BTD = block(x_BTD, cos, sin, cache)
        return self.model.norm(x_BTD)

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
