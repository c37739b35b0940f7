"""The pictures of a run, drawn by matplotlib from `Results` alone. Bars and bands are 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ponder import figures
from ponder.errors import MissingExtra
from ponder.runs import figure
from ponder.runs.figure import BASE, COLOURS, INK, TRAINED
from ponder.runs.files import write_atomic
from ponder.runs.panels import panels, training
from ponder.runs.results import TOKENS, Results, Row
from ponder.runs.ticks import Ticks, linear, logarithmic, powers_of_two

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS = (0, (1, 1.4))
ROOM = 0.3
"""Beside the last point, for the curve's name, as a share of the axis."""
Ends = list[tuple[float, float, str]]
"""Where curves end, and whose they are."""


def draw(results: Results) -> dict[str, bytes]:
    """All pictures that the run has data for, as PNG, by file name; also written into the run directory.

    Those with `-narrow` in the name have their panels stacked, for small screens; they are not written to disk.
    Raises `MissingExtra` if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise MissingExtra("a plot", "plots") from None
    pictures: dict[str, bytes] = {}
    with matplotlib.rc_context(figure.STYLE):
        if halves(results):
            pictures["curves.png"] = figure.png(curves(results))
            pictures["curves-narrow.png"] = figure.png(curves(results, narrow=True))
        if any(results.parallel.values()):
            pictures["parallel.png"] = figure.png(parallel(results))
            pictures["parallel-narrow.png"] = figure.png(parallel(results, narrow=True))
        if panels(results.metrics):
            pictures["training.png"] = figure.png(training(results.metrics))
            pictures["training-narrow.png"] = figure.png(training(results.metrics, narrow=True))
    for name, data in pictures.items():
        if "-narrow" not in name:
            write_atomic(results.path / name, data)
    return pictures


def halves(results: Results) -> list[str]:
    """Which curves there are: `train`, `test` or both. Without a step there is no curve of training."""
    trained = ["train"] if any(p["flops"] > 0 for p in results.train) else []
    return trained + (["test"] if any(results.sequential.values()) else [])


def curves(results: Results, *, narrow: bool = False) -> Figure:
    """Accuracy against train compute and against test-time compute, on one y axis; only the halves that have data."""
    found = halves(results)
    rows, columns = (len(found), 1) if narrow else (1, len(found))
    drawn, axes = figure.new(rows, columns, 3.2 * rows, narrow=narrow)
    points = [*results.train, *(p for part in results.sequential.values() for p in part)]
    by_name: dict[str, Callable[[Axes, Results], None]] = {"train": _train_half, "test": _test_half}
    for i, (axis, half) in enumerate(zip(axes, found, strict=True)):
        figure.show_y(axis, _shares(points))
        by_name[half](axis, results)
        if i == 0 or narrow:
            axis.set_ylabel("held-out accuracy")
    return drawn


def parallel(results: Results, *, narrow: bool = False) -> Figure:
    """Best-of-n by the environment's checker, and coverage (pass@k by the judge), of both models in one plot."""
    drawn, (axis,) = figure.new(1, 1, 3.6, narrow=narrow)
    ends: Ends = []
    shown: list[Row] = []
    any_checked = any(p.get("accuracy") is not None for points in results.parallel.values() for p in points)
    axis.set_xscale("log", base=2)
    for who, points in results.parallel.items():
        if not points:
            continue
        checked = [p for p in points if p.get("accuracy") is not None]
        covered = [_coverage(p) for p in points]
        if checked:
            _curve(axis, checked, "samples", COLOURS[who])
        else:
            _curve(axis, covered, "samples", COLOURS[who], marker="none", ls="none")
        xs, ys = [p["samples"] for p in covered], [p["accuracy"] for p in covered]
        axis.plot(xs, ys, ls=DOTS, color=COLOURS[who], marker="o", mfc="white", ms=7, mew=1.2, lw=1.2, zorder=2)
        shown += [*checked, *covered]
        end = (checked or covered)[-1]
        ends.append((end["samples"], end["accuracy"], who))
    samples = [p["samples"] for p in shown]
    figure.show_y(axis, _shares(shown))
    _show_log_x(axis, powers_of_two(min(samples), max(samples)), 0.15)
    _end_labels(axis, ends)
    axis.set_xlabel("samples per problem (k)")
    axis.set_ylabel("held-out accuracy")
    coverage = axis.plot([], [], color=INK, marker="o", mfc="white", ms=7, ls=DOTS, lw=1.2)[0]
    keys = {"coverage, pass@k by the judge": coverage}
    if any_checked:
        keys = {"best of k, picked by the checker": axis.plot([], [], color=INK, marker="o")[0], **keys}
    drawn.legend(list(keys.values()), list(keys), loc="outside lower left", ncols=1 if narrow else 2, frameon=False)
    axis.set_title("Test-time compute: more samples")
    return drawn


def _coverage(point: Row) -> Row:
    """A point's coverage in the place of its accuracy."""
    value = point["coverage"]
    low, high = (value if (v := point.get(k)) is None else v for k in ("coverage_low", "coverage_high"))
    return {"samples": point["samples"], "accuracy": value, "low": low, "high": high}


def _train_half(axis: Axes, results: Results) -> None:
    points = [p for p in results.train if p["flops"] > 0]
    start = next((p for p in results.train if p["flops"] <= 0), None)
    base = results.curves.get("base_accuracy")
    if not isinstance(base, int | float):
        base = start["accuracy"] if start else None
    axis.set_xscale("log")
    # A base costs nothing to train, so it has no place on a logarithmic axis: it is a line across all of it.
    left, right = points[0]["flops"] / 1.25, points[-1]["flops"]
    _curve(axis, points, "flops", TRAINED)
    ends: Ends = [(right, points[-1]["accuracy"], "trained")]
    ticks = _show_log_x(axis, logarithmic(left, right))
    if base is not None:
        if start is not None:
            axis.fill_between([ticks.low, right], start["low"], start["high"], color=BASE, alpha=0.15, lw=0)
        axis.plot([ticks.low, right], [base, base], color=BASE, ls="--", lw=1.6)
        ends.append((right, base, "base"))
    _end_labels(axis, ends)
    axis.set_xlabel("train compute (FLOPs, log scale)")
    axis.set_title("Train-time compute")


def _test_half(axis: Axes, results: Results) -> None:
    axis.set_xscale("log")
    ends: Ends = []
    means: list[float] = []
    for who, points in results.sequential.items():
        if points:
            _curve(axis, points, TOKENS, COLOURS[who])
            ends.append((points[-1][TOKENS], points[-1]["accuracy"], who))
            means += [p[TOKENS] for p in points]
    _show_log_x(axis, logarithmic(min(means) / 1.1, max(means) * 1.1))
    _end_labels(axis, ends)
    axis.set_xlabel(f"{figures.label(TOKENS)} (log scale)")
    axis.set_title("Test-time compute: longer thinking")


def _show_log_x(axis: Axes, ticks: Ticks, room: float = ROOM) -> Ticks:
    """A logarithmic axis with room at its right for the curves' names."""
    ratio = ticks.high / ticks.low
    shown = replace(ticks, low=ticks.low / ratio**0.03, high=ticks.high * ratio**room)
    figure.show_x(axis, shown)
    return shown


def _curve(axis: Axes, points: Sequence[Row], x: str, colour: str, marker: str = "o", ls: str = "-") -> None:
    xs = [p[x] for p in points]
    low, high = [p["low"] for p in points], [p["high"] for p in points]
    axis.fill_between(xs, low, high, color=colour, alpha=0.18, lw=0)
    below = [max(0.0, p["accuracy"] - p["low"]) for p in points]
    above = [max(0.0, p["high"] - p["accuracy"]) for p in points]
    axis.errorbar(
        xs, [p["accuracy"] for p in points], yerr=[below, above],
        color=colour, marker=marker, ls=ls, elinewidth=1.0, capsize=2.0, zorder=3,
    )  # fmt: skip


def _end_labels(axis: Axes, ends: Ends) -> None:
    """Name each curve at its right end; labels of ends that lie close are moved apart."""
    low, high = axis.get_ylim()
    apart = 0.07 * (high - low)
    ordered = sorted(ends, key=lambda e: e[1])
    places = [e[1] for e in ordered]
    for i in range(1, len(places)):
        if places[i] - places[i - 1] < apart:
            middle = (places[i] + places[i - 1]) / 2
            places[i - 1], places[i] = middle - apart / 2, middle + apart / 2
    right = max(x for x, _, _ in ends)  # beyond the bars of the other curve, too
    for (_, _, who), y in zip(ordered, places, strict=True):
        axis.annotate(
            who, (right, y), xytext=(7, 0), textcoords="offset points", va="center", annotation_clip=False,
            color=COLOURS[who], fontweight="bold",
        )  # fmt: skip


def _shares(points: Sequence[Row]) -> Ticks:
    """The part of 0 to 100 % to show: everything, with room, from zero where zero is near."""
    low, high = min(p["low"] for p in points), max(p["high"] for p in points)
    room = max(0.02, 0.08 * (high - low))
    low = 0.0 if low - room < 0.15 else low - room
    return linear(low, min(1.0, high + room), percent=True)
