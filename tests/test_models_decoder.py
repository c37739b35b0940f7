"""The decoder computes what transformers' classes compute, for every supported family and variant."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.errors import Unsupported, UserError
from ponder.models import rope
from ponder.models.architecture import FAMILIES, decoder_config, hf_config, why_not_native
from ponder.models.decoder import DecoderLM
from ponder.models.decoder_config import DecoderConfig
from ponder.models.load import load, why_slower
from ponder.models.save import save
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
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e6}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, multi-head": ("llama", {"num_key_value_heads": 6}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, own head_dim": ("llama", {"head_dim": 16}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "llama, dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
    "llama, llama3": ("llama", {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-5}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": {**YARN, "rope_type": "default"}}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen2, yarn by hand": (
        "qwen2",
        {"rope_parameters": {**YARN, "beta_fast": 16, "beta_slow": 2, "attention_factor": 1.5, "truncate": False}},
    ),
    "qwen2, yarn mscale": ("qwen2", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, tied, biases": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True, "attention_bias": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, wide window": ("mistral", {"sliding_window": 256, "head_dim": 16}),
}
KINDS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
}


def reference(folder: Path, kind: str = "llama", shard: str = "5GB", **more: Any) -> Any:
    """A random model of transformers, saved by it with ponder-tiny's tokenizer."""
    torch.manual_seed(0)
    config, cls = KINDS[kind]
    model = cls(config(**copy.deepcopy({**SHAPE, **more}))).eval()
    for parameter in model.parameters():  # norms and biases too, which start as ones and zeros
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder, max_shard_size=shard)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    return model


class Growing:
    """The simplest `Cache`: keys and values of all earlier passes, and rows of one length."""

    def __init__(self) -> None:
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        for kept, new in ((self.keys, key), (self.values, value)):
            kept[layer] = new if layer not in kept else torch.cat((kept[layer], new), dim=2)
        past = self.keys[layer].shape[2] - key.shape[2]
        mask = torch.ones(query.shape[2], self.keys[layer].shape[2], dtype=torch.bool).tril(past)
        gqa = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, self.keys[layer], self.values[layer], mask, enable_gqa=gqa)


@torch.no_grad()
def logits_of(module: Any, ids: torch.Tensor) -> torch.Tensor:
    return module.logits(module(ids))


@torch.no_grad()
def logits_with_cache(module: Any, ids: torch.Tensor, cuts: tuple[int, ...]) -> torch.Tensor:
    """The same in several passes, each over the ids up to the next cut."""
    cache, hidden, at = Growing(), [], 0
    for end in (*cuts, ids.shape[1]):
        positions = torch.arange(at, end).expand(len(ids), -1)
        hidden.append(module(ids[:, at:end], positions, cache))
        at = end
    return module.logits(torch.cat(hidden, dim=1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(tmp_path: Path, variant: str) -> None:
    kind, more = VARIANTS[variant]
    theirs = reference(tmp_path, kind, **more)
    ours = load(str(tmp_path), device="cpu")
    assert ours.supports_cache
    assert why_slower(str(tmp_path)) is None
    assert ours.info.parameters == sum(p.numel() for p in theirs.parameters())
    for seed, length in ((1, 130), (2, 256), (3, 7)):
        ids = torch.randint(480, (2, length), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            expected = theirs(ids).logits
        assert expected.std() > 0.1
        assert (expected - logits_of(ours.module, ids)).abs().max() < 1e-4
        assert (expected - logits_with_cache(ours.module, ids, (5, 6))).abs().max() < 1e-4


@pytest.mark.parametrize("variant", ["llama, biases", "qwen2, tied", "qwen3", "mistral"])
def test_gradients_equal_those_of_transformers(tmp_path: Path, variant: str) -> None:
    kind, more = VARIANTS[variant]
    theirs, ours = reference(tmp_path, kind, **more), load(str(tmp_path), device="cpu").module
    ids = torch.randint(480, (2, 40), generator=torch.Generator().manual_seed(1))
    for logits in (theirs(ids).logits, ours.logits(ours(ids))):
        logits.square().mean().backward()
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    assert expected.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - expected[name]).abs().max() < 1e-4 * expected[name].abs().max(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_model_is_the_same_for_ponder_and_for_transformers(tmp_path: Path, variant: str) -> None:
    kind, more = VARIANTS[variant]
    theirs = reference(tmp_path / "a", kind, **more)
    ours = load(str(tmp_path / "a"), device="cpu", name="m")
    save(ours, tmp_path / "b")
    again = load(str(tmp_path / "b"), device="cpu", name="m")
    assert again.module.config == ours.module.config
    assert again.info == ours.info
    ids = torch.randint(480, (1, 100), generator=torch.Generator().manual_seed(1))
    assert torch.equal(logits_of(again.module, ids), logits_of(ours.module, ids))
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == (kind, [FAMILIES[kind].architecture])
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert type(model) is KINDS[kind][1]
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    saved = theirs.state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, theirs(ids).logits)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_cut_into_passes_gives_the_same_logits(data: st.DataObject) -> None:
    module = DecoderLM(DecoderConfig(50, 16, 32, 2, 4, 2, 8, 64, qk_norm=data.draw(st.booleans())))
    module.initialise(torch.Generator().manual_seed(0))
    length = data.draw(st.integers(2, 20))
    cuts = tuple(sorted(data.draw(st.sets(st.integers(1, length - 1)))))
    ids = torch.randint(50, (3, length), generator=torch.Generator().manual_seed(length))
    assert torch.allclose(logits_with_cache(module, ids, cuts), logits_of(module, ids), atol=1e-5)


def test_sharded_weights_are_read(tmp_path: Path) -> None:
    theirs = reference(tmp_path, shard="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = load(str(tmp_path), device="cpu").module.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.state_dict().items())
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"missing although model.safetensors.index.json lists it"):
        load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("scaling", [LLAMA3, YARN], ids=["llama3", "yarn"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_both_spellings_of_the_rotary_settings_mean_the_same(kind: str, scaling: dict[str, Any]) -> None:
    rest = {k: v for k, v in scaling.items() if k != "rope_theta"}
    base = {**SHAPE, "model_type": kind, "sliding_window": None}
    theta = scaling["rope_theta"]
    new = decoder_config({**base, "rope_parameters": scaling}, "c")
    old = decoder_config({**base, "rope_theta": theta, "rope_scaling": rest}, "c")
    older = decoder_config({**base, "rope_theta": theta, "rope_scaling": {"type": rest.pop("rope_type"), **rest}}, "c")
    assert new == old == older
    assert new.rope_theta == theta
    assert decoder_config(hf_config(new), "c") == new


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_reads_back_as_it_was_written(variant: str) -> None:
    kind, more = VARIANTS[variant]
    config = decoder_config({**SHAPE, "model_type": kind, **more}, "c")
    assert decoder_config(json.loads(json.dumps(hf_config(config))), "c") == config


def test_yarn_reaches_as_far_as_it_says() -> None:
    # Qwen2.5's files keep the length before scaling; its users add the settings by hand.
    config = {**SHAPE, "model_type": "qwen2", "rope_scaling": {"type": "yarn", "factor": 4.0}}
    config["rope_scaling"]["original_max_position_embeddings"] = 256
    assert decoder_config(config, "c").max_position_embeddings == 1024
    assert len(rope.table(decoder_config(config, "c"))) == 1024
    assert decoder_config({**config, "max_position_embeddings": 2000}, "c").max_position_embeddings == 2000


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"hidden_size": None}, UserError, "no 'hidden_size'"),
        ({"num_hidden_layers": 0}, UserError, "'num_hidden_layers' is 0"),
        ({"max_position_embeddings": 2**40}, UserError, "more than 4194304"),
        ({"vocab_size": "many"}, UserError, "'vocab_size' is 'many'"),
        ({"num_key_value_heads": 4}, UserError, "not a multiple of num_key_value_heads 4"),
        ({"head_dim": 7}, UserError, "head_dim 7 is odd"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, Unsupported, "of type 'longrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, UserError, "'linear': 'factor' is None"),
        ({"rope_scaling": {"rope_type": "yarn"}}, UserError, "'yarn': 'factor' is None"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "far"}}, UserError, "'yarn': 'factor' is 'far'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, Unsupported, "a share of 0.5"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, Unsupported, "not one table"),
        ({"model_type": "gpt2"}, Unsupported, "its architecture is 'gpt2'"),
        ({"model_type": "qwen2", "num_key_value_heads": "remove"}, UserError, "which a Qwen2 model needs"),
    ],
)
def test_a_config_that_makes_no_sense_is_one_sentence(change: dict[str, Any], kind: type, says: str) -> None:
    config = {k: v for k, v in {**SHAPE, "model_type": "llama", **change}.items() if v != "remove"}
    with pytest.raises(kind, match=says) as caught:
        decoder_config(config, "here/config.json")
    assert str(caught.value).startswith("here/config.json: ")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "llama"}, None),
        ({"model_type": "llama", "hidden_act": "gelu"}, "activation is 'gelu'"),
        ({"model_type": "gemma"}, "architecture is 'gemma'"),
        ({"model_type": "llama", "rope_scaling": {"type": "longrope"}}, "'longrope'"),
        ({"model_type": "mistral"}, "looks back 4096 tokens, less than its context of 131072"),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "mistral", "max_position_embeddings": 4096}, None),
        ({"model_type": "qwen2", "sliding_window": 4096}, None),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True}, "looks back 4096"),
        ({"model_type": "qwen2", "use_sliding_window": True, "num_hidden_layers": 28}, None),
        ({"model_type": "qwen2", "use_sliding_window": True, "num_hidden_layers": 29}, "looks back 4096"),
        ({"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["full_attention"]}, None),
        ({"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["sliding_attention"]}, "looks back"),
    ],
)
def test_what_runs_natively_and_why_the_rest_does_not(config: dict[str, Any], says: str | None) -> None:
    reason = why_not_native(config)
    assert reason is None if says is None else says in (reason or "")


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ],
)
def test_a_window_shorter_than_the_context_is_honoured(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    theirs = reference(tmp_path, kind, **more)
    ours = load(str(tmp_path), device="cpu")
    assert not ours.supports_cache
    assert "looks back 8 tokens" in (why_slower(str(tmp_path)) or "")
    assert "looks back 8 tokens" in ours.facts()["slower_because"]
    ids = torch.randint(480, (2, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits
        assert (expected - ours.module.logits(ours.module(ids))).abs().max() < 1e-4
        other = ids.clone()
        other[:, :10] = 7
        # What lies further back than all layers reach is not seen: the window is real.
        assert torch.allclose(theirs(other).logits[:, -1], expected[:, -1], atol=1e-5) == (kind == "mistral")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(tmp_path: Path, dtype: str) -> None:
    reference(tmp_path, "qwen3", head_dim=16)
    exact, half = load(str(tmp_path), device="cpu").module, load(str(tmp_path), dtype=dtype, device="cpu").module
    ids = torch.randint(480, (2, 60), generator=torch.Generator().manual_seed(1))
    want, got = logits_of(exact, ids), logits_of(half, ids)
    assert got.dtype == torch.float32
    assert half(ids).dtype == getattr(torch, dtype)
    assert F.cosine_similarity(want.flatten(), got.flatten(), dim=0) > 0.999


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_computes_what_the_cpu_computes(tmp_path: Path) -> None:
    reference(tmp_path, "qwen3", head_dim=16)
    here, there = load(str(tmp_path), device="cpu").module, load(str(tmp_path), device="cuda").module
    ids = torch.randint(480, (2, 60), generator=torch.Generator().manual_seed(1))
    assert (logits_of(here, ids) - logits_of(there, ids.cuda()).cpu()).abs().max() < 1e-3


def test_facts_say_what_a_manifest_needs(tmp_path: Path) -> None:
    reference(tmp_path, "qwen2")
    assert load(str(tmp_path), dtype="bfloat16", device="cpu", name="m").facts() == {
        "name": "m",
        "source": str(tmp_path),
        "architecture": "qwen2",
        "parameters": sum(p.numel() for p in load(str(tmp_path), device="cpu").module.parameters()),
        "dtype": "bfloat16",
        "device": "cpu",
        "forward": "native",
    }
