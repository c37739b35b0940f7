"""What the pictures of a run share: sizes, colours, axes with `ticks`, and the file.

Two colours throughout: the base model is slate, the trained one orange.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ponder.runs.ticks import Ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BASE, TRAINED = "#5b7089", "#c85c05"
INK, FAINT = "#22262b", "#d9dde2"
COLOURS = {"base": BASE, "trained": TRAINED}
DPI = 180
WIDE, NARROW = 7.0, 3.7
"""Inches. The page and a sheet of paper show a wide picture at its size or larger, and a phone a narrow one."""
STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#8a929c",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "savefig.facecolor": "white",
}


def new(rows: int, columns: int, height: float, *, narrow: bool = False, share_x: bool = False) -> Any:
    """A figure `height` inches high, and its axes in reading order."""
    # Figure and canvas directly: pyplot keeps global state and picks a backend that may need a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size = (NARROW if narrow else WIDE, height)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(hspace=0.05, wspace=0.03))
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, sharex=share_x).flat)


def show_x(axes: Axes, ticks: Ticks) -> None:
    """Give the horizontal axis its ends and ticks."""
    axes.set_xlim(ticks.low, ticks.high)
    _show(axes.xaxis, ticks)


def show_y(axes: Axes, ticks: Ticks) -> None:
    """Give the vertical axis its ends and ticks."""
    axes.set_ylim(ticks.low, ticks.high)
    _show(axes.yaxis, ticks)


def _show(axis: Axis, ticks: Ticks) -> None:
    from matplotlib.ticker import NullLocator

    axis.set_ticks(list(ticks.places), labels=list(ticks.labels))
    axis.set_minor_locator(NullLocator())


def png(figure: Figure) -> bytes:
    """The picture. No date and no version in the file: the same results give the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
