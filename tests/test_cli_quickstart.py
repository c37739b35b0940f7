"""The quickstart: its files, its refusals, and (slow) what it promises."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from ponder.cli import quickstart
from ponder.cli.main import main
from ponder.config import from_mapping, load_toml
from ponder.evaluation import curves as files
from ponder.training import rl_run
from ponder.training.rl import Trainer
from ponder.training.rl_config import RLConfig


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """A quickstart with two training steps."""
    out = tmp_path_factory.mktemp("quickstart") / "run"
    words = f"--steps 2 --problems 50 --samples 4 --out {out}".split()
    assert main(["quickstart", *words]) == 0
    return out


@pytest.mark.timeout(300)
def test_curves_json_has_the_promised_form(short) -> None:
    value = json.loads((short / "curves.json").read_text())
    assert {
        "train",
        "test",
        "base",
        "base_accuracy",
        "trained_accuracy",
        "run_seconds",
        "peak_memory_bytes",
        "seed",
    } <= set(value)
    assert [p["step"] for p in value["train"]] == [0, 1, 2]
    assert set(value["train"][0]) == {"step", "flops", "sampled_tokens", "accuracy", "low", "high", "n"}
    for side in (value["test"], value["base"]):
        assert [p["budget_tokens"] for p in side["sequential"]] == list(quickstart.RUNGS)
        assert [p["samples"] for p in side["parallel"]] == [1, 2, 4]
        for p in side["sequential"]:
            assert {"mean_response_tokens_per_search", "accuracy", "low", "high", "no_answer", "n"} <= set(p)
            assert p["n"] == 50
            assert p["mean_response_tokens_per_search"] <= p["budget_tokens"] + quickstart.ANSWER_TOKENS
        for p in side["parallel"]:
            assert p["low"] <= p["accuracy"] <= p["high"]
            # The checker is arithmetic, as the judge is: what it accepts is right.
            assert p["accuracy"] == pytest.approx(p["coverage"])
    files.validate(files.read(short / "curves.json"))


@pytest.mark.timeout(300)
def test_the_report_has_both_curves_responses_cost_and_what_to_try_next(short) -> None:
    page = (short / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 3
    assert "http://" not in page
    assert "ponder solve" in page
    assert "evaluation of the base" in page
    assert {"before", "after"} <= set(json.loads((short / "samples.json").read_text())[0])
    for name in ("curves.png", "parallel.png", "training.png", "report.md"):
        assert (short / name).stat().st_size > 1000


@pytest.mark.timeout(300)
def test_both_configs_of_a_finished_run_hold_the_number_of_steps(short) -> None:
    own = from_mapping(quickstart.QuickstartConfig, load_toml(short / "config.toml"), "config.toml")
    training = from_mapping(RLConfig, load_toml(short / "rl.toml"), "rl.toml")
    assert own.steps == training.steps == 2
    assert training.minutes is None


@pytest.mark.timeout(300)
def test_a_run_directory_that_exists_is_refused_and_kept(short, capsys) -> None:
    before = (short / "curves.json").read_bytes()
    assert main(["quickstart", "--out", str(short)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (short / "curves.json").read_bytes() == before


@pytest.mark.timeout(300)
@pytest.mark.parametrize("where", ["base", "training", "trained"])
def test_a_stopped_quickstart_names_the_command_that_continues_it_to_the_same_result(
    where, short, tmp_path, monkeypatch, capsys
) -> None:
    out = tmp_path / "run"
    evaluated, step = quickstart._test_time, Trainer.step
    interrupt, interrupts = rl_run.Interrupt, []

    def evaluate(rl, config, who, quiet):
        if who == where:
            raise KeyboardInterrupt
        return evaluated(rl, config, who, quiet)

    async def stopping(self):
        interrupts[-1].requested = where == "training"
        return await step(self)

    monkeypatch.setattr(quickstart, "_test_time", evaluate)
    monkeypatch.setattr(rl_run, "Interrupt", lambda: interrupts.append(interrupt()) or interrupts[-1])
    monkeypatch.setattr(Trainer, "step", stopping)
    words = f"--steps 2 --problems 50 --samples 4 --out {out}".split()
    assert main(["quickstart", *words]) == 130
    monkeypatch.undo()
    said = capsys.readouterr().err
    # One of 50 that run at once, the quickest, says nothing of the others.
    assert all("left" not in line for line in re.findall(r"^.*: (?:thinking|sampling) .* 1/\d+ .*$", said, re.M))
    assert json.loads((out / "manifest.json").read_text())["status"] == "interrupted"
    command = shlex.split(said[said.rindex("ponder quickstart") :])
    assert main(command[1:]) == 0
    whole, parts = (json.loads((run / "curves.json").read_text()) for run in (short, out))
    for value in (whole, parts):
        del value["run_seconds"], value["peak_memory_bytes"]
    assert whole == parts
    assert json.loads((out / "manifest.json").read_text())["status"] == "done"


def test_only_the_same_run_is_resumed(short, tmp_path, capsys) -> None:
    assert main(["quickstart", "--resume", "--out", str(short), "--seed", "3"]) == 2
    assert "seed is 3, and the run has 0" in capsys.readouterr().err
    assert main(["quickstart", "--resume", "--out", str(tmp_path / "none")]) == 2
    assert "no such run directory" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--minutes", "0.5"], ["--problems", "10"], ["--samples", "1"], ["--steps", "0"]])
def test_values_that_cannot_work_are_refused_by_name(words, tmp_path, capsys) -> None:
    assert main(["quickstart", "--out", str(tmp_path / "run"), *words]) == 2
    assert words[0].lstrip("-") in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_quickstart_keeps_its_promises(seed, tmp_path) -> None:
    """`pytest -m slow tests/test_cli_quickstart.py` (24 minutes on 2 free cores; docs/results/quickstart.md)."""
    out = tmp_path / "run"
    assert main(["quickstart", "--seed", str(seed), "--out", str(out)]) == 0
    c = files.read(out / "curves.json")
    at = quickstart.RUNGS.index(quickstart.COMPARED_AT)
    base, trained = c.base.sequential[at], c.test.sequential[at]
    assert trained.accuracy - base.accuracy >= 0.15
    assert trained.low > base.high
    assert trained.mean_response_tokens_per_search <= base.mean_response_tokens_per_search * 1.05
    assert c.test.sequential[-1].accuracy - c.test.sequential[0].accuracy >= 0.15
    assert c.run_seconds <= 480
    assert c.peak_memory_bytes <= 2e9
