"""`ponder eval`: honest numbers, a run directory that can be repeated, and clear refusals."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mocks import MockEngine, MockEnvironment, doubler

from ponder import registry
from ponder.cli._common import ModelOptions
from ponder.cli.main import main
from ponder.runs.files import read_lines
from ponder.runs.run import read_manifest


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> MockEngine:
    """An engine that doubles correctly three times in four, and an environment `doubling` that asks for it."""
    made = MockEngine(texts=doubler(0.75))
    real = registry.build

    @contextlib.contextmanager
    def opened(options: ModelOptions, *, raw_prompts: bool = False) -> Iterator[MockEngine]:
        yield made

    def build(room: str, spec: str, options: Any = None) -> Any:
        return MockEnvironment(**(options or {})) if spec == "doubling" else real(room, spec, options)

    for module in ("eval", "_common"):
        monkeypatch.setattr(f"ponder.cli.{module}.engine_for", opened)
    monkeypatch.setattr(registry, "build", build)
    return made


def evaluate(*args: str) -> int:
    return main(["eval", "--environment", "doubling", *args])


def test_accuracy_comes_with_its_interval_and_size(engine: MockEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("-n", "80") == 0
    out = capsys.readouterr().out
    found = re.search(r"accuracy +([\d.]+)% \[([\d.]+)%, ([\d.]+)%\]  95 % interval \(wilson\), n = 80 problems", out)
    assert found is not None
    value, low, high = (float(g) for g in found.groups())
    assert 0 < low < value < high < 100
    assert 60 < value < 90
    correct = int(re.search(r"correct (\d+)", out)[1])  # type: ignore[index]
    assert value == pytest.approx(100 * correct / 80, abs=0.06)
    assert "mean tokens" in out
    assert "tokens/s" in out
    assert out.count("->") == 2, "two responses are shown by default"


def test_json_is_the_whole_result_and_nothing_else(engine: MockEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("-n", "20", "--samples", "3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == 20
    assert found["samples"] == 3
    assert sum(found["kinds"].values()) == 60
    assert found["accuracy"]["n"] == 20
    assert found["accuracy"]["low"] <= found["accuracy"]["value"] <= found["accuracy"]["high"]


def test_the_same_seed_gives_the_same_numbers(engine: MockEngine, capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for seed in ("1", "1", "2"):
        assert evaluate("-n", "60", "--seed", seed, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        results.append((found["kinds"], found["mean_tokens"]["value"]))
    assert results[0] == results[1] != results[2]


def test_a_run_directory_repeats_the_evaluation(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    assert evaluate("-n", "12", "--temperature", "0.5", "--show", "0", "--out", str(first)) == 0
    assert main(["eval", "--config", str(first / "config.toml"), "--out", str(again)]) == 0
    rollouts = [read_lines(p / "rollouts.jsonl").rows for p in (first, again)]
    assert len(rollouts[0]) == 12
    assert rollouts[0] == rollouts[1]
    assert set(rollouts[0][0]) == {"problem_id", "prompt", "samples"}
    assert set(rollouts[0][0]["samples"][0]) == {"text", "verdict", "reason", "reward", "answer", "tokens"}
    assert engine.requests[-1].params.temperature == 0.5
    assert read_manifest(first)["status"] == "done"
    assert read_manifest(first)["model"] == {"name": "mock"}
    report = (first / "report.html").read_text()
    assert "ponder-tiny on doubling" in report
    assert "n = 12" in report
    assert "Samples" in report


def test_a_run_directory_that_exists_is_refused_before_the_work(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("-n", "2", "--out", str(tmp_path / "run")) == 0
    calls = engine.calls
    assert evaluate("-n", "2", "--out", str(tmp_path / "run")) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert engine.calls == calls


def test_fewer_problems_than_asked_are_all_used_and_said_so(
    engine: MockEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--environment-options", "count=5", "-n", "9", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["problems"] == 5
    assert "doubling has 5 test problems, fewer than -n 9: all are used" in captured.err


def test_options_of_the_strategy_reach_the_engine(engine: MockEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("-n", "3", "--strategy", "best_of_n", "--strategy-options", "n=4", "--max-tokens", "77") == 0
    assert {(r.params.max_tokens) for r in engine.requests} == {77}
    assert engine.used.sampled_tokens > 0
    assert "checker calls" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-n", "0"], "-n 0: give at least 1"),
        (["--samples", "0"], "--samples 0: give at least 1"),
        (["--show", "-1"], "--show -1: give at least 0"),
        (["--environment", "countdwn"], "unknown environment 'countdwn'; did you mean 'countdown'?"),
        (["--strategy", "direkt"], "unknown strategy 'direkt'; did you mean 'direct'?"),
        (["--strategy-options", "max_token=3"], "unknown key 'max_token'; did you mean 'max_tokens'?"),
        (["--max-tokens", "3", "--strategy-options", "max_tokens=3"], "max_tokens is given twice"),
        (["--max-tokens", "9", "--strategy", "budget_forcing", "--strategy-options", "thought_tokens=3"],
         "--max-tokens: the strategy 'budget_forcing' has no option 'max_tokens'"),
        (["--data", "a", "--environment-options", "data=b"], "data is given twice"),
        (["--environment", "countdown", "--data", "x.jsonl"], "countdown: unknown key 'data'"),
        (["--config", "nowhere.toml"], "nowhere.toml: no such config file"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(
    args: list[str], said: str, engine: MockEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *args]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert engine.calls == 0


def test_a_misspelt_flag_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--modle", "x"]) == 2
    assert "--model" in capsys.readouterr().err


def test_an_unknown_model_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--model", "ponder-tyni"]) == 2
    assert "did you mean 'ponder-tiny'?" in capsys.readouterr().err


def test_too_many_failures_of_ours_stop_the_run_and_the_manifest_says_so(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.fail = lambda call, request: RuntimeError("the engine burns")
    assert evaluate("-n", "30", "--out", str(tmp_path / "run")) == 1
    assert "the engine burns" in capsys.readouterr().err
    assert read_manifest(tmp_path / "run")["status"] == "failed"


def test_a_real_model_in_a_folder_is_evaluated_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    from engine_fixture import make_model

    from ponder.models.save import save

    folder = tmp_path / "model"
    save(make_model(), folder)
    out = tmp_path / "run"
    assert main(["eval", "--model", str(folder), "-n", "4", "--max-tokens", "8", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["kinds"].values()) == 4
    assert 0 < found["spend"]["sampled_tokens"] <= 32
    assert (out / "report.html").exists()
