"""The pictures of a run, drawn by matplotlib from `Results` alone.

Two colours throughout: the base model is slate, the trained one orange. Bands are 95 % intervals.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ponder.errors import MissingExtra
from ponder.runs.files import write_atomic
from ponder.runs.results import Results, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASE, TRAINED = "#5b7089", "#dd6b0d"
INK, FAINT = "#22262b", "#d9dde2"
DPI = 150
DOTS = (0, (1, 1.4))
COLOURS = {"base": BASE, "trained": TRAINED}
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#8a929c",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
    "savefig.facecolor": "white",
    "svg.hashsalt": "ponder",
}
PANELS: Sequence[tuple[str, tuple[str, ...]]] = (
    ("reward", ("reward", "reward_mean", "mean_reward")),
    ("response length (tokens)", ("length", "response_length", "length_mean", "mean_length")),
    ("entropy (nats per token)", ("entropy", "entropy_mean")),
    ("loss", ("loss",)),
    ("mismatch sampler / trainer, mean |Δ log p|", ("mismatch", "mismatch_mean", "mismatch_abs", "mismatch_mean_abs")),
)
"""Panels of `training.png`: label and the names that a metric may have."""


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
    with matplotlib.rc_context(STYLE):
        if results.train or any(results.sequential.values()):
            pictures["curves.png"] = _png(curves(results))
            pictures["curves-narrow.png"] = _png(curves(results, stacked=True))
        if any(results.parallel.values()):
            pictures["parallel.png"] = _png(parallel(results))
        if panels(results.metrics):
            pictures["training.png"] = _png(training(results))
            pictures["training-narrow.png"] = _png(training(results, stacked=True))
    for name, data in pictures.items():
        if "-narrow" not in name:
            write_atomic(results.path / name, data)
    return pictures


def curves(results: Results, *, stacked: bool = False) -> Figure:
    """Accuracy against train compute and against test-time compute, on one y axis; only the halves that have data."""
    halves: list[Callable[[Axes, Results], None]] = []
    if results.train:
        halves.append(_train_half)
    if any(results.sequential.values()):
        halves.append(_test_half)
    rows, columns = (len(halves), 1) if stacked else (1, len(halves))
    figure, axes = _figure(rows, columns, width=4.9 * columns if not stacked else 4.4, height=3.9 * rows)
    low, high = _range([*results.train, *(p for part in results.sequential.values() for p in part)])
    for i, (axis, half) in enumerate(zip(axes, halves, strict=True)):
        _percent(axis, low, high)
        half(axis, results)
        if i == 0 or stacked:
            axis.set_ylabel("held-out accuracy")
    return figure


def parallel(results: Results) -> Figure:
    """Best-of-n by the environment's checker, and coverage (pass@k by the judge), of both models in one plot."""
    figure, (axis,) = _figure(1, 1, width=6.4, height=4.1)
    ends: list[tuple[float, float, str, str]] = []
    shown: list[Row] = []
    for who, points in results.parallel.items():
        if not points:
            continue
        checked = [p for p in points if p.get("accuracy") is not None]
        covered = [
            {
                "samples": p["samples"],
                "accuracy": p["coverage"],
                "low": p.get("coverage_low"),
                "high": p.get("coverage_high"),
            }
            for p in points
        ]
        for p in covered:
            p["low"], p["high"] = (p["accuracy"] if p[k] is None else p[k] for k in ("low", "high"))
        if checked:
            _curve(axis, checked, "samples", COLOURS[who])
        else:
            _curve(axis, covered, "samples", COLOURS[who], marker="none", ls="none")
        xs, ys = [p["samples"] for p in covered], [p["accuracy"] for p in covered]
        axis.plot(xs, ys, ls=DOTS, color=COLOURS[who], marker="o", mfc="white", ms=8, mew=1.2, lw=1.2, zorder=2)
        shown += [*checked, *covered]
        end = (checked or covered)[-1]
        ends.append((end["samples"], end["accuracy"], who, COLOURS[who]))
    axis.set_xscale("log", base=2)
    _ticks(axis, {int(p["samples"]) for p in shown})
    axis.set_xlabel("samples per problem (k)")
    axis.set_ylabel("held-out accuracy")
    _percent(axis, *_range(shown))
    _end_labels(axis, ends)
    best = axis.plot([], [], color=INK, marker="o")[0]
    coverage = axis.plot([], [], color=INK, marker="o", mfc="white", ms=8, ls=DOTS, lw=1.2)[0]
    keys = {"best of k, picked by the checker": best, "coverage, pass@k by the judge": coverage}
    if not any(p.get("accuracy") is not None for points in results.parallel.values() for p in points):
        del keys["best of k, picked by the checker"]
    axis.legend(list(keys.values()), list(keys), loc="lower right", frameon=False)
    axis.set_title("More samples: parallel test-time compute")
    return figure


def training(results: Results, *, stacked: bool = False) -> Figure:
    """Reward, length, entropy and mismatch over steps: each step faint, the running mean of 9 steps strong."""
    found = panels(results.metrics)
    columns = 2 if len(found) > 1 and not stacked else 1
    rows = -(-len(found) // columns)
    figure, axes = _figure(rows, columns, width=4.6 * columns, height=2.5 * rows)
    for axis, (label, points) in zip(axes, found.items(), strict=False):
        steps, values = [p[0] for p in points], [p[1] for p in points]
        axis.plot(steps, values, color=TRAINED, alpha=0.35, lw=1.0, marker="o" if len(steps) == 1 else None)
        axis.plot(steps, running_mean(values, 9), color=TRAINED)
        axis.set_title(label, fontweight="normal", fontsize=10)
        axis.set_xlabel("step")
        axis.yaxis.set_major_formatter("{x:.4g}")  # no offset text, which would sit on the title
    for axis in axes[len(found) :]:
        axis.set_visible(False)
    return figure


def panels(metrics: Iterable[Row]) -> dict[str, list[tuple[float, float]]]:
    """`(step, value)` of each panel of `training.png` that the metrics have numbers for."""
    found: dict[str, list[tuple[float, float]]] = {}
    for number, row in enumerate(metrics):
        for label, candidates in PANELS:
            value = next((row[n] for n in candidates if isinstance(row.get(n), int | float)), None)
            if value is not None:
                step = row.get("step")
                found.setdefault(label, []).append((step if isinstance(step, int | float) else number, value))
    if "reward" in found:  # a policy's loss says nothing about how well it does
        found.pop("loss", None)
    return {label: found[label] for label, _ in PANELS if label in found}


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Centred running mean; at the ends the window is cut to what there is."""
    half = width // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(w) / len(w) for w in windows]


def _train_half(axis: Axes, results: Results) -> None:
    points = [p for p in results.train if p["flops"] > 0]
    start = next((p for p in results.train if p["flops"] <= 0), None)
    base = results.curves.get("base_accuracy")
    if not isinstance(base, int | float):
        base = start["accuracy"] if start else None
    axis.set_xscale("log")
    # A base costs nothing to train, so it has no place on a logarithmic axis: it is a line across all of it.
    left, right = (points[0]["flops"] / 1.25, points[-1]["flops"]) if points else (1.0, 10.0)
    axis.set_xlim(left, right * (right / left) ** 0.28)
    ends = []
    if points:
        _curve(axis, points, "flops", TRAINED)
        _ticks(axis, _round_numbers(left, right), _power)
        ends.append((right, points[-1]["accuracy"], "trained", TRAINED))
    else:
        axis.set_xticks([])
    if base is not None:
        if start is not None:
            axis.fill_between([left, right], start["low"], start["high"], color=BASE, alpha=0.15, lw=0)
        axis.plot([left, right], [base, base], color=BASE, ls="--", lw=1.6)
        ends.append((right, base, "base", BASE))
    _end_labels(axis, ends)
    axis.set_xlabel("train compute (FLOPs, log scale)")
    axis.set_title("Train-time compute")


def _test_half(axis: Axes, results: Results) -> None:
    axis.set_xscale("log")
    ends: list[tuple[float, float, str, str]] = []
    means: list[float] = []
    for who, points in results.sequential.items():
        if points:
            _curve(axis, points, "mean_tokens", COLOURS[who])
            ends.append((points[-1]["mean_tokens"], points[-1]["accuracy"], who, COLOURS[who]))
            means += [p["mean_tokens"] for p in points]
    if len(set(means)) > 1:
        axis.set_xlim(min(means) / 1.15, max(means) * (max(means) / min(means)) ** 0.28)
    _ticks(axis, _powers_of_two(min(means), max(means)))
    _end_labels(axis, ends)
    axis.set_xlabel("test-time compute (mean tokens, log scale)")
    axis.set_title("Test-time compute: longer thinking")


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


def _end_labels(axis: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name each curve at its right end; labels of ends that lie close are moved apart."""
    low, high = axis.get_ylim()
    apart = 0.06 * (high - low)
    ordered = sorted(ends, key=lambda e: e[1])
    places = [e[1] for e in ordered]
    for i in range(1, len(places)):
        if places[i] - places[i - 1] < apart:
            middle = (places[i] + places[i - 1]) / 2
            places[i - 1], places[i] = middle - apart / 2, middle + apart / 2
    for (x, _, text, colour), y in zip(ordered, places, strict=True):
        axis.annotate(
            text, (x, y), xytext=(8, 0), textcoords="offset points", va="center", color=colour, fontweight="bold",
            annotation_clip=False,
        )  # fmt: skip


def _range(points: Sequence[Row]) -> tuple[float, float]:
    """The part of [0, 1] to show: everything, with room, from zero where zero is near."""
    low, high = min(p["low"] for p in points), max(p["high"] for p in points)
    room = max(0.02, 0.08 * (high - low))
    low = 0.0 if low - room < 0.15 else low - room
    return max(0.0, low), min(1.0, high + room)


def _percent(axis: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_ylim(low, high if high > low else low + 0.1)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def _ticks(axis: Axes, values: Iterable[float], text: Callable[[float], str] = "{:,.0f}".format) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.xaxis.set_major_locator(FixedLocator(sorted(values)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: text(v)))
    axis.xaxis.set_minor_locator(NullLocator())


def _powers_of_two(low: float, high: float) -> list[float]:
    """Powers of two between the ends; 1, 2, 5 times powers of ten where those are too many or too few."""
    powers = [2.0**i for i in range(40) if low / 1.2 <= 2.0**i <= high * 1.3]
    return powers if 2 <= len(powers) <= 8 else _round_numbers(low, high)


def _round_numbers(low: float, high: float) -> list[float]:
    """At most seven of 1, 2, 5 times powers of ten (or the powers alone) between the ends, or else the ends."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1,)):
        ticks = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high * 1.2]
        if 2 <= len(ticks) <= 7:
            return ticks
    return ticks[:: -(-len(ticks) // 7)] if len(ticks) > 7 else [low, high]


def _power(value: float) -> str:
    """`2×10¹²` in matplotlib's mathematics."""
    exponent = math.floor(math.log10(value) + 1e-9)
    digits = f"{value / 10.0**exponent:.2g}"
    return f"$10^{{{exponent}}}$" if digits == "1" else f"${digits}{{\\times}}10^{{{exponent}}}$"


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    # Figure and canvas directly: pyplot keeps global state and picks a backend that may need a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(hspace=0.06, wspace=0.03))
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No date and no version in the file: the same results give the same bytes.
    metadata: Mapping[str, Any] = {"Software": None}
    figure.savefig(buffer, format="png", dpi=DPI, metadata=dict(metadata))
    return buffer.getvalue()
