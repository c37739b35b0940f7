"""Progress: lively on a terminal, short in a log, silent when asked."""

from __future__ import annotations

import io

import pytest

from ponder.runs.progress import Progress, duration, quantity


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO, *, quiet: bool = False) -> str:
    clock = Clock()
    with Progress("rl", 9, unit="steps", every=10, stream=stream, quiet=quiet, clock=clock) as progress:
        for step in range(1, 10):
            clock.now += 4
            progress.update(step, reward=step / 10, length=48.25, skipped=None)
        progress.note("evaluated")
    return stream.getvalue()


def test_a_log_gets_the_first_line_the_last_and_few_between() -> None:
    lines = run(io.StringIO()).splitlines()
    assert lines == [
        "rl 1/9 steps  reward 0.100 · length 48.2 · 32 s left",
        "rl 4/9 steps  reward 0.400 · length 48.2 · 20 s left",
        "rl 7/9 steps  reward 0.700 · length 48.2 · 8 s left",
        "evaluated",
        "rl 9/9 steps  reward 0.900 · length 48.2 · 0 s left",
    ]


def test_a_terminal_gets_one_live_line_with_the_same_fields() -> None:
    out = run(Terminal())
    assert "reward" in out
    assert "9/9" in out
    assert "evaluated" in out


def test_quiet_says_nothing() -> None:
    assert run(io.StringIO(), quiet=True) == ""


def test_the_time_left_of_a_resumed_run_counts_only_its_own_steps() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("rl", 110, every=0, stream=stream, clock=clock) as progress:
        progress.update(100)
        clock.now += 10
        progress.update(101)
    assert stream.getvalue().splitlines()[-1].endswith("1 min 30 s left")


def test_the_time_left_is_not_told_from_the_quickest_answers() -> None:
    """Of 64 answers at once 4 short ones come in a second, the rest at 2 a second; 200 in all."""
    clock, stream = Clock(), io.StringIO()
    with Progress("eval", 200, every=0, at_once=64, stream=stream, clock=clock) as progress:
        for done in range(1, 201):
            clock.now += 0.25 if done <= 4 else 20.0 if done == 5 else 0.5
            progress.update(done)
    said = [line.partition("  ")[2] for line in stream.getvalue().splitlines()]
    assert set(said[:8]) == {""}
    for done in (20, 50, 100, 199):
        minutes, _, seconds = said[done - 1].removesuffix(" s left").rpartition(" min ")
        left = 60 * int(minutes or 0) + int(seconds)
        assert left == pytest.approx((200 - done) / 2, rel=0.5, abs=2)


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (7500, "2 h 05 min")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.4119, "0.412"), (37.52, "37.5"), (8210.4, "8,210"), (1.2e13, "1.2e+13"), (64.0, "64")]
)
def test_numbers_read_well(value: float, text: str) -> None:
    assert quantity(value) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_does_not_stop_the_work(value: float) -> None:
    assert quantity(value) in ("nan", "inf", "-inf")
