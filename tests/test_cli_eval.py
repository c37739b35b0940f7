"""`ponder eval`: honest numbers, a run directory that can be repeated, and clear refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from eval_play import evaluate, mocked, result, searches
from mocks import MockEngine

from ponder.cli.main import main
from ponder.config import load_toml
from ponder.errors import UserError
from ponder.runs.run import read_manifest


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> MockEngine:
    return mocked(monkeypatch)


def test_accuracy_comes_with_its_interval_and_size(engine: MockEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("-n", "80") == 0
    out = capsys.readouterr().out
    found = re.search(
        r"accuracy +([\d.]+) % \[([\d.]+), ([\d.]+)\], 95 % interval \(clopper-pearson\), n = 80 problems", out
    )
    assert found is not None
    value, low, high = (float(g) for g in found.groups())
    assert 0 < low < value < high < 100
    assert 60 < value < 90
    correct = int(re.search(r"correct (\d+)", out)[1])  # type: ignore[index]
    assert value == pytest.approx(100 * correct / 80, abs=0.06)
    assert "tokens per search" in out
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
        results.append((found["kinds"], found["mean_response_tokens_per_search"]["value"]))
    assert results[0] == results[1] != results[2]


def test_a_run_directory_repeats_the_evaluation(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    assert evaluate("-n", "12", "--temperature", "0.5", "--show", "0", "--out", str(first)) == 0
    assert main(["eval", "--config", str(first / "config.toml"), "--out", str(again)]) == 0
    rollouts = [searches(p) for p in (first, again)]
    assert len(rollouts[0]) == 12
    assert rollouts[0] == rollouts[1]
    row = rollouts[0][3]
    assert (row["problem"], row["index"], row["sample"], row["stop"]) == ("test-3", 3, 0, "finished")
    assert row["verdict"]["kind"] == row["samples"][0]["verdict"]["kind"]
    assert row["spend"]["sampled_tokens"] == row["samples"][0]["spend"]["sampled_tokens"] > 0
    assert engine.requests[-1].params.temperature == 0.5
    assert read_manifest(first)["status"] == "done"
    assert read_manifest(first)["model"] == {"engine": "torch", "name": "mock"}
    report = (first / "report.html").read_text()
    assert "ponder-tiny on doubling" in report
    assert "n = 12" in report
    assert "Searches" in report


def test_a_run_directory_that_exists_is_refused_before_the_work(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("-n", "2", "--out", str(tmp_path / "run")) == 0
    calls = engine.calls
    assert evaluate("-n", "2", "--out", str(tmp_path / "run")) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert engine.calls == calls


def test_fewer_problems_than_asked_are_all_used_with_a_note(
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
    assert "checker or scorer calls" in capsys.readouterr().out


def test_the_config_of_a_run_says_which_options_its_engine_was_asked_for(engine: MockEngine, tmp_path: Path) -> None:
    flags = ["--exact", "--device", "cpu", "--raw-prompts", "--engine-options", "max_rows=4"]
    assert evaluate("-n", "2", *flags, "--out", str(tmp_path / "run")) == 0
    config = load_toml(tmp_path / "run" / "config.toml")
    asked = {k: config.get(k) for k in ("exact", "device", "raw_prompts", "engine_options", "dtype")}
    want = {"exact": True, "device": "cpu", "raw_prompts": True, "engine_options": {"max_rows": 4}, "dtype": None}
    assert asked == want


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
        (["--environment", "countdown", "--data", "x.jsonl"], "the environment 'countdown' reads no file"),
        (["--config", "nowhere.toml"], "nowhere.toml: no such config file"),
        (["--engine", "simulatd"], "unknown engine 'simulatd'; did you mean 'simulated'?"),
        (["--engine", "simulated", "--dtype", "bfloat16"], "--dtype: the engine 'simulated' has no option 'dtype'"),
        (["--engine", "simulated", "--raw-prompts"], "the engine 'simulated' has no option 'raw_prompts'"),
        (["--engine", "llamacpp", "--compile"], "--compile: the engine 'llamacpp' has no option 'compile'"),
        (["--engine-options", "max_row=3"], "torch: unknown key 'max_row'; did you mean 'max_rows'?"),
        (["--engine-options", "max_rows=0"], "torch: max_rows = 0: give at least 1"),
        (["--kv-memory", "much"], "torch: kv_memory = 'much': give a size such as 2GiB"),
        (["--exact", "--engine-options", "exact=true"], "exact is given twice, by --exact and in --engine-options"),
        (["--others", "big=3"], "--others big=3: give NAME=MODEL"),
        (["--budget-tokens", "-1"], "--budget-tokens -1: give 0 or more"),
        (["--total-seconds", "nan"], "--total-seconds nan: give 0 or more"),
        (["--budget-tokens", "9", "--total-tokens", "8"], "--budget-tokens 9 for one search is more than --total"),
        (["--budget-dollars", "1"], "needs the prices of 'mock', and none are known"),
        (["--prices", "nowhere.toml"], "nowhere.toml: no such table of prices"),
        (["--resume"], "--resume needs --out"),
        (["--resume", "--out", "nowhere"], "nowhere: no such run directory"),
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


def test_too_many_infrastructure_errors_stop_the_run_and_the_manifest_says_so(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.fail = lambda call, request: RuntimeError("the engine burns")
    assert evaluate("-n", "30", "--out", str(tmp_path / "run")) == 1
    assert "the engine burns" in capsys.readouterr().err
    assert read_manifest(tmp_path / "run")["status"] == "failed"


def test_every_whole_response_is_recorded_in_a_pool_and_a_stopped_recording_resumes(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ponder.evaluation.pools.record import read_pool

    out, pool = tmp_path / "run", tmp_path / "pool.jsonl"
    flags = ["-n", "6", "--samples", "4", "--out", str(out), "--record", str(pool)]
    assert evaluate(*flags) == 0
    rows = read_pool(pool).rows
    assert sorted(row.id for row in rows) == [f"test-{i}" for i in range(6)]
    correct = [s.correct for row in rows for s in row.samples]
    assert len(correct) == 24
    assert sum(correct) == json.loads((out / "evaluation.json").read_text())["kinds"]["correct"]  # type: ignore[arg-type]
    assert evaluate(*flags[:-4], "--record", str(pool)) == 2
    assert "holds 6 problems already" in capsys.readouterr().err

    whole = pool.read_bytes()
    lines = whole.splitlines(keepends=True)
    pool.write_bytes(b"".join(lines[:2]))
    engine.requests.clear()
    assert main(["eval", "--resume", "--out", str(out)]) == 0
    assert len(engine.requests) == 16, "the pool needs the whole responses of what it has not"
    assert sorted(pool.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_any_engine_is_named_by_a_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a mock: the simulated engine, twice, gives the same, and the manifest says what ran."""
    flags = ["--engine", "simulated", "--engine-options", "steps=3", "--model", "s", "--environment", "simulated"]
    for name in ("a", "b"):
        out = tmp_path / name
        assert main(["eval", *flags, "-n", "20", "--strategy", "best_of_n", "--out", str(out), "--json"]) == 0
    assert searches(tmp_path / "a") == searches(tmp_path / "b")
    assert read_manifest(tmp_path / "a")["model"] == {"engine": "simulated", "name": "s"}
    assert result(tmp_path / "a")["kinds"]["correct"] > 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "McNemar's exact test" in capsys.readouterr().out


SIMULATED = ("--engine", "simulated", "--environment", "simulated", "--model", "s")


def test_a_stepwise_search_is_guided_by_the_environments_partial_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--environment-options", "checked=false", "noise=0.0", "--engine-options", "steps=6", "step_success=0.6"]
    found = {}
    for strategy, options in (("direct", []), ("beam", ["width=3", "expand=3", "step_tokens=80"])):
        out = tmp_path / strategy
        chosen = ["--strategy", strategy, *(["--strategy-options", *options] if options else [])]
        assert main(["eval", *SIMULATED, *flags, "-n", "20", *chosen, "--out", str(out)]) == 0
        found[strategy] = result(out)["accuracy"]["value"]
    rows = searches(tmp_path / "beam")
    assert any(node["score"] is not None and node["parent"] is not None for row in rows for node in row["samples"])
    assert found["beam"] > found["direct"]
    assert "└─" in (tmp_path / "beam" / "report.md").read_text()


def test_a_cascade_escalates_to_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--environment-options", "checked=false", "--strategy", "cascade"]
    options = ["--strategy-options", "engine=big", "agreement=1.0", "slow=direct"]
    assert main(["eval", *SIMULATED, *flags, *options, "-n", "3"]) == 2
    assert "big" in capsys.readouterr().err
    out = tmp_path / "run"
    (tmp_path / "prices.toml").write_text("[s]\nprompt = 0\noutput = 1.0\n[b]\nprompt = 0\noutput = 10.0\n")
    priced = ["--prices", str(tmp_path / "prices.toml")]
    assert main(["eval", *SIMULATED, *flags, *options, *priced, "--others", "big=b", "-n", "9", "--out", str(out)]) == 0
    assert read_manifest(out)["others"] == {"big": {"engine": "simulated", "name": "b"}}
    costs = [row["spend"]["dollars"] / row["spend"]["sampled_tokens"] * 1e6 for row in searches(out)]
    assert all(1.0 < cost < 10.0 for cost in costs), "each model has its own prices"


def test_a_custom_engine_is_a_class_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from ponder.engines.simulated import Simulated\n"
        "@dataclass(frozen=True)\n"
        "class Mine:\n"
        "    success: float = 0.5\n"
        "    def open(self, model):\n"
        "        return Simulated(steps=2, step_success=self.success).open(model)\n"
        "class Closed:\n"
        "    pass\n"
    )
    flags = ["eval", "--environment", "simulated", "-n", "5", "--json", "--engine"]
    assert main([*flags, f"{tmp_path / 'mine.py'}:Mine", "--engine-options", "success=1.0"]) == 0
    assert json.loads(capsys.readouterr().out)["kinds"] == {"correct": 5}
    assert main([*flags, f"{tmp_path / 'mine.py'}:Closed"]) == 2
    assert "Closed has no method open(model) -> Engine" in capsys.readouterr().err


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


def test_conversations_with_a_strategy_that_plays_no_turns_are_refused_before_there_is_a_run_directory(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["eval", "--environment", "calculator", "--strategy", "direct", "-n", "2", "--out", str(tmp_path / "run")]
    assert main(asked) == 2
    assert "calculator-test-0 is a conversation of several turns, and Direct gives one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_cannot_be_made_is_what_is_said(
    engine: MockEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def create(path: str, *args: Any, **rest: Any) -> None:
        raise UserError(f"{path}: cannot be made: No space left on device")

    monkeypatch.setattr("ponder.runs.run.Run.create", create)
    assert evaluate("-n", "2", "--out", str(tmp_path / "run")) == 2
    assert capsys.readouterr().err == f"ponder: {tmp_path / 'run'}: cannot be made: No space left on device\n"
