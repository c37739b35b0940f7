"""`ponder replay`: what it prints and writes, and what it refuses."""

import json
import os
from pathlib import Path

import pytest
from pool_play import row, sample, write

from ponder import registry
from ponder.cli.main import main, verbs

RECORDED = Path(os.environ.get("PONDER_DATA", "")) / "pool-math500-qwen2.5-1.5b-x8-seed0.jsonl"


@pytest.fixture
def pool(tmp_path):
    rows = [
        row(
            f"p{i}",
            [sample(j % 3 if i % 2 else j, tokens=10 * (j + 1), score=j / 4, correct=j == 1) for j in range(4)],
            prompt=f"Question {i}?",
        )
        for i in range(6)
    ]
    return write(tmp_path / "pool.jsonl", *rows)


def run(*args):
    return main(["replay", *map(str, args)])


def replayed(capsys, *args):
    """The text of `--json`, which is printed to stdout."""
    capsys.readouterr()
    assert run(*args, "--json") == 0
    return capsys.readouterr().out


def test_replay_is_a_verb():
    assert "recorded pool" in verbs()["replay"]


def test_the_json_has_the_documented_form(pool, capsys):
    names = ["majority", "best_of_n:score", "weighted", "adaptive", "live:best_of_n", "direct"]
    values = json.loads(replayed(capsys, pool, "--strategies", ",".join(names)))
    assert set(values) == {"n", "coverage", "strategies", "paired", "disagreements", "highest", "highest_gain"}
    assert values["n"] == 6
    assert [c["k"] for c in values["coverage"]] == [1, 2, 4]
    assert values["coverage"][2] == {"k": 4, "value": 1.0, "low": values["coverage"][2]["low"], "high": 1.0}
    # What it ranks by is said where the name leaves it open.
    names[2] = "weighted:score"
    assert list(values["strategies"]) == names
    for name in names[:-1]:
        points = values["strategies"][name]
        assert [p["budget"] for p in points] == [1, 2, 4]
        for p in points:
            assert set(p) == {
                "budget",
                "mean_samples_per_search",
                "mean_response_tokens_per_search",
                "accuracy",
                "low",
                "high",
            }
            assert p["low"] <= p["accuracy"] <= p["high"]
    assert values["strategies"]["majority"][2]["mean_response_tokens_per_search"] == 100.0
    assert len(values["paired"]) == 15
    assert set(values["paired"][0]) == {"a", "b", "difference", "low", "high", "p"}
    assert values["disagreements"] == []
    best = max((p["accuracy"], name) for name, points in values["strategies"].items() for p in points)
    assert values["highest"]["estimate"]["value"] == best[0]
    assert values["highest"]["estimate"]["chosen_of"] == 16
    assert values["highest_gain"]["estimate"]["chosen_of"] == 8
    assert run(pool, "--strategies", ",".join(names)) == 0
    shown = capsys.readouterr().out
    assert "note: 6 problems: too few to say much, 97 give ±10 points" in shown
    assert "chosen as the highest of 16 on the same problems: optimistic" in shown
    assert "6 problems × 4 samples, judged by numeric" in shown
    assert "against majority, same tokens" in shown
    assert "0 of 24 recorded judgements differ from the judge's" in shown


def test_the_same_seed_gives_the_same_numbers(pool, capsys):
    first, second = (replayed(capsys, pool, "--seed", 3) for _ in range(2))
    assert first == second


def test_what_differs_and_what_was_left_out_is_printed(tmp_path, capsys):
    path = write(
        tmp_path / "p.jsonl",
        row("long", [sample(1, correct=True), sample(1, correct=False), sample(2)]),
        row("short", [sample(2, correct=True)]),
        row("bare", [sample(2)] * 3, gold=None),
    )
    assert run(path, "--show", 1) == 0
    shown = capsys.readouterr().out
    assert "note: 1 of 3 rows have no gold (the first: line 3) and are left out" in shown
    assert "the budgets end at 1, the fewest samples of a problem" in shown
    assert "2 of 3 recorded judgements differ from the judge's" in shown
    assert "long sample 1: recorded wrong, judged correct: 1 is right" in shown
    assert "and 1 more" in shown
    assert run(path, "--at-least", 3, "--trust-recorded") == 2
    assert run(path, "--at-least", 3) == 0
    assert "1 problems × 3 samples" in capsys.readouterr().out


def test_an_environment_judges_and_its_checker_helps(tmp_path, capsys):
    environment = registry.build("environments", "countdown", {"seed": 5})
    problems = [environment.problem("test", i) for i in range(3)]
    rows = [
        row(p.id, ["1", {"text": environment.gold_response(p), "tokens": 5}], gold=None, prompt=p.prompt)
        for p in problems
    ]
    path = write(tmp_path / "p.jsonl", *rows)
    asked = ["--environment", "countdown", "--environment-options", "seed=5"]
    points = json.loads(replayed(capsys, path, *asked, "--strategies", "live:best_of_n,direct"))["strategies"]
    assert [p["accuracy"] for p in points["live:best_of_n"]][1] == 1.0
    assert points["direct"][0]["accuracy"] == 0.5
    assert run(path, "--environment", "countdown") == 2
    assert "--environment-options" in capsys.readouterr().err


def test_the_rollouts_of_an_evaluation_are_a_pool_that_agrees_with_the_recorded_one(tmp_path, capsys):
    out, recorded = tmp_path / "run", tmp_path / "pool.jsonl"
    voted = ["--strategy", "majority", "--strategy-options", "n=3", "max_tokens=32", "--samples", "2"]
    assert main(["eval", "-n", "8", *voted, "--out", str(out), "--record", str(recorded)]) == 0
    asked = ["--environment", "countdown", "--strategies", "majority,best_of_n:logprob,live:best_of_n"]
    texts = [replayed(capsys, pool, *asked) for pool in (out / "rollouts.jsonl", recorded)]
    assert texts[0] == texts[1]
    values = json.loads(texts[0])
    assert (values["n"], values["disagreements"]) == (8, [])
    assert [c["k"] for c in values["coverage"]] == [1, 2, 4, 6]
    assert run(recorded, *asked) == 0
    assert "0 of 48 recorded judgements differ from the judge's" in capsys.readouterr().out
    # An evaluation does not write down what only the judge knows.
    assert run(out / "rollouts.jsonl") == 2
    assert "no row has a gold to judge by" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["none.jsonl"], "none.jsonl: no such file"),
        (["POOL", "--strategies", "majorty"], "unknown strategy 'majorty'; did you mean 'majority'?"),
        (["POOL", "--strategies", "best_of_n:logprob"], "no sample of the pool has a 'mean_logprob'"),
        (["POOL", "--strategies", "budget_forcing:5"], "no thought markers"),
        (["POOL", "--budgets", "2", "8"], "--budgets 8: give 1 to 4"),
        (["POOL", "--at-least", "9"], "give --at-least 4"),
        (["POOL", "--orders", "1"], "--orders 1: give at least 2"),
        (["POOL", "--verifier", "numerc"], "unknown verifier 'numerc'; did you mean 'numeric'?"),
        (["POOL", "--verifier", "numeric", "--environment", "countdown"], "both judge: give one"),
        (["POOL", "--environment-options", "seed=1"], "--environment-options needs --environment"),
        (["POOL", "--environment", "countdown"], "line 1: problem 'p0' cannot be judged by --environment countdown"),
        (["POOL", "--environment", "countdown", "--trust-recorded"], "--trust-recorded is for problems without"),
        (["POOL", "--json", "out.json"], "--json prints to stdout: give --json alone and redirect it"),
    ],
)
def test_bad_usage_is_one_sentence(pool, monkeypatch, capsys, args, said):
    monkeypatch.chdir(pool.parent)
    assert run(*(str(pool) if a == "POOL" else a for a in args)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("ponder: ") or "\nponder: " in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--strategies", "majority,majorty"], "unknown strategy 'majorty'"),
        (["--strategies", "best_of_n:logprob"], "no sample of the pool has a 'mean_logprob'"),
        (["--strategies", "weighted:logprob"], "no sample of the pool has a 'mean_logprob'"),
        (["--strategies", "adaptive:beta:3"], "above 0.5 and below 1"),
        (["--strategies", "live:best_of_n:topk=3"], "did you mean 'top_k'"),
        (["--strategies", "live:budget_forcing:5"], "no thought markers"),
        (["--strategies", "live:majority:thought_tokens=5"], "no thought markers"),
        (["--budgets", "5"], "--budgets 5: give 1 to 4"),
    ],
)
def test_what_can_be_refused_is_refused_before_anything_is_judged(pool, monkeypatch, capsys, args, said):
    monkeypatch.chdir(pool.parent)
    judged = []
    monkeypatch.setattr("ponder.evaluation.pools.judging._judged", lambda *a: judged.append(a))
    assert run(pool, *args) == 2
    assert said in capsys.readouterr().err
    assert not judged


def test_a_bad_row_is_named_by_its_line(pool, capsys):
    pool.write_text(pool.read_text() + '{"problem_id": "x", "samples": [{"text": "y"}]}\n')
    assert run(pool) == 2
    assert "pool.jsonl: line 7, sample 0: 'tokens' must be a whole number" in capsys.readouterr().err


@pytest.mark.skipif(not RECORDED.is_file(), reason="PONDER_DATA is not set to a folder with the recorded pool")
def test_the_recorded_pool_gives_sane_curves(capsys):
    pytest.importorskip("math_verify")
    values = json.loads(replayed(capsys, RECORDED))
    coverage = {c["k"]: c["value"] for c in values["coverage"]}
    assert coverage[1] == pytest.approx(0.375, abs=0.02)
    assert coverage[8] == pytest.approx(0.70, abs=0.03)
    for points in values["strategies"].values():
        for p in points:
            assert p["accuracy"] <= coverage[p["budget"]] + 0.01
    assert values["strategies"]["majority"][-1]["accuracy"] > coverage[1] + 0.1


def test_a_cascade_is_run_as_it_is_given(pool, capsys):
    """Its fast and slow samples are its own, so it has one point."""
    assert run(pool, "--strategies", "live:cascade:n=2+unsure=agreement+agreement=1.0+slow_options={n=4}") == 0
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("live:cascade"))
    assert 2 <= float(line.split()[2]) <= 6


@pytest.mark.parametrize(
    ("spec", "why"),
    [("refine", "recorded with another prompt"), ("live:cascade:slow_options={n=9}", "use n of at most")],
)
def test_what_cannot_go_with_recorded_samples_is_refused_before_judging(pool, spec, why, monkeypatch, capsys):
    monkeypatch.setattr("ponder.evaluation.pools.judging.judge_pool", lambda *_, **__: pytest.fail("judged"))
    assert run(pool, "--strategies", spec) != 0
    assert why in capsys.readouterr().err
