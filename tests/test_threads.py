"""--threads holds for the whole process: the model, the workers, and what the manifest says."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ponder import threads
from ponder.cli import eval as cli_eval
from ponder.cli import replay, solve
from ponder.cli._common import ModelOptions, engine_options
from ponder.cli.quickstart import QuickstartConfig, rl_config
from ponder.errors import UserError
from ponder.runs.manifest import hardware
from ponder.training.rl_config import RLConfig
from ponder.training.supervised import PretrainConfig, SFTConfig


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, str(before)))
    monkeypatch.setattr(threads, "_asked", None)
    yield
    torch.set_num_threads(before)


def test_the_number_is_that_of_torch_the_workers_and_the_manifest() -> None:
    threads.use(None)
    assert threads.asked() is None
    assert threads.count() == threads.cores()
    threads.use(3)
    assert torch.get_num_threads() == 3
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert threads.count() == 3
    assert (hardware()["threads"], hardware()["torch_threads"]) == (3, 3)


def test_an_engine_with_threads_of_its_own_gets_the_number() -> None:
    assert engine_options(ModelOptions(engine="llamacpp", threads=2)).options == {"threads": 2}
    assert engine_options(ModelOptions(threads=2)).options == {}
    assert torch.get_num_threads() == 2
    with pytest.raises(UserError, match="given twice"):
        engine_options(ModelOptions(engine="llamacpp", threads=2, engine_options={"threads": 3}))


@pytest.mark.parametrize("config", [RLConfig, SFTConfig, PretrainConfig, QuickstartConfig])
def test_a_training_refuses_none(config: type) -> None:
    assert config(threads=2).threads == 2
    with pytest.raises(UserError, match="threads = 0: give at least 1"):
        config(threads=0)


def test_the_training_of_a_quickstart_has_its_threads() -> None:
    assert rl_config(QuickstartConfig(threads=2)).threads == 2


def test_the_verbs_refuse_none(tmp_path: Path) -> None:
    for main, args in ((cli_eval.main, []), (solve.main, ["Hi"]), (replay.main, [str(tmp_path / "pool.jsonl")])):
        with pytest.raises(UserError, match="threads = 0: give at least 1"):
            main([*args, "--threads", "0"])


def test_an_evaluation_runs_with_them_and_resumes_with_others(tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "run")
    args = ["-n", "2", "--max-tokens", "8", "--out", out]
    assert cli_eval.main([*args, "--threads", "2"]) == 0
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["hardware"]["torch_threads"] == 2
    assert "threads = 2" in (tmp_path / "run" / "config.toml").read_text()
    assert cli_eval.main(["--resume", "--out", out, "--threads", "1"]) == 0
    again = json.loads((tmp_path / "run" / "manifest.json").read_text())["resumed"][0]
    assert again["hardware"]["torch_threads"] == 1


def test_a_model_is_loaded_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("ponder.models.load.load", lambda *_, **__: seen.append(torch.get_num_threads()))
    dataclasses.replace(RLConfig(), threads=3).load(0)
    assert seen == [3]


def test_threads_hold_where_torch_is_loaded_later() -> None:
    script = "from ponder import threads; threads.use(1); import torch; print(torch.get_num_threads())"
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "1"
