"""`train pretrain` and `train sft`: the limit that comes first ends a training, and the rate follows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ponder.errors import UserError
from ponder.runs.files import read_lines
from ponder.training import lm, supervised
from ponder.training.interrupt import Interrupted
from ponder.training.supervised import PretrainConfig, SFTConfig, pretrain, sft

PEAK = 2e-3


def fit(**changes) -> lm.LMConfig:
    return lm.LMConfig(**{"learning_rate": PEAK, "batch_tokens": 512, "patience": 1000, **changes})


def trained(config: lm.LMConfig, steps: int | None, batch: int, ends_at: int = 0) -> tuple[list[float], lm.LMState]:
    """The rates of a training whose batches have `batch` tokens, and how it ended; at `ends_at` tokens the validation
    loss no longer improves."""
    state, rates, limit = lm.LMState(), [], lm.most_tokens(config, steps)
    while (rate := lm.rate_at(config, state, steps)) > 0 and (limit is None or state.tokens + batch <= limit):
        rates.append(rate / PEAK)
        state.step, state.tokens = state.step + 1, state.tokens + batch
        if ends_at and state.tokens >= ends_at and state.decay_from is None:
            state.decay_from = state.tokens
    return rates, state


@given(
    steps=st.none() | st.integers(1, 400),
    tokens=st.none() | st.integers(512, 200_000),
    warmup=st.integers(0, 100),
    decay=st.sampled_from([0.0, 0.1, 0.25, 1.0]),
)
@example(steps=None, tokens=80_000, warmup=500, decay=0.25)
@settings(deadline=None, max_examples=200)
def test_a_training_warms_up_stays_and_falls_to_nothing_within_the_limit_that_holds(
    steps, tokens, warmup, decay
) -> None:
    config = fit(max_tokens=200_000 if steps is None and tokens is None else tokens, warmup_steps=warmup, decay=decay)
    limit = config.max_tokens
    rates, state = trained(config, steps, 512)
    ends = [n for n in (steps, None if limit is None else limit // 512) if n is not None]
    assert state.step == len(rates) == min(ends)
    assert limit is None or state.tokens <= limit
    top = [i for i, r in enumerate(rates) if r == max(rates)]
    assert top == list(range(top[0], top[-1] + 1))
    assert rates[: top[0]] == sorted(rates[: top[0]])
    assert rates[top[-1] :] == sorted(rates[top[-1] :], reverse=True)
    assert top[0] <= max(1, len(rates) // 10)
    # The last step's rate is what a fall to zero leaves: one step of the decay, and what the limit has beyond it.
    length = len(rates) * decay / (1 + decay)
    if length >= 1:
        assert rates[-1] <= 2.5 / length
    if len(rates) >= 4:
        assert max(rates) == 1.0
    assert lm.total(config, state, steps) in ((limit,) if steps is None else range(len(rates), len(rates) + 2))


@given(steps=st.integers(2, 300), warmup=st.integers(1, 60), decay=st.sampled_from([0.1, 0.25, 0.5]))
def test_a_number_of_steps_alone_gives_the_rates_that_it_always_gave(steps, warmup, decay) -> None:
    config = fit(warmup_steps=warmup, decay=decay)
    up, length = min(warmup, max(1, steps // 10)), steps - round(steps / (1 + decay))
    for step in range(steps):
        fall = PEAK * max(0.0, min(1.0, (steps - step) / max(1, length)))
        expected = PEAK * (step + 1) / up if step < up else fall
        assert lm.rate_at(config, lm.LMState(step=step), steps) == pytest.approx(expected, rel=1e-12)


def test_a_validation_loss_that_no_longer_improves_ends_the_training_before_its_limit() -> None:
    config = fit(max_tokens=100_000, warmup_steps=5)
    rates, state = trained(config, None, 512, ends_at=40_000)
    assert state.tokens == pytest.approx(1.25 * state.decay_from, abs=512)
    assert lm.total(config, state) == round(1.25 * state.decay_from)
    assert rates[-1] < 0.1
    # Also in the warm-up; and too late to be in time before the limit, the limit holds.
    rates, state = trained(fit(max_tokens=100_000, warmup_steps=100), None, 512, ends_at=2000)
    assert state.tokens <= 1.25 * 2048 + 512
    rates, state = trained(config, None, 512, ends_at=90_000)
    assert 99_000 < state.tokens <= 100_000
    assert lm.total(config, state) == 100_000


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """40 rows of like length, of which 38 are trained on."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    line = '{{"prompt": "Say {0}.", "response": "</think>{0} it is"}}\n'
    path.write_text("".join(line.format(i) for i in range(10, 50)))
    return path


BATCH = {"batch_tokens": 128, "patience": 1000}


@pytest.mark.parametrize(
    ("epochs", "steps", "tokens", "holds"),
    [
        (4.0, None, None, "epochs"),
        (None, 12, None, "steps"),
        (None, None, 1600, "tokens"),
        (4.0, 12, None, "steps"),
        (4.0, 900, None, "epochs"),
        (4.0, None, 1600, "tokens"),
        (4.0, None, 70_000, "epochs"),
        (None, 12, 1200, "tokens"),
        (None, 12, 70_000, "steps"),
        (4.0, 12, 70_000, "steps"),
        (4.0, 90, 1600, "tokens"),
    ],
)
def test_of_several_limits_the_first_ends_a_training_on_a_file(
    epochs, steps, tokens, holds, rows, tmp_path, capsys
) -> None:
    out = tmp_path / "run"
    config = SFTConfig(
        data=str(rows), out=str(out), device="cpu", epochs=epochs, steps=steps, fit=fit(**BATCH, max_tokens=tokens)
    )
    sft(config)
    metrics = read_lines(out / "metrics.jsonl").rows
    last, console = metrics[-1], capsys.readouterr().err
    passes = int(re.search(r"epochs: 4, steps: (\d+)", console)[1]) if epochs else 0
    if holds == "tokens":
        assert tokens - 128 < last["tokens"] <= tokens
    else:
        assert last["step"] == {"epochs": passes, "steps": steps}[holds]
    assert tokens is None or last["tokens"] <= tokens
    rates = [row["learning_rate"] / PEAK for row in metrics]
    assert max(rates) == 1.0
    assert rates[-1] <= 0.8
    assert rates[-4:] == sorted(rates[-4:], reverse=True)
    assert "validation_loss" in last
    if steps or epochs:
        assert f"train sft {last['step']}/{last['step']} steps" in console
    else:
        assert f"train sft {last['tokens']:,}/{last['tokens']:,} tokens" in console
    assert "phase decay" in console


@pytest.mark.parametrize(("steps", "tokens"), [(None, 8000), (12, 8000), (600, 8000)])
def test_a_limit_shorter_than_the_warm_up_holds_for_procedural_chats(steps, tokens, tmp_path, capsys) -> None:
    """A warm-up of 50 steps once ran on to its end, five times the limit, and the rate never fell."""
    out = tmp_path / "run"
    sft(SFTConfig(out=str(out), device="cpu", steps=steps, fit=fit(max_tokens=tokens, warmup_steps=50)))
    metrics = read_lines(out / "metrics.jsonl").rows
    assert metrics[-1]["tokens"] <= tokens
    assert metrics[-1]["step"] == 12 if steps == 12 else metrics[-1]["tokens"] > tokens - 512
    rates = [row["learning_rate"] / PEAK for row in metrics]
    assert rates[0] == max(rates) == 1.0
    assert rates[-1] < 0.6
    assert re.search(r"phase decay", capsys.readouterr().err)


def test_pretraining_keeps_to_its_tokens(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(supervised, "HELD_OUT_ROWS", 4)
    config = PretrainConfig(out=str(tmp_path / "run"), length=64, fit=fit(max_tokens=6000))
    pretrain(config)
    metrics = read_lines(tmp_path / "run" / "metrics.jsonl").rows
    assert [row["tokens"] for row in metrics] == [512 * i for i in range(1, 12)]
    assert metrics[-1]["learning_rate"] < metrics[0]["learning_rate"] == PEAK


def test_without_a_validation_the_limit_alone_ends_a_training(rows, tmp_path) -> None:
    out = tmp_path / "run"
    sft(SFTConfig(data=str(rows), out=str(out), device="cpu", held_out=0.0, fit=fit(**BATCH, max_tokens=700)))
    assert read_lines(out / "metrics.jsonl").rows[-1]["tokens"] <= 700
    assert json.loads((out / "summary.json").read_text())["validation_loss"] is None


def test_a_limit_in_tokens_on_a_file_that_is_smaller_than_a_batch_is_many_steps(rows, tmp_path) -> None:
    """Not the two that full batches would be: the warm-up is a tenth of them, and not each is followed by a
    measurement. No batch holds a row twice."""
    out = tmp_path / "run"
    sft(SFTConfig(data=str(rows), out=str(out), device="cpu", fit=fit(batch_tokens=8192, max_tokens=18_000)))
    metrics = read_lines(out / "metrics.jsonl").rows
    assert metrics[0]["tokens"] < 1000
    assert len(metrics) >= 18
    assert metrics[0]["learning_rate"] < PEAK
    assert 5 <= sum("validation_loss" in row for row in metrics) <= 8


def test_a_limit_that_no_batch_fits_is_refused_before_anything_is_written(rows, tmp_path) -> None:
    out = tmp_path / "run"
    says = r"fit.max_tokens = 100: the first batch has \d+ tokens; give at least as many, or a smaller fit.batch_tokens"
    with pytest.raises(UserError, match=says):
        sft(SFTConfig(data=str(rows), out=str(out), device="cpu", fit=fit(**BATCH, max_tokens=100)))
    with pytest.raises(UserError, match=r"fit.max_tokens = 500: the first batch has 512 tokens"):
        pretrain(PretrainConfig(out=str(out), length=64, fit=fit(max_tokens=500)))
    assert not out.exists()


def test_a_resumed_training_follows_the_limit_that_it_is_given_now(rows, tmp_path, monkeypatch) -> None:
    """More tokens than planned are trained, as more steps are, and a run that was stopped in its decay ends as it
    would have."""

    def config(name: str, tokens: int, **more) -> SFTConfig:
        out = str(tmp_path / name)
        return SFTConfig(data=str(rows), out=out, device="cpu", fit=fit(**BATCH, max_tokens=tokens), **more)

    whole = sft(config("whole", 1400))
    train = lm.train

    def stopped(*args, on_step, interrupt, **rest):
        def watch(state, row):
            on_step(state, row)
            interrupt.requested = row["learning_rate"] < PEAK and state.step > 2

        train(*args, on_step=watch, interrupt=interrupt, **rest)

    monkeypatch.setattr(lm, "train", stopped)
    with pytest.raises(Interrupted):
        sft(config("parts", 1400))
    monkeypatch.setattr(lm, "train", train)
    parts = sft(config("parts", 1400, resume=True))
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"tokens = 600: .* has done 1,\d+ tokens already; train for at least as many"):
        sft(config("parts", 600, resume=True))
    before = len(read_lines(tmp_path / "parts" / "metrics.jsonl").rows)
    sft(config("parts", 2800, resume=True))
    after = read_lines(tmp_path / "parts" / "metrics.jsonl").rows
    assert 2800 - 128 < after[-1]["tokens"] <= 2800
    assert after[before]["learning_rate"] == PEAK
    assert after[-1]["learning_rate"] < 0.5 * PEAK


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 2.0}, "epochs are passes over the rows of a file"),
        ({"data": "rows.jsonl", "epochs": 0.0}, "epochs = 0.0: give more than 0"),
        ({"steps": 0}, "steps = 0: give at least 1"),
        ({"steps": 3, "epochs": -1.0, "data": "rows.jsonl"}, "epochs = -1.0: give more than 0"),
    ],
)
def test_a_limit_that_cannot_be_is_refused_with_one_sentence(changes, says) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        SFTConfig(**changes)
    with pytest.raises(UserError, match=r"fit.max_tokens = 0: give more than 0"):
        fit(max_tokens=0)
