"""A directory that a refused command left does not stand in the way of the corrected one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ponder.cli.main import main
from ponder.errors import UserError
from ponder.models.decoder_config import DecoderConfig
from ponder.models.save import save
from ponder.models.tiny import VOCAB_SIZE, new_model
from ponder.runs.run import Run, refuse_existing

RL = ["train", "rl", "--environment", "arithmetic", "--steps", "1", "--group-size", "2", "--problems", "1"]
RL += ["--eval-problems", "2", "--strategy-options", "thought_tokens=4"]
SFT = ["train", "sft", "--steps", "1", "--fit.batch-tokens", "512", "--held-out", "0"]
ROWS = ["--data", "rows.jsonl", "--longest", "64"]
PRETRAIN = ["train", "pretrain", "--fit.max-tokens", "2000", "--fit.batch-tokens", "512"]
EVAL = ["eval", "--engine", "simulated", "--environment", "simulated", "-n", "3", "--show", "0"]
QUICKSTART = ["quickstart", "--problems", "50", "--samples", "2", "--steps", "1"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "base"
    save(new_model(0, DecoderConfig(VOCAB_SIZE, 32, 64, 2, 2, 1, 16, 256, tie_word_embeddings=True)), folder)
    return str(folder)


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "1 + 1", "response": "2"}\n' * 3)


def began(out: str) -> None:
    """What a run leaves that was refused or killed after it began."""
    Run.create(out, "seed = 0\n", 0, ["ponder", "an earlier command"]).finish("failed", error="refused")


@pytest.mark.parametrize("args", [RL, [*SFT, *ROWS], EVAL], ids=lambda args: args[1])
def test_a_run_that_only_began_is_begun_again(args, base, capsys) -> None:
    began("run")
    model = [] if args is EVAL else ["--model", base]
    assert main([*args, *model, "--out", "run"]) == 0, capsys.readouterr().err
    assert json.loads(Path("run/manifest.json").read_text())["status"] == "done"


REFUSED = [
    ([*RL, "--loss", "grop"], "did you mean 'grpo'"),
    ([*RL, "--strategy", "budget_forcing", "--strategy-options", "thought_tokens=1000"], "do not fit the context"),
    ([*SFT, "--data", "rows.jsonl", "--longest", "1000"], "is more than the model's context"),
    ([*SFT, "--data", "none.jsonl"], "no such file"),
    ([*PRETRAIN, "--length", "5000"], "is more than the model's context"),
    ([*PRETRAIN, "--families", "countdwn"], "did you mean 'countdown'"),
    ([*EVAL, "--strategy", "budget_forcing"], "thought_tokens"),
    ([*EVAL, "--strategy", "turns"], "plays environments of several turns"),
    ([*EVAL, "--scorer", "generative", "--scorer-options", "engine=big", "--strategy", "best_of_n"], "--others"),
    ([*EVAL, "--record", "pool.jsonl"], "holds 1 problems already"),
    ([*QUICKSTART, "--model", "ponder-tiiny"], "did you mean 'ponder-tiny'"),
]


@pytest.mark.parametrize(("args", "says"), REFUSED, ids=lambda v: " ".join(v[-2:]) if isinstance(v, list) else "")
def test_a_refused_command_makes_no_directory(args, says, base, capsys) -> None:
    Path("pool.jsonl").write_text("")
    if "--record" in args:
        assert main([*EVAL, "-n", "1", "--record", "pool.jsonl"]) == 0
    model = ["--model", base] if args[1] in ("rl", "sft") else []
    assert main([*args, *model, "--out", "run"]) == 2
    assert says in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize("args", [RL, [*SFT, *ROWS], EVAL, PRETRAIN], ids=lambda args: args[1])
def test_a_run_with_results_is_replaced_by_request_only(args, base, monkeypatch, capsys) -> None:
    """And refused before a model is loaded."""
    with Run.create("run", "seed = 0\n", 0) as run:
        run.log({"step": 1, "mine": True})
    model = ["--model", base] if args[1] in ("rl", "sft") else []
    with monkeypatch.context() as patched:
        patched.setattr("ponder.models.load.load", lambda *args, **rest: pytest.fail("the model was loaded"))
        assert main([*args, *model, "--out", "run"]) == 2
    assert "already holds a run; continue it with --resume, replace it with --overwrite" in capsys.readouterr().err
    assert "mine" in Path("run/metrics.jsonl").read_text()
    if args is PRETRAIN:
        return  # takes long
    assert main([*args, *model, "--out", "run", "--overwrite"]) == 0
    metrics = Path("run/metrics.jsonl")
    assert not metrics.exists() or "mine" not in metrics.read_text()
    assert "overwrite = true" not in Path("run/config.toml").read_text()
    assert main([*args, *model, "--out", "run", "--overwrite", "--resume"]) == 2


LEFT = ["metrics.jsonl", "rollouts.jsonl", "curves.json", "evaluation.json", "model/x", "checkpoints/step-000000/x"]


@pytest.mark.parametrize("name", LEFT)
def test_whatever_could_be_lost_or_continued_is_a_result(name) -> None:
    began("run")
    refuse_existing("run")
    path = Path("run") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}\n")
    with pytest.raises(UserError, match="already holds a run"):
        refuse_existing("run")
    refuse_existing("run", overwrite=True)


def test_a_run_that_another_process_has_just_begun_is_refused_at_once() -> None:
    run = Run.create("run", "seed = 0\n", 0)
    try:
        for overwrite in (False, True):
            with pytest.raises(UserError, match="another process is writing this run"):
                refuse_existing("run", overwrite)
    finally:
        run.close()
