"""Sampler and trainer compute the same log-probabilities, for every family that runs natively and for adapters."""

import pytest
import torch
from engine_fixture import log_softmax_of, request
from training_play import random_batch

from ponder.engines.torch import TorchEngine
from ponder.models import tiny
from ponder.models.base import LoadedModel
from ponder.models.decoder_config import DecoderConfig
from ponder.models.lora import LoraConfig, new_adapter
from ponder.training.losses.dapo import Dapo
from ponder.training.optim import adamw
from ponder.training.policy import update

SIZES = (512, 32, 64, 2, 4, 2)
SHAPES = {
    "llama": DecoderConfig(*SIZES, 8, 256, tie_word_embeddings=True, initializer_range=0.2),
    "mistral": DecoderConfig(*SIZES, 16, 256, model_type="mistral", initializer_range=0.2),
    "qwen2": DecoderConfig(
        *SIZES,
        8,
        256,
        attention_bias=True,
        model_type="qwen2",
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        initializer_range=0.2,
    ),
    "qwen3": DecoderConfig(*SIZES, 16, 256, qk_norm=True, model_type="qwen3", initializer_range=0.2),
}
ADAPTER = LoraConfig(4, 8.0, ("q_proj", "v_proj", "down_proj"))


@torch.no_grad()
def make(kind: str, *, adapter: bool = False) -> LoadedModel:
    model = tiny.new_model(0, SHAPES[kind])
    generator = torch.Generator().manual_seed(1)
    if adapter:
        new_adapter(model, ADAPTER, seed=2)
    for name, parameter in model.module.named_parameters():
        if parameter.dim() == 1 or name.endswith("adapter.B"):  # norms, biases and B start as ones and zeros
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "adapter"])
@pytest.mark.parametrize("kind", SHAPES)
def test_the_sampler_and_a_whole_pass_agree(kind: str, adapter: bool) -> None:
    model = make(kind, adapter=adapter)
    engine = TorchEngine(model, max_rows=16)
    assert engine.path == "native"
    try:
        results = engine.generate_many([request(i, n=2) for i in range(4)])
    finally:
        engine.close_now()
    for completion in [c for r in results for c in r]:
        chosen = log_softmax_of(model, completion)[torch.arange(len(completion.ids)), torch.tensor(completion.ids)]
        assert torch.allclose(chosen, torch.tensor(completion.transcript.logprobs[-len(completion.ids) :]), atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_rl_moves_the_adapter_alone(kind: str) -> None:
    model = make(kind, adapter=True)
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    stats = update(
        model,
        adamw(model.module, learning_rate=0.01, weight_decay=0.1, betas=(0.9, 0.99)),
        Dapo(),
        random_batch(),
        temperature=1.0,
        max_grad_norm=1.0,
        micro_tokens=60,
    )
    assert stats.gradient_norm > 0
    moved = {name for name, p in model.module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".adapter." in name}
