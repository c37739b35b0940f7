"""A LoRA that training itself begins: only the adapter moves, and it is all that is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training_rl import SHAPE, config, rows

from ponder.errors import UserError
from ponder.models.load import load
from ponder.models.save import save
from ponder.models.tiny import new_model
from ponder.runs.files import read_lines
from ponder.runs.run import read_manifest
from ponder.training import lm, rl_run
from ponder.training.interrupt import Interrupted
from ponder.training.rl import Trainer
from ponder.training.rl_run import train
from ponder.training.supervised import SFTConfig, sft

LORA = {"lora_rank": 2, "lora_alpha": 8.0, "lora_targets": ("q_proj", "down_proj"), "device": "cpu"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "base"
    save(new_model(0, SHAPE), folder)
    return str(folder)


def stop_after(step: int, monkeypatch) -> None:
    """Ask the run to stop after a step, once."""
    own, interrupt, made = Trainer.step, rl_run.Interrupt, []

    def opened():
        made.append(interrupt())
        return made[-1]

    async def stopping(self):
        done = await own(self)
        made[-1].requested = self.state.step == step and len(made) == 1
        return done

    monkeypatch.setattr(rl_run, "Interrupt", opened)
    monkeypatch.setattr(Trainer, "step", stopping)


def test_rl_moves_the_adapter_alone_and_samples_with_it(base, tmp_path) -> None:
    final = train(config(base, tmp_path / "run", **LORA, learning_rate=0.05, steps=4))
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    for folder in (final, *(f / "model" for f in folders)):
        assert {p.name for p in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
        assert not (folder / "model.safetensors").exists()
    names = load_file(final / "adapter_model.safetensors")
    assert len(names) == 2 * 2 * SHAPE.num_hidden_layers
    assert names["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"].shape == (2, 32)
    trained, own = load(str(tmp_path / "run"), device="cpu"), load(base, device="cpu")
    state = trained.module.state_dict()
    assert all(torch.equal(state[n], t) for n, t in own.module.state_dict().items())
    assert all(bool(t.abs().sum() > 0) for n, t in names.items() if n.endswith("lora_B.weight"))
    assert trained.adapter is not None
    assert (trained.adapter.base, trained.adapter.scale) == (base, 4.0)
    # The sampler's log-probabilities are those of the weights that the step before left, far from the first ones.
    metrics = read_lines(tmp_path / "run" / "metrics.jsonl").rows
    assert all(r["mismatch_max"] < 1e-3 for r in metrics)
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        moved = trained.module.logits(trained.module(ids)) - own.module.logits(own.module(ids))
    assert moved.abs().max() > 0.05
    assert read_manifest(tmp_path / "run")["model"]["adapter"]["rank"] == 2


def test_a_stopped_and_resumed_adapter_equals_one_that_was_not(base, tmp_path, monkeypatch) -> None:
    whole = train(config(base, tmp_path / "whole", **LORA, steps=3))
    stop_after(2, monkeypatch)
    with pytest.raises(Interrupted):
        train(config(base, tmp_path / "parts", **LORA, steps=3))
    parts = train(config(base, tmp_path / "parts", **LORA, steps=3, resume=True))
    name = "adapter_model.safetensors"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


def fitting(data: Path, out: Path, base: str, **changes) -> SFTConfig:
    fit = lm.LMConfig(learning_rate=1e-2, batch_tokens=64)
    more = {"steps": 6, "longest": 200, "checkpoint_every": 2, **changes}
    return SFTConfig(model=base, data=str(data), out=str(out), fit=fit, **more)


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "Say {i}.", "response": "{i}"}}\n' for i in range(12)))
    return path


def test_sft_moves_the_adapter_alone_and_a_resumed_one_equals_one_that_was_not(
    base, data, tmp_path, monkeypatch
) -> None:
    whole = sft(fitting(data, tmp_path / "whole", base, **LORA))
    own = lm.train

    def stopped(*args, on_step, interrupt, **rest):
        def watch(state, row):
            on_step(state, row)
            interrupt.requested = state.step == 3

        own(*args, on_step=watch, interrupt=interrupt, **rest)

    monkeypatch.setattr(lm, "train", stopped)
    with pytest.raises(Interrupted):
        sft(fitting(data, tmp_path / "parts", base, **LORA))
    monkeypatch.setattr(lm, "train", own)
    parts = sft(fitting(data, tmp_path / "parts", base, **LORA, resume=True))
    name = "adapter_model.safetensors"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert (whole / "adapter_config.json").is_file()
    assert not (whole / "model.safetensors").exists()


def test_weights_are_held_in_the_type_that_is_asked_for_and_the_adapter_in_float32(base, data, tmp_path) -> None:
    final = sft(dataclasses.replace(fitting(data, tmp_path / "run", base, **LORA), dtype="bfloat16", steps=1))
    assert read_manifest(tmp_path / "run")["model"]["dtype"] == "bfloat16"
    assert all(t.dtype == torch.float32 for t in load_file(final / "adapter_model.safetensors").values())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora_rank": 4, "lora_targets": ("q_pro",)}, "'q_pro' names no projection of .*; did you mean 'q_proj'"),
        ({"lora_rank": 4, "lora_targets": ("q_proj", "c_attn")}, "'c_attn' names no projection"),
        ({"lora_rank": 33}, "lora_rank = 33: the smaller dimension of .* is 16.*: give at most 16"),
        ({"lora_rank": 33, "lora_targets": ("down_proj",)}, "mlp.down_proj of .* is 32"),
        ({"lora_rank": 4, "lora_targets": ("lm_head",)}, "it adapts lm_head, .* without a rank"),
        ({"device": "cdua"}, "device 'cdua' is not known"),
    ],
)
def test_an_adapter_that_does_not_fit_the_model_is_refused_before_a_directory_is_made(
    changes, says, base, tmp_path
) -> None:
    with pytest.raises(UserError, match=says):
        train(config(base, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora_rank": -1}, "lora_rank = -1: give 1 or more"),
        ({"lora_targets": ("q_proj",)}, "are for a LoRA adapter: give lora_rank too"),
        ({"lora_alpha": 16.0}, "are for a LoRA adapter: give lora_rank too"),
        ({"lora_rank": 1, "lora_alpha": float("nan")}, "lora_alpha = nan"),
        ({"lora_rank": 1, "lora_targets": ()}, "lora_targets is empty"),
        ({"lora_rank": 1, "lora_targets": ("all-linear", "q_proj")}, "all-linear is all projections"),
    ],
)
def test_settings_of_an_adapter_that_make_no_sense_are_refused(changes, says, tmp_path) -> None:
    for kind in (config("x", tmp_path / "run"), SFTConfig()):
        with pytest.raises(UserError, match=says):
            dataclasses.replace(kind, **changes)


def test_an_adapter_is_trained_on_and_takes_no_second_one(base, data, tmp_path) -> None:
    sft(dataclasses.replace(fitting(data, tmp_path / "first", base, **LORA), steps=1))
    with pytest.raises(UserError, match=r"is a LoRA adapter; leave lora_rank out to train it on, or merge it first"):
        sft(fitting(data, tmp_path / "second", str(tmp_path / "first"), **LORA))
    more = sft(dataclasses.replace(fitting(data, tmp_path / "second", str(tmp_path / "first")), steps=1))
    assert (more / "adapter_config.json").is_file()
