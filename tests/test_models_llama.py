"""Our Llama computes what transformers' LlamaForCausalLM computes, for every variant that we say we read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ponder.errors import Unsupported, UserError
from ponder.models.architecture import hf_config, is_native, llama_config
from ponder.models.load import load
from ponder.models.tiny import build_tokenizer

transformers = pytest.importorskip("transformers")

SHAPE: dict[str, Any] = {
    "vocab_size": 480,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "bos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 5000.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "multi-head": {"num_key_value_heads": 6},
    "tied": {"tie_word_embeddings": True},
    "own head_dim": {"head_dim": 16},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
    "linear scaling": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "llama3 scaling": {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-5},
}


def reference(folder: Path, shard: str = "5GB", **more: Any) -> Any:
    """A random LlamaForCausalLM, saved by transformers with ponder-tiny's tokenizer beside it."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SHAPE, **more})).eval()
    for parameter in model.parameters():  # norms and biases too, which start as ones and zeros
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder, max_shard_size=shard)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(tmp_path: Path, variant: str) -> None:
    theirs = reference(tmp_path, **VARIANTS[variant])
    ours = load(str(tmp_path), device="cpu")
    ids = torch.randint(480, (2, 130), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = theirs(ids).logits, ours.module.logits(ours.module(ids))
    assert ours.supports_cache
    assert expected.std() > 0.1
    assert (expected - got).abs().max() < 1e-4
    assert ours.info.parameters == sum(p.numel() for p in theirs.parameters())


def test_sharded_weights_are_read(tmp_path: Path) -> None:
    theirs = reference(tmp_path, shard="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = load(str(tmp_path), device="cpu").module.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.state_dict().items())
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"missing although model.safetensors.index.json lists it"):
        load(str(tmp_path), device="cpu")


def test_both_spellings_of_the_rotary_settings_mean_the_same() -> None:
    scaling = {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    base = {**SHAPE, "model_type": "llama"}
    new = llama_config({**base, "rope_parameters": LLAMA3}, "c")
    old = llama_config({**base, "rope_theta": 5000.0, "rope_scaling": scaling}, "c")
    older = llama_config({**base, "rope_theta": 5000.0, "rope_scaling": {"type": "llama3", **scaling}}, "c")
    assert new == old == older
    assert new.rope_theta == 5000.0
    assert llama_config(hf_config(new), "c") == new


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_config_that_we_write_is_the_one_that_we_read(variant: str) -> None:
    config = llama_config({**SHAPE, "model_type": "llama", **VARIANTS[variant]}, "c")
    assert llama_config(json.loads(json.dumps(hf_config(config))), "c") == config


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"hidden_size": None}, UserError, "no 'hidden_size'"),
        ({"num_hidden_layers": 0}, UserError, "'num_hidden_layers' is 0"),
        ({"max_position_embeddings": 2**40}, UserError, "more than 4194304"),
        ({"vocab_size": "many"}, UserError, "'vocab_size' is 'many'"),
        ({"num_key_value_heads": 4}, UserError, "not a multiple of num_key_value_heads 4"),
        ({"head_dim": 7}, UserError, "head_dim 7 is odd"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, Unsupported, "'yarn' is not supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, Unsupported, "'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, UserError, "'linear': 'factor' is None"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, Unsupported, "partial_rotary_factor 0.5"),
    ],
)
def test_a_config_that_makes_no_sense_is_one_sentence(change: dict[str, Any], kind: type, says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        llama_config({**SHAPE, "model_type": "llama", **change}, "here/config.json")
    assert str(caught.value).startswith("here/config.json: ")


def test_only_plain_llama_is_native() -> None:
    assert is_native({"model_type": "llama"})
    assert not is_native({"model_type": "llama", "hidden_act": "gelu"})
    assert not is_native({"model_type": "qwen2"})
