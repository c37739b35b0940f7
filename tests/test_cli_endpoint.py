"""`ponder solve` and `ponder eval` on an endpoint: the cost of probing it is counted, bounded and reported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mocks import MockEnvironment
from openai_play import faults, fresh
from openai_server import Behaviour, Fault, Scripted, Server, solver

from ponder import registry
from ponder.cli.main import main
from ponder.engines.openai.probe import forget
from ponder.runs.run import read_manifest

pytest.importorskip("openai")
PRICE = 1e-3


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """An endpoint of a model `mock`, every token of which costs a tenth of a cent, and an environment `doubling`."""
    fresh(monkeypatch)
    (tmp_path / "prices.toml").write_text('["mock"]\nprompt = 1000.0\noutput = 1000.0\n')
    monkeypatch.setenv("PONDER_PRICES", str(tmp_path / "prices.toml"))
    real = registry.build

    def build(room: str, spec: str, options: Any = None) -> Any:
        return MockEnvironment(**(options or {})) if spec == "doubling" else real(room, spec, options)

    monkeypatch.setattr(registry, "build", build)
    behaviour = Behaviour()
    with Server(behaviour, Scripted(behaviour, solver(0.6, 4))) as made:
        yield made


def engine(server: Server, *options: str) -> list[str]:
    return [
        "--engine",
        "openai",
        "--model",
        "mock",
        "--engine-options",
        f"base_url={server.url}",
        "backoff=0",
        *options,
    ]


STATED = ["probe=false", 'capabilities=["seed"]', "template_tokens=8"]


def solve(server: Server, *flags: str, options: list[str] | None = None) -> int:
    return main(["solve", "2 * 21 =", "--max-tokens", "100", *engine(server, *(options or [])), *flags])


def evaluate(server: Server, *flags: str) -> int:
    return main(["eval", "--environment", "doubling", "--max-tokens", "100", *engine(server), *flags])


def probed(server: Server) -> int:
    """True tokens of the calls that asked no question of the environment."""
    return sum(c.tokens for c in server.calls if " * " not in c.body["messages"][0]["content"])


# What the probe has cost ----------------------------------------------------------------------------------------------


def test_the_spend_of_a_solve_includes_the_probe_and_reports_it_separately(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert solve(server, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    spend, opening = found["spend"], found["opening"]
    tokens = [s["prompt_tokens"] + s["cached_tokens"] + s["sampled_tokens"] for s in (spend, opening)]
    assert tokens == [server.tokens(), probed(server)]
    assert spend["dollars"] == pytest.approx(PRICE * server.tokens())
    forget()
    assert solve(server) == 0
    assert f"{opening_tokens(server)} of the tokens to find out what the model can do" in capsys.readouterr().err


def opening_tokens(server: Server) -> int:
    """Of one probe, if there were two."""
    return probed(server) // 2


def test_an_evaluation_counts_the_probe_in_its_spend_and_in_what_a_correct_answer_costs(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert evaluate(server, "-n", "6", "--out", str(out)) == 0
    said = capsys.readouterr().out
    found = json.loads((out / "evaluation.json").read_text())
    correct = found["kinds"]["correct"]
    assert tokens_of(found["spend"]) == server.tokens()
    assert tokens_of(found["opening"]) == probed(server) > 0
    assert found["tokens_per_correct"] == pytest.approx(server.tokens() / correct)
    assert found["dollars_per_correct"] == pytest.approx(PRICE * server.tokens() / correct)
    assert f"{probed(server)} tokens of that, to find out what the model can do" in said
    cost = json.loads((out / "summary.json").read_text())["cost"]
    assert [row["phase"].split(":")[0] for row in cost] == ["opening", "evaluation"]
    assert sum(tokens_of(row) for row in cost) == server.tokens()
    assert sum(row["run_seconds"] for row in cost) == pytest.approx(found["run_seconds"])


def tokens_of(spend: dict[str, Any]) -> int:
    return int(spend["prompt_tokens"] + spend["cached_tokens"] + spend["sampled_tokens"])


@pytest.mark.parametrize("asks_again", [False, True])
def test_a_resumed_evaluation_adds_the_cost_of_the_probe_once_for_each_process_that_probed(
    asks_again: bool, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    # Enough for the probe and a few of the problems.
    assert evaluate(server, "-n", "80", "--total-tokens", "1500", "--concurrency", "1", "--out", out) == 0
    first = probed(server)
    assert server.tokens() <= 1500
    assert tokens_of(read_manifest(Path(out))["opening"]) == first > 0
    asked = len(server.calls)
    # Another process uses what the first found out, and probes again where nothing was kept.
    forget()
    manifest = Path(out) / "manifest.json"
    if asks_again:
        manifest.write_text(json.dumps({k: v for k, v in json.loads(manifest.read_text()).items() if k != "known"}))
    assert main(["eval", "--resume", "--out", out, "--total-tokens", "3200"]) == 0
    second = probed(server)
    assert (second > first) == asks_again
    assert server.tokens() <= 3200
    assert main(["eval", "--resume", "--out", out, "--total-tokens", "100000"]) == 0
    capsys.readouterr()
    found = json.loads((Path(out) / "evaluation.json").read_text())
    assert len(server.calls) > asked
    assert tokens_of(found["opening"]) == probed(server)
    assert tokens_of(found["spend"]) + tokens_of(found["lost"]) == server.tokens()


# What the probe may cost ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [["--budget-tokens", "500"], ["--budget-dollars", "0.5"], ["--budget-tokens", "9000", "--budget-dollars", "0.5"]],
)
def test_a_small_budget_is_for_the_question_and_what_was_not_found_out_is_said(
    flags: list[str], server: Server, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert solve(server, *flags) == 0
    assert probed(server) == 0
    assert 0 < server.tokens() <= 500
    assert "too small to find out whether it can do n, logprobs, seed, prefix, thinking" in caplog.text


@pytest.mark.parametrize("tokens", [120, 700, 1000, 1600, 2500])
def test_a_solve_keeps_its_budget_with_the_probe_counted(
    tokens: int, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    code = solve(server, "--budget-tokens", str(tokens), "--json")
    found = json.loads(capsys.readouterr().out)
    assert server.tokens() <= tokens_of(found["spend"]) <= tokens
    assert probed(server) <= tokens_of(found["opening"]) <= tokens / 4
    assert code == (found["answer"] is None)


def test_dollars_without_a_price_are_refused_before_the_endpoint_is_asked(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PONDER_PRICES")
    assert solve(server, "--budget-dollars", "1") == 2
    error = capsys.readouterr().err
    assert "needs the prices of 'mock'" in error
    assert "--prices" in error
    assert not server.calls


def test_a_search_that_needs_what_was_not_found_out_is_refused_and_says_how_to_state_it(
    server: Server, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert solve(server, "--budget-tokens", "500", "--thought-tokens", "20") == 2
    assert "can neither bound a thought nor continue a response" in capsys.readouterr().err
    assert "probe=false and capabilities" in caplog.text
    assert not server.calls
    stated = ["probe=false", 'capabilities=["prefix"]', "template_tokens=8"]
    assert solve(server, "--budget-tokens", "500", "--thought-tokens", "20", options=stated) == 0
    assert server.tokens() <= 500


# A resumed search -----------------------------------------------------------------------------------------------


def test_a_saved_solve_counts_what_finding_out_cost_in_each_process(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "search.json")
    many = ["--strategy", "majority", "--strategy-options", "n=100", "--save", file]
    assert solve(server, *many, "--budget-tokens", "1500") == 0
    assert f"--continue {file} --budget-tokens MORE" in capsys.readouterr().err
    asked = len(server.calls)
    # The same budget again: nothing is sent, and the answer so far is the answer.
    forget()
    assert main(["solve", "--continue", file, "--budget-tokens", "1500", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["stop"], len(server.calls)) == ("budget", asked)
    assert again["answer"] is not None
    assert tokens_of(again["spend"]) == server.tokens()
    # One that has kept nothing of the endpoint asks it again.
    saved = json.loads(Path(file).read_text())
    Path(file).write_text(json.dumps({k: v for k, v in saved.items() if k != "known"}))
    first = probed(server)
    assert main(["solve", "--continue", file, "--budget-tokens", "9000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stop"] == "finished"
    assert tokens_of(found["opening"]) == probed(server) > first > 0
    assert tokens_of(found["spend"]) == server.tokens() <= 9000


# Endpoints that misbehave ---------------------------------------------------------------------------------------------

BAD = [
    Fault("status", status=429, headers={"Retry-After": "0.01"}),
    Fault("status", status=500),
    Fault("drop", 4),
    Fault("garbage", 4),
    Fault("error", 4, message="out of memory"),
]


def name(fault: Fault) -> str:
    return f"{fault.kind}{fault.status if fault.kind == 'status' else ''}"


@pytest.mark.parametrize("fault", BAD, ids=name)
def test_what_fails_once_is_retried_within_the_budget(
    fault: Fault, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behaviour.faults = faults(fault)
    assert solve(server, "--budget-tokens", "600", options=STATED) == 0
    captured = capsys.readouterr()
    assert captured.out.strip().isdigit()
    assert "finished · 1 branch" in captured.err
    assert server.tokens() <= 600


@pytest.mark.parametrize("fault", BAD, ids=name)
def test_what_fails_always_is_one_clear_failure_and_no_answer(
    fault: Fault, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behaviour.faults = lambda number, body: fault
    assert solve(server, "--budget-tokens", "600", options=STATED) == 1
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith(f"ponder: no answer: {server.url} failed: ")
    assert (captured.out, "Traceback" in captured.err) == ("", False)
    assert 1 < len(server.calls) < 8
    assert server.tokens() <= 600


@pytest.mark.parametrize("fault", BAD, ids=name)
def test_an_endpoint_that_fails_on_the_way_leaves_the_best_answer_so_far(
    fault: Fault, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behaviour.faults = lambda number, body: fault if number else None
    flags = ["--strategy", "majority", "--strategy-options", "n=3", "--budget-tokens", "900"]
    assert solve(server, *flags, options=[*STATED, "concurrency=1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip().isdigit()
    assert "failed: 1 of " in captured.err
    assert f"{server.url} failed: " in captured.err
    assert server.tokens() <= 900


def test_a_chunk_that_comes_twice_changes_nothing_of_the_answer(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert solve(server, options=STATED) == 0
    whole = capsys.readouterr().out
    server.behaviour.faults = lambda number, body: Fault("repeat", 4)
    assert solve(server, options=STATED) == 0
    assert capsys.readouterr().out == whole


def test_without_usage_the_spend_is_a_bound_and_that_is_said(
    server: Server, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    server.behaviour.usage = "none"
    assert solve(server, "--budget-tokens", "600", "--json", options=STATED) == 0
    found = json.loads(capsys.readouterr().out)
    assert server.tokens() <= tokens_of(found["spend"]) <= 600
    assert "it returns no usage" in caplog.text
