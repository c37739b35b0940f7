"""`ponder eval` stopped, resumed and under a total budget."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from eval_play import evaluate, mocked, result, searches
from mocks import MockEngine

from ponder.cli.main import main
from ponder.runs.files import read_lines
from ponder.runs.run import read_manifest
from ponder.types import Capabilities

BEST = ("--strategy", "best_of_n", "--strategy-options", "n=3", "-n", "40", "--samples", "2", "--show", "1")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> MockEngine:
    return mocked(monkeypatch)


@pytest.fixture
def whole(engine: MockEngine, tmp_path: Path) -> Path:
    """An evaluation that was not stopped."""
    path = tmp_path / "whole"
    assert evaluate(*BEST, "--out", str(path)) == 0
    return path


def test_an_interrupted_evaluation_resumes_where_it_was_and_equals_one_that_was_not(
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
    assert f"ponder: stopped; continue with: ponder eval --resume --out {out}" in error
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


def test_the_seconds_of_what_ran_when_it_was_interrupted_count_against_the_total(
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
    assert json.loads(capsys.readouterr().out)["run_seconds"] >= 0.3


def test_a_flag_that_the_run_has_may_be_given_again(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert evaluate("-n", "2", "--json", "--out", out) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["eval", "--resume", "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == first["accuracy"]


def test_a_killed_evaluation_resumes_from_its_whole_lines(engine: MockEngine, whole: Path, tmp_path: Path) -> None:
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


def test_what_ended_in_an_infrastructure_error_is_run_again_and_its_cost_is_kept(
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
    assert "tokens, on searches that failed or were stopped" in capsys.readouterr().out
    assert len(read_lines(out / "rollouts.jsonl").rows) == 82


def test_an_evaluation_resumes_only_with_the_same_options(
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
    assert re.search(rf"starved +{len(stopped)} searches, by the total budget", said)
    assert f"continue with: ponder eval --resume --out {out} --total-tokens MORE" in said
    engine.requests.clear()
    assert main(["eval", "--resume", "--out", str(out), "--total-tokens", "100000"]) == 0
    assert len(engine.requests) == len(stopped) > 0
    assert all(r["stop"] == "finished" for r in searches(out))


def test_what_the_total_budget_cut_short_is_run_again_and_what_its_own_did_is_not(
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


def test_seconds_before_a_resume_are_reported_separately_in_what_its_budget_refuses(
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
def test_a_budget_that_nothing_fits_is_refused_with_the_numbers(
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
    assert re.search(r"dollars per correct answer +\$0\.\d+\n", capsys.readouterr().out)


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
