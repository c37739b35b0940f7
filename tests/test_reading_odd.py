"""Files that no run of ponder writes: what stands in them is one sentence, never `this is a bug`, and nothing hangs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ponder.cli.main import main
from ponder.errors import UserError
from ponder.reading import DEEPEST, loads
from ponder.runs.run import refuse_existing

EVAL = ["eval", "--engine", "simulated", "--environment", "simulated", "-n", "3", "--show", "0"]
BIG = int("1" * 400)
READERS = {
    "report": ["report", "run"],
    "trees": ["report", "run", "--problem", "simulated-test-0"],
    "compare": ["report", "run", "whole"],
    "inspect": ["report", "run", "--to", "inspect"],
    "view": ["view", "run", "--out", "page.html"],
    "replay": ["replay", "run", "--environment", "simulated"],
    "engine": ["eval", "--engine", "replay", "--model", "run/rollouts.jsonl", "--environment", "simulated", "-n", "2"],
    "resume": ["eval", "--resume", "--out", "run"],
}


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)


def refused(args: list[str], capsys) -> str:
    """What a command says that ends with an exit code and no traceback."""
    assert main(args) in (0, 1, 2)
    said = capsys.readouterr().err
    assert "this is a bug" not in said, (args, said)
    return said


ODD = {
    "index": [-1, "x", BIG],
    "sample": [-1, [None]],
    "chosen": [[], "x"],
    "problem": [[], 3],
    "at": [BIG, "x"],
    "vote_share": [BIG, "x"],
    "spend.prompt_tokens": [BIG, -1, "x", [None]],
    "samples.0.tokens": [BIG, -1, "x"],
    "samples.0.mean_logprob": [BIG, "x"],
    "samples.0.check": [-1, True],
    "samples.0.verdict.reward": [BIG, "x"],
    "samples.0.spend.seconds": ["x", BIG],
}


def test_odd_values_in_a_line_of_searches(capsys) -> None:
    assert main([*EVAL, "--out", "whole"]) == 0
    assert main([*EVAL, "--out", "run"]) == 0
    path = Path("run/rollouts.jsonl")
    first, *rest = path.read_text().splitlines()
    for name, values in ODD.items():
        for value in values:
            row = json.loads(first)
            *way, last = name.split(".")
            place = row
            for key in way:
                place = place[int(key) if key.isdigit() else key]
            place[last] = value
            path.write_text("\n".join([json.dumps(row), *rest]) + "\n")
            for reader in READERS.values():
                refused(reader, capsys)
    path.write_text("\n".join([json.dumps({**json.loads(first), "index": -1}), *rest]) + "\n")
    said = refused(READERS["resume"], capsys)
    assert "rollouts.jsonl: line 1 is no search that ponder wrote: index: expected `int` >= 0" in said


@pytest.mark.parametrize("depth", [DEEPEST + 20, 900, 100_000])
def test_json_that_is_nested_too_deeply(depth, capsys) -> None:
    assert main([*EVAL, "--out", "whole"]) == 0
    assert main([*EVAL, "--out", "run"]) == 0
    deep = "[" * depth + "]" * depth
    for name in ("manifest.json", "summary.json", "evaluation.json", "samples.json", "rollouts.jsonl", "config.toml"):
        path = Path("run") / name
        before = path.read_text()
        if name.endswith(".jsonl"):
            first, *rest = before.splitlines()
            written = "\n".join([first[:-1] + f', "metadata": {deep}}}', *rest]) + "\n"
        elif name.endswith(".toml"):
            written = f"deep = {deep}\n{before}"
        else:
            written = deep if before.startswith("[") else before.rstrip()[:-1] + f', "facts": {deep}, "z": {deep}}}'
        for key in ("report", "trees", "compare", "inspect", "view", "resume"):
            path.write_text(written)
            refused(READERS[key], capsys)
        path.write_text(before)
    Path("search.json").write_text('{"format": "ponder-search-1", "journal": ' + deep + "}")
    assert f"nested more than {DEEPEST} levels deep" in refused(["solve", "--continue", "search.json"], capsys)


def test_what_is_not_too_deep_is_read() -> None:
    assert loads("[" * DEEPEST + "]" * DEEPEST) is not None
    assert loads('{"a": ' * 3 + "[]" + "}" * 3) == {"a": {"a": {"a": []}}}
    assert len(loads("[" + "[]," * 5000 + "[]]")) == 5001
    for text in ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), b"[" * 100_000 + b"]" * 100_000):
        with pytest.raises(ValueError, match="levels deep"):
            loads(text)


@pytest.mark.parametrize(
    "args",
    [
        [*EVAL, "--config", "pipe"],
        [*EVAL, "--prices", "pipe", "--total-dollars", "1"],
        [*EVAL, "--record", "pipe"],
        ["solve", "--continue", "pipe"],
        ["solve", "hi", "--engine", "simulated", "--save", "pipe"],
        ["solve", "hi", "--model", "pipe.gguf"],
        ["train", "rl", "--config", "pipe"],
        ["train", "rl", "--data", "pipe"],
        ["train", "sft", "--data", "pipe"],
        ["quickstart", "--config", "pipe"],
        ["replay", "pipe"],
        ["eval", "--engine", "simulated", "--environment", "pipe.jsonl"],
    ],
    ids=lambda args: " ".join(args[-2:]),
)
@pytest.mark.timeout(20)
def test_nothing_waits_for_a_pipe(args, capsys) -> None:
    for name in ("pipe", "pipe.gguf", "pipe.jsonl"):
        os.mkfifo(name)
    assert main(args) == 2
    assert "is a pipe, not a regular file" in capsys.readouterr().err
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize("key", ["out", "record", "prices", "data", "model", "environment", "strategy", "scorer"])
def test_a_nul_in_a_config(key, capsys) -> None:
    Path("c.toml").write_text(f'{key} = "a\\u0000b"\n')
    assert "\x00" not in refused(["eval", "--engine", "simulated", "--config", "c.toml"], capsys)


@pytest.mark.parametrize("verb", [["train", "rl"], ["train", "sft"], ["train", "pretrain"], ["quickstart"]])
def test_a_nul_in_the_name_of_a_run(verb, capsys) -> None:
    Path("c.toml").write_text('out = "a\\u0000b"\n')
    assert "holds a NUL character" in refused([*verb, "--config", "c.toml"], capsys)
    Path("c.toml").write_bytes(b"seed = 1\0\n")
    assert "c.toml: not valid TOML" in refused([*verb, "--config", "c.toml"], capsys)


@pytest.mark.parametrize("verb", [EVAL, ["train", "rl"], ["train", "sft"], ["train", "pretrain"], ["quickstart"]])
def test_a_seed_of_5000_digits(verb, capsys) -> None:
    Path("c.toml").write_text(f"seed = {'1' * 5000}\n")
    assert "more than 4,300 digits" in refused([*verb, "--config", "c.toml"], capsys)
    assert main([*verb, "--seed", "1" * 5000]) == 2
    assert "this is a bug" not in capsys.readouterr().err


def test_a_run_of_special_files_is_no_run(capsys) -> None:
    Path("run").mkdir()
    for name in ("manifest.json", "config.toml", "rollouts.jsonl"):
        os.mkfifo(Path("run") / name)
    for reader in ("report", "view", "resume"):
        assert "is a pipe" in refused(READERS[reader], capsys)
    with pytest.raises(UserError, match="is a pipe"):
        refuse_existing("run")
