"""The scripts of `ponder completion` know every verb, its flags and the names of parts."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ponder import registry
from ponder.cli import completion
from ponder.cli.main import verbs


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    known, after = completion.flags_of_verbs(), completion.words_after()
    for name in completion.SHELLS:
        (folder / name).write_text(getattr(completion, name)(known, after) + "\n")
    return folder


def test_every_verb_has_its_flags() -> None:
    found = completion.flags_of_verbs()
    assert {verb.partition(" ")[0] for verb in found} == set(verbs())
    assert {"--model", "--environment-options", "--budget-tokens", "--config"} <= set(found["eval"])
    assert {"--lora-rank", "--fit.max-tokens", "--epochs"} <= set(found["train sft"])
    assert "--to" in found["report"]
    assert all("--help" in known for known in found.values())


def test_flags_that_take_few_words_have_them() -> None:
    after = completion.words_after()
    parts = {part.name.replace("_", "-") for part in registry.listing("environments")}
    assert set(after["eval", "--environment"]) == parts
    assert after["export", "--gguf"] == ["f16", "q8_0"]
    assert after["train rl", "--rewards"] == ["judge", "shuffled"]
    assert after["report", "--to"] == ["inspect"]
    assert "ponder-tiny" in after["solve", "--model"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("ponder ev", "eval"),
        ("ponder train ", "pretrain rl sft"),
        ("ponder eval --environment cou", "countdown"),
        ("ponder eval --environment = cou", "countdown"),
        ("ponder export --gguf =", "f16 q8_0"),
        ("ponder eval -n 8 --budget-t", "--budget-tokens"),
        ("ponder train rl --rewards ", "judge shuffled"),
        ("ponder train sft --lora-r", "--lora-rank"),
        ("ponder train rl --epo", ""),
        ("ponder list verif", "verifiers"),
        ("ponder report ", ""),  # the name of a file
    ],
)
def test_bash_offers(scripts: Path, line: str, offered: str) -> None:
    words = line.split(" ")  # bash itself makes three of --flag=value
    ask = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ponder; echo "${COMPREPLY[*]}"'
    done = subprocess.run(
        ["bash", "-c", ask, "bash", str(scripts / "bash"), *words], capture_output=True, text=True, check=True
    )
    assert (done.stdout.strip(), done.stderr) == (offered, "")


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_shell_takes_the_script(scripts: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    done = subprocess.run([shell, "-n", str(scripts / shell)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
