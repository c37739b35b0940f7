"""Every example runs as it stands, in an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
SAYS = {
    "ask_once": ("Outcome(answer=", "judge: "),
    "majority_under_a_budget": ("majority ", "best_of_n "),
    "own_environment": ("Evaluation(accuracy ",),
    "evaluate_and_compare": ("160 tokens of thought: Evaluation(", "Comparison(B is better than A: "),
    "train_and_plot": ("step 2: ", "report.html"),
    "engine_in_your_loop": ("step 2: weights version 2",),
}


def test_there_is_something_to_expect_of_every_example():
    assert {p.stem for p in EXAMPLES} == set(SAYS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_short_and_runs(path, tmp_path):
    assert len(path.read_text().splitlines()) <= 30
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    for text in SAYS[path.stem]:
        assert text in done.stdout, done.stdout
