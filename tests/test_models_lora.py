"""A low-rank adapter is applied without merging, equals the merged weights, and is PEFT's on disk."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ponder.cli import export
from ponder.cli.main import main
from ponder.errors import Unsupported, UserError
from ponder.models import tiny
from ponder.models.adapter import ALL
from ponder.models.base import LoadedModel
from ponder.models.decoder import DecoderLM
from ponder.models.decoder_config import DecoderConfig
from ponder.models.load import load, resolve, why_slower
from ponder.models.lora import Lora, LoraConfig, merge, new_adapter, read_config
from ponder.models.save import save
from ponder.models.weights import CHECKSUMS
from ponder.runs.files import read_lines
from ponder.runs.run import read_manifest
from ponder.training.optim import adamw, clip_gradients

SHAPE = DecoderConfig(512, 32, 64, 2, 4, 2, 8, 256, attention_bias=True, model_type="qwen2", initializer_range=0.2)
IDS = torch.randint(512, (2, 40), generator=torch.Generator().manual_seed(1))
PLAIN = LoraConfig(rank=4, alpha=6.0, targets=("q_proj", "v_proj"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tiny.new_model(0, SHAPE), tmp_path / "base")


def write(folder: Path, base: str, config: LoraConfig, **more: Any) -> dict[str, torch.Tensor]:
    """A random adapter as PEFT lays it out; returns its tensors."""
    module = DecoderLM(SHAPE)
    known = {n: m for n, m in module.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    chosen = [n for n in known if config.targets == "all-linear" or n.endswith(config.targets)]
    if "regex" in more:
        chosen = [n for n in known if n.startswith("model.layers.1.mlp.")]
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name in chosen:
        outer, inner = known[name].weight.shape
        for part, shape in (("A", (config.rank, inner)), ("B", (outer, config.rank))):
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = torch.randn(shape, generator=generator) * 0.3
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = more.pop("regex", config.targets)
    values = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": config.rslora,
        **more,
    }
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return tensors


@torch.no_grad()
def logits(model: LoadedModel) -> torch.Tensor:
    return model.module.logits(model.module(IDS))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("config", "more", "scale", "count"),
    [
        (PLAIN, {}, 1.5, 4),
        (LoraConfig(4, 6.0, ("q_proj", "v_proj"), rslora=True), {}, 3.0, 4),
        (LoraConfig(2, 2.0, "all-linear"), {}, 1.0, 14),
        (LoraConfig(3, 3.0, ()), {"regex": r".*layers\.1\.mlp\..*_proj"}, 1.0, 3),
    ],
    ids=["plain", "rslora", "all-linear", "regex"],
)
def test_an_adapter_equals_merged_weights(
    tmp_path: Path, base: Path, config: LoraConfig, more: dict[str, Any], scale: float, count: int
) -> None:
    tensors = write(tmp_path / "adapter", str(base), config, **more)
    model = load(str(tmp_path / "adapter"), device="cpu")
    assert sum(isinstance(m, Lora) for m in model.module.modules()) == count == len(tensors) // 2
    merged = load(str(base), device="cpu")
    before, state = logits(merged), merged.module.state_dict()
    # The base's own weights are untouched.
    assert all(torch.equal(model.module.state_dict()[name], tensor) for name, tensor in state.items())
    with torch.no_grad():
        for name in [n for n in tensors if n.endswith("lora_A.weight")]:
            own = name.removeprefix("base_model.model.").replace("lora_A.", "")
            state[own] += scale * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
    assert (logits(model) - logits(merged)).abs().max() < 1e-4
    assert (logits(model) - before).abs().max() > 0.1
    extra = sum(t.numel() for t in tensors.values())
    assert model.info.flops_per_token == merged.info.flops_per_token + 2 * extra


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_computes_what_peft_computes(tmp_path: Path, base: Path, rslora: bool) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "o_proj", "down_proj"], use_rslora=rslora, lora_dropout=0.1
    )
    theirs = peft.get_peft_model(theirs, config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load(str(tmp_path / "adapter"), device="cpu")
    with torch.no_grad():
        assert (theirs(IDS).logits - logits(ours)).abs().max() < 1e-4
        for parameter in ours.module.parameters():
            parameter.add_(0.05 * parameter.requires_grad)
    save(ours, tmp_path / "ours")
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "ours").eval()
    with torch.no_grad():
        assert (again(IDS).logits - logits(ours)).abs().max() < 1e-4


def test_only_the_adapter_is_trained(base: Path) -> None:
    model = load(str(base), device="cpu")
    before = {name: t.clone() for name, t in model.module.state_dict().items()}
    first = logits(model)
    new_adapter(model, PLAIN, seed=3)
    assert torch.equal(logits(model), first)  # B is zero
    trained = [n for n, p in model.module.named_parameters() if p.requires_grad]
    assert len(trained) == 8
    assert all(n.endswith((".adapter.A", ".adapter.B")) for n in trained)
    optimiser = adamw(model.module, learning_rate=0.05, weight_decay=0.1, betas=(0.9, 0.99))
    losses = []
    for _ in range(8):
        optimiser.zero_grad(set_to_none=True)
        out = model.module.logits(model.module(IDS[:, :-1]))  # type: ignore[operator]
        loss = F.cross_entropy(out.flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        assert [n for n, p in model.module.named_parameters() if p.grad is not None] == trained
        assert math.isfinite(clip_gradients(model.module, 1.0))
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    state = model.module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


def test_a_saved_adapter_holds_no_weights_of_the_base_and_loads_as_it_was(tmp_path: Path, base: Path) -> None:
    model = load(str(base), device="cpu")
    new_adapter(model, LoraConfig(4, 8.0, "all-linear", rslora=True, base=str(base)), seed=3)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(0.1 * parameter.requires_grad)
    folder = save(model, tmp_path / "run" / "checkpoints" / "step-000010" / "model")
    assert {p.name for p in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        CHECKSUMS,
    }
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 28
    assert tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"].shape == (4, 32)
    for spec in (folder, tmp_path / "run"):
        again = load(str(spec), device="cpu")
        assert again.adapter == model.adapter
        assert torch.equal(logits(again), logits(model))
        assert again.module.state_dict().keys() == model.module.state_dict().keys()
        assert [p.requires_grad for p in again.module.parameters()] == [
            p.requires_grad for p in model.module.parameters()
        ]
        assert again.facts()["adapter"]["base"] == str(base)
    (folder / "adapter_model.safetensors").write_bytes(b"x" + (folder / "adapter_model.safetensors").read_bytes()[1:])
    with pytest.raises(UserError, match="is corrupt"):
        load(str(folder), device="cpu")


def test_the_base_may_be_given(tmp_path: Path, base: Path) -> None:
    write(tmp_path / "adapter", "gone/elsewhere", PLAIN)
    model = load(str(base), adapter=str(tmp_path / "adapter"), device="cpu")
    assert model.adapter is not None
    assert model.adapter.base == str(base)
    assert model.info.name == f"{base} + {tmp_path / 'adapter'}"
    write(tmp_path / "other", str(base), PLAIN)
    assert torch.equal(logits(load(str(tmp_path / "other"), device="cpu")), logits(model))
    assert resolve(str(tmp_path / "other")).path == tmp_path / "other"
    assert why_slower(str(tmp_path / "other")) is None
    built_in = load("ponder-tiny", device="cpu")
    new_adapter(built_in, PLAIN, seed=0)
    save(built_in, tmp_path / "tiny")
    assert load("ponder-tiny", adapter=str(tmp_path / "tiny"), device="cpu").facts()["adapter"]["base"] == "ponder-tiny"
    with pytest.raises(UserError, match=r"its base model 'gone/elsewhere' is not found here .*--adapter"):
        load(str(tmp_path / "adapter"), device="cpu")
    with pytest.raises(UserError, match="cannot be the base of another"):
        load(str(tmp_path / "other"), adapter=str(tmp_path / "adapter"), device="cpu")
    with pytest.raises(UserError, match=r"no adapter_config.json in it"):
        load(str(base), adapter=str(base), device="cpu")


def test_the_base_that_an_adapter_names_is_never_downloaded(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def cached(repo: str, *, local_files_only: bool, **_: Any) -> str:
        assert local_files_only
        if repo == "owner/there":
            return str(base)
        raise OSError("not in the cache")

    monkeypatch.setattr(hub, "snapshot_download", cached)
    write(tmp_path / "there", "owner/there", PLAIN)
    assert load(str(tmp_path / "there"), device="cpu").adapter is not None
    write(tmp_path / "away", "owner/away", PLAIN)
    with pytest.raises(UserError, match=r"'owner/away' is not found here .*not in the hub's cache.*--adapter"):
        load(str(tmp_path / "away"), device="cpu")


def test_the_chat_template_of_an_adapter_comes_first(tmp_path: Path, base: Path) -> None:
    write(tmp_path / "adapter", str(base), PLAIN)
    assert load(str(tmp_path / "adapter"), device="cpu").chat_template == tiny.TEMPLATE
    (tmp_path / "adapter" / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert load(str(tmp_path / "adapter"), device="cpu").chat_template == "{{ messages[0].content }}!"


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"peft_type": "IA3"}, Unsupported, "type 'IA3'; only LORA"),
        ({"use_dora": True}, Unsupported, "use_dora = True is not supported"),
        ({"bias": "all"}, Unsupported, "bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, Unsupported, r"modules_to_save = \['lm_head'\]"),
        ({"rank_pattern": {"q_proj": 8}}, Unsupported, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, Unsupported, "init_lora_weights = 'pissa'"),
        ({"layers_to_transform": [0]}, Unsupported, "layers_to_transform"),
        ({"something_new": 3}, Unsupported, "something_new = 3"),
        ({"r": 0}, UserError, "r is 0"),
        ({"lora_alpha": "big"}, UserError, "lora_alpha is 'big'"),
        ({"target_modules": None}, UserError, "target_modules is None"),
        ({"target_modules": ["lm_head", "q_proj"]}, Unsupported, "adapts lm_head"),
        ({"target_modules": ["embed_tokens"]}, Unsupported, "adapts model.embed_tokens"),
        ({"target_modules": ["c_attn"]}, UserError, "names no projection"),
        ({"target_modules": "("}, UserError, "no regular expression"),
    ],
)
def test_other_kinds_of_adapters_are_refused(
    tmp_path: Path, base: Path, change: dict[str, Any], kind: type, says: str
) -> None:
    write(tmp_path / "adapter", str(base), PLAIN, **change)
    with pytest.raises(kind, match=says) as caught:
        load(str(tmp_path / "adapter"), device="cpu")
    assert str(tmp_path / "adapter") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_named(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "adapter"
    tensors = write(folder, str(base), PLAIN)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for wrong, says in (
        ({n: t for n, t in tensors.items() if n != name}, f"{name!r} is missing"),
        (
            {**tensors, "base_model.model.lm_head.lora_A.weight": torch.ones(4, 32)},
            "lm_head.lora_A.weight' is too many",
        ),
        ({**tensors, name: torch.ones(8, 32)}, r"has shape \[8, 32\] where \[4, 32\] belongs"),
        ({**tensors, name: torch.full((4, 32), math.nan)}, "no finite numbers"),
    ):
        save_file(wrong, folder / "adapter_model.safetensors")
        with pytest.raises(UserError, match=says):
            load(str(folder), device="cpu")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="only a pickle"):
        load(str(folder), device="cpu")
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config.json: not valid JSON"):
        read_config(folder)


def test_eval_takes_an_adapter_and_the_manifest_names_it(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "adapter", "elsewhere", PLAIN)
    command = ["eval", "--model", str(base), "-n", "2", "--max-tokens", "4", "--out"]
    assert main([*command, str(tmp_path / "with"), "--adapter", str(tmp_path / "adapter")]) == 0
    assert main([*command, str(tmp_path / "without"), "--dtype", "bfloat16", "--device", "cpu"]) == 0
    seen = read_manifest(tmp_path / "with")["model"]
    assert (seen["architecture"], seen["forward"], seen["adapter"]["rank"]) == ("qwen2", "native", 4)
    other = read_manifest(tmp_path / "without")["model"]
    assert (other["dtype"], other["device"]) == ("bfloat16", "cpu")
    assert "adapter" not in other
    texts = [read_lines(tmp_path / run / "rollouts.jsonl").rows for run in ("with", "without")]
    assert texts[0] != texts[1]
    write(tmp_path / "other", str(base), PLAIN)
    with pytest.raises(UserError, match=r"is an adapter, which is written in float32"):
        export.main([str(tmp_path / "other"), str(tmp_path / "out"), "--dtype", "bfloat16"])


def test_a_model_that_runs_through_transformers_takes_no_adapter(tmp_path: Path, base: Path) -> None:
    pytest.importorskip("transformers")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    (base / CHECKSUMS).unlink()
    write(tmp_path / "adapter", str(base), PLAIN)
    with pytest.raises(Unsupported, match="runs through transformers: merge the adapter with PEFT"):
        load(str(tmp_path / "adapter"), device="cpu")


def grown(base: Path, config: LoraConfig) -> LoadedModel:
    """A model whose new adapter has moved."""
    model = load(str(base), device="cpu")
    new_adapter(model, config, seed=3)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(0.1 * parameter.requires_grad)
    return model


@pytest.mark.parametrize("rslora", [False, True])
def test_a_merged_model_computes_what_the_adapter_did_and_is_whole(tmp_path: Path, base: Path, rslora: bool) -> None:
    model, plain = grown(base, LoraConfig(4, 8.0, ALL, rslora=rslora, base=str(base))), load(str(base), device="cpu")
    before = logits(model)
    assert (before - logits(plain)).abs().max() > 0.1
    save(model, tmp_path / "adapter")
    assert export.main([str(tmp_path / "adapter"), str(tmp_path / "merged"), "--merge"]) == 0
    merge(model)
    assert (logits(model) - before).abs().max() < 1e-4
    assert model.adapter is None
    assert model.info.flops_per_token == plain.info.flops_per_token
    assert all(p.requires_grad for p in model.module.parameters())
    merged = load(str(tmp_path / "merged"), device="cpu")
    assert torch.equal(logits(merged), logits(model))
    assert export.main([str(tmp_path / "adapter"), str(tmp_path / "half"), "--merge", "--dtype", "bfloat16"]) == 0
    assert load_file(tmp_path / "half" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    with pytest.raises(UserError, match="has no adapter to merge"):
        export.main([str(base), str(tmp_path / "again"), "--merge"])
    assert not (tmp_path / "again").exists()


def test_an_exported_adapter_names_a_base_that_others_load(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A built-in base is written beside it, and found there when the folder has moved; a folder is named."""
    model = grown(Path("ponder-tiny"), LoraConfig(4, 8.0, ALL, base="ponder-tiny"))
    save(model, tmp_path / "tiny")
    assert export.main([str(tmp_path / "tiny"), str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    inner = tmp_path / "out" / "base"
    assert said["base"] == str(inner)
    assert said["bytes"] > (inner / "model.safetensors").stat().st_size
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(inner)
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    assert torch.equal(logits(load(str(moved), device="cpu")), logits(model))
    own = grown(base, LoraConfig(4, 8.0, ("q_proj",), base=str(base)))
    save(own, tmp_path / "own")
    assert export.main([str(tmp_path / "own"), str(tmp_path / "second")]) == 0
    assert "peft.AutoPeftModelForCausalLM.from_pretrained" in (out := capsys.readouterr().out)
    assert f"its base is {base}" in out
    assert not (tmp_path / "second" / "base").exists()


def test_the_printed_command_loads_an_exported_adapter(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = grown(Path("ponder-tiny"), LoraConfig(4, 8.0, ALL, base="ponder-tiny"))
    save(model, tmp_path / "tiny")
    export.main([str(tmp_path / "tiny"), str(tmp_path / "out")])
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "out")).eval()
    with torch.no_grad():
        assert (theirs(IDS).logits - logits(model)).abs().max() < 1e-4


def test_the_revision_of_a_hub_base_is_kept(tmp_path: Path, base: Path) -> None:
    model = grown(base, LoraConfig(4, 8.0, ("q_proj",), base="owner/name@abc"))
    save(model, tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == ("owner/name", "abc")
    assert read_config(tmp_path / "adapter").base == "owner/name@abc"
