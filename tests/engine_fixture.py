"""A small random Llama with ponder-tiny's tokenizer, and what an engine's samples are compared with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import torch

from ponder.engines.torch import TorchEngine
from ponder.models import tiny
from ponder.models.base import LoadedModel
from ponder.models.decoder_config import DecoderConfig
from ponder.types import Completion, Request, SamplingParams

CONFIG = DecoderConfig(
    vocab_size=480,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    tie_word_embeddings=True,
    initializer_range=0.3,
)


def make_model(seed: int = 0, *, scale: float = 0.3, end: bool = True) -> LoadedModel:
    """With `end` false no id ends a response."""
    model = tiny.new_model(seed, dataclasses.replace(CONFIG, initializer_range=scale))
    if not end:
        model.end_ids = ()
    return model


@contextlib.asynccontextmanager
async def opened(model: LoadedModel | None = None, **options: Any) -> AsyncIterator[TorchEngine]:
    """An engine that is closed at the end, on a model without end ids if none is given."""
    engine = TorchEngine(model or make_model(end=False), **options)
    try:
        yield engine
    finally:
        await engine.close()


@torch.no_grad()
def log_softmax_of(model: LoadedModel, completion: Completion, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities (T V) over the vocabulary before each response token, by one full forward pass."""
    ids = torch.tensor([completion.prompt_ids + completion.ids])
    hidden = model.module(ids)[0, len(completion.prompt_ids) - 1 : -1]
    return torch.log_softmax(model.module.logits(hidden) / temperature, dim=-1)  # type: ignore[operator]


def only_letters(model: LoadedModel) -> LoadedModel:
    """Let a model sample nothing but single lower-case letters and spaces, so that its text spells out its ids."""
    allowed = [model.tokenizer.id_of(c) for c in "abcdefghijklmnopqrstuvwxyz "]
    bias = torch.full((CONFIG.vocab_size,), -torch.inf)
    bias[allowed] = 0.0
    head = model.module.lm_head
    model.module.logits = lambda hidden: head(hidden) + bias
    return model


def request(i: int, max_tokens: int = 24, n: int = 1, **options: object) -> Request:
    params = SamplingParams(max_tokens, seed=i, **options)  # type: ignore[arg-type]
    return Request(f"what is {i} + {i * i}" + " and more" * (i % 5), params, n=n)
