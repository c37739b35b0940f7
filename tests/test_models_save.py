"""What ponder saves, transformers loads; what cannot be saved leaves no trace."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ponder.cli import export
from ponder.errors import UserError
from ponder.models import save as saving
from ponder.models import tiny
from ponder.models.load import load
from ponder.models.save import save
from ponder.models.weights import verify_checksums
from ponder.types import Message, ThoughtFormat


def test_transformers_loads_what_ponder_saves(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = tiny.new_model(seed=1)
    save(ours, tmp_path / "m")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == torch.float32
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    ids = torch.arange(30).unsqueeze(0)
    with torch.no_grad():
        assert (model(ids).logits - ours.module.logits(ours.module(ids))).abs().max() < 1e-4
    text = "12 + 3 = 15, naïve\n"
    assert tokenizer(text).input_ids == ours.tokenizer.encode(text)
    assert tokenizer.eos_token == tiny.END
    assert model.generation_config.eos_token_id == ours.end_ids[0]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "1 + 2"}], add_generation_prompt=True)
    assert list(chat["input_ids"]) == list(ours.prompt_ids((Message("user", "1 + 2"),)))


def test_a_saved_folder_verifies_and_says_what_the_model_is(tmp_path: Path) -> None:
    folder = save(tiny.new_model(seed=1), tmp_path / "m")
    assert verify_checksums(folder)
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "checksums.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["ponder"]["thought"] == {"open": "<think>", "close": "</think>", "opened_by_template": True}


def test_a_failed_save_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tiny.new_model(seed=1), tmp_path / "m")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(UserError, match="exists already"):
        save(tiny.new_model(seed=2), folder)

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write_checksums", fails)
    with pytest.raises(Exception, match="the disk is full"):
        save(tiny.new_model(seed=2), folder, replace=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    monkeypatch.undo()
    save(tiny.new_model(seed=2), folder, replace=True)
    assert (folder / "model.safetensors").read_bytes() != before["model.safetensors"]


def test_bfloat16_weights_keep_their_type(tmp_path: Path) -> None:
    save(tiny.new_model(seed=1), tmp_path / "a")
    model = load(str(tmp_path / "a"), dtype="bfloat16", device="cpu")
    save(model, tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == "bfloat16"
    again = load(str(tmp_path / "b"), dtype="bfloat16", device="cpu").module.state_dict()
    assert all(torch.equal(again[n], t) for n, t in model.module.state_dict().items())


def with_template(folder: Path, template: str, **ponder: Any) -> ThoughtFormat | None:
    save(tiny.new_model(seed=1), folder)
    (folder / "checksums.json").unlink()
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "chat_template": template}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "ponder": ponder}))
    return load(str(folder), device="cpu").thought


def test_the_thought_format_follows_from_template_and_vocabulary(tmp_path: Path) -> None:
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    opens = plain + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    closes = plain + "{% if add_generation_prompt %}<|assistant|><think>\n\n</think>{% endif %}"
    assert with_template(tmp_path / "a", plain) == ThoughtFormat("<think>", "</think>", False)
    assert with_template(tmp_path / "b", opens) == ThoughtFormat("<think>", "</think>", True)
    assert with_template(tmp_path / "c", closes) == ThoughtFormat("<think>", "</think>", False)
    refuses = "{{ raise_exception('no') }}"
    assert with_template(tmp_path / "d", refuses) == ThoughtFormat("<think>", "</think>", False)


def test_the_config_overrides_the_thought_format(tmp_path: Path) -> None:
    assert with_template(tmp_path / "a", "x", thought=None) is None
    mine = {"open": "[", "close": "]", "opened_by_template": True}
    assert with_template(tmp_path / "b", "x", thought=mine) == ThoughtFormat("[", "]", True)
    for wrong in ("yes", {"open": "["}, {"open": "[", "close": 3}, {**mine, "opened_by_template": "no"}):
        with pytest.raises(UserError, match=r"config.json: ponder.thought must be"):
            with_template(tmp_path / f"w{len(str(wrong))}", "x", thought=wrong)


def test_export_writes_a_folder_and_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    save(tiny.new_model(seed=4), run / "checkpoints" / "step-000010")
    save(tiny.new_model(seed=5), run / "checkpoints" / "step-000020")
    assert export.main([str(run), str(tmp_path / "out")]) == 0
    assert "step-000020" in capsys.readouterr().out
    exported = load(str(tmp_path / "out"), device="cpu").module.state_dict()
    assert all(torch.equal(exported[n], t) for n, t in tiny.new_model(seed=5).module.state_dict().items())
    with pytest.raises(UserError, match="exists already"):
        export.main([str(run), str(tmp_path / "out")])
    assert export.main([str(run), str(tmp_path / "half"), "--dtype", "bfloat16", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["folder"] == str(tmp_path / "half")
    assert said["bytes"] < 0.8 * sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
