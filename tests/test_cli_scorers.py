"""--scorer on the command line: a built-in or a custom scorer in place of the environment's, within the budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ponder.cli.main import main

SIMULATED = ["--engine", "simulated", "--model", "s", "--environment", "simulated"]
UNCHECKED = ["--environment-options", "checked=false"]
MINE = """
from ponder.scorers.base import BaseScorer

class Shortest(BaseScorer):
    def value(self, problem, response):
        return -float(len(response.text))

class Nothing:
    pass
"""


def searches(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]


def scores(row: dict[str, Any]) -> list[float]:
    return [node["score"] for node in row["samples"]]


def test_a_custom_scorer_replaces_the_environments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    out, mine = tmp_path / "run", f"{tmp_path}/mine.py"
    best = [*UNCHECKED, "--strategy", "best_of_n", "--strategy-options", "n=3"]
    assert main(["eval", *SIMULATED, *best, "-n", "5", "--scorer", f"{mine}:Shortest", "--out", str(out)]) == 0
    for row in searches(out):
        assert scores(row) == [-len(node["text"]) for node in row["samples"]]
    assert f'scorer = "{mine}:Shortest"' in (out / "config.toml").read_text()
    capsys.readouterr()
    assert main(["eval", *SIMULATED, *best, "-n", "5", "--scorer", f"{mine}:Nothing"]) == 2
    assert "Nothing is not a scorer; derive it from ponder.scorers.base.BaseScorer" in capsys.readouterr().err


def test_a_model_judges_within_the_budget_of_each_search(tmp_path: Path) -> None:
    judged = ["--scorer", "generative", "--scorer-options", "engine=judge", "samples=2", "max_tokens=40"]
    best = [*UNCHECKED, "--strategy", "best_of_n", "--strategy-options", "n=2", "--others", "judge=b"]
    spent = {}
    for name, budget in (("whole", []), ("tight", ["--budget-tokens", "1200"])):
        out = tmp_path / name
        assert main(["eval", *SIMULATED, *best, *judged, "-n", "12", *budget, "--out", str(out)]) == 0
        rows = searches(out)
        spent[name] = [sum(row["spend"][f"{k}_tokens"] for k in ("prompt", "cached", "sampled")) for row in rows]
        if not budget:
            # The simulated model says neither yes nor no.
            assert [scores(row) for row in rows] == [[0.0, 0.0]] * 12
            assert all(row["spend"]["verifier_calls"] == 2 for row in rows)
    assert max(spent["whole"]) > 1200
    assert 0 < max(spent["tight"]) <= 1200


def test_a_saved_search_resumes_with_its_scorer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = str(tmp_path / "search.json")
    judged = ["--scorer", "generative", "--scorer-options", "samples=2", "max_tokens=40"]
    best = [*UNCHECKED, "--strategy", "best_of_n", "--strategy-options", "n=2", "by=scorer"]
    main(["solve", *SIMULATED, *best, *judged, "--budget-tokens", "900", "--save", saved])
    capsys.readouterr()
    main(["solve", "--continue", saved, "--budget-tokens", "90000", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["reason"] == "chosen by score"
    assert main(["solve", "--continue", saved, "--scorer", "other"]) == 2
    assert "--scorer is 'other', and the search was started with 'generative'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--scorer", "generativ"], "unknown scorer 'generativ'; did you mean 'generative'?"),
        (["--scorer-options", "samples=2"], "--scorer-options goes with --scorer"),
        (["--scorer", "generative", "--scorer-options", "sample=2"], "did you mean 'samples'?"),
        (["--scorer", "generative", "--scorer-options", "engine=big"], "calls an engine 'big' and there is none"),
    ],
)
def test_a_scorer_that_cannot_be_is_one_sentence(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in (["eval", "-n", "2"], ["solve"]):
        assert main([*verb, *SIMULATED, *flags]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert "Traceback" not in error
