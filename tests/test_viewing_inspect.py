"""`ponder report --to inspect`: an evaluation as a log of inspect_ai."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from viewing_play import line, make, rollout

from ponder.cli.main import main
from ponder.runs.files import append_line
from ponder.runs.run import Run


def exported(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, dict[str, Any]]:
    assert main(["report", str(run), "--to", "inspect"]) == 0
    path = Path(capsys.readouterr().out.strip())
    return path, json.loads(path.read_text())


def odd(path: Path) -> Path:
    """An evaluation with messages, branches, a failed judge, a search that was run again, and odd text."""
    rng = random.Random(0)
    with Run.create(path, 'environment = "./my env.py:Maths"\nstrategy = "beam"\n', 0, ["ponder", "eval"]) as run:
        first = line(rng, 0, 0, 2, 3, "no_answer")
        again = line(rng, 0, 0, 2, 3, "correct")
        again["prompt"] = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "2 times 3?"}]},
            {"role": "developer", "content": None},
        ]
        again["samples"].append({**again["samples"][0], "id": 1, "parent": 0, "text": "<script> \ud800", "score": 0.5})
        failed = line(rng, 1, 0, 2, 3, "wrong")
        failed["verdict"] = {"kind": "judge_error", "reward": None, "reason": "the sandbox is down"}
        nothing = line(rng, 2, 1, 2, 3, "no_answer") | {"chosen": None, "samples": [], "stop": "budget"}
        for row in (first, again, failed, nothing):
            run.log_rollout(row)
        run.write_json("samples.json", [{"problem_id": "made-up-test-0", "gold": 6}])
    return path


def test_a_log_says_what_the_evaluation_found(tmp_path, capsys):
    run = make(tmp_path / "run", 12, 2, seed=0)
    path, log = exported(run, capsys)
    lines = [json.loads(text) for text in (run / "rollouts.jsonl").read_text().splitlines()]
    accuracy = json.loads((run / "evaluation.json").read_text())["accuracy"]
    assert path.parent == run / "inspect"
    assert (log["version"], log["status"], log["eval"]["task"]) == (2, "success", "made-up")
    assert log["results"]["scores"][0]["metrics"]["accuracy"]["value"] == accuracy["value"]
    assert log["results"]["scores"][0]["metrics"]["accuracy"]["metadata"]["low"] == accuracy["low"]
    assert log["eval"]["config"] == {"limit": 12, "epochs": 2}
    letters = {"correct": "C", "wrong": "I", "no_answer": "N"}
    for sample, found in zip(log["samples"], lines, strict=True):
        assert (sample["id"], sample["epoch"] - 1) == (found["problem"], found["sample"])
        assert sample["scores"]["ponder"]["value"] == letters[found["verdict"]["kind"]]
        assert sample["scores"]["ponder"]["answer"] == found["verdict"]["answer"]
        assert sample["output"]["completion"] == found["samples"][0]["text"]
        assert sample["output"]["usage"]["output_tokens"] == found["spend"]["sampled_tokens"]
        thought, _, answer = found["samples"][0]["text"].partition("</think>")
        parts = [{"type": "reasoning", "reasoning": thought}, {"type": "text", "text": answer}]
        assert sample["messages"][-1]["content"] == (parts if answer else parts[:1])


def test_what_was_run_again_counts_once_and_a_failed_judge_not_at_all(tmp_path, capsys):
    _, log = exported(odd(tmp_path / "run"), capsys)
    first, failed, nothing = log["samples"]
    assert first["scores"]["ponder"]["value"] == "C"
    assert first["target"] == "6"
    assert [m["role"] for m in first["messages"]] == ["system", "user", "user", "assistant"]
    assert first["metadata"]["branches"][1]["score"] == 0.5
    assert failed["scores"] == {}
    assert failed["error"]["message"] == "the sandbox is down"
    assert nothing["scores"]["ponder"]["value"] == "N"
    assert log["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 0.5


@pytest.mark.parametrize("made", [odd, lambda path: make(path, 5, 2, seed=0)], ids=["odd", "usual"])
def test_inspect_ai_itself_reads_the_log(tmp_path, capsys, made):
    log = pytest.importorskip("inspect_ai.log")
    path, written = exported(made(tmp_path / "run"), capsys)
    assert [info.name for info in log.list_eval_logs(str(path.parent))] == [path.as_uri()]
    read = log.read_eval_log(str(path))
    assert read.status == "success"
    assert [s.id for s in read.samples] == [s["id"] for s in written["samples"]]


@pytest.mark.parametrize("what", ["training", "nothing", "half", "missing", "version"])
def test_what_is_no_evaluation_is_refused_in_one_sentence(tmp_path, capsys, what):
    run = make(tmp_path / "run", 2, 1, seed=0)
    if what == "training":
        append_line(run / "rollouts.jsonl", rollout(1, 0, (0.0, 1.0)))
    elif what == "nothing":
        (run / "rollouts.jsonl").write_text("")
    elif what == "half":
        append_line(run / "rollouts.jsonl", {"index": 3, "verdict": {}, "samples": [], "problem": "x"})
    elif what == "missing":
        shutil.rmtree(run)
    else:
        (run / "manifest.json").write_text('{"format": "other"}')
    assert main(["report", str(run), "--to", "inspect"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(run) in said
    assert not (run / "inspect").exists()


def test_it_goes_with_one_run(tmp_path, capsys):
    run = str(make(tmp_path / "run", 2, 1, seed=0))
    assert main(["report", run, run, "--to", "inspect"]) == 2
    assert "--to goes with one run" in capsys.readouterr().err
