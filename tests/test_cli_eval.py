"""`ponder eval`: honest numbers, a run directory that can be repeated, and clear refusals."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import threading
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
from ponder.types import Capabilities


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> MockEngine:
    """An engine that doubles correctly three times in four, and an environment `doubling` that asks for it."""
    made = MockEngine(texts=doubler(0.75))
    real = registry.build

    @contextlib.contextmanager
    def opened(options: ModelOptions, **_: Any) -> Iterator[MockEngine]:
        yield made

    def build(room: str, spec: str, options: Any = None) -> Any:
        return MockEnvironment(**(options or {})) if spec == "doubling" else real(room, spec, options)

    for module in ("eval", "_common"):
        monkeypatch.setattr(f"ponder.cli.{module}.engine_for", opened)
    monkeypatch.setattr(registry, "build", build)
    return made


def evaluate(*args: str) -> int:
    return main(["eval", "--environment", "doubling", *args])


CLOCK = {"seconds", "at", "device_seconds"}


def searches(run: Path) -> list[dict[str, Any]]:
    """The searches of a run in the order of the problems, without what the clock says."""

    def still(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: still(v) for k, v in value.items() if k not in CLOCK}
        return [still(v) for v in value] if isinstance(value, list) else value

    last = {(r["index"], r["sample"]): still(r) for r in read_lines(run / "rollouts.jsonl").rows}
    return [last[place] for place in sorted(last)]


def result(run: Path) -> dict[str, Any]:
    """What an evaluation found, without what the clock says and what was spent besides."""
    found = json.loads((run / "evaluation.json").read_text())
    found["spend"] = {k: v for k, v in found["spend"].items() if k not in CLOCK}
    return {k: v for k, v in found.items() if k not in {"seconds", "seconds_per_correct", "lost"}}


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
        (["--engine", "simulatd"], "unknown engine 'simulatd'; did you mean 'simulated'?"),
        (["--engine", "simulated", "--dtype", "bfloat16"], "--dtype is of the engine torch, not of 'simulated'"),
        (["--engine", "simulated", "--raw-prompts"], "--raw-prompts is of the engine torch"),
        (["--engine-options", "steps=3"], "--engine-options: the engine torch has flags of its own"),
        (["--others", "big=3"], "--others big=3: give NAME=MODEL"),
        (["--budget-tokens", "-1"], "--budget-tokens -1: give 0 or more"),
        (["--total-seconds", "nan"], "--total-seconds nan: give 0 or more"),
        (["--budget-tokens", "9", "--total-tokens", "8"], "--budget-tokens 9 for one search is more than --total"),
        (["--budget-dollars", "1"], "needs the prices of 'mock', and none are known"),
        (["--prices", "nowhere.toml"], "nowhere.toml: cannot be read as a table of prices"),
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


def test_too_many_failures_of_ours_stop_the_run_and_the_manifest_says_so(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.fail = lambda call, request: RuntimeError("the engine burns")
    assert evaluate("-n", "30", "--out", str(tmp_path / "run")) == 1
    assert "the engine burns" in capsys.readouterr().err
    assert read_manifest(tmp_path / "run")["status"] == "failed"


BEST = ("--strategy", "best_of_n", "--strategy-options", "n=3", "-n", "40", "--samples", "2", "--show", "1")


@pytest.fixture
def whole(engine: MockEngine, tmp_path: Path) -> Path:
    """An evaluation that nobody stopped."""
    path = tmp_path / "whole"
    assert evaluate(*BEST, "--out", str(path)) == 0
    return path


def test_an_interrupted_evaluation_goes_on_where_it_was_and_equals_one_that_was_not(
    engine: MockEngine, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"

    def delay(request: Any) -> float:
        """Ctrl-C at the 30th call; whatever is called from then on would take forever."""
        if engine.calls == 30:
            os.kill(os.getpid(), signal.SIGINT)
        return (request.params.seed % 5) * 1e-3 if engine.calls < 30 else 3600.0

    engine.calls, engine.delay = 0, delay
    assert evaluate(*BEST, "--concurrency", "16", "--out", str(out)) == 130
    error = capsys.readouterr().err
    assert f"ponder: stopped; go on with: ponder eval --resume --out {out}" in error
    assert read_manifest(out)["status"] == "interrupted"
    before = {(r["index"], r["sample"]) for r in read_lines(out / "rollouts.jsonl").rows}
    assert 0 < len(before) < 80
    assert main(["report", str(whole), str(out)]) == 2
    assert f"ponder eval --resume --out {out}" in capsys.readouterr().err

    engine.delay = 0.0
    with open(out / "rollouts.jsonl", "a") as file:
        file.write('{"problem": "test-9", "prom')
    engine.requests.clear()
    assert main(["eval", "--resume", "--out", str(out), "--json"]) == 0
    assert searches(out) == searches(whole)
    assert result(out) == result(whole)
    assert len(engine.requests) == 80 - len(before), "only what was missing is sampled"
    assert len(read_lines(out / "rollouts.jsonl").rows) == 80
    manifest = read_manifest(out)
    assert (manifest["status"], len(manifest["resumed"])) == ("done", 1)
    lost = json.loads(capsys.readouterr().out)["lost"]
    assert lost["sampled_tokens"] == manifest["lost"]["sampled_tokens"] > 0, "what was in flight was spent too"


def test_a_pool_that_cannot_be_written_is_refused_before_anything_is_spent(
    engine: MockEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--record", "nowhere/pool.jsonl") == 2
    assert "--record nowhere/pool.jsonl: its folder does not exist" in capsys.readouterr().err
    assert engine.calls == 0


def test_the_seconds_of_what_ran_when_it_was_interrupted_count_against_the_whole(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")

    def never(request: Any) -> float:
        """Ctrl-C before any search has ended, after some time."""
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        return 3600.0

    engine.delay = never
    assert evaluate("-n", "1", "--out", out) == 130
    assert not (tmp_path / "run" / "rollouts.jsonl").exists()
    engine.calls, engine.delay = 0, 0.0
    assert main(["eval", "--resume", "--out", out, "--total-seconds", "0.25"]) == 1
    assert "the budget of 0.25 seconds is used up (0." in capsys.readouterr().err
    assert engine.calls == 0
    assert main(["eval", "--resume", "--out", out, "--total-seconds", "3600", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] >= 0.3


def test_a_flag_that_the_run_has_may_be_given_again(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert evaluate("-n", "2", "--json", "--out", out) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["eval", "--resume", "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == first["accuracy"]


def test_a_killed_evaluation_goes_on_with_its_whole_lines(engine: MockEngine, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    shutil.copytree(whole, out)
    lines = (whole / "rollouts.jsonl").read_bytes().splitlines(keepends=True)
    (out / "rollouts.jsonl").write_bytes(b"".join(lines[:33]) + lines[33][:40])
    for name in ("evaluation.json", "summary.json", "samples.json"):
        (out / name).unlink()
    engine.requests.clear()
    assert main(["eval", "--resume", "--out", str(out)]) == 0
    assert len(engine.requests) == 80 - 33
    assert searches(out) == searches(whole)
    assert result(out) == result(whole)
    assert (out / "samples.json").read_bytes() == (whole / "samples.json").read_bytes()


def test_what_failed_for_reasons_of_ours_is_run_again_and_its_cost_is_kept(
    engine: MockEngine, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "failed"
    engine.calls = 0
    engine.fail = lambda call, request: ConnectionError("gone") if call in (5, 11) else None
    assert evaluate(*BEST, "--out", str(out)) == 0
    assert json.loads((out / "evaluation.json").read_text())["kinds"]["judge_error"] == 2
    engine.fail = None
    engine.requests.clear()
    capsys.readouterr()
    assert main(["eval", "--resume", "--out", str(out)]) == 0
    assert len(engine.requests) == 2
    assert searches(out) == searches(whole)
    assert result(out) == result(whole)
    assert "tokens, on searches that were run again" in capsys.readouterr().out
    assert len(read_lines(out / "rollouts.jsonl").rows) == 82


def test_an_evaluation_goes_on_only_as_it_was_begun(
    engine: MockEngine, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for args, said in (
        (["--seed", "3"], "resume: seed is 3, and the run has 0"),
        (["--budget-tokens", "90"], "resume: budget_tokens is 90"),
        (["--environment-options", "count=7"], "resume: environment_options"),
    ):
        assert main(["eval", "--resume", "--out", str(whole), *args]) == 2
        assert said in capsys.readouterr().err
    engine.info = dataclasses.replace(engine.info, name="another")
    assert main(["eval", "--resume", "--out", str(whole)]) == 2
    assert "model has name 'another' now, and had 'mock'" in capsys.readouterr().err


def test_a_search_that_its_budget_refuses_abstains_and_says_why(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert evaluate("-n", "30", "--total-tokens", "400", "--concurrency", "1", "--out", str(out)) == 0
    assert engine.used.tokens <= 400
    said = capsys.readouterr().out
    assert re.search(r"stopped +finished \d+ · budget \d+", said)
    rows = searches(out)
    assert rows[-1]["verdict"]["kind"] == "no_answer"
    assert re.search(r"\d+ of the budget's 400 tokens are left, and a call needs", rows[-1]["verdict"]["reason"])
    # More for all of them together: those that were refused are run, the others are kept.
    stopped = [r["index"] for r in rows if r["stop"] == "budget"]
    assert f"starved      {len(stopped)} of these" in said
    assert f"go on with: ponder eval --resume --out {out} --total-tokens MORE" in said
    engine.requests.clear()
    assert main(["eval", "--resume", "--out", str(out), "--total-tokens", "100000"]) == 0
    assert len(engine.requests) == len(stopped) > 0
    assert all(r["stop"] == "finished" for r in searches(out))


def test_what_the_budget_of_the_whole_cut_short_is_run_again_and_what_its_own_did_is_not(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.capabilities = Capabilities(ids=True, logprobs=True, seed=True)
    flags = ["-n", "12", "--strategy", "best_of_n", "--strategy-options", "n=6", "--max-tokens", "80"]
    own = [*flags, "--budget-tokens", "200"]
    assert evaluate(*own, "--out", str(tmp_path / "whole")) == 0
    out = tmp_path / "run"
    assert evaluate(*own, "--total-tokens", "1100", "--concurrency", "3", "--out", str(out)) == 0
    assert engine.used.tokens > 0
    starved = [r for r in searches(out) if r.get("starved")]
    assert any(r["samples"] for r in starved), "cut short"
    assert not all(r.get("starved") for r in searches(out) if r["stop"] == "budget"), "stopped by its own"
    assert main(["eval", "--resume", "--out", str(out), "--total-tokens", "100000"]) == 0
    assert searches(out) == searches(tmp_path / "whole")
    assert result(out) == result(tmp_path / "whole")


def test_seconds_that_an_evaluation_took_before_a_resume_are_told_apart_in_what_its_budget_refuses(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    engine.delay = lambda request: 0.0 if engine.calls <= 2 else 3600.0
    flags = ["--total-seconds", "0.3", "--concurrency", "1"]
    assert evaluate("-n", "6", *flags, "--out", str(out)) == 0
    engine.delay, engine.calls = 0.0, 0
    assert main(["eval", "--resume", "--out", str(out), *flags]) == 0
    assert engine.calls == 0
    assert "the budget of 0.3 seconds is used up (0." in searches(out)[-1]["verdict"]["reason"]


@pytest.mark.parametrize("flags", [["--budget-tokens", "0"], ["--total-tokens", "9"], ["--budget-seconds", "0"]])
def test_a_budget_that_nothing_fits_is_said_with_the_numbers(
    flags: list[str], engine: MockEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("-n", "5", *flags) == 1
    assert engine.calls == 0
    error = capsys.readouterr().err
    assert "nothing was sent, as the budget is too small" in error
    assert f" {flags[1]} " in error.splitlines()[-1]


def test_dollars_are_counted_by_branch_and_by_correct_answer(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "prices.toml"
    table.write_text('["mock"]\nprompt = 1000.0\noutput = 2000.0\n')
    out = tmp_path / "run"
    flags = ["--strategy", "best_of_n", "--strategy-options", "n=4", "--budget-dollars", "0.3", "--prices", str(table)]
    assert evaluate("-n", "9", *flags, "--out", str(out)) == 0
    rows = searches(out)
    for row in rows:
        spent = row["spend"]
        prompt = spent["prompt_tokens"] + spent.get("cached_tokens", 0)
        assert spent["dollars"] == pytest.approx((prompt * 1000 + spent["sampled_tokens"] * 2000) * 1e-6)
        assert spent["dollars"] == pytest.approx(sum(n["spend"]["dollars"] for n in row["samples"]))
        assert spent["dollars"] <= 0.3
    found = json.loads((out / "evaluation.json").read_text())
    assert found["dollars_per_correct"] == pytest.approx(found["spend"]["dollars"] / found["kinds"]["correct"])
    assert re.search(r"per correct  \d+ tokens · \$0\.\d+ · ", capsys.readouterr().out)


def test_what_was_spent_before_there_were_prices_counts_against_the_dollars_of_a_resume(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = tmp_path / "prices.toml", str(tmp_path / "run")
    table.write_text('["mock"]\nprompt = 1000.0\noutput = 1000.0\n')
    assert evaluate("-n", "9", "--total-tokens", "150", "--out", out, "--json") == 0
    before, calls = engine.used.tokens, engine.calls
    flags = ["eval", "--resume", "--out", out, "--total-tokens", "9000", "--prices", str(table), "--json"]
    capsys.readouterr()
    assert main([*flags, "--total-dollars", f"{before * 1e-3:.6f}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert engine.calls == calls
    assert found["spend"]["dollars"] + found["lost"]["dollars"] == pytest.approx(before * 1e-3)
    assert main([*flags, "--total-dollars", "9"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert engine.calls > calls
    assert found["spend"]["dollars"] + found["lost"]["dollars"] == pytest.approx(engine.used.tokens * 1e-3)


def test_every_whole_response_is_recorded_in_a_pool_and_a_stopped_recording_goes_on(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ponder.evaluation.pools import read_pool

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
    assert "McNemar's exact test: p = 1" in capsys.readouterr().out


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


def test_a_cascade_goes_on_to_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_an_engine_of_ones_own_is_a_class_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
