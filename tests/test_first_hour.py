"""The first hour of a new user: own data, a refusal and its correction, stop and resume, an export that is measured.

Each test is a walk, in order, with commands as they are typed; what `test_readme_commands.py` runs is not repeated.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ponder.cli.main import main

PONDER = [sys.executable, "-c", "import sys; from ponder.cli.main import main; sys.exit(main())"]
SMALL = "--problems 3 --group-size 4 --strategy-options thought_tokens=16"
MINE = '''
from dataclasses import dataclass

from ponder.environments.base import SingleTurn
from ponder.types import Gold, Problem, Verdict, VerdictKind


@dataclass(frozen=True)
class Mine(SingleTurn):
    """Name a number's successor."""

    name = "mine"

    def problem(self, split, index):
        return Problem(f"mine-{split}-{index}", f"What is {index} plus 1?", {"number": index})

    def gold(self, problem):
        return Gold(str(problem.public["number"] + 1))

    def verdict(self, problem, answer):
        kind = VerdictKind.CORRECT if answer == self.gold(problem).answer else VerdictKind.WRONG
        return Verdict(kind, float(kind is VerdictKind.CORRECT), f"the answer is {answer!r}", answer.nonesuch)
'''

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ponder(tmp_path, monkeypatch, capsys) -> Run:
    """Runs a command line in a new user's folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    for name, count in (("ten", 10), ("sixty", 60)):
        rows = [
            {"prompt": f"What is {n} plus 1?", "answer": str(n + 1), "response": f"{n}+1={n + 1}</think>{n + 1}"}
            for n in range(count)
        ]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(line.split())
        except SystemExit as done:
            code = int(done.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def texts(run: str) -> dict[str, str]:
    """The response to each problem of an evaluation."""
    rows = map(json.loads, (Path(run) / "rollouts.jsonl").read_text().splitlines())
    return {row["problem"]: row["samples"][0]["text"] for row in rows}


def rows_of(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def test_ten_questions_of_ones_own_are_measured_and_trained_on(ponder: Run) -> None:
    code, _, err = ponder("eval --environment ten.jsonl --show 0")
    assert code == 0
    assert "has 1 test problem, fewer than -n 64: it is used" in err
    hint = re.search(r"all of them with (--environment-options test_share=1)\)", err)
    assert hint is not None
    code, out, _ = ponder(f"eval --environment ./ten.jsonl {hint[1]} --json")
    assert (code, json.loads(out)["problems"]) == (0, 10)

    train = f"train rl --data ten.jsonl --out runs/mine {SMALL}"
    code, _, err = ponder(f"{train} --lora-rank 4 --lora-targets q_prj --steps 2")
    assert (code, err.count("\n")) == (2, 1)
    assert "did you mean 'q_proj'?" in err
    code, _, err = ponder(f"{train} --lora-rank 500 --lora-targets q_proj --steps 2")
    assert (code, "give at most" in err, Path("runs/mine").exists()) == (2, True, False)
    code, out, err = ponder(f"{train} --lora-rank 4 --lora-targets q_proj --steps 2")
    assert (code, "report: runs/mine/report.html" in out) == (0, True), err
    assert "held-out accuracy" in err

    before = rows_of("runs/mine")
    code, _, err = ponder("eval --resume --out runs/mine")
    assert (code, "is a run of ponder train rl" in err) == (2, True)
    again = "train rl --config runs/mine/config.toml --resume"
    code, _, err = ponder(f"{again} --steps 1")
    assert (code, "has done 2 steps already" in err) == (2, True)
    code, _, err = ponder(again)
    assert (code, "resumed after step 2 of 2: nothing is left to train" in err) == (0, True)
    assert rows_of("runs/mine") == before
    code, _, err = ponder(f"{again} --steps 3")
    assert (code, "resumed after step 2 of 3\n" in err, "step 3: held-out accuracy" in err) == (0, True, True)
    assert (rows_of("runs/mine")[:2], len(rows_of("runs/mine"))) == (before, 3)


def test_an_exported_lora_gives_the_answers_of_its_run(ponder: Run) -> None:
    code, _, err = ponder("train sft --data ten.jsonl --lora-rank 4 --steps zero --out runs/lora")
    assert (code, "--steps" in err, Path("runs").exists()) == (2, True, False)
    code, _, err = ponder(
        "train sft --data sixty.jsonl --lora-rank 8 --steps 30 --fit.batch-tokens 512 --out runs/lora"
    )
    assert code == 0, err
    for model, out in (("ponder-tiny", "base"), ("runs/lora", "run")):
        assert ponder(f"eval --model {model} --environment sixty.jsonl --out runs/{out}")[0] == 0
    assert texts("runs/run") != texts("runs/base")

    code, out, _ = ponder("export runs/lora whole --merge --json")
    assert (code, Path(json.loads(out)["folder"]).name) == (0, "whole")
    assert ponder("eval --model whole --environment sixty.jsonl --out runs/whole")[0] == 0
    assert texts("runs/whole") == texts("runs/run")

    code, out, _ = ponder("report runs/run runs/whole --json")
    compared = json.loads(out)
    assert (code, compared["difference"]["value"], compared["p"]) == (0, 0.0, 1.0)
    code, out, _ = ponder("report runs/base runs/lora")
    assert (code, out) == (2, "")


def test_a_fault_in_an_environment_of_ones_own_is_found_and_mended(ponder: Run) -> None:
    Path("mine.py").write_text(MINE)
    line = MINE.splitlines().index(next(t for t in MINE.splitlines() if "nonesuch" in t)) + 1
    command = "eval --environment ./mine.py:Mine -n 4 --out runs/mine"
    code, _, err = ponder(command)
    assert (code, f"has no attribute 'nonesuch' (mine.py:{line})" in err) == (1, True)
    training = f"train rl --environment ./mine.py:Mine --steps 1 --eval-problems 0 --out runs/rl {SMALL} --problems 1"
    code, _, err = ponder(training)
    assert (code, "4 of 4 judgements failed" in err, f"mine.py:{line}" in err) == (1, True, True)

    Path("mine.py").write_text(MINE.replace("answer.nonesuch", "answer"))
    for again, result in ((command, "evaluation.json"), (training, "summary.json")):
        code, _, err = ponder(f"{again} --overwrite")
        assert (code, Path(f"{again.split('--out ')[1].split()[0]}/{result}").exists()) == (0, True), err


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_evaluation_without_out_that_is_stopped_is_resumed_as_it_says(stop, ponder: Run) -> None:
    quick = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*PONDER, *shlex.split("eval -n 24 --concurrency 1 --max-tokens 32 --seed 3 --show 0 --json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quick) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(stop)
        out, err = process.communicate(timeout=60)
    assert "1/24 searches" in first
    assert process.returncode == 130, err
    ended = json.loads(out)["partial"]["ended"]
    assert 1 <= ended < 24
    resume = re.search(r"continue with: ponder (eval --resume --out runs/eval-\S+)", err)
    assert resume is not None
    code, out, err = ponder(f"{resume[1]} --json")
    assert (code, json.loads(out)["problems"]) == (0, 24), err
    assert len(texts(resume[1].split()[-1])) == 24
