"""RL with a time limit, on a clock that the tests move: the limit holds, the rate follows it, and the run that it comes
to can be repeated and resumed."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_training_rl import SHAPE, config, rows

from ponder.cli import quickstart
from ponder.cli.main import main
from ponder.cli.quickstart import QUICKER, seconds_again
from ponder.config import from_mapping, load_toml
from ponder.errors import PonderError, UserError
from ponder.models.save import save
from ponder.models.tiny import new_model
from ponder.training import checkpoint, rl_run
from ponder.training.interrupt import Interrupted
from ponder.training.pace import Pace
from ponder.training.rl import Step, Trainer
from ponder.training.rl_config import RLConfig
from ponder.training.rl_run import RLRun

PEAK = 1e-3


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "base"
    save(new_model(0, SHAPE), folder)
    return str(folder)


class Clock:
    """Stands still but for the steps, which take what `seconds` says at the time when they begin."""

    def __init__(self, seconds: Callable[[float], float]) -> None:
        self.now, self.seconds = 1000.0, seconds

    def __call__(self) -> float:
        return self.now

    @property
    def elapsed(self) -> float:
        return self.now - 1000.0

    def step(self) -> None:
        self.now += self.seconds(self.elapsed)


def timed(config: RLConfig, clock: Clock, *, reserve: Callable[[], float] = lambda: 0.0, stop: int = 0) -> RLRun:
    """Run a training on a clock; after step `stop` it is interrupted."""
    loop = RLRun.prepare(config)
    loop.clock, loop.reserve = clock, reserve
    step = loop.trainer.step

    async def ticking() -> Step:
        done = await step()
        clock.step()
        interrupt.requested = loop.trainer.state.step == stop
        # What a resumed run is told of the time before it, on this clock.
        spend = dataclasses.replace(loop.trainer.state.spend, seconds=clock.elapsed)
        loop.trainer.state.spend = spend
        return done

    loop.trainer.step = ticking
    interrupt = rl_run.Interrupt()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rl_run, "Interrupt", lambda: interrupt)
        try:
            loop.start()
            with loop.run:
                loop.train()
        finally:
            loop.close()
    return loop


@pytest.fixture
def stubbed(monkeypatch) -> None:
    """Steps that train nothing, so that hundreds of them take no time; they log the rate of a real one."""

    async def step(self: Trainer) -> Step:
        row = {"step": self.state.step + 1, "learning_rate": self._rate(), "reward": 0.0, "length": 1.0}
        row |= {"signal": 1.0, "entropy": None, "truncated": 0.0, "response_tokens": 1, "seconds": 1.0}
        row |= {"groups": 1, "groups_replaced": 0, "groups_without_signal": 0, "verdicts": {}}
        self.state.step += 1
        done = Step((), (), row)
        self.record(done)
        return done

    monkeypatch.setattr(Trainer, "step", step)


def limited(base: str, out: Path, **changes) -> RLConfig:
    values = {"minutes": 8.0, "steps": None, "final_share": 0.5, "eval_problems": 0, "checkpoint_every": 10_000}
    return config(base, out, **{**values, **changes})


def rates(run: Path) -> list[float]:
    return [row["learning_rate"] / PEAK for row in rows(run)]


def written(run: Path) -> RLConfig:
    return from_mapping(RLConfig, load_toml(run / "config.toml"), "config.toml")


CLOCKS = {
    "a quiet machine": lambda t: 3.0,
    "a slow first minute": lambda t: 9.0 if t < 60 else 3.0,
    "a slow minute in the middle": lambda t: 9.0 if 200 < t < 260 else 3.0,
    "a slow minute when the decay begins": lambda t: 9.0 if 350 < t < 410 else 3.0,
    "a slow last minute": lambda t: 9.0 if t > 420 else 3.0,
    "a machine that becomes quick": lambda t: 9.0 if t < 240 else 3.0,
    "a machine that becomes slow": lambda t: 3.0 if t < 240 else 9.0,
    "first steps that compile": lambda t: 40.0 if t < 80 else 3.0,
}

REACHED = {"a slow minute when the decay begins": 0.7, "a slow last minute": 0.85}
"""Where a slow minute in the decay leaves no time for all of it."""


@pytest.mark.parametrize("name", CLOCKS)
def test_a_disturbance_costs_the_steps_that_it_takes_the_time_of_and_no_more(name, base, tmp_path, stubbed) -> None:
    run, clock = tmp_path / "run", Clock(CLOCKS[name])
    timed(limited(base, run), clock)
    # The limit is used, and holds, up to a step that was slower than the ones before it.
    assert 480 - 9 <= clock.elapsed <= 480 + 6
    found, c = rates(run), written(run)
    assert c.minutes is None
    assert c.steps == len(found)
    # Warm-up, constant, decay, in this order; the decay is what the last quarter of the time had.
    assert found[: c.warmup_steps] == pytest.approx([(i + 1) / 5 for i in range(5)])
    assert found[5 : c.decay_from] == [1.0] * (c.decay_from - 5)
    falling = found[c.decay_from :]
    assert falling == sorted(falling, reverse=True)
    assert falling == pytest.approx([1 - 0.5 * min(1, i / c.decay_steps) for i in range(len(falling))])
    assert 0.5 <= falling[-1] < REACHED.get(name, 0.6)


def test_the_rate_falls_in_the_last_quarter_of_the_time_to_what_it_was_to_fall_to(base, tmp_path, stubbed) -> None:
    timed(limited(base, tmp_path / "run", final_share=0.0), Clock(lambda t: 3.0))
    c = written(tmp_path / "run")
    assert (c.steps, c.decay_from, c.decay_steps) == (160, 120, 40)
    assert rates(tmp_path / "run")[-1] == pytest.approx(1 / 40)


def test_no_step_begins_that_would_end_too_late_and_one_that_does_costs_itself(base, tmp_path, stubbed) -> None:
    clock = Clock(lambda t: 50.0)
    timed(limited(base, tmp_path / "long"), clock)
    assert (written(tmp_path / "long").steps, clock.elapsed) == (9, 450.0)
    clock = Clock(lambda t: 100.0 if t > 470 else 3.0)  # nobody could know
    timed(limited(base, tmp_path / "last"), clock)
    assert 480 < clock.elapsed <= 471 + 100
    clock = Clock(lambda t: 1000.0)
    timed(limited(base, tmp_path / "one"), clock)
    assert written(tmp_path / "one").steps == 1


def test_time_that_the_caller_keeps_for_later_is_kept_also_where_it_changes(base, tmp_path, stubbed) -> None:
    clock = Clock(lambda t: 3.0)
    timed(limited(base, tmp_path / "run"), clock, reserve=lambda: 120.0 if clock.elapsed < 60 else 60.0)
    assert 414 <= clock.elapsed <= 420
    assert written(tmp_path / "run").decay_from == pytest.approx(0.75 * 140, abs=2)


@pytest.mark.parametrize(("steps", "expected"), [(40, 40), (1000, 160)])
def test_the_limit_that_comes_first_ends_the_run_and_the_rate_follows_it(steps, expected, base, tmp_path, stubbed):
    timed(limited(base, tmp_path / "run", steps=steps), Clock(lambda t: 3.0))
    c = written(tmp_path / "run")
    assert (c.steps, c.decay_from, c.decay_steps) == (expected, expected * 3 // 4, expected // 4)
    assert rates(tmp_path / "run")[-1] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(("name", "every"), [("a quiet machine", 32), ("a slow first minute", 18)])
def test_a_slow_beginning_does_not_multiply_the_evaluations(name, every, base, tmp_path, stubbed) -> None:
    timed(limited(base, tmp_path / "run", eval_problems=8, eval_every=None), Clock(CLOCKS[name]))
    c = written(tmp_path / "run")
    evaluated = [p["step"] for p in json.loads((tmp_path / "run" / "curves.json").read_text())["train"]]
    assert c.eval_every == every
    assert evaluated == [*range(0, c.steps, every), *([c.steps] if c.steps % every else [])]
    assert 5 <= len(evaluated) <= 10


def test_the_progress_line_has_the_steps_that_there_will_be_and_the_time_left(base, tmp_path, stubbed, capsys) -> None:
    timed(limited(base, tmp_path / "run"), Clock(lambda t: 3.0))
    said = capsys.readouterr().err
    assert "rl 160/160 steps" in said
    assert "the learning rate falls from step 120 on" in said
    assert "160 steps fitted the time" in said
    timed(limited(base, tmp_path / "both", steps=40), Clock(lambda t: 3.0))
    said = capsys.readouterr().err
    assert re.search(r"rl 40/40 steps .* · 0 s left\n", said)
    assert "fitted the time" not in said


LONG = {"eval_problems": 8, "eval_every": 5, "checkpoint_every": 3, "minutes": 1.0, "final_share": 0.1}
"""A minute of steps of 3 s that train: 20 of them, but for what the evaluations take."""


@pytest.mark.parametrize("stop", [4, 15, 18])
def test_a_run_by_the_clock_is_repeated_without_it_also_where_it_was_stopped_before_or_in_its_decay(
    stop, base, tmp_path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted, match="--resume"):
        timed(limited(base, run, **LONG), Clock(lambda t: 3.0), stop=stop)
    c = written(run)
    assert c.minutes == 1.0
    assert (c.decay_from is not None) == (stop >= 15)
    resumed = Clock(lambda t: 4.0)  # on a slower machine; the clock of the loop goes on where it stopped
    timed(dataclasses.replace(c, resume=True), resumed)
    assert 60 - 4.5 <= 3 * stop + resumed.elapsed <= 60
    final = written(run)
    assert final.minutes is None
    assert final.steps == len(rows(run)) > stop
    if stop >= 15:
        assert (final.decay_from, final.decay_steps) == (c.decay_from, c.decay_steps)
    again = Clock(lambda t: 1e6)
    timed(dataclasses.replace(final, out=str(tmp_path / "again")), again)
    assert written(tmp_path / "again") == dataclasses.replace(final, out=str(tmp_path / "again"))
    assert rows(run) == rows(tmp_path / "again")
    assert (run / "curves.json").read_text() == (tmp_path / "again" / "curves.json").read_text()
    weights = [(r / "model/model.safetensors").read_bytes() for r in (run, tmp_path / "again")]
    assert weights[0] == weights[1]


def test_a_run_that_was_killed_in_its_decay_repeats_it_from_its_last_checkpoint(base, tmp_path, monkeypatch) -> None:
    """The decay is in the config from its first step on; of the metrics after the checkpoint none is lost or new."""
    run, write = tmp_path / "run", RLRun.checkpoint
    monkeypatch.setattr(RLRun, "checkpoint", lambda self: self.trainer.state.step > 14 or write(self))

    def broken(t: float) -> float:
        if t > 52:
            raise PonderError("killed")
        return 3.0

    with pytest.raises(PonderError, match="killed"):
        timed(limited(base, run, **{**LONG, "checkpoint_every": 7}), Clock(broken))
    monkeypatch.setattr(RLRun, "checkpoint", write)
    assert checkpoint.last_step(run / "checkpoints") == 14
    before, c = rows(run), written(run)
    assert c.decay_from is not None
    assert c.decay_from > 14
    timed(dataclasses.replace(c, resume=True), Clock(lambda t: 3.0))
    after = rows(run)
    assert after[: len(before)] == before
    assert len(after) >= len(before)
    assert json.loads((run / "curves.json").read_text())["train"][-1]["step"] == written(run).steps == len(after)


def test_a_run_that_is_resumed_when_its_time_is_up_ends_as_it_is(base, tmp_path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        timed(limited(base, run, **LONG), Clock(lambda t: 3.0), stop=8)
    timed(dataclasses.replace(written(run), minutes=0.4, resume=True), Clock(lambda t: 3.0))
    c = written(run)
    assert (c.steps, len(rows(run))) == (8, 8)
    assert set(rates(run)[5:]) == {1.0}
    timed(dataclasses.replace(c, out=str(tmp_path / "again")), Clock(lambda t: 3.0))
    assert rows(run) == rows(tmp_path / "again")


def test_more_time_or_steps_go_on_with_a_finished_run_and_the_rest_need_not_be_given(base, tmp_path, stubbed) -> None:
    run = tmp_path / "run"
    timed(limited(base, run), Clock(lambda t: 3.0))
    more = limited(base, run, minutes=None, steps=170, learning_rate=None, resume=True)
    timed(more, Clock(lambda t: 3.0))
    assert len(rows(run)) == 170
    assert rates(run)[-10:] == pytest.approx([0.5] * 10)
    timed(limited(base, run, minutes=None, resume=True), Clock(lambda t: 3.0))
    assert len(rows(run)) == 170


FIXED = {"steps": 40, "final_share": 0.2}


@pytest.mark.parametrize(
    ("changes", "begin", "length"),
    [
        ({}, 6, 34),
        ({"warmup_steps": 10}, 10, 30),
        ({"decay_from": 30}, 30, 10),
        ({"decay_steps": 8}, 32, 8),
        ({"decay_from": 20, "decay_steps": 5}, 20, 5),
        ({"decay_from": 20, "decay_steps": 100}, 20, 100),
    ],
)
def test_without_a_clock_the_rate_falls_where_the_config_says(changes, begin, length, base, tmp_path, stubbed) -> None:
    c = limited(base, tmp_path / "run", **{"minutes": None, **FIXED, **changes})
    timed(c, Clock(lambda t: 3.0))
    expected = [1 - 0.8 * min(1, max(0, i - begin) / length) for i in range(40)]
    assert rates(tmp_path / "run")[c.warmup_steps :] == pytest.approx(expected[c.warmup_steps :])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"decay_from": 20, "final_share": 1.0}, "decay_from = 20: with final_share = 1 the rate does not fall"),
        ({"decay_from": 20, "minutes": 3.0}, "decay_from = 20: with minutes give both decay_from and decay_steps"),
        ({"decay_steps": 20, "minutes": 3.0}, "decay_steps = 20: with minutes give both"),
        ({"decay_from": 41}, "decay_from = 41: the rate would never fall in 40 steps; give at most 40"),
        ({"decay_from": 2}, "decay_from = 2: the rate would fall in the warm-up, of 5 steps"),
        ({"decay_steps": 39}, "decay_steps = 39: the rate would fall in the warm-up"),
        ({"decay_steps": 0}, "decay_steps = 0: give at least 1"),
        ({"steps": None, "decay_from": 101}, "never fall in 100 steps"),
    ],
)
def test_a_decay_that_contradicts_the_rest_is_refused_with_one_sentence(changes, says, base, tmp_path) -> None:
    with pytest.raises(UserError, match=says):
        limited(base, tmp_path / "run", **{"minutes": None, **FIXED, **changes})


@pytest.mark.parametrize(
    ("minutes", "busy", "first", "after"), [(8, False, 45, 45), (8, True, 75, 45), (1, False, 200, 0)]
)
def test_a_quickstart_trains_until_the_second_evaluation_and_its_config_repeats_the_training(
    minutes, busy, first, after, tmp_path, monkeypatch, stubbed
) -> None:
    """On a quiet machine; on one that is half as fast in the first minute, of which the base's evaluation takes most;
    and where the evaluations alone take longer than there is: then 20 s are trained."""
    out, clock = tmp_path / "run", Clock(lambda t: 3.0)
    slow = 2 if busy else 1
    prepare, step = RLRun.prepare, Trainer.step

    def prepared(config: RLConfig, **rest) -> RLRun:
        loop = prepare(config, **rest)
        loop.clock = clock
        loop.held_out = loop.held_out[:1]
        return loop

    async def ticking(self: Trainer) -> Step:
        clock.step()
        return await step(self)

    def look(self: RLRun) -> SimpleNamespace:
        clock.now += 2.0
        found = SimpleNamespace(
            run_seconds=2.0, accuracy=SimpleNamespace(value=0.5, low=0.4, high=0.6, n=1), failures=""
        )
        self.results[self.trainer.state.step] = found
        self.evaluations.append({"step": self.trainer.state.step, "accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 1})
        return found

    def evaluated(rl, config, who, quiet):
        if who == "trained":
            raise KeyboardInterrupt
        clock.now += first
        return SimpleNamespace(evaluations=[SimpleNamespace(run_seconds=2.0 * slow)] * 5), None

    monkeypatch.setattr(RLRun, "prepare", prepared)
    monkeypatch.setattr(RLRun, "evaluate", look)
    monkeypatch.setattr(Trainer, "step", ticking)
    monkeypatch.setattr(quickstart, "_test_time", evaluated)
    monkeypatch.setattr(quickstart, "time", SimpleNamespace(monotonic=clock))
    assert main(["quickstart", "--minutes", str(minutes), "--out", str(out)]) == 130
    # 8 s are for the report, and the rest for the evaluation that is to come, whatever the first one took.
    end = max(60 * minutes - 8, first + 20) - after
    assert end - 12 <= clock.elapsed <= end
    own = from_mapping(quickstart.QuickstartConfig, load_toml(out / "config.toml"), "config.toml")
    training = from_mapping(RLConfig, load_toml(out / "rl.toml"), "rl.toml")
    assert training.minutes is None
    assert own.steps == training.steps == len(rows(out))
    again = quickstart.rl_config(own)
    assert again.decay == training.decay == (own.decay_from, own.decay_steps)
    assert again.eval_every == training.eval_every is not None


def test_the_second_evaluation_of_the_quickstart_is_expected_to_take_what_the_first_would_take_now() -> None:
    assert seconds_again(60, 3.0, []) == 60
    assert seconds_again(60, 3.0, [3.0, 3.0]) == 60
    assert seconds_again(90, 4.5, [4.5, 3.0, 3.0]) == 60  # the first was disturbed all along
    assert seconds_again(75, 4.5, [3.0, 3.0]) == 60  # half of it
    assert seconds_again(60, 3.0, [3.0, 3.0, 9.0]) == 60  # a stall of a few seconds
    assert seconds_again(60, 3.0, [3.0, 3.0, 4.5, 4.5]) == 90  # the machine is slower now
    assert seconds_again(70, 13.0, [3.0, 3.0]) == 70 * QUICKER


def test_the_time_left_is_that_of_the_steps_where_they_end_before_the_time() -> None:
    clock = Clock(lambda t: 3.0)
    pace = Pace(600.0, clock=clock)
    assert pace.seconds_left(RLConfig(steps=12), 0, 0.0) == 600  # nothing is known of the steps
    for _ in range(2):
        clock.step()
        pace.took(3.0)
    assert pace.seconds_left(RLConfig(steps=12), 2, 0.0) == 30
    assert pace.seconds_left(RLConfig(steps=2), 2, 0.0) == 0
    assert pace.seconds_left(RLConfig(steps=1000), 2, 94.0) == 500
    assert pace.seconds_left(RLConfig(minutes=10), 2, 94.0) == 500
