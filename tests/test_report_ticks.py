"""Ticks: the texts that are printed say where the tick is, exactly."""

from __future__ import annotations

import math
import re
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.runs import figure, ticks
from ponder.runs.ticks import Ticks

LOWERED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
NUMBER = re.compile(r"(−?[\d,]+(?:\.\d+)?)?(×?10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?(\u00a0%)?")


def read(label: str) -> Decimal:
    """The number that a reader of the label understands."""
    found = NUMBER.fullmatch(label)
    assert found, label
    value = Decimal((found[1] or "1").replace("−", "-").replace(",", ""))
    exponent = int(found[3].translate(LOWERED)) if found[2] else 0
    return value.scaleb(exponent) / (100 if found[4] else 1)


def check(shown: Ticks, low: float, high: float) -> None:
    """What holds for every axis: at least three ticks, in order, on it, and labels that are exact and differ."""
    assert ticks.FEWEST <= len(shown.places) <= ticks.MOST
    assert list(shown.places) == sorted(set(shown.places))
    assert len(set(shown.labels)) == len(shown.labels)
    assert [float(read(label)) for label in shown.labels] == list(shown.places)
    assert shown.low <= low
    assert high <= shown.high
    slack = 1e-9 * (shown.high - shown.low)
    assert shown.low - slack <= shown.places[0]
    assert shown.places[-1] <= shown.high + slack


values = st.floats(-1e100, 1e100) | st.floats(-10, 10) | st.floats(0, 1e-9)


@given(values, values, st.booleans())
def test_a_linear_axis_says_exactly_where_its_ticks_are(a: float, b: float, percent: bool) -> None:
    low, high = min(a, b), max(a, b)
    check(ticks.linear(low, high, percent=percent), low, high)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_an_axis_of_steps_has_ticks_at_whole_numbers_alone(a: int, b: int) -> None:
    shown = ticks.linear(min(a, b), max(a, b), whole=True)
    check(shown, min(a, b), max(a, b))
    assert all(place == int(place) for place in shown.places)


@given(st.floats(1e-100, 1e100), st.just(1.0) | st.floats(1, 10) | st.floats(1, 1e60))
def test_a_logarithmic_axis_has_ticks_at_1_2_5(low: float, ratio: float) -> None:
    shown = ticks.logarithmic(low, low * ratio)
    check(shown, low, low * ratio)
    for label in shown.labels:
        assert read(label).normalize().as_tuple().digits in ((1,), (2,), (5,))


@given(st.integers(1, 2**20), st.integers(1, 2**20))
def test_an_axis_of_samples_has_ticks_at_powers_of_two(a: int, b: int) -> None:
    shown = ticks.powers_of_two(min(a, b), max(a, b))
    check(shown, min(a, b), max(a, b))
    assert all(math.log2(place).is_integer() for place in shown.places)


@pytest.mark.parametrize(
    ("shown", "labels"),
    [
        # Steps of 2.5 points were 30, 33, 35 and 38 %.
        (ticks.linear(0.293, 0.382, percent=True), "30 %|32 %|34 %|36 %|38 %"),
        (ticks.linear(0.3075, 0.3125, percent=True), "30.8 %|31.0 %|31.2 %"),
        (ticks.linear(0.0, 0.0004, percent=True), "0.00 %|0.02 %|0.04 %"),
        (ticks.linear(0.4071, 0.4118), "0.408|0.409|0.410|0.411"),
        (ticks.linear(-0.031, 0.012), "−0.03|−0.02|−0.01|0.00|0.01"),
        (ticks.linear(2e-7, 2.9e-6), "0.5×10⁻⁶|1.0×10⁻⁶|1.5×10⁻⁶|2.0×10⁻⁶|2.5×10⁻⁶"),
        (ticks.linear(0, 2.4e-6), "0|1×10⁻⁶|2×10⁻⁶"),
        (ticks.linear(2e-5, 2e-5), "0|2×10⁻⁵|4×10⁻⁵"),
        (ticks.linear(1, 3, whole=True), "1|2|3"),
        (ticks.linear(0, 120, whole=True), "0|50|100"),
        # These were two ticks, 2.3 and 3.5 × 10¹².
        (ticks.logarithmic(2.3e12, 3.5e12), "10¹²|2×10¹²|5×10¹²"),
        (ticks.logarithmic(2.1e12, 1.3e13), "2×10¹²|5×10¹²|10¹³"),
        (ticks.logarithmic(30, 195), "50|100|200"),
        (ticks.powers_of_two(1, 64), "1|2|4|8|16|32|64"),
    ],
)
def test_labels_as_they_are_printed(shown: Ticks, labels: str) -> None:
    assert "|".join(shown.labels).replace("\u00a0", " ") == labels


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, math.inf), (1.0, math.nan)])
def test_an_axis_that_cannot_be_drawn_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="no ticks"):
        ticks.logarithmic(low, high)
    if not math.isfinite(high):
        with pytest.raises(ValueError, match="no ticks"):
            ticks.linear(low, high)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-1e6, 1e6) | st.floats(0, 1e-6), min_size=1, max_size=5), st.booleans())
def test_the_texts_that_a_picture_shows_are_where_they_say(shares: list[float], percent: bool) -> None:
    pytest.importorskip("matplotlib")
    drawn, (axis,) = figure.new(1, 1, 2.0)
    axis.plot(shares)
    figure.show_x(axis, ticks.linear(0, len(shares), whole=True))
    figure.show_y(axis, ticks.linear(min(shares), max(shares), percent=percent))
    drawn.canvas.draw()
    for along in (axis.xaxis, axis.yaxis):
        low, high = along.get_view_interval()
        shown = [t for t in along.get_major_ticks() if low <= t.get_loc() <= high]
        assert len(shown) >= ticks.FEWEST
        assert [float(read(t.label1.get_text())) for t in shown] == [t.get_loc() for t in shown]
        assert not along.get_offset_text().get_text()
