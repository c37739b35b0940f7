"""GSM8K and the like are asked and sampled by default as the field measures them, and that is shown."""

from __future__ import annotations

import json
import re

import pytest

import ponder
from ponder.cli.main import main
from ponder.config import load_toml
from ponder.environments.gsm8k import BOXED
from ponder.evaluation.greedy import greedy_by_default


@pytest.fixture
def data(tmp_path):
    rows = [{"question": f"What is {n} plus {n}?", "answer": f"{n}+{n}\n#### {2 * n}"} for n in range(1, 60)]
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_gsm8k_asks_for_steps_and_a_boxed_answer(data):
    problem = ponder.environment("gsm8k", data=data).problem("test", 0)
    assert problem.prompt.endswith(f"?\n{BOXED}")
    assert ponder.environment("gsm8k", data=data, instructions="").problem("test", 0).prompt.endswith("?")
    assert ponder.environment("gsm8k", data=data, instructions="Be brief.").problem("test", 0).prompt.endswith("brief.")


@pytest.mark.parametrize("options", [{"few_shot": 2}, {"few_shot": 2, "few_shot_style": "text"}])
def test_examples_show_the_form_so_no_other_is_asked_for(data, options):
    prompt = ponder.environment("gsm8k", data=data, **options).problem("test", 0).prompt
    assert "boxed" not in str(prompt)


@pytest.mark.parametrize(
    ("strategy", "given", "samples", "greedy"),
    [
        ("direct", {}, 1, True),
        ("direct", {"max_tokens": 64}, 1, True),
        ("budget_forcing", {"thought_tokens": 30}, 1, True),
        ("direct", {"temperature": 0.7}, 1, False),
        ("direct", {"n": 8}, 1, False),
        ("direct", {}, 8, False),
        ("majority", {}, 1, False),
        ("best-of-n", {"thought_tokens": 30}, 1, False),
    ],
)
def test_one_response_is_greedy_and_several_differ(data, strategy, given, samples, greedy):
    environment = ponder.environment("gsm8k", data=data)
    assert greedy_by_default(environment, strategy, given, samples) is greedy


def test_an_environment_that_says_nothing_leaves_the_strategy_alone():
    assert not greedy_by_default(ponder.environment("countdown"), "direct", {})


def test_what_was_taken_is_printed_and_stands_in_the_config(data, tmp_path, capsys):
    out = tmp_path / "run"
    asked = ["eval", "--environment", "gsm8k", "--data", data, "-n", "2", "--max-tokens", "8", "--out", str(out)]
    assert main(asked) == 0
    assert re.search(r"sampling +greedy \(temperature 0\), at most 8 tokens per response", capsys.readouterr().out)
    assert load_toml(out / "config.toml")["temperature"] == 0.0
    assert main(["eval", "--resume", "--out", str(out)]) == 0
    assert "greedy (temperature 0)" in capsys.readouterr().out


def test_the_api_measures_alike(data):
    with ponder.open_engine() as engine:
        a, b = (
            ponder.evaluate(ponder.environment("gsm8k", data=data), engine, problems=3, max_tokens=8, seed=s)
            for s in (0, 1)
        )
        assert [r.texts for r in a.rows] == [r.texts for r in b.rows]
