"""Architectures that `models.decoder` has not run through transformers' forward and save as they came."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ponder.errors import Unsupported, UserError
from ponder.models.load import load, why_slower
from ponder.models.save import save
from ponder.models.tiny import build_tokenizer
from ponder.models.weights import read_tensors, write_tensors

transformers = pytest.importorskip("transformers")

COMMON: dict[str, Any] = {"vocab_size": 480, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
SMALL: dict[str, Any] = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "stablelm": lambda: transformers.StableLmConfig(**SMALL),
    # Caps its logits, so that the head alone is not the whole story.
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=1.0),
    "cohere": lambda: transformers.CohereConfig(**SMALL, logit_scale=0.25),
}


def make(folder: Path, kind: str) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_and_gradients_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    theirs = make(tmp_path, kind)
    ours = load(str(tmp_path), device="cpu")
    assert not ours.supports_cache
    assert why_slower(str(tmp_path)) == f"its architecture is {kind!r}"
    assert ours.facts()["forward"] == "transformers"
    assert ours.facts()["slower_because"] == f"its architecture is {kind!r}"
    assert ours.module.split == (kind in ("gpt2", "stablelm"))
    assert ours.info.context == 64
    assert ours.info.parameters == sum(p.numel() for p in theirs.parameters())
    ids = torch.randint(480, (2, 20), generator=torch.Generator().manual_seed(1))
    expected, got = theirs(ids).logits, ours.module.logits(ours.module(ids))
    assert expected.std() > 0.01
    assert (expected - got).abs().max() < 1e-5
    positions = torch.arange(20).expand(2, 20)
    assert torch.allclose(ours.module(ids, positions), ours.module(ids), atol=1e-5)
    expected.square().mean().backward()
    got.square().mean().backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters()}
    assert gradients.keys() == dict(ours.module.named_parameters()).keys()
    for name, parameter in ours.module.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-6), name


@pytest.mark.parametrize("kind", CONFIGS)
def test_trained_weights_are_saved_as_transformers_reads_them(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").mkdir()
    make(tmp_path / "a", kind)
    model = load(str(tmp_path / "a"), device="cpu", name="m")
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(0.01)
    save(model, tmp_path / "b")
    ids = torch.arange(1, 20).unsqueeze(0)
    again = load(str(tmp_path / "b"), device="cpu", name="m")
    assert again.info == model.info
    assert torch.equal(again.module(ids), model.module(ids))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    assert torch.allclose(theirs(ids).logits, model.module.logits(model.module(ids)), atol=1e-5)


def test_a_cache_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "gpt2")
    model = load(str(tmp_path), device="cpu")
    with pytest.raises(Unsupported, match="cannot use an engine's cache"):
        model.module(torch.tensor([[1]]), torch.tensor([[0]]), object())


def test_missing_and_misshapen_and_nan_weights_are_one_sentence(tmp_path: Path) -> None:
    make(tmp_path, "gpt2")
    path = tmp_path / "model.safetensors"
    state = read_tensors(path)
    norm = next(n for n in state if n.endswith("ln_f.weight"))
    for tensors, says in (
        ({n: t for n, t in state.items() if n != norm}, "1 tensors are missing, such as 'transformer.ln_f.weight'"),
        ({**state, norm: torch.ones(7)}, "1 tensors are of a wrong shape, such as 'transformer.ln_f.weight'"),
        ({**state, norm: torch.full((32,), float("inf"))}, "ln_f.weight' holds NaN or infinite"),
    ):
        write_tensors(path, tensors)
        with pytest.raises(UserError, match=says) as caught:
            load(str(tmp_path), device="cpu")
        assert "\n" not in str(caught.value)


def test_code_of_a_folder_is_never_run(tmp_path: Path) -> None:
    make(tmp_path, "gpt2")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                **config,
                "model_type": "mine",
                "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.M"},
            }
        )
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="transformers cannot load it") as caught:
        load(str(tmp_path), device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_an_architecture_that_is_no_language_model_is_one_sentence(tmp_path: Path) -> None:
    make(tmp_path, "gpt2")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match="transformers cannot load it"):
        load(str(tmp_path), device="cpu")
