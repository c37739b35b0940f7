"""The command: verbs are found, errors are one sentence with the right exit code, nothing prints a traceback."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ponder.cli import main as command
from ponder.config import size
from ponder.errors import PonderError, UserError

PONDER = [sys.executable, "-c", "import sys; from ponder.cli.main import main; sys.exit(main())"]


def run(*args: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PONDER, *args], capture_output=True, text=True, check=False, **kwargs)  # type: ignore[call-overload]


def test_every_verb_is_listed_with_its_summary() -> None:
    out = run("--help")
    assert out.returncode == 0
    folder = Path(command.__file__).parent
    files = {p.stem for p in folder.glob("*.py")} - command.HELPERS
    expected = {f.replace("_", "-") for f in files if not f.startswith("_")}
    listed = dict(line.strip().split(maxsplit=1) for line in out.stdout.splitlines() if line.startswith("  "))
    assert expected <= set(listed)
    assert {"list", "eval", "solve", "report"} <= expected
    assert all(len(summary) > 10 for summary in listed.values())


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    script = (
        "import sys, time; from ponder.cli.main import main; main(['--help']); "
        "print(*sorted({'torch', 'transformers', 'matplotlib', 'numpy', 'tyro', 'msgspec'} & set(sys.modules)));"
        "print(time.process_time())"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    *_, heavy, seconds = out.stdout.splitlines()
    assert heavy == ""
    # Of the processor, so that a busy machine does not count; 0.1 s is usual.
    assert float(seconds) < 1


VERBS = [*(v for v in command.verbs() if v != "train"), "train pretrain", "train sft", "train rl"]


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = command.main([*verb.split(), "--help"])
    except SystemExit as done:
        code = done.code
    out = capsys.readouterr().out
    assert code in (0, None)
    examples = re.split(r"^examples?\b[^:\n]*:", out, flags=re.M)[1]
    assert re.search(rf"^ *ponder {verb}", examples, re.M)
    assert "(default: None)" not in out


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_of_a_verb_have_flags_that_it_knows(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        command.main([*verb.split(), "--help"])
    examples, rest = [], []
    for line in capsys.readouterr().out.splitlines():
        (examples if re.match(rf" *(example: )?ponder {verb}", line) else rest).append(line)
    flags = re.compile(r"--[a-z][a-z.-]*")
    assert examples
    assert set(flags.findall(" ".join(examples))) - {"--config"} <= set(flags.findall(" ".join(rest)))


def test_version() -> None:
    from importlib.metadata import version

    assert run("--version").stdout == f"ponder {version('ponder')}\n"


def test_an_unknown_verb_names_the_nearest() -> None:
    out = run("solv", "x")
    assert out.returncode == 2
    assert out.stderr == "ponder: unknown verb 'solv'; did you mean 'solve'?; see ponder --help\n"


def test_no_verb_is_bad_usage() -> None:
    out = run()
    assert out.returncode == 2
    assert "verbs:" in out.stdout


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("x.toml: no such file"), 2, "ponder: x.toml: no such file\n"),
        (PonderError("loss is NaN at step 3"), 1, "ponder: loss is NaN at step 3\n"),
        (KeyboardInterrupt(), 130, "ponder: interrupted\n"),
        (MemoryError(), 1, "ponder: out of memory: use a smaller batch, fewer samples or a smaller model\n"),
        (
            OSError(errno.ENOSPC, "no space", "a.bin"),
            1,
            "ponder: a.bin: the disk is full; free some space and try again\n",
        ),
        (
            KeyError("x"),
            1,
            "ponder: KeyError: 'x'; this is a bug; run with PONDER_DEBUG=1 for the traceback\n",
        ),
        (SystemExit(2), 2, ""),
        (SystemExit(None), 0, ""),
        (UserError("model text \ud800 in a message"), 2, "ponder: model text \\ud800 in a message\n"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: list[str]) -> int:
        raise error

    monkeypatch.setattr(command, "_dispatch", fail)
    monkeypatch.delenv("PONDER_DEBUG", raising=False)
    assert command.main(["list"]) == code
    assert capsys.readouterr().err == said


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(args: list[str]) -> int:
        raise KeyError("x")

    monkeypatch.setattr(command, "_dispatch", fail)
    monkeypatch.setenv("PONDER_DEBUG", "1")
    assert command.main(["list"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    out = subprocess.run([*PONDER, "--help"], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert out.stderr == ""
    assert out.returncode == 1


def test_list_knows_every_kind() -> None:
    import json

    found = json.loads(run("list", "--json").stdout)
    assert {r["name"] for r in found["environments"]} >= {"countdown", "arithmetic", "gsm8k", "jsonl"}
    assert {r["name"] for r in found["strategies"]} >= {"direct", "best-of-n", "budget-forcing"}
    assert {r["name"] for r in found["engines"]} >= {"torch", "simulated", "replay"}
    assert {r["name"] for r in found["scorers"]} >= {"generative"}
    assert {r["name"] for r in found["models"]} >= {"ponder-tiny", "smollm2-135m"}
    assert all(r["summary"] for rows in found.values() for r in rows)
    plain = run("list", "strategies").stdout
    assert [line.split()[0] for line in plain.splitlines()] == [r["name"] for r in found["strategies"]]


def test_list_refuses_an_unknown_kind() -> None:
    out = run("list", "strategy")
    assert out.returncode == 2
    assert "unknown kind 'strategy'; did you mean 'strategies'?" in out.stderr


@pytest.mark.parametrize(
    ("text", "number"),
    [("", None), ("4096", 4096), ("2GiB", 2 << 30), ("2G", 2 << 30), ("1.5KB", 1500), ("500 mb", 500_000_000)],
)
def test_sizes_are_read_with_decimal_and_binary_units(text: str, number: int | None) -> None:
    assert size(text, "--kv-memory") == number


@pytest.mark.parametrize("text", ["two", "-1", "0", "1GiX", "G"])
def test_a_size_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(UserError, match="--kv-memory"):
        size(text, "--kv-memory")


@pytest.mark.parametrize(
    "kind", ["environments", "strategies", "engines", "verifiers", "scorers", "advantages", "losses"]
)
def test_every_part_shows_its_options_with_a_line_each(kind, capsys):
    from ponder.cli import list as listing

    for row in listing.rows(kind):
        assert command.main(["list", kind, row["name"], "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["summary"]
        assert found["example"].startswith("ponder ")
        assert all(option["summary"] for option in found["options"])


def test_a_part_by_name_is_explained_and_an_unknown_one_names_the_nearest(capsys):
    assert command.main(["list", "environments", "jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "answer_field (default: answer)" in shown
    assert "example:\n  ponder eval --environment jsonl --environment-options data=DATA" in shown
    assert command.main(["list", "environments", "jsnl"]) == 2
    assert "did you mean 'jsonl'" in capsys.readouterr().err
