"""What a killed process leaves: runs that had hardly begun, half-written folders, torn lines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ponder.cli.main import main
from ponder.errors import UserError
from ponder.runs.files import clean
from ponder.runs.run import Run, read_manifest

DEAD = 999_999_999
"""No process has this number."""
EVAL = ["eval", "--engine", "simulated", "--model", "simulated", "--environment", "simulated", "-n", "3"]


def new(path: Path) -> Run:
    return Run.create(path, "seed = 7\n", 7, ["ponder"])


def test_what_a_killed_process_was_writing_is_removed_when_the_run_is_opened(tmp_path: Path) -> None:
    new(tmp_path).close()
    checkpoints = tmp_path / "checkpoints"
    ours, living = f".step-000002.{DEAD}.abcdefgh.part", f".step-000003.{os.getppid()}.abcdefgh.part"
    kept = (living, "step-000001", "mine.part", ".hidden")
    for name in (ours, ".step-000001.abcdefgh.part", *kept):
        (checkpoints / name).mkdir(parents=True)
    (tmp_path / f".curves.json.{DEAD}.tmp").write_text("{")
    (tmp_path / f".curves.json.{os.getppid()}.tmp").write_text("{")
    Run.open(tmp_path).close()
    assert {p.name for p in checkpoints.iterdir()} == set(kept)
    assert [p.name for p in tmp_path.glob(".*")] == [f".curves.json.{os.getppid()}.tmp"]


def test_a_folder_that_was_moved_aside_goes_back_if_its_place_is_empty(tmp_path: Path) -> None:
    for name in ("a", "b"):
        moved = tmp_path / f".{name}.{DEAD}.abcdefgh.old" / name
        moved.mkdir(parents=True)
        (moved / "weights").write_text("old")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "weights").write_text("new")
    clean(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    assert [(tmp_path / n / "weights").read_text() for n in "ab"] == ["old", "new"]


@pytest.mark.parametrize("left", [(), (f".manifest.json.{DEAD}.tmp",), ("manifest.json",)])
def test_a_run_that_was_killed_as_it_began_can_be_started_again(left, tmp_path: Path) -> None:
    new(tmp_path).close()
    for file in tmp_path.iterdir():
        if file.name not in left:
            file.unlink()
    for name in left:
        (tmp_path / name).touch()
    new(tmp_path).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.toml", "manifest.json"]


def test_a_config_of_the_users_is_no_run_that_began(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("seed = 1\n")
    with pytest.raises(UserError, match="holds other files"):
        new(tmp_path)


def test_an_evaluation_that_was_killed_before_its_first_search_is_resumed(tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert main([*EVAL, "--out", str(out)]) == 0
    for name in ("rollouts.jsonl", "evaluation.json", "samples.json", "summary.json", "report.md", "report.html"):
        (out / name).unlink()
    (out / "manifest.json").write_text(json.dumps({**read_manifest(out), "status": "running", "end": None}))
    assert main(["eval", "--resume", "--out", str(out)]) == 0
    assert len((out / "rollouts.jsonl").read_text().splitlines()) == 3
    assert main([*EVAL, "--out", str(out)]) == 2
    assert "continue it with --resume" in capsys.readouterr().err


def test_a_torn_line_of_searches_is_a_warning_wherever_it_is_read(tmp_path: Path, capsys, caplog) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    for run in runs:
        assert main([*EVAL, "--out", str(run)]) == 0
    torn = runs[0] / "rollouts.jsonl"
    whole = torn.read_bytes()
    capsys.readouterr()

    def tear() -> None:
        torn.write_bytes(whole + whole.splitlines()[0][:-40])

    for command in (
        ["report", str(runs[0])],
        ["report", *map(str, runs)],
        ["replay", str(torn), "--environment", "simulated"],
        ["eval", "--resume", "--out", str(runs[0])],
    ):
        tear()
        caplog.clear()
        assert main(command) == 0, capsys.readouterr().err
        # Without pytest the log's warnings go to stderr.
        said = caplog.text + capsys.readouterr().out
        assert "line 4 is torn" in said or "torn last line" in said, command
