"""Procedural text, supervised loops and checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder import registry
from ponder.config import load_toml
from ponder.environments.countdown import check
from ponder.errors import TrainingDiverged, UserError
from ponder.models.tiny import new_model
from ponder.runs.files import read_lines
from ponder.training import checkpoint, lm
from ponder.training.corpus.arithmetic import steps as arithmetic_steps
from ponder.training.corpus.base import mixture
from ponder.training.corpus.countdown import Countdown, expression, random_try
from ponder.training.data import (
    Epoch,
    Position,
    ProceduralChats,
    ProceduralText,
    Transcripts,
    batches,
    collate,
    steps_of,
)
from ponder.training.interrupt import Interrupt, Interrupted
from ponder.training.supervised import FAMILIES, PretrainConfig, SFTConfig, pretrain, sft
from ponder.types import Problem

EQUATION = re.compile(r"(?<![\d=])(\d+)([-+*/])(\d+)=(\d+)")


@pytest.fixture(scope="module")
def model():
    return new_model(0)


@pytest.mark.parametrize("family", [f.partition("=")[0] for f in FAMILIES])
def test_every_equation_that_a_family_writes_is_right(family: str) -> None:
    rng, part = random.Random(1), registry.build("training.corpus", family)
    found = 0
    for _ in range(300):
        for a, op, b, c in EQUATION.findall(part.example(rng).thought):
            x, y, z = int(a), int(b), int(c)
            # Only whole equations: a cut chain may end in the middle of a number.
            right = {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else None}[op]
            assert right == z or str(right).startswith(c), f"{a}{op}{b}={c}"
            found += 1
    assert found > 100 or family in ("compare", "sort", "letters", "reverse")


def test_countdown_chains_end_in_a_right_answer_unless_cut_or_given_up() -> None:
    rng, family = random.Random(2), Countdown()
    solved = 0
    for _ in range(400):
        e = family.example(rng)
        target, *numbers = map(int, re.findall(r"\d+", e.prompt))
        verdict = check(Problem("x", e.prompt, {"numbers": numbers, "target": target, "operations": "+-*"}), e.answer)
        if not e.cut and e.thought.endswith("!"):
            assert verdict.correct, (e, verdict)
            solved += 1
    assert solved > 200


def test_countdown_chains_never_use_a_test_problem() -> None:
    rng, family = random.Random(3), Countdown()
    test = {
        (p.public["target"], *sorted(p.public["numbers"]))
        for p in (family.environment.problem("test", i) for i in range(300))
    }
    for _ in range(2000):
        target, *numbers = map(int, re.findall(r"\d+", family.example(rng).prompt))
        assert (target, *sorted(numbers)) not in test


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_a_try_becomes_an_expression_of_the_same_value(numbers: list[int], seed: int) -> None:
    steps = random_try(random.Random(seed), numbers, "+-*")
    assert eval(expression(steps)) == steps[-1][3]
    assert sorted(map(int, re.findall(r"\d+", expression(steps)))) == sorted(numbers)


@given(
    st.recursive(
        st.integers(0, 99).map(str),
        lambda x: st.tuples(x, st.sampled_from("+-*"), x).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
        max_leaves=6,
    )
)
@settings(max_examples=200, deadline=None)
def test_arithmetic_steps_evaluate_like_python(text: str) -> None:
    assert arithmetic_steps(text)[1] == eval(text)


def test_a_mixture_gives_the_same_example_at_an_index_each_time() -> None:
    a, b = mixture(FAMILIES, 5), mixture(FAMILIES, 5)
    assert [a.example(i) for i in range(50)] == [b.example(i) for i in reversed(range(50))][::-1]
    assert [a.example(i) for i in range(50)] != [mixture(FAMILIES, 6).example(i) for i in range(50)]


@pytest.mark.parametrize("word", ["countdwn", "countdown=0", "countdown=x"])
def test_a_bad_family_is_refused_by_name(word: str) -> None:
    with pytest.raises(UserError, match="countdown"):
        mixture([word], 0)


def test_chats_learn_thought_and_answer_but_not_the_prompt_nor_a_forced_end(model) -> None:
    close = model.tokenizer.id_of("</think>")
    cut_seen = False
    mix = mixture(("countdown",), 0)
    for index, (_, row) in zip(range(200), ProceduralChats(mix, model, 512).rows(0), strict=False):
        _, e = mix.example(index)
        prompt = model.prompt_ids(e.prompt)
        assert row.ids[: len(prompt)] == prompt
        assert not any(row.mask[: len(prompt)])
        assert row.ids[-1] == model.end_ids[0]
        assert row.mask[-1]
        assert row.mask[row.ids.index(close)] is (not e.cut)
        cut_seen |= e.cut
    assert cut_seen


@pytest.mark.parametrize("kind", ["text", "chats", "file"])
def test_a_stream_continued_from_any_position_equals_one_that_was_never_stopped(
    kind: str, model, tmp_path: Path
) -> None:
    if kind == "file":
        path = tmp_path / "rows.jsonl"
        rows = [json.dumps({"prompt": f"What is {i}+{i}?", "response": str(2 * i)}) for i in range(30)]
        path.write_text("\n".join(rows))
        source = Transcripts.read(path, model, 0, 200)
    elif kind == "text":
        source = ProceduralText(mixture(FAMILIES, 0), model, 64)
    else:
        source = ProceduralChats(mixture(FAMILIES, 0), model, 128)
    whole = list(islice(batches(source, Position(), 500, model.pad_id, pool=3), 12))
    for stop in (1, 3, 4, 7):
        position = whole[stop - 1][0]
        again = list(islice(batches(source, position, 500, model.pad_id, pool=3), 12 - stop))
        for (p, a), (q, b) in zip(whole[stop:], again, strict=True):
            assert p == q
            assert torch.equal(a.ids_BT, b.ids_BT)
            assert torch.equal(a.mask_BT, b.mask_BT)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "line 2 is not valid JSON"),
        ("[1]", "line 2 is not a JSON object but list"),
        ('{"prompt": "x"}', "line 2: needs `prompt` and `response`"),
        ('{"prompt": "x", "answer": "y"}', "rows with an `answer` are for ponder train rl"),
        ('{"ids": [1, 2], "mask": [true]}', "line 2: `ids` and `mask`"),
        ('{"ids": [1, 99999], "mask": [false, true]}', "line 2: `ids` must be"),
    ],
)
def test_a_bad_line_is_named_by_its_number(line: str, reason: str, model, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "What is 1+1?", "response": "2"}\n' + line + "\n")
    with pytest.raises(UserError, match=re.escape(reason)):
        Transcripts.read(path, model, 0, 200)


def small(**changes) -> lm.LMConfig:
    base = lm.LMConfig(
        learning_rate=2e-3, batch_tokens=1024, warmup_steps=2, max_tokens=6000, decay=0.5, eval_every=3, patience=50
    )
    return dataclasses.replace(base, **changes)


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    config, state = small(warmup_steps=4, max_tokens=60_000), lm.LMState()
    assert lm.rate_at(config, state) == pytest.approx(config.learning_rate / 4)
    state.step, state.tokens = 10, 40_000
    assert lm.rate_at(config, state) == config.learning_rate
    assert not lm.decaying(config, state)
    state.tokens = 50_000
    assert lm.rate_at(config, state) == pytest.approx(config.learning_rate / 2)
    assert lm.decaying(config, state)
    state.tokens = 60_000
    assert lm.rate_at(config, state) == 0.0
    state.tokens, state.decay_from = 30_000, 20_000
    assert lm.rate_at(config, state) == 0.0


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 57, 1000])
def test_a_number_of_steps_warms_up_and_decays_within_it(steps: int) -> None:
    config = small(warmup_steps=50, decay=0.25)
    rates = [lm.rate_at(config, lm.LMState(step=i), steps) for i in range(steps)]
    assert max(rates) == config.learning_rate
    assert all(0 < r <= config.learning_rate for r in rates)
    assert lm.rate_at(config, lm.LMState(step=steps), steps) == 0.0
    top = [i for i, r in enumerate(rates) if r == config.learning_rate]
    assert top == list(range(top[0], top[-1] + 1))
    assert top[0] <= steps // 10 + 1


def test_training_stops_when_the_validation_loss_no_longer_improves(model) -> None:
    fresh = new_model(1)
    source = ProceduralText(mixture(("reverse",), 0), fresh, 64)
    held_out = [collate([row for _, row in islice(source.rows(1000), 8)], 0)]
    state, config = lm.LMState(), small(learning_rate=1e-9, max_tokens=10**9, patience=2)
    lm.train(fresh, source, held_out, config, state, optimiser=lm.make_optimiser(fresh.module, config))
    assert state.decay_from is not None
    assert 2 * config.eval_every <= state.step < 30


def test_gradient_checkpointing_changes_no_step(model) -> None:
    source, weights = ProceduralText(mixture(("reverse",), 0), model, 64), []
    for on in (False, True):
        fresh, config = new_model(1), small(max_tokens=3000, gradient_checkpointing=on)
        held_out = [collate([row for _, row in islice(source.rows(1000), 8)], 0)]
        optimiser = lm.make_optimiser(fresh.module, config)
        lm.train(fresh, source, held_out, config, lm.LMState(), optimiser=optimiser)
        weights.append([p.detach() for p in fresh.module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def _killed_before_its_first_checkpoint(run: Path, out: Path) -> None:
    """What such a kill leaves: no checkpoint, steps that belong to none, and what was being written."""
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("checkpoints", "model", "summary.json"))
    (out / "checkpoints" / ".step-000002.999999999.abcdefgh.part").mkdir(parents=True)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "status": "running", "end": None}))


def test_a_stopped_and_resumed_run_equals_one_that_was_not(tmp_path: Path, monkeypatch) -> None:
    def config(name: str, **more) -> PretrainConfig:
        return PretrainConfig(
            out=str(tmp_path / name),
            families=("reverse", "compare"),
            length=64,
            fit=small(),
            checkpoint_every=2,
            **more,
        )

    monkeypatch.setattr("ponder.training.supervised.HELD_OUT_ROWS", 16)
    whole = pretrain(config("whole"))
    train = lm.train

    def stopped(*args, on_step, interrupt, **rest):
        def watch(state, row):
            on_step(state, row)
            interrupt.requested = state.step == 3

        train(*args, on_step=watch, interrupt=interrupt, **rest)

    monkeypatch.setattr(lm, "train", stopped)
    with pytest.raises(Interrupted, match="--resume"):
        pretrain(config("parts"))
    monkeypatch.setattr(lm, "train", train)
    parts = pretrain(config("parts", resume=True))
    _killed_before_its_first_checkpoint(tmp_path / "parts", tmp_path / "killed")
    killed = pretrain(config("killed", resume=True))
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    assert len(read_lines(killed.parent / "metrics.jsonl").rows) == len(read_lines(whole.parent / "metrics.jsonl").rows)
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    a, b = (read_lines(p.parent / "metrics.jsonl").rows for p in (whole, parts))
    clock = ("seconds", "seconds_data", "tokens_per_second")
    assert [{k: v for k, v in r.items() if k not in clock} for r in a] == [
        {k: v for k, v in r.items() if k not in clock} for r in b
    ]


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("ponder.training.supervised.HELD_OUT_ROWS", 16)
    loss_sum, calls = lm.loss_sum, []

    def broken(module, batch):
        loss, n = loss_sum(module, batch)
        if not loss.requires_grad:  # the validation loss
            return loss, n
        calls.append(1)
        return (loss * math.nan, n) if len(calls) == 4 else (loss, n)

    monkeypatch.setattr(lm, "loss_sum", broken)
    config = PretrainConfig(
        out=str(tmp_path / "run"), families=("reverse",), length=64, fit=small(eval_every=100), checkpoint_every=2
    )
    with pytest.raises(TrainingDiverged, match=r"step 4: .* last good checkpoint is .*step-000002"):
        pretrain(config)


def test_sft_learns_the_rows_of_a_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "Say it.", "response": "</think>yes"}) for _ in range(200)))
    monkeypatch.setattr("ponder.models.load.load", lambda spec, **rest: new_model(0))
    out = sft(SFTConfig(data=str(path), out=str(tmp_path / "run"), fit=small(max_tokens=12000), checkpoint_every=100))
    losses = [r["loss"] for r in read_lines(out.parent / "metrics.jsonl").rows]
    assert losses[-1] < 0.3 * losses[0]
    assert json.loads((out.parent / "manifest.json").read_text())["model"]["forward"] == "native"


def rows_file(path: Path, count: int, response: str = "</think>yes") -> Path:
    path.write_text("".join(json.dumps({"prompt": f"Say {i}.", "response": response}) + "\n" for i in range(count)))
    return path


@pytest.mark.parametrize(("rows", "epochs", "tokens"), [(10, 3.0, 8192), (40, 2.0, 100), (40, 0.5, 60), (7, 1.3, 40)])
def test_epochs_are_passes_over_each_row_and_as_many_steps_as_were_planned(
    rows: int, epochs: float, tokens: int, model, tmp_path: Path
) -> None:
    source = Transcripts.read(rows_file(tmp_path / "rows.jsonl", rows), model, 0, 200)
    epoch = Epoch(rows, round(epochs * rows))
    steps = steps_of(source, tokens, epoch)
    stream = batches(source, Position(), tokens, 0, epoch=epoch)
    made = [next(stream) for _ in range(steps)]
    assert sum(len(b.ids_BT) for _, b in made) == epoch.total == made[-1][0].pool
    ids = [tuple(r.ids) for r in source.items]
    seen = [tuple(row[: len(row)].tolist()) for _, b in made for row in b.ids_BT]
    # Rows differ in a digit or two, and padding follows them: each is seen as often as another, give or take a pass.
    counts = [sum(s[: len(i)] == i for s in seen) for i in ids]
    assert max(counts) - min(counts) <= 1
    assert min(counts) >= int(epochs)


def test_a_file_of_ten_rows_is_three_passes_and_not_hours(tmp_path: Path, monkeypatch, capsys) -> None:
    path = rows_file(tmp_path / "rows.jsonl", 10)
    sft(SFTConfig(data=str(path), out=str(tmp_path / "run"), fit=lm.LMConfig(batch_tokens=64), device="cpu"))
    console = capsys.readouterr().err
    assert "rows to train on: 9, for validation: 1" in console
    assert "learning rate 0.002 (the default for 0.9 million parameters)" in console
    metrics = read_lines(tmp_path / "run" / "metrics.jsonl").rows
    assert f"epochs: 3, steps: {len(metrics)}, of at most 64 tokens" in console
    assert len(metrics) < 30
    assert "validation_loss" in metrics[-1]
    assert sum("validation_loss" in r for r in metrics) >= 5
    written = load_toml(tmp_path / "run" / "config.toml")
    assert (written["epochs"], written["fit"]["learning_rate"]) == (3.0, 2e-3)
    again = {"data": str(path), "out": str(tmp_path / "run"), "fit": lm.LMConfig(batch_tokens=64), "resume": True}
    with pytest.raises(UserError, match=rf"has done {len(metrics)} steps already"):
        sft(SFTConfig(**again, epochs=1.0))
    with pytest.raises(UserError, match=r"resume: fit.batch_tokens is 32, and the run has 64"):
        sft(SFTConfig(**{**again, "fit": lm.LMConfig(batch_tokens=32)}))
    sft(SFTConfig(**again, steps=len(metrics) + 2))
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl").rows) == len(metrics) + 2
    assert load_toml(tmp_path / "run" / "config-1.toml")["epochs"] == 3.0


def test_one_row_is_too_few_unless_none_is_held_out_and_that_is_said_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch
) -> None:
    path = rows_file(tmp_path / "rows.jsonl", 1)
    with monkeypatch.context() as patched:
        patched.setattr("ponder.models.load.load", lambda *args, **rest: pytest.fail("the model was loaded"))
        with pytest.raises(UserError, match=r"rows.jsonl: 1 row is too few to hold 1 out .* held_out = 0"):
            sft(SFTConfig(data=str(path), out=str(tmp_path / "run")))
        with pytest.raises(UserError, match=r"nowhere.jsonl"):
            sft(SFTConfig(data=str(tmp_path / "nowhere.jsonl"), out=str(tmp_path / "run")))
    final = sft(SFTConfig(data=str(path), out=str(tmp_path / "run"), held_out=0.0, steps=2, device="cpu"))
    assert json.loads((final.parent / "summary.json").read_text())["validation_loss"] is None


def test_no_batch_of_a_small_file_holds_a_row_twice(tmp_path: Path) -> None:
    """Else ten rows fill a batch of thousands of tokens, and the memory of a large model, with copies."""
    path = rows_file(tmp_path / "rows.jsonl", 10)
    sft(SFTConfig(data=str(path), out=str(tmp_path / "run"), steps=2, device="cpu"))
    metrics = read_lines(tmp_path / "run" / "metrics.jsonl").rows
    assert metrics[0]["tokens"] < 300
    assert metrics[1]["tokens"] == 2 * metrics[0]["tokens"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 2.0, "data": ""}, "procedural chats have no end"),
        ({"epochs": 0.0}, "epochs = 0.0: give more than 0"),
        ({"steps": 0}, "steps = 0: give at least 1"),
        ({"held_out": 1.0}, "held_out = 1.0"),
    ],
)
def test_lengths_that_contradict_each_other_are_refused(changes, says) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        SFTConfig(**{"data": "rows.jsonl", **changes})


def test_a_flipped_byte_in_a_checkpoint_is_an_error_that_names_the_file(tmp_path: Path, model) -> None:
    optimiser = lm.make_optimiser(model.module, small())
    saved = checkpoint.write(tmp_path, model, optimiser, {"step": 7})
    assert checkpoint.read(saved.path).step == 7
    for name in ("optimiser.safetensors", "model/model.safetensors", "state.json"):
        file = saved.path / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        with pytest.raises(UserError, match=re.escape(file.name)):
            checkpoint.read(saved.path)
        file.write_bytes(whole)


def test_only_the_last_checkpoints_are_kept(tmp_path: Path, model) -> None:
    optimiser = lm.make_optimiser(model.module, small())
    for step in (1, 2, 3):
        checkpoint.write(tmp_path, model, optimiser, {"step": step}, keep=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-000002", "step-000003"]
    assert checkpoint.last(tmp_path).step == 3


def test_a_second_interrupt_stops_at_once() -> None:
    import os
    import signal

    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
