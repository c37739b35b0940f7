"""A run of another verb is named as what it is, and a dash is an underscore wherever a name or a key is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from ponder import config as configs
from ponder.cli._eval_config import EvalConfig
from ponder.cli.main import main
from ponder.cli.quickstart import QuickstartConfig
from ponder.errors import UserError
from ponder.runs.kinds import kind_of, resuming
from ponder.runs.run import Run
from ponder.training.rl_config import RLConfig
from ponder.training.supervised import PretrainConfig, SFTConfig

CONFIGS = {
    "eval": EvalConfig,
    "train rl": RLConfig,
    "train sft": SFTConfig,
    "train pretrain": PretrainConfig,
    "quickstart": QuickstartConfig,
}
EVAL = ["eval", "--engine", "simulated", "--environment", "simulated", "-n", "2", "--show", "0"]


@pytest.fixture(autouse=True)
def runs(monkeypatch, tmp_path) -> None:
    """A run of each kind, named after it."""
    monkeypatch.chdir(tmp_path)
    for verb, cls in CONFIGS.items():
        with Run.create(verb.replace(" ", "-"), configs.to_toml(cls()), 0) as run:
            run.log({"step": 1})


def where(verb: str) -> str:
    return verb.replace(" ", "-")


def test_the_config_says_which_verb_a_run_is_of() -> None:
    for verb in CONFIGS:
        assert kind_of(Path(where(verb))) == verb
    with Run.create("other", "seed = 0\n", 0):
        pass
    assert kind_of(Path("other")) is None
    with pytest.raises(UserError, match="no such run directory"):
        kind_of(Path("none"))


@pytest.mark.parametrize("verb", CONFIGS)
@pytest.mark.parametrize("other", CONFIGS)
def test_a_run_of_another_verb_is_not_resumed_and_says_what_resumes_it(verb, other, capsys) -> None:
    if verb == other:
        return
    before = {p: p.read_bytes() for p in Path(where(other)).iterdir()}
    assert main([*verb.split(), "--resume", "--out", where(other)]) == 2
    said = capsys.readouterr().err
    command = resuming(Path(where(other)), other)
    assert f"{where(other)}: is a run of ponder {other}, not of ponder {verb}; resume it with: {command}" in said
    assert main([*verb.split(), "--resume", "--config", f"{where(other)}/config.toml", "--out", where(other)]) == 2
    said = capsys.readouterr().err
    assert f"ponder {other}, not of ponder {verb}" in said
    assert {p: p.read_bytes() for p in Path(where(other)).iterdir()} == before


@pytest.mark.parametrize("verb", CONFIGS)
@pytest.mark.parametrize("left", ["none", "empty", "notes"])
def test_what_holds_no_run_is_not_resumed(verb, left, capsys) -> None:
    Path("empty").mkdir()
    Path("notes").mkdir()
    Path("notes/notes.txt").write_text("mine")
    assert main([*verb.split(), "--resume", "--out", left]) == 2
    said = capsys.readouterr().err
    assert f"ponder: {left}: no such run directory" in said or f"ponder: {left}: not a run directory" in said


def test_other_verbs_name_the_kind_too(capsys) -> None:
    for args, says in (
        (["report", "eval", "train-rl"], "eval: not an evaluation"),  # it has none yet
        (["report", "train-rl", "eval"], "train-rl: is a run of ponder train rl; two evaluations are compared"),
        (["export", "eval", "out"], "eval: is a run of ponder eval, which holds no model"),
        (["solve", "1+1?", "--model", "eval"], "eval: is a run of ponder eval, which holds no model"),
        (["solve", "--config", "eval/config.toml", "1+1?"], "is the config of ponder eval, not of ponder solve"),
    ):
        assert main(args) == 2, args
        assert says in capsys.readouterr().err


def test_replay_takes_the_run_directory_of_an_evaluation(capsys) -> None:
    assert main([*EVAL, "--samples", "2", "--out", "done"]) == 0
    assert main(["replay", "done", "--environment", "simulated"]) == 0
    capsys.readouterr()
    Path("train-rl/rollouts.jsonl").write_text('{"step": 1, "problem": "x"}\n')
    assert main(["replay", "train-rl"]) == 2
    assert "rollouts of a training" in capsys.readouterr().err


# A dash is an underscore ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["--strategy", "best-of-n", "--strategy-options", "max-tokens=9", "n=2"],
        ["--strategy", "best_of_n", "--strategy_options", "max_tokens=9", "n=2"],
        ["--max_tokens", "9"],
        ["--max-tokens=9"],
    ],
)
def test_names_flags_and_options_of_the_command_line(args) -> None:
    assert main([*EVAL, *args]) == 0


def test_keys_of_a_config_and_of_its_tables() -> None:
    text = 'max-tokens = 9\nstrategy-options = {"top-p" = 0.9}\nenvironment-options = {"seed" = 2}\n'
    Path("c.toml").write_text(text)
    assert main([*EVAL, "--config", "c.toml"]) == 0
    read = configs.from_mapping(SFTConfig, {"raw-prompts": True, "data": "x", "fit": {"batch-tokens": 64}}, "c")
    assert (read.raw_prompts, read.fit.batch_tokens) == (True, 64)
    with pytest.raises(UserError, match="c: unknown key 'max-tokenz'; did you mean 'max_tokens'"):
        configs.from_mapping(EvalConfig, {"max-tokenz": 9}, "c")
    with pytest.raises(UserError, match="c: 'max_tokens' is given twice, as 'max-tokens' too"):
        configs.from_mapping(EvalConfig, {"max_tokens": 9, "max-tokens": 8}, "c")


class Plain:
    """A strategy that is no dataclass."""

    def __init__(self, max_tokens: int = 1) -> None:
        from ponder.search.strategies.direct import Direct

        self.start = Direct(max_tokens=max_tokens).start


def test_options_of_a_part_that_is_no_dataclass() -> None:
    assert main([*EVAL, "--strategy", f"{__file__}:Plain", "--strategy-options", "max-tokens=9"]) == 0


def test_parts_of_a_training() -> None:
    args = ["--environment", "arithmetic", "--environment-options", "max-operands=2", "--steps", "1"]
    args += ["--problems", "1", "--group_size", "2", "--strategy", "budget-forcing"]
    args += ["--strategy-options", "thought-tokens=4", "--eval-strategy", "best-of-n", "--eval-problems", "2"]
    args += ["--eval-strategy-options", "max-tokens=4", "--advantage", "mean-only", "--loss-options", "clip-high=0.3"]
    assert main(["train", "rl", *args, "--out", "run"]) == 0


def test_tasks_of_reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym")
    args = ["--environment", "reasoning_gym:chain-sum", "--environment-options", "options={min-terms=2}"]
    assert main(["eval", "--engine", "simulated", *args, "-n", "2", "--show", "0"]) == 0
