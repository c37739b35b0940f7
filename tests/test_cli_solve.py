"""`ponder solve`: the thought on stderr, the answer alone on stdout, and a clear word where there is none."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mocks import THOUGHT, MockEngine

from ponder.cli._common import ModelOptions
from ponder.cli._screen import Splitter
from ponder.cli.main import main
from ponder.types import FinishReason, ThoughtFormat, split_response

QUESTION = "Make 24 from 3 5 7 2."


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> MockEngine:
    made = MockEngine(texts="5+7=12, 12*2=24</think>(5+7)*2")

    @contextlib.contextmanager
    def opened(options: ModelOptions, *, raw_prompts: bool = False) -> Iterator[MockEngine]:
        yield made

    for module in ("solve", "_common"):
        monkeypatch.setattr(f"ponder.cli.{module}.engine_for", opened)
    return made


def test_the_answer_is_alone_on_stdout(engine: MockEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", QUESTION]) == 0
    captured = capsys.readouterr()
    assert captured.out == "(5+7)*2\n"
    thought, stopped, cost = captured.err.splitlines()
    assert thought == "5+7=12, 12*2=24"
    assert stopped == "finished · 1 response"
    assert "tokens/s" in cost
    assert engine.requests[0].prompt == QUESTION


def test_a_model_without_thoughts_streams_its_answer(engine: MockEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.thought = None
    engine.__post_init__()
    engine.texts = "It is 42,\nI think."
    assert main(["solve", QUESTION]) == 0
    captured = capsys.readouterr()
    assert captured.out == "It is 42,\nI think.\n"
    assert len(captured.err.splitlines()) == 2


def test_the_question_may_come_from_stdin(
    engine: MockEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n"))
    assert main(["solve", "-", "--seed", "3"]) == 0
    assert engine.requests[0].prompt == QUESTION


def test_json_says_everything_and_streams_nothing(engine: MockEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", QUESTION, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["answer"] == "(5+7)*2"
    assert found["thought"] == "5+7=12, 12*2=24"
    assert found["spend"]["sampled_tokens"] == len("5+7=12, 12*2=24") + 1 + len("(5+7)*2") + 1
    assert found["finish_reason"] == "stop"
    assert captured.err == ""


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_truncated_response_is_no_answer(
    flags: list[str], engine: MockEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", QUESTION, "--max-tokens", "9", *flags]) == 1
    captured = capsys.readouterr()
    assert "no answer: the response was cut off at 9 tokens; give more with --max-tokens" in captured.err
    assert "--thought-tokens" in captured.err
    if flags:
        assert json.loads(captured.out)["answer"] is None
    else:
        assert captured.out == ""


def test_an_empty_answer_is_no_answer(engine: MockEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.texts = "hm</think>  "
    assert main(["solve", QUESTION]) == 1
    assert "no answer: the response is empty" in capsys.readouterr().err


def test_a_thought_is_closed_by_force(engine: MockEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", QUESTION, "--thought-tokens", "6", "--max-tokens", "30"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == "5+7=12"
    assert captured.out == "(5+7)*2\n"
    params = engine.requests[0].params
    assert params.thinking is not None
    assert params.thinking.max_tokens == 6
    assert params.max_tokens == 30


def test_with_several_samples_only_the_chosen_answer_is_printed(
    engine: MockEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.texts = ["a thought</think>first", "another</think>second"]
    assert main(["solve", QUESTION, "--strategy", "best_of_n", "--strategy-options", "n=2"]) == 0
    captured = capsys.readouterr()
    assert captured.out in ("first\n", "second\n")
    assert "a thought" in captured.err


def test_model_text_cannot_drive_the_terminal(engine: MockEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.texts = "\x1b[2J\x07</think>\x1b]0;owned\x07 \u202e7"
    assert main(["solve", QUESTION]) == 0
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert not set(text) & {"\x1b", "\x07", "\u202e"}
    assert "7" in captured.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "there is no question"),
        ([QUESTION, "-"], "give the question as words or as -, not both"),
        ([QUESTION, "--thought-tokens", "5", "--max-tokens", "5"], "leaves no token for an answer"),
        ([QUESTION, "--strategy", "direct", "--thought-tokens", "5"], "has no option 'thought_tokens'"),
        ([QUESTION, "--strategy", "besst_of_n"], "did you mean 'best_of_n'?"),
        ([QUESTION, "--max-tokens", "0"], "max_tokens = 0: give at least 1"),
    ],
)
def test_bad_usage_is_one_sentence(
    args: list[str], said: str, engine: MockEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("something\n"))
    assert main(["solve", *args]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@settings(deadline=None)
@given(
    text=st.lists(st.sampled_from(["<think>", "</think>", "<", "</th", "think>", "a", " 7"]), max_size=8).map("".join),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    opened=st.booleans(),
)
def test_splitting_does_not_depend_on_where_the_pieces_break(text: str, cuts: list[int], opened: bool) -> None:
    thought = ThoughtFormat("<think>", "</think>", opened_by_template=opened)
    edges = sorted({0, len(text), *(min(c, len(text)) for c in cuts)})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]

    def split(parts: list[str]) -> list[tuple[bool, str]]:
        splitter = Splitter(thought)
        out: list[tuple[bool, str]] = []
        for part in parts:
            out += splitter.feed(part)
        out += splitter.end()
        joined: list[tuple[bool, str]] = []
        for inside, said in out:
            if joined and joined[-1][0] == inside:
                joined[-1] = (inside, joined[-1][1] + said)
            else:
                joined.append((inside, said))
        return joined

    assert split(pieces) == split([text] if text else [])


def test_the_splitter_agrees_with_what_judges_read() -> None:
    text = "let me see</think> 42"
    splitter = Splitter(THOUGHT)
    streamed = [*splitter.feed(text[:13]), *splitter.feed(text[13:]), *splitter.end()]
    response = split_response(text, FinishReason.STOP, THOUGHT)
    assert "".join(t for inside, t in streamed if inside) == response.thought
    assert "".join(t for inside, t in streamed if not inside) == response.answer
