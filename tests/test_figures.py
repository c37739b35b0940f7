"""Figures: one name means one thing, on the console, in reports, in the viewer and in JSON."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ponder
from ponder import figures, numbers
from ponder.cli.main import main
from ponder.evaluation import curves
from ponder.evaluation.results import Progress
from ponder.figures.page import page
from ponder.runs.results import read
from ponder.runs.sections import sections
from ponder.runs.trees import tree
from ponder.types import Estimate

ROOT = Path(__file__).parent.parent
SIMULATED = ("--engine", "simulated", "--environment", "simulated")
SETTINGS = {
    *(
        "seed",
        "id",
        "parent",
        "chosen",
        "index",
        "sample",
        "weights_version",
        "step",
        "max_tokens",
        "k",
        "sample_index",
    ),
    *("value", "low", "high", "a", "b", "majority", "most", "coverage_low", "coverage_high"),
    *("base_accuracy", "trained_accuracy"),
}
"""Numbers in JSON that are no figures of their own: settings, places, and the parts of an estimate."""
COUNTED = {"kinds", "verdicts", "stops", "moves", "metadata"}
"""Tables whose keys are words."""


def figures_in(value: Any, key: str = "") -> set[str]:
    """The keys of all numbers, in JSON."""
    if isinstance(value, dict):
        spend = {"prompt_tokens", "sampled_tokens"} & value.keys() and "phase" not in value
        inner = (
            ("spend.seconds" if spend and name == "seconds" else name, v)
            for name, v in value.items()
            if name not in COUNTED
        )
        return {key for name, v in inner for key in figures_in(v, name)}
    if isinstance(value, list):
        return {found for v in value for found in figures_in(v, key)}
    return {key} if isinstance(value, int | float) and not isinstance(value, bool) else set()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluations of the same problems, and a pool."""
    folder = tmp_path_factory.mktemp("figures")
    for name, more in (("a", ()), ("b", ("--strategy", "majority", "--strategy-options", "n=3"))):
        out = ("--out", str(folder / name), "--record", str(folder / f"{name}.jsonl"))
        assert main(["eval", *SIMULATED, "-n", "12", "--samples", "2", *more, *out]) == 0
    return folder


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    capsys.readouterr()
    assert main([*args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_page_of_the_docs_is_the_table() -> None:
    """Written by `python -m ponder.figures > docs/figures.md`."""
    assert (ROOT / "docs" / "figures.md").read_text() == page()


def test_no_two_figures_share_a_key_or_a_label_and_each_has_one_sentence() -> None:
    every = [f for group in figures.GROUPS.values() for f in group]
    assert len({f.key for f in every}) == len({f.label for f in every}) == len(every)
    for figure in every:
        assert figure.meaning[0].isupper() or figure.meaning[0] == "`", figure.key
        assert figure.meaning.endswith("."), figure.key
        assert figure.unit, figure.key


def test_every_number_in_json_is_a_figure_of_the_table(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        "eval": printed(capsys, "eval", *SIMULATED, "-n", "6"),
        "solve": printed(capsys, "solve", "--strategy", "majority", *SIMULATED),
        "report": printed(capsys, "report", str(runs / "a"), str(runs / "b")),
        "replay": printed(capsys, "replay", str(runs / "b.jsonl")),
        "searches": [json.loads(line) for line in (runs / "b" / "rollouts.jsonl").read_text().splitlines()],
        "curves": figures.current(json.loads((ROOT / "docs/results/quickstart-seed0.json").read_text()), "curves"),
        "summary": json.loads((runs / "b" / "summary.json").read_text()),
    }
    for what, values in found.items():
        keys = {key.removesuffix("_a").removesuffix("_b").removesuffix("_difference") for key in figures_in(values)}
        assert not keys - figures.FIGURES.keys() - SETTINGS, what
    assert {"mean_tokens_per_search", "mean_response_tokens_per_search", "run_seconds"} <= found["eval"].keys()
    assert {"vote_share", "check", "response_tokens_per_second", "seconds"} <= found["solve"].keys()


@pytest.mark.parametrize(
    "command",
    [
        [
            "rl",
            "--environment",
            "arithmetic",
            "--steps",
            "1",
            "--group-size",
            "2",
            "--problems",
            "1",
            "--eval-problems",
            "0",
        ],
        ["pretrain", "--fit.max-tokens", "2000", "--fit.batch-tokens", "512"],
    ],
)
def test_every_metric_of_a_training_is_a_figure_of_the_table(command: list[str], tmp_path: Path) -> None:
    options = ["--strategy-options", "thought_tokens=4"] if command[0] == "rl" else []
    assert main(["train", *command, *options, "--out", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows
    assert not figures_in(rows) - figures.FIGURES.keys() - SETTINGS


def test_console_report_and_comparison_say_the_same_of_the_same_runs(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = json.loads((runs / "b" / "evaluation.json").read_text())
    compared = printed(capsys, "report", str(runs / "a"), str(runs / "b"))
    assert compared["mean_tokens_per_search_b"] == evaluation["mean_tokens_per_search"]
    spent = [
        sum(line["spend"].get(f"{kind}_tokens", 0) for kind in ("prompt", "cached", "sampled", "forced"))
        for line in map(json.loads, (runs / "b" / "rollouts.jsonl").read_text().splitlines())
    ]
    mean = evaluation["mean_tokens_per_search"]
    assert mean["value"] == pytest.approx(sum(spent) / len(spent))
    assert evaluation["mean_response_tokens_per_search"]["value"] < mean["value"]
    facts = json.loads((runs / "b" / "summary.json").read_text())["facts"]
    label = figures.label("mean_tokens_per_search")
    said = figures.text("mean_tokens_per_search", Estimate(mean["value"], mean["low"], mean["high"], mean["n"]))
    assert facts[label] == said
    main(["report", str(runs / "a"), str(runs / "b")])
    assert re.search(rf"{label}, B +{re.escape(said)}\n", capsys.readouterr().out)
    assert f"| {label} |" in (runs / "b" / "report.md").read_text()


def test_no_percentage_is_formatted_by_hand() -> None:
    for path in Path(ponder.__file__).parent.rglob("*.py"):
        assert ":.1%" not in path.read_text(encoding="utf-8"), path


def test_numbers_are_written_in_one_way() -> None:
    clock = {
        0.0003: "0.3 ms",
        0.012: "12 ms",
        0.571: "571 ms",
        0.9999: "999 ms",
        3.44: "3.4 s",
        9.96: "10 s",
        185: "3 min 05 s",
    }
    assert {x: numbers.clock(x) for x in clock} == clock
    assert [numbers.money(x) for x in (12.3, 0.0041, 3.2e-6)] == ["$12.30", "$0.0041", "$3.2e-06"]
    assert figures.text("accuracy", Estimate(0.425, 0.27, 0.591, 40)) == "42.5 % [27.0, 59.1]"
    assert figures.text("difference", Estimate(0.275, -0.1, 0.436, 40)) == "+27.5 points [-10.0, +43.6]"
    assert figures.text("mean_seconds_per_search", Estimate(1.2, 0.9, 3.0, 40)) == "1.2 s [900 ms, 3.0 s]"
    none = Estimate(323.94, math.nan, math.nan, 3, "no interval: 3 problems, 10 can carry one")
    assert figures.text("mean_tokens_per_search", none) == f"323.9 ({none.method})"
    assert figures.text("accuracy", None) == "–"


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.data())
def test_what_is_said_while_it_runs_holds_the_accuracy_that_comes_out(right: list[bool], data: st.DataObject) -> None:
    done = data.draw(st.integers(1, len(right)))
    said = Progress(done, len(right), sum(right[:done]), 0, 0, 1.0).so_far()
    assert said["correct"] == f"{sum(right[:done])} of {done}"
    if done < len(right):
        low, high = map(int, re.fullmatch(r"will be (\d+) to (\d+) %", said["accuracy"]).groups())
        assert low - 0.5 <= 100 * sum(right) / len(right) <= high + 0.5
    else:
        assert "accuracy" not in said


# Runs of older versions -----------------------------------------------------------------------------------------------


def test_curves_and_reports_with_older_names_are_read(tmp_path: Path, runs: Path) -> None:
    old = ROOT / "docs" / "results" / "quickstart-seed0.json"
    assert '"mean_tokens"' in old.read_text()
    found = curves.read(old)
    assert found.test.sequential[0].mean_response_tokens_per_search == 30.078
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text((runs / "a" / "manifest.json").read_text())
    (run / "curves.json").write_text(old.read_text())
    summary = {"facts": {"mean tokens": 230.85}, "cost": [{"phase": "training", "seconds": 65.0}]}
    (run / "summary.json").write_text(json.dumps(summary))
    tables = [b for section in sections(read(run), []) for b in section.blocks if hasattr(b, "head")]
    assert ("training", "1 min 05 s") in [row for t in tables for row in t.rows]
    assert ("response tokens per search", "230.8") in [row for t in tables for row in t.rows]
    assert any(f"base: {figures.label('mean_response_tokens_per_search')}" in t.head for t in tables)


@pytest.mark.parametrize(
    ("line", "share"),
    [
        ({"vote_share": 0.6}, 0.6),
        ({"vote_share": None, "samples": [{"vote": "4"}]}, None),
        ({"confidence": 0.6, "samples": [{"vote": "4"}]}, 0.6),
        # It was the checker's reward here.
        ({"confidence": 0.0, "samples": [{"check": {"kind": "wrong", "reward": 0.0}}]}, None),
        ({"confidence": True, "samples": [{"vote": "4"}]}, None),
    ],
)
def test_an_older_confidence_is_a_share_of_votes_only_where_there_were_votes(line: dict[str, Any], share: Any) -> None:
    assert figures.vote_share(line) == share
    said = tree({"problem": "p", "stop": "finished", **line}).stopped
    assert said == ("finished" if share is None else f"finished; share of the votes {100 * share:.1f} %")


# Choosing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["best_of_n", "refine", "cascade", "beam", "mcts"])
def test_chosen_by_the_checker_is_said_of_what_it_accepted_alone(strategy: str, tmp_path: Path) -> None:
    options = {"refine": ("n=2",), "beam": ("width=2",), "mcts": ("simulations=4",)}.get(strategy, ("n=3",))
    out = tmp_path / strategy
    assert (
        main(["eval", *SIMULATED, "-n", "8", "--strategy", strategy, "--strategy-options", *options, "--out", str(out)])
        == 0
    )
    lines = [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]
    for line in lines:
        chosen = next((s for s in line["samples"] if s["id"] == line["chosen"]), None)
        accepted = chosen is not None and (chosen["check"] or {}).get("kind") == "correct"
        assert accepted or not re.search(r"chosen by the checker|checker accept(s|ed) (?!none)", line["reason"])
        votes = [s for s in line["samples"] if s.get("vote")]
        assert line["vote_share"] is None or len(votes) > 1
