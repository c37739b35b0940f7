"""A small random Llama with ponder-tiny's tokenizer, and what an engine's samples are compared with."""

from __future__ import annotations

import torch

from ponder.models import tiny
from ponder.models.base import LoadedModel
from ponder.models.decoder import DecoderConfig, DecoderLM
from ponder.models.tokenizer import FastTokenizer
from ponder.types import Completion, ModelInfo, Request, SamplingParams

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
    module = DecoderLM(
        DecoderConfig(**{f: getattr(CONFIG, f) for f in CONFIG.__slots__} | {"initializer_range": scale})
    )
    module.initialise(torch.Generator().manual_seed(seed))
    tokenizer = FastTokenizer(tiny.build_tokenizer())
    end_id = tokenizer.id_of(tiny.END)
    assert end_id is not None
    return LoadedModel(
        module,
        tokenizer,
        ModelInfo("random", CONFIG.max_position_embeddings, thought=tiny.THOUGHT, chat=True),
        (end_id,) if end else (),
        chat_template=tiny.TEMPLATE,
    )


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
