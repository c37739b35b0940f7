"""`ponder solve`: the thought on stderr, the answer alone on stdout, and a clear reason where there is none."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mocks import THOUGHT, MockEngine, MockEnvironment

from ponder import registry
from ponder.cli._screen import Screen, Splitter
from ponder.cli.main import main
from ponder.engines.opening import EngineOptions
from ponder.responses import split_response
from ponder.types import Capabilities, Delta, FinishReason, ThoughtFormat

QUESTION = "Tell 24 from 3 5 7 2."


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> MockEngine:
    made = MockEngine(texts="5+7=12, 12*2=24</think>(5+7)*2")

    @contextlib.contextmanager
    def opened(options: EngineOptions, _: Any) -> Iterator[tuple[MockEngine, dict[str, MockEngine]]]:
        yield made, dict.fromkeys(options.others, made)

    monkeypatch.setattr("ponder.cli.solve.engines_for", opened)
    real = registry.build

    def build(room: str, spec: str, options: Any = None) -> Any:
        return MockEnvironment(**(options or {})) if spec == "doubling" else real(room, spec, options)

    monkeypatch.setattr(registry, "build", build)
    return made


def test_the_answer_is_alone_on_stdout(engine: MockEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", QUESTION]) == 0
    captured = capsys.readouterr()
    assert captured.out == "(5+7)*2\n"
    thought, stopped, cost = captured.err.splitlines()
    assert thought == "5+7=12, 12*2=24"
    assert stopped == "finished · 1 branch"
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


def test_json_has_everything_and_streams_nothing(engine: MockEngine, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_an_option_that_has_no_default_is_asked_for_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", QUESTION, "--strategy", "budget_forcing"]) == 2
    assert "ponder: budget_forcing: give `thought_tokens`, which has no default" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "reason"), [("nowhere/s.json", "its folder does not exist"), (".", "is a folder")])
def test_a_file_that_cannot_take_the_search_is_refused_before_anything_is_spent(
    name: str, reason: str, engine: MockEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", QUESTION, "--save", name]) == 2
    captured = capsys.readouterr()
    assert f"--save {name}: {reason}" in captured.err
    assert (captured.out, engine.calls) == ("", 0)


def test_the_end_of_a_thought_is_forced(engine: MockEngine, capsys: pytest.CaptureFixture[str]) -> None:
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


@pytest.mark.parametrize("pieces", [["hm </think>7"], ["hm ", "</think>", " ", "\n", "7"], ["hm </th", "ink>\n7"]])
def test_a_leading_answer_stands_on_a_line_of_its_own(pieces: list[str]) -> None:
    out, log = io.StringIO(), io.StringIO()
    screen = Screen(ThoughtFormat("<think>", "</think>", True), False, out, log)
    for piece in pieces:
        screen.show(Delta(0, piece, (1,)))
    screen.show(Delta(0, "", ()))
    assert (out.getvalue(), log.getvalue()) == ("", "hm \n7\n")


def test_the_leading_thought_streams_while_others_run(engine: MockEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """One call a sample, all at once: one of them streams to its end, thought and answer on lines of their own."""
    engine.capabilities = Capabilities(ids=True, logprobs=True, seed=True)
    engine.texts = lambda request, rng: f"thought {rng.randint(100, 999)}" + "." * 30 + "</think>7"
    engine.delay = 0.01
    assert main(["solve", QUESTION, "--strategy", "best_of_n", "--strategy-options", "n=4"]) == 0
    captured = capsys.readouterr()
    assert engine.peak == 4
    assert captured.out == "7\n"
    lines = captured.err.splitlines()
    assert [line.startswith("thought ") for line in lines] == [True, False, False, False]
    assert lines[1] == "7"
    assert "finished: chosen by mean log-probability · 4 branches" in lines[2]


def test_a_leader_that_fails_ends_its_line_and_another_leads(
    engine: MockEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.texts = "a thought</think>7"
    engine.fail = lambda call, request: ConnectionError("gone") if call == 0 else None
    engine.capabilities = Capabilities(ids=True, seed=True)
    assert main(["solve", QUESTION, "--strategy", "best_of_n", "--strategy-options", "n=2"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "7\n"
    assert captured.err.splitlines()[0].startswith("a thought")
    assert "failed: " in captured.err
    assert "ConnectionError: gone" in captured.err


def test_an_environments_problem_brings_its_checker_and_its_judge(
    engine: MockEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.texts = ["</think>1", "</think>206", "</think>2"]
    flags = ["--environment", "doubling", "--problem", "test:3", "--strategy", "best_of_n", "--strategy-options", "n=3"]
    assert main(["solve", *flags]) == 0
    captured = capsys.readouterr()
    assert captured.out == "206\n"
    asked, *_, stopped, judge, cost = captured.err.splitlines()
    assert asked == "doubling test:3: 2 * 103 ="
    assert stopped == "accepted: chosen by the checker · 3 branches"
    assert judge == "judge: correct, right"
    assert "3 checker or scorer calls" in cost
    assert main(["solve", *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"]["kind"] == "correct"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--budget-tokens", "0"], "0 of the budget's 0 tokens are left, and a call needs at least 22 tokens"),
        (["--budget-tokens", "21"], "21 of the budget's 21 tokens are left, and a call needs at least 22 tokens"),
        (["--budget-seconds", "0"], "the budget of 0 seconds is used up"),
    ],
)
def test_a_budget_too_small_for_the_prompt_sends_nothing(
    flags: list[str], said: str, engine: MockEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", QUESTION, *flags]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert f"ponder: no answer: {said}" in captured.err
    assert (captured.out, engine.calls) == ("", 0)


def test_a_budget_in_dollars_is_kept_and_shown(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prices.toml").write_text('["mock"]\nprompt = 1000.0\noutput = 1000.0\n')
    flags = ["--prices", str(tmp_path / "prices.toml"), "--budget-dollars", "0.2", "--strategy-options", "n=9"]
    assert main(["solve", QUESTION, "--strategy", "best_of_n", "--max-tokens", "60", *flags]) == 0
    err = capsys.readouterr().err
    assert "budget: " in err
    assert "of the budget's $0.2 are left" in err
    assert 0 < engine.used.tokens * 1e-3 <= 0.2
    assert f"${engine.used.tokens * 1e-3:.2g}" in err


SAVED = ["--strategy", "best_of_n", "--strategy-options", "n=6", "--max-tokens", "80", "--seed", "5"]


def numbered(request: Any, rng: Any) -> str:
    return "." * rng.randint(1, 60) + f"</think>{rng.randint(0, 9)}"


def answer(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["solve", *args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return {k: found[k] for k in ("question", "answer", "text", "branches", "seed")}


def test_a_search_that_used_up_its_budget_resumes_in_another_process(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.capabilities, engine.texts = Capabilities(ids=True, logprobs=True, seed=True), numbered
    file = str(tmp_path / "search.json")
    whole = answer([QUESTION, *SAVED], capsys)
    first = answer([QUESTION, *SAVED, "--budget-tokens", "220", "--save", file], capsys)
    assert first["branches"] < 6
    engine.requests.clear()
    assert answer(["--continue", file], capsys) == whole
    # What is in its journal is not asked again, except the response that the budget cut short.
    assert len(engine.requests) == 6 - (first["branches"] - 1)
    engine.requests.clear()
    assert answer(["--continue", file], capsys) == whole
    assert not engine.requests


def whole_answer(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["solve", *args, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("by_flag", [True, False])
def test_what_was_spent_before_there_were_prices_counts_against_the_dollars_of_a_resumed_search(
    by_flag: bool,
    engine: MockEngine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.capabilities, engine.texts = Capabilities(ids=True, logprobs=True, seed=True), numbered
    file, table = str(tmp_path / "search.json"), tmp_path / "prices.toml"
    table.write_text('["mock"]\nprompt = 1000.0\noutput = 2000.0\n')
    before = whole_answer([QUESTION, *SAVED, "--budget-tokens", "220", "--save", file], capsys)["spend"]
    paid = (before["prompt_tokens"] + 2 * (before["sampled_tokens"] + before["forced_tokens"])) * 1e-3
    if not by_flag:
        monkeypatch.setenv("PONDER_PRICES", str(table))
    flags = ["--prices", str(table)] if by_flag else []
    calls = engine.calls
    stopped = whole_answer(["--continue", file, *flags, "--budget-dollars", f"{paid:.6f}"], capsys)
    assert (stopped["stop"], engine.calls) == ("budget", calls)
    assert stopped["spend"]["dollars"] == pytest.approx(paid)
    more = whole_answer(["--continue", file, *flags, "--budget-dollars", "9"], capsys)
    spent = more["spend"]
    tokens = spent["prompt_tokens"] + spent["cached_tokens"] + 2 * (spent["sampled_tokens"] + spent["forced_tokens"])
    assert (more["stop"], spent["dollars"]) == ("finished", pytest.approx(tokens * 1e-3))


@pytest.mark.parametrize("answered", [0, 3])
def test_a_search_whose_seconds_are_used_up_has_none_left_when_it_resumes_with_as_many(
    answered: int, engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.capabilities, engine.texts = Capabilities(ids=True, logprobs=True, seed=True), numbered
    file, seconds = str(tmp_path / "search.json"), ["--budget-seconds", "0.2"]
    engine.delay = lambda request: 0.0 if engine.calls <= answered else 3600.0
    code = 0 if answered else 1
    assert main(["solve", QUESTION, *SAVED, *seconds, "--save", file]) == code
    assert f"continue with: ponder solve --continue {file} --budget-seconds MORE" in capsys.readouterr().err
    engine.delay, engine.calls = 0.0, 0
    assert main(["solve", "--continue", file, *seconds]) == code
    captured = capsys.readouterr()
    (said,) = [line for line in captured.err.splitlines() if "the budget of 0.2 seconds is used up (0." in line]
    assert "before the search began or resumed)" in said
    assert engine.calls == 0
    if not answered:
        assert said.startswith("ponder: no answer: the budget of 0.2 seconds")
        assert said.endswith("give more with --budget-seconds")
    else:
        assert captured.out.strip()
        assert f"{file} --budget-seconds MORE" in captured.err
    assert main(["solve", "--continue", file, "--budget-seconds", "3600"]) == 0
    assert engine.calls > 0


def test_a_saved_search_without_seconds_resumes(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "search.json"
    assert main(["solve", QUESTION, "--save", str(file)]) == 0
    saved = json.loads(file.read_text())
    del saved["journal"]["seconds"], saved["opening"], saved["known"]
    file.write_text(json.dumps(saved))
    assert main(["solve", "--continue", str(file), "--budget-seconds", "60"]) == 0
    file.write_text(json.dumps({**saved, "opening": {"prompt_tokens": "many"}}))
    assert main(["solve", "--continue", str(file)]) == 2
    assert f"{file}: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "first", "mend"),
    [
        (
            ["--budget-tokens", "30"],
            "a response was cut off at 9 of 512 tokens: the budget of 30 tokens had room for no more; ",
            "; give more with --budget-tokens",
        ),
        (
            ["--budget-tokens", "45", "--max-tokens", "9"],
            "the response was cut off at 9 tokens, and then 15 of the budget's 45 tokens are left",
            "; give more with --max-tokens and --budget-tokens, or force the end of the thought with --thought-tokens",
        ),
    ],
)
@pytest.mark.parametrize("strategy", ["direct", "majority"])
def test_a_response_that_was_cut_off_names_the_limit_that_cut_it(
    strategy: str, flags: list[str], first: str, mend: str, engine: MockEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--strategy", strategy, "--strategy-options", "n=4"]
    assert main(["solve", QUESTION, *options, *flags]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"ponder: no answer: {first}")
    assert last.endswith(mend)
    assert engine.used.tokens <= int(flags[1])


def test_an_interrupted_search_resumes_in_another_process(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.capabilities, engine.texts = Capabilities(ids=True, logprobs=True, seed=True), numbered
    file = str(tmp_path / "search.json")
    whole = answer([QUESTION, *SAVED], capsys)

    def delay(request: Any) -> float:
        if engine.calls == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return 0.0 if engine.calls < 3 else 3600.0

    engine.calls, engine.delay = 0, delay
    limit = ["--budget-seconds", "4000"]
    assert main(["solve", QUESTION, *SAVED, "--save", file, "--json", *limit]) == 130
    resume = f"ponder solve --continue {file} --budget-seconds 4000"
    assert capsys.readouterr().err == f"ponder: stopped; continue with: {resume}\n"
    kept = len(json.loads(Path(file).read_text())["journal"]["answers"])
    engine.delay = 0.0
    engine.requests.clear()
    assert answer(["--continue", file], capsys) == whole
    assert len(engine.requests) == 6 - kept


def test_a_search_resumes_only_with_the_same_options(
    engine: MockEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "search.json")
    assert main(["solve", QUESTION, "--save", file]) == 0
    assert f"saved: {file}\n" in capsys.readouterr().err  # it ended, so there is nothing to continue
    for args, said in (
        (["--seed", "3"], "--seed is 3, and the search was started with 0"),
        (["Another question?"], "the question is 'Another question?', and the search was started with"),
        (["--max-tokens", "7"], "--max-tokens is 7, and the search was started with None"),
    ):
        assert main(["solve", "--continue", file, *args]) == 2
        assert said in capsys.readouterr().err
    Path(file).write_text("{}")
    assert main(["solve", "--continue", file]) == 2
    assert "not a search that ponder solve --save wrote" in capsys.readouterr().err


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
        ([QUESTION, "--budget-tokens", "-3"], "--budget-tokens -3: give 0 or more"),
        ([QUESTION, "--budget-dollars", "1"], "needs the prices of 'mock', and none are known"),
        ([QUESTION, "--engine", "simulated", "--exact"], "--exact: the engine 'simulated' has no option 'exact'"),
        ([QUESTION, "--environment", "countdown"], "give a question or --environment, not both"),
        ([QUESTION, "--problem", "test:3"], "--problem goes with --environment"),
        (["--environment", "countdown", "--problem", "3"], "--problem 3: give SPLIT:INDEX, such as test:3"),
        (["--environment", "doubling", "--problem", "test:100"], "--problem test:100: doubling has no such problem"),
        (["--continue", "nowhere"], "nowhere: no such file"),
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


def test_a_conversation_is_refused_before_its_engine_is_opened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(*_: Any) -> None:
        raise AssertionError("an engine was opened")

    monkeypatch.setattr("ponder.cli.solve.engines_for", opened)
    assert main(["solve", "--environment", "calculator", "--problem", "test:0"]) == 2
    assert "calculator-test-0 is a conversation of several turns, and Direct gives one" in capsys.readouterr().err
