"""The shape of a decoder: the fields of Hugging Face's `config.json` that `models.decoder` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """One for each network; `models.architecture` turns it into a `config.json` and back."""

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
    """Empty, or Hugging Face's dictionary with a `rope_type` of `models.rope`."""
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    """Of the query, key and value projections."""
    output_bias: bool = False
    """Of the attention's output projection."""
    mlp_bias: bool = False
    qk_norm: bool = False
    """Queries and keys are normalised in each head."""
    initializer_range: float = 0.02
    model_type: str = "llama"
    """The name in `architecture.FAMILIES` under which it is saved."""
