"""An evaluation that ends before its time, without --out too: what it has is printed, and nothing is lost."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from eval_play import evaluate, mocked, result, searches
from mocks import MockEngine

from ponder.cli.main import main
from ponder.errors import PonderError
from ponder.runs.run import read_manifest

MANY = ("-n", "40", "--show", "1")


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MockEngine:
    monkeypatch.chdir(tmp_path)
    return mocked(monkeypatch)


def stop_at(engine: MockEngine, number: int, sent: int = signal.SIGINT) -> None:
    """Signal this process at a call; whatever is called from then on would take forever."""

    def delay(request: Any) -> float:
        if engine.calls == number:
            os.kill(os.getpid(), sent)
        return 0.0 if engine.calls < number else 3600.0

    engine.calls, engine.delay = 0, delay


def left() -> list[Path]:
    return sorted(Path("runs").glob("*")) if Path("runs").exists() else []


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_prints_what_there_is_and_the_command_that_resumes_it(engine, sent, capsys) -> None:
    assert evaluate(*MANY, "--out", "whole") == 0
    capsys.readouterr()
    stop_at(engine, 30, sent)
    assert evaluate(*MANY, "--concurrency", "4") == 130
    out, err = capsys.readouterr()
    (run,) = left()
    assert re.fullmatch(r"eval-\d{8}-\d{6}", run.name)
    found = re.search(r"^partial: (\d+) of 40 searches have ended; short ones end first", out, re.M)
    assert found is not None
    assert int(found[1]) == len(searches(run)) > 20
    assert re.search(r"^accuracy +\d+\.\d % \[\d", out, re.M)
    assert read_manifest(run)["status"] == "interrupted"
    command = err[err.index("ponder: stopped; continue with: ponder ") :].split("continue with: ponder ")[1]
    engine.delay = 0.0
    assert main(shlex.split(command)) == 0
    assert result(run) == result(Path("whole"))


def test_json_says_that_it_is_partial(engine, capsys) -> None:
    stop_at(engine, 30)
    assert evaluate(*MANY, "--concurrency", "4", "--json", "--out", "run") == 130
    found = json.loads(capsys.readouterr().out)
    assert found["partial"] == {"ended": len(searches(Path("run"))), "of": 40}
    assert found["accuracy"]["low"] < found["accuracy"]["value"] < found["accuracy"]["high"]


def test_of_several_samples_those_that_ended_are_counted(engine, capsys) -> None:
    stop_at(engine, 31)
    assert evaluate("-n", "20", "--samples", "3", "--concurrency", "4", "--json") == 130
    found = json.loads(capsys.readouterr().out)
    (run,) = left()
    assert found["partial"] == {"ended": len(searches(run)), "of": 60}
    assert sum(found["kinds"].values()) == len(searches(run))
    assert found["problems"] == len({row["index"] for row in searches(run)}) < 20


def test_a_signal_before_the_first_search_has_ended_leaves_nothing(engine, capsys) -> None:
    stop_at(engine, 1)
    assert evaluate(*MANY) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "ponder: stopped"
    assert not Path("runs").exists()


def test_an_evaluation_that_finishes_leaves_nothing_that_was_not_asked_for(capsys) -> None:
    assert evaluate(*MANY) == 0
    assert list(Path().iterdir()) == []
    Path("runs").mkdir()
    assert evaluate(*MANY) == 0
    assert list(Path().iterdir()) == [Path("runs")]
    assert left() == []
    assert "report" not in capsys.readouterr().err


def test_an_engine_that_fails_half_way_loses_nothing_either(engine, capsys) -> None:
    def delay(request: Any) -> float:
        if engine.calls > 30:
            raise PonderError("the machine is gone")
        return 0.0

    engine.calls, engine.delay = 0, delay
    assert evaluate(*MANY, "--concurrency", "1") == 1
    out, err = capsys.readouterr()
    (run,) = left()
    assert "partial: " in out
    assert f"the machine is gone; continue with: ponder eval --resume --out {run}" in err


def test_what_the_total_budget_cut_short_can_be_run_later(capsys) -> None:
    assert evaluate(*MANY, "--total-tokens", "300") == 0
    (run,) = left()
    assert f"continue with: ponder eval --resume --out {run} --total-tokens MORE" in capsys.readouterr().out
    assert main(["eval", "--resume", "--out", str(run), "--total-tokens", "100000"]) == 0
    assert result(run)["starved"] == 0


def test_where_no_directory_can_be_made_a_temporary_one_is_taken(engine, monkeypatch, tmp_path, capsys) -> None:
    Path("runs").write_text("a file of mine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    assert evaluate(*MANY) == 0
    assert list((tmp_path / "elsewhere").iterdir()) == []
    stop_at(engine, 30)
    assert evaluate(*MANY, "--concurrency", "4") == 130
    (run,) = (tmp_path / "elsewhere").iterdir()
    assert f"ponder eval --resume --out {run}" in capsys.readouterr().err
    assert Path("runs").read_text() == "a file of mine"
