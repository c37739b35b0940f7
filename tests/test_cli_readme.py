"""The README: its commands exist, and its example of an environment is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ponder import registry
from ponder.cli.main import verbs
from ponder.types import Response, VerdictKind

README = Path(__file__).parent.parent / "README.md"


def test_every_verb_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"(?:`|^)ponder ([a-z-]+)", README.read_text(), re.M)) - {"is"}
    assert {"eval", "solve", "train", "list"} <= named
    assert named <= set(verbs())


def test_the_example_environment_gives_its_own_gold_answer_reward_one(tmp_path: Path) -> None:
    code = re.search(r"```python\n(# mine\.py.*?)```", README.read_text(), re.S)
    assert code is not None
    (tmp_path / "mine.py").write_text(code[1])
    made = registry.build("environments", f"{tmp_path / 'mine.py'}:Mine", {"digits": 4})
    prompts = {split: [made.problem(split, i).prompt for i in range(20)] for split in ("train", "test")}
    assert len(set(prompts["train"]) | set(prompts["test"])) == 40
    problem = made.problem("test", 0)
    assert problem.prompt == "Write 1001 backwards."
    assert made.judge(problem, Response(made.gold_response(problem))).reward == 1.0
    assert made.judge(problem, Response("1010")).kind is VerdictKind.WRONG


@pytest.mark.parametrize("target", ["quickstart", "test", "lint", "bench", "install"])
def test_every_target_sets_up_the_environment_first(target: str) -> None:
    makefile = (README.parent / "Makefile").read_text()
    assert re.search(rf"^{target}: \$\(STAMP\)", makefile, re.M)
