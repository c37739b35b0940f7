"""The metrics of a training as small multiples over its steps, from `metrics.jsonl` alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ponder import figures
from ponder.runs import figure
from ponder.runs.ticks import linear

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Points = list[tuple[float, float]]
"""`(step, value)`."""
WIDEST = 9
"""Steps of the running mean, at most."""
LARGEST = 1e100
"""Larger numbers cannot be drawn; they are left out."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One of the small plots."""

    title: str
    points: Points
    percent: bool = False
    smooth: bool = True
    """Whether a running mean says more than the steps themselves."""
    validation: tuple[tuple[float, float], ...] = ()
    """Of the loss, where it was measured on other rows."""


METRICS = (
    *("reward", "right", "loss", "gradient_norm", "clipped", "truncated", "signal", "entropy", "kl", "length"),
    *("learning_rate", "mismatch_mean"),
)
"""Metrics that have a panel, in order; their titles and units are those of `ponder.figures`."""


def panels(metrics: Sequence[Row]) -> list[Panel]:
    """A panel for each metric that has numbers; values that are missing or no numbers are left out."""
    found = {metric: _points(metrics, metric) for metric in METRICS}
    found["right"] = [(_step(row, i), share) for i, row in enumerate(metrics) if (share := _right(row)) is not None]
    validation = _points(metrics, "validation_loss")
    titles = {metric: figures.label(metric) for metric in METRICS}
    if validation:
        titles["loss"] = "loss (nats per token)"
    if found["right"] and _same(found["reward"], found["right"]):
        titles["reward"], found["right"] = "reward: the share of right responses", []
    return [
        Panel(
            titles[metric],
            found[metric],
            figures.FIGURES[metric].unit == "share",
            smooth=metric != "learning_rate",
            validation=tuple(validation) if metric == "loss" else (),
        )
        for metric in METRICS
        if found[metric]
    ]


def window(steps: int) -> int:
    """Steps of the running mean: odd, a third of all and `WIDEST` at most; 1 is no mean."""
    return max(1, min(WIDEST, (steps // 3 - 1) // 2 * 2 + 1))


def running_mean(points: Points, width: int) -> Points:
    """The mean of exactly `width` successive steps, at the middle one; none where a step is missing or at the ends."""
    means = []
    for i in range(len(points) - width + 1):
        part = points[i : i + width]
        if part[-1][0] - part[0][0] == width - 1:
            means.append((part[width // 2][0], sum(value for _, value in part) / width))
    return means


def caption(metrics: Sequence[Row]) -> str:
    """What the points and lines are."""
    steps = f"{len(metrics):,} step{'s' * (len(metrics) != 1)}"
    width = window(len(metrics))
    if width == 1:
        return f"{steps}, each a point."
    return f"{steps}: each a faint point; the line is the mean of {width} steps, at the middle one."


def training(metrics: Sequence[Row], *, narrow: bool = False) -> Figure:
    """All panels, over the same steps."""
    found, width = panels(metrics), window(len(metrics))
    columns = 1 if narrow else min(2, len(found)) if len(found) != 3 else 3
    rows = -(-len(found) // columns)
    drawn, axes = figure.new(rows, columns, 1.55 * rows + 0.7, narrow=narrow, share_x=True)
    steps = [step for panel in found for step, _ in panel.points]
    for axis, panel in zip(axes, found, strict=False):
        _draw(axis, panel, width)
    figure.show_x(axes[0], linear(min(0, *steps), max(steps), whole=True))
    for axis in axes[len(found) :]:
        axis.set_visible(False)
    for axis in axes[len(found) - columns : len(found)]:
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("step")
    handles, labels = _legend(found, width)
    drawn.legend(handles, labels, loc="outside upper left", ncols=1 if narrow else 3, frameon=False)
    return drawn


def _draw(axis: Axes, panel: Panel, width: int) -> None:
    xs, ys = zip(*panel.points, strict=True)
    if not panel.smooth:
        axis.plot(xs, ys, **{**_STEPS, "marker": "none" if len(xs) > 1 else "o"})
    elif width == 1:
        axis.plot(xs, ys, **_STEPS)
    else:
        axis.plot(xs, ys, **_FAINT)
        means = running_mean(panel.points, width)
        axis.plot([x for x, _ in means], [y for _, y in means], color=figure.TRAINED)
    if panel.validation:
        xs, ys = zip(*panel.validation, strict=True)
        axis.plot(xs, ys, **_VALIDATION)
    axis.set_title(panel.title, fontweight="normal")
    figure.show_y(axis, linear(*_range(panel), percent=panel.percent))


# Points at the ends of the axis are drawn whole.
_STEPS: dict[str, Any] = {"color": figure.TRAINED, "marker": "o", "lw": 1.2, "clip_on": False}
_FAINT: dict[str, Any] = {**_STEPS, "alpha": 0.4, "ms": 3.0, "ls": "none", "mew": 0}
_VALIDATION: dict[str, Any] = {**_STEPS, "color": figure.BASE}


def _legend(found: Sequence[Panel], width: int) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    entries = {"each step": Line2D([], [], **(_STEPS if width == 1 else _FAINT))}
    if width > 1:
        entries[f"mean of {width} steps"] = Line2D([], [], color=figure.TRAINED)
    if any(panel.validation for panel in found):
        entries["validation"] = Line2D([], [], **_VALIDATION)
    return list(entries.values()), list(entries)


def _range(panel: Panel) -> tuple[float, float]:
    """What the vertical axis shows: all points with some room, and of shares zero where it is near."""
    values = [value for _, value in (*panel.points, *panel.validation)]
    low, high = min(values), max(values)
    if low == high:
        return low, high
    room = 0.06 * (high - low)
    if panel.percent:
        return (0.0 if low < 0.25 else low - room), min(1.0, high + room)
    return (max(0.0, low - room) if low >= 0 else low - room), high + room


def _points(metrics: Sequence[Row], name: str) -> Points:
    return [(_step(row, i), row[name]) for i, row in enumerate(metrics) if _drawable(row.get(name))]


def _drawable(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and abs(value) <= LARGEST


def _step(row: Row, place: int) -> float:
    step = row.get("step")
    return step if isinstance(step, int | float) else place


def _right(row: Row) -> float | None:
    """Share of right responses among those that were judged."""
    kinds = row.get("verdicts")
    if not isinstance(kinds, Mapping):
        return None
    counts = {kind: n for kind, n in kinds.items() if kind != "judge_error" and isinstance(n, int)}
    return counts.get("correct", 0) / sum(counts.values()) if sum(counts.values()) else None


def _same(a: Points, b: Points) -> bool:
    return len(a) == len(b) and all(x == u and abs(y - v) < 1e-9 for (x, y), (u, v) in zip(a, b, strict=True))
