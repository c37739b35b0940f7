"""`ponder report A B`: two evaluations of the same problems."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from ponder.cli.main import main
from ponder.errors import UserError
from ponder.evaluation.compare import compare

KINDS_A = ["wrong", "no_answer", "correct", "wrong", "correct", "wrong"]
KINDS_B = ["correct", "correct", "correct", "wrong", "wrong", "correct"]


def evaluation(path: Path, kinds: list[str], first: int = 0) -> Path:
    path.mkdir()
    (path / "evaluation.json").write_text("{}")
    rows = [search(i, kind) for i, kind in enumerate(kinds, first)]
    (path / "rollouts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def search(index: int, kind: str, sample: int = 0, tokens: int = 10) -> dict[str, Any]:
    """A line of an evaluation."""
    return {
        "problem": f"p{index}",
        "prompt": f"question {index}",
        "sample": sample,
        "verdict": {"kind": kind},
        "spend": {"prompt_tokens": 3, "sampled_tokens": tokens},
        "samples": [],
    }


def test_the_difference_is_paired_and_split_by_verdicts(tmp_path) -> None:
    result = compare(evaluation(tmp_path / "a", KINDS_A), evaluation(tmp_path / "b", KINDS_B))
    assert (result.a.value, result.b.value) == (2 / 6, 4 / 6)
    assert result.difference.value == pytest.approx(2 / 6)
    assert result.difference.low < result.difference.value < result.difference.high
    assert result.moves == {"correct to wrong": 1, "no_answer to correct": 1, "wrong to correct": 2}
    assert result.p == pytest.approx(2 * (1 + 4) / 2**4)  # 1 of 4 discordant pairs, two-sided


def test_the_order_of_the_rows_does_not_matter(tmp_path) -> None:
    a, b = evaluation(tmp_path / "a", KINDS_A), evaluation(tmp_path / "b", KINDS_B)
    lines = (b / "rollouts.jsonl").read_text().splitlines()
    before = compare(a, b)
    (b / "rollouts.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    assert compare(a, b) == before


def test_responses_with_a_judge_error_are_left_out_of_both(tmp_path) -> None:
    result = compare(
        evaluation(tmp_path / "a", ["judge_error", "wrong"]), evaluation(tmp_path / "b", ["correct", "correct"])
    )
    assert (result.a.n, result.b.n, result.difference.value) == (1, 1, 1.0)


def test_a_search_that_was_run_again_counts_once(tmp_path) -> None:
    a, b = evaluation(tmp_path / "a", KINDS_A), evaluation(tmp_path / "b", KINDS_B)
    before = compare(a, b)
    lines = (b / "rollouts.jsonl").read_text()
    (b / "rollouts.jsonl").write_text(json.dumps(search(0, "judge_error")) + "\n" + lines)
    assert compare(a, b) == before


def test_tokens_are_compared_in_pairs_too(tmp_path) -> None:
    a, b = evaluation(tmp_path / "a", 2 * KINDS_A), evaluation(tmp_path / "b", 2 * KINDS_B)
    rows = [search(i, kind, tokens=20 + i) for i, kind in enumerate(2 * KINDS_B)]
    (b / "rollouts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = compare(a, b)
    assert (result.mean_tokens_per_search_a.value, result.mean_tokens_per_search_b.value) == (13.0, 28.5)
    assert result.mean_tokens_per_search_difference.value == 15.5
    assert result.mean_tokens_per_search_difference.low < 15.5 < result.mean_tokens_per_search_difference.high
    assert math.isnan(result.mean_tokens_per_search_a.low)
    assert "all 12 problems have the same value" in result.mean_tokens_per_search_a.method


def test_evaluations_with_equal_results_differ_by_0_with_an_interval(tmp_path) -> None:
    result = compare(evaluation(tmp_path / "a", 50 * ["wrong"]), evaluation(tmp_path / "b", 50 * ["wrong"]))
    assert result.difference.value == 0.0
    # The chance that none of 50 differs is 2.5 % if 7.1 % of all do.
    assert (result.difference.low, result.difference.high) == pytest.approx((-0.071, 0.071), abs=0.001)


def test_several_samples_are_averaged_and_have_no_mcnemar(tmp_path) -> None:
    a, b = evaluation(tmp_path / "a", KINDS_A), evaluation(tmp_path / "b", KINDS_B)
    with open(b / "rollouts.jsonl", "a") as file:
        file.writelines(json.dumps(search(i, "correct", sample=1)) + "\n" for i in range(6))
    result = compare(a, b)
    assert result.b.value == pytest.approx((4 * 1 + 2 * 0.5) / 6)
    assert result.p is None


def test_other_problems_or_other_prompts_are_refused(tmp_path) -> None:
    a = evaluation(tmp_path / "a", KINDS_A)
    with pytest.raises(UserError, match="did not answer the same problems"):
        compare(a, evaluation(tmp_path / "b", KINDS_B, first=1))
    other = evaluation(tmp_path / "c", KINDS_B)
    text = (other / "rollouts.jsonl").read_text()
    (other / "rollouts.jsonl").write_text(text.replace("question 3", "another"))
    with pytest.raises(UserError, match="asked problem 'p3' differently"):
        compare(a, other)
    with pytest.raises(UserError, match="not an evaluation"):
        compare(a, tmp_path)
    (other / "rollouts.jsonl").write_text('{"problem_id": "p1", "prompt": "x", "samples": []}\n')
    with pytest.raises(UserError, match="line 1 is not a search that this version of ponder wrote"):
        compare(a, other)
    half = evaluation(tmp_path / "d", KINDS_A)
    (half / "evaluation.json").unlink()
    (half / "config.toml").write_text("")
    with pytest.raises(UserError, match="ponder eval --resume --out"):
        compare(a, half)


def test_the_command_prints_both_accuracies_and_the_interval(tmp_path, capsys) -> None:
    a, b = str(evaluation(tmp_path / "a", KINDS_A)), str(evaluation(tmp_path / "b", KINDS_B))
    assert main(["report", a, b]) == 0
    said = capsys.readouterr().out
    assert "6 problems do not tell A and B apart" in said
    # A difference of so few problems is no figure to be quoted: its interval is.
    assert re.search(r"B - A, paired +-\d\d\.\d to \+\d\d\.\d points; 6 problems: too few to say much, 385 give", said)
    assert "33.3 points" not in said
    assert re.search(r"McNemar's exact test +p = 0\.62", said)
    assert "no_answer to correct" in said
    assert re.search(r"tokens per search, A +13 \(no interval: 6 problems, 10 can carry one\)", said)
    assert main(["report", a, b, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["moves"]["wrong to correct"] == 2
    assert (
        values["mean_tokens_per_search_difference"]["value"],
        values["mean_tokens_per_search_difference"]["low"],
    ) == (0.0, None)
    assert main(["report", a, str(tmp_path)]) == 2
