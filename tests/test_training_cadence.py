"""When a training is evaluated, and on how many problems."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.config import from_mapping, load_toml
from ponder.models.decoder_config import DecoderConfig
from ponder.models.save import save
from ponder.models.tiny import VOCAB_SIZE, new_model
from ponder.training import cadence, lm
from ponder.training.corpus.base import mixture
from ponder.training.data import ProceduralText, collate
from ponder.training.pace import Pace
from ponder.training.rl_checks import checked, held_out_count
from ponder.training.rl_config import RLConfig
from ponder.training.rl_run import train

ENVIRONMENT = f"{Path(__file__).parent / 'rl_environment.py'}:Even"
SHAPE = DecoderConfig(VOCAB_SIZE, 32, 64, 2, 2, 1, 16, 256, tie_word_embeddings=True)


def points(steps: int, every: int) -> list[int]:
    """Steps that are evaluated: before, each `every`, and the last."""
    return [0, *(s for s in range(1, steps + 1) if s % every == 0 or s == steps)]


@given(st.integers(4, 100_000))
def test_a_curve_has_five_points_or_more_and_not_many(steps: int) -> None:
    assert 5 <= len(points(steps, cadence.eval_every(steps))) <= 8


@given(st.integers(1, 2000), st.integers(2, 4096), st.none() | st.integers(0, 50))
def test_evaluations_cost_a_small_share_of_the_training(steps: int, responses: int, every: int | None) -> None:
    problems = cadence.eval_problems(steps, responses, every)
    chosen = cadence.eval_every(steps) if every is None else every
    evaluated = problems * (len(points(steps, chosen)) if chosen else 2)
    assert cadence.FEWEST_PROBLEMS <= problems <= cadence.MOST_PROBLEMS
    few = problems == cadence.FEWEST_PROBLEMS
    assert few or evaluated <= cadence.SHARE * cadence.TRAINED * steps * responses


@given(st.floats(0.1, 1e6), st.floats(0, 1e4))
def test_a_training_of_minutes_gives_its_evaluations_a_share_of_the_time(seconds: float, look: float) -> None:
    times = cadence.affordable(seconds, look)
    assert 1 <= times <= cadence.PARTS
    assert times == 1 or times * look <= cadence.SHARE * seconds * (1 + 1e-9)


def test_the_number_of_problems_follows_the_length_unless_it_is_given() -> None:
    assert held_out_count(RLConfig(), 32) == 500
    assert held_out_count(RLConfig(steps=6), 32) == 111
    assert held_out_count(RLConfig(steps=6, eval_every=0), 32) == 391
    assert held_out_count(RLConfig(steps=6, minutes=3), 32) == 500
    for options, problems in (({}, 111), ({"eval_problems": 8}, 8), ({"eval_problems": 0}, 0)):
        assert len(checked(RLConfig(steps=6, **options)).held_out) == problems


@pytest.mark.parametrize("length", [{"steps": 5}, {"minutes": 0.03}])
def test_a_run_is_evaluated_along_its_way_and_its_config_says_when(length, tmp_path) -> None:
    save(new_model(0, SHAPE), tmp_path / "base")
    options = {"thought_tokens": 6, "answer_tokens": 4}
    sizes = {"problems": 4, "group_size": 4, "eval_problems": 8, "learning_rate": 1e-3}
    run = tmp_path / "run"
    config = RLConfig(
        model=str(tmp_path / "base"), out=str(run), environment=ENVIRONMENT, strategy_options=options, **sizes, **length
    )
    train(config)
    written = from_mapping(RLConfig, load_toml(run / "config.toml"), "config.toml")
    assert written.eval_every
    evaluated = [p["step"] for p in json.loads((run / "curves.json").read_text())["train"]]
    assert evaluated == points(written.steps, written.eval_every)
    if "steps" in length:
        assert evaluated == [0, 1, 2, 3, 4, 5]


def fit(**changes) -> lm.LMConfig:
    return dataclasses.replace(lm.LMConfig(learning_rate=2e-3, batch_tokens=1024, warmup_steps=2), **changes)


@given(st.integers(5, 10_000), st.integers(1, 500))
def test_the_validation_loss_is_measured_five_times_or_more(steps: int, every: int) -> None:
    chosen = lm.eval_every(fit(eval_every=every), steps)
    assert chosen <= every
    assert len(points(steps, chosen)) - 1 >= 5
    # A forward pass takes a third of a step.
    assert lm.held_out_tokens(fit(eval_every=every), steps) / 3 <= 0.15 * chosen * 1024


@pytest.mark.parametrize("steps", [5, 7, None])
def test_a_short_training_measures_its_validation_loss_along_the_way_and_at_the_end(steps: int | None) -> None:
    model = new_model(1, SHAPE)
    source = ProceduralText(mixture(("reverse",), 0), model, 64)
    held_out = [collate([row for _, row in islice(source.rows(1000), 4)], 0)]
    rows: list[dict] = []
    config = fit(max_tokens=None if steps else 6000)
    optimiser = lm.make_optimiser(model.module, config)
    lm.train(
        model,
        source,
        held_out,
        config,
        lm.LMState(),
        optimiser=optimiser,
        steps=steps,
        on_step=lambda state, row: rows.append(row),
    )
    assert sum("validation_loss" in row for row in rows) >= 5
    assert "validation_loss" in rows[-1]


def test_time_that_is_kept_for_later_takes_no_evaluation_from_the_training() -> None:
    """The quickstart keeps the time of its second evaluation: the curve of the rest has five points, too."""
    config, steps, now = RLConfig(minutes=5), 0, 0.0
    pace = Pace(300.0, clock=lambda: now)
    while not (found := pace.eval_every(config, steps, 2.0, 150.0)):
        now, steps = now + 3.0, steps + 1
    assert found["eval_every"] == steps == 10, "a fifth of 150 seconds"
