"""A quantised GGUF file in the torch engine: one note says what is faster here; other models get none."""

import importlib.util
import json
from pathlib import Path

import pytest

from ponder.cli import doctor
from ponder.cli.main import main
from ponder.engines import faster
from ponder.engines.faster import hints, quantised
from ponder.engines.opening import EngineOptions
from ponder.models import tiny
from ponder.models.gguf_write import write_gguf

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ponder-tiny in two types, with a tokenizer that llama.cpp has."""
    from test_models_gguf_write import byte_level, with_tokenizer

    folder = tmp_path_factory.mktemp("files")
    model = with_tokenizer(tiny.new_model(0), byte_level("smollm"))
    for kind in ("f16", "q8_0"):
        write_gguf(model, folder / f"{kind}.gguf", kind, name=kind)
    return folder


def test_only_quantised_files_on_a_processor_get_hints(files: Path) -> None:
    q8_0 = str(files / "q8_0.gguf")
    assert quantised(q8_0) == "Q8_0"
    assert quantised(str(files / "f16.gguf")) is None
    assert hints(EngineOptions(q8_0))
    for other in (
        EngineOptions(str(files / "f16.gguf")),
        EngineOptions("ponder-tiny"),
        EngineOptions("no-such-model"),
        EngineOptions("owner/name"),
        EngineOptions(q8_0, "llamacpp"),
        EngineOptions(q8_0, options={"device": "nonesuch"}),
    ):
        assert hints(other) == [], other


def test_the_hint_says_how_to_get_what_is_not_installed(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    for there in (False, True):
        spec = object() if there else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a, s=spec: s if n == "llama_cpp" else real(n, *a))
        said = hints(EngineOptions(str(files / "q8_0.gguf")))[0]
        assert "q8_0.gguf holds Q8_0 weights" in said
        assert "--engine llamacpp" in said
        assert ("pip install 'ponder[llamacpp]'" in said) is not there


def test_bfloat16_is_named_where_there_are_units_and_it_is_not_asked_for(files: Path, monkeypatch) -> None:
    q8_0 = str(files / "q8_0.gguf")
    monkeypatch.setattr(faster, "_bf16_units", lambda: True)
    assert "--precision bfloat16" in hints(EngineOptions(q8_0))[1]
    assert len(hints(EngineOptions(q8_0, options={"precision": "bfloat16"}))) == 1
    monkeypatch.setattr(faster, "_bf16_units", lambda: False)
    assert len(hints(EngineOptions(q8_0))) == 1


def test_solve_and_doctor_say_it(files: Path, capsys) -> None:
    q8_0 = str(files / "q8_0.gguf")
    main(["solve", "Hi", "--model", q8_0, "--max-tokens", "2", "--raw-prompts"])
    assert capsys.readouterr().err.count("--engine llamacpp") == 1
    main(["solve", "Hi", "--model", "ponder-tiny", "--max-tokens", "2"])
    assert "llamacpp" not in capsys.readouterr().err
    doctor.main(["--model", q8_0])
    assert "--engine llamacpp was 3 times as fast for one request at a time" in capsys.readouterr().out
    doctor.main(["--model", q8_0, "--json"])
    assert "llamacpp" in json.loads(capsys.readouterr().out)["model"]["faster"][0]
