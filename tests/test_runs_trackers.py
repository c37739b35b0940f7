"""Trackers get what metrics.jsonl gets; one that fails is left out and never stops the work."""

import importlib.util
import json

import pytest

from ponder.errors import MissingExtra, UserError
from ponder.runs import trackers
from ponder.runs.run import Run

MADE = []


class Noted:
    """A tracker that remembers."""

    def __init__(self, run, config, resumed):
        self.config, self.resumed, self.rows, self.closed = config, resumed, [], None
        MADE.append(self)

    def log(self, step, values):
        self.rows.append((step, dict(values)))

    def close(self, status):
        self.closed = status


class Failing(Noted):
    def log(self, step, values):
        raise OSError("the server is gone\nand more")


@pytest.fixture
def tools(monkeypatch):
    MADE.clear()
    monkeypatch.setattr(trackers, "_TRACKERS", {"noted": ("json", Noted), "failing": ("json", Failing)})
    return MADE


def test_every_row_of_numbers_reaches_every_tracker_and_the_end_too(tools, tmp_path):
    notes = []
    run = Run.create(tmp_path / "run", "", 0)
    run.track("noted", {"learning_rate": 1e-3}, notes.append, resumed=False)
    with run:
        for step in (1, 2):
            run.log({"step": step, "loss": 0.5, "name": "x", "bad": float("nan"), "none": None, "time": {"all": 2}})
    (made,) = tools
    assert made.rows == [(1, {"loss": 0.5, "time/all": 2.0}), (2, {"loss": 0.5, "time/all": 2.0})]
    assert (made.config, made.closed, notes) == ({"learning_rate": 1e-3}, "done", [])


def test_a_tracker_that_fails_is_left_out_with_one_note_and_the_files_have_all_rows(tools, tmp_path):
    notes = []
    run = Run.create(tmp_path / "run", "", 0)
    run.track("failing,noted", {}, notes.append, resumed=False)
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 1.0})
    run.finish("interrupted")
    assert len(notes) == 1
    assert "--track failing: the server is gone; it is left out" in notes[0]
    assert len(run.metrics().rows) == 3
    assert [len(t.rows) for t in tools] == [0, 3]
    assert tools[1].closed == "interrupted"


def test_an_unknown_or_missing_tracker_is_refused_before_anything_runs(monkeypatch):
    with pytest.raises(UserError, match="did you mean 'wandb'"):
        trackers.names("wadb")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"ponder\[wandb\]"):
        trackers.names("wandb")
    with pytest.raises(MissingExtra, match=r"--track mlflow,wandb needs .* pip install 'ponder\[mlflow,wandb\]'"):
        trackers.names("mlflow,wandb")
    assert trackers.names("") == ()


@pytest.mark.parametrize("name", trackers.NAMES)
def test_the_real_tools_write_to_the_run_and_send_nothing(name, tmp_path, monkeypatch):
    if importlib.util.find_spec(trackers._TRACKERS[name][0]) is None:
        pytest.skip(f"{name} is not installed")
    for setting in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_DIR"):
        monkeypatch.delenv(setting, raising=False)
    run = Run.create(tmp_path / "run", "", 0)
    run.track(name, {"fit": {"steps": 3}}, lambda note: pytest.fail(note), resumed=False)
    with run:
        for step in (1, 2, 3):
            run.log({"step": step, "loss": 1.0 / step})
    written = [p for p in run.path.rglob("*") if p.is_file() and p.suffix not in (".json", ".toml", ".jsonl")]
    assert written
    assert json.loads((run.path / "manifest.json").read_text())["status"] == "done"
