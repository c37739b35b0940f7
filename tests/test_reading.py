"""Files that users name: whatever they are, one sentence, and nothing waits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ponder import jsonl, reading
from ponder.cli.main import main
from ponder.errors import TooLong, UserError
from ponder.models.base import LIKELY
from ponder.models.tiny import new_model
from ponder.types import Message


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, str]]:
    """Files by what they are, and what is said of them."""
    monkeypatch.setattr(reading, "CONFIG_BYTES", 100_000)
    monkeypatch.setattr(reading, "STATE_BYTES", 1_000_000)
    monkeypatch.setattr(jsonl, "LONGEST", 1_000_000)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "deep").write_text("[" * 100_000 + "]" * 100_000)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    said = {
        "pipe": "is a pipe, not a regular file",
        "deep": "not valid|bytes",
        "binary": "UTF-8|not valid JSON",
        "huge": "bytes",
    }
    return {name: (str(tmp_path / name), text) for name, text in said.items()} | {
        "device": ("/dev/zero", "is a device, not a regular file"),
        "folder": (str(tmp_path), "is a folder"),
        "missing": (str(tmp_path / "nowhere"), "no such"),
    }


@pytest.mark.parametrize("what", ["pipe", "deep", "binary", "huge", "device", "folder", "missing"])
@pytest.mark.parametrize(
    "command",
    [
        ["solve", "--continue"],
        ["eval", "--config"],
        ["replay"],
        ["eval", "--engine", "simulated", "--environment", "jsonl", "--data"],
        ["solve", "hi", "--engine", "simulated", "--budget-dollars", "1", "--prices"],
    ],
    ids=["continue", "config", "pool", "data", "prices"],
)
def test_a_file_that_is_no_such_file_is_one_sentence(command, what, odd, capsys) -> None:
    path, said = odd[what]
    assert main([*command, path]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert any(part in err for part in said.split("|")), err


@pytest.mark.parametrize("number", ["7" * 6000, "-" + "7" * 6000])
def test_a_number_of_too_many_digits_is_refused_by_its_line(number, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"answer": 1}}\n{{"answer": {number}}}\n')
    with pytest.raises(UserError, match=r"rows.jsonl: line 2 is not valid JSON: it holds a whole number of more than"):
        list(jsonl.objects(path))


@pytest.mark.parametrize(
    "state",
    [
        '{"format": "ponder-search-1", "journal": {"answers": [{"ask": 1e999, "work": "", "kind": "x", "value": 1}]}}',
        '{"format": "ponder-search-1", "journal": {"answers": [1]}}',
        '{"format": "ponder-search-1", "journal": []}',
        '{"format": "ponder-search-1", "journal": {"answers": 3}}',
    ],
)
def test_what_is_no_state_of_a_search_is_one_sentence(state, tmp_path: Path, capsys) -> None:
    path = tmp_path / "state.json"
    path.write_text(state)
    assert main(["solve", "--continue", str(path)]) == 2
    assert "not a saved search" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a", " ", "word ", "<think>", "é"])
def test_a_prompt_of_10_mb_is_refused_after_a_look(text, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = new_model(0), []
    encode = model.tokenizer.encode

    def counted(part: str, **options: bool) -> list[int]:
        seen.append(len(part))
        return encode(part, **options)

    monkeypatch.setattr(model.tokenizer, "encode", counted)
    long = text * (10_000_000 // len(text))
    for prompt in (long, (Message("user", "hi"), Message("user", long))):
        seen.clear()
        with pytest.raises(TooLong, match=r"more than 1,024 tokens, and .* has a context of 1,024"):
            model.prompt_ids(prompt)
        assert sum(seen) <= 4 * LIKELY * 1024


def test_a_long_text_of_few_tokens_is_tokenised_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model(0)
    monkeypatch.setattr(model.tokenizer, "encode", lambda text, **_: [5] * (len(text) // 100))
    model.take_plain_prompts()
    assert len(model.prompt_ids("x" * 50_000)) == 500
