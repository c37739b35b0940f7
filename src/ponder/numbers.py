"""How numbers are written for people: one way each, on the console, in reports and in the viewer (`page/util.js`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def quantity(value: float) -> str:
    """A number for people: `0.412`, `5.63`, `37.5`, `8,210`, `1.2e+13`."""
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and size < 1e10:
        return f"{int(value):,}"
    if size >= 1e7:
        return f"{value:.2g}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def counted(number: int, what: str) -> str:
    """`1 problem`, `1,200 problems`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Whole seconds: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def clock(seconds: float) -> str:
    """`0.3 ms`, `12 ms`, `571 ms`, `3.4 s`, `42 s`, `3 min 05 s`."""
    if seconds < 1:
        return f"{seconds * 1e3:.2g} ms" if seconds < 0.0995 else f"{min(seconds * 1e3, 999):.0f} ms"
    return f"{seconds:.1f} s" if seconds < 9.95 else duration(seconds)


def money(dollars: float) -> str:
    """`$12.30`, `$0.0041`, `$3.2e-06`."""
    return f"${dollars:,.2f}" if dollars >= 1 else f"${dollars:.2g}"


def percent(share: float) -> str:
    """`41.2 %`."""
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """A difference of shares: `+4.2 points`."""
    return f"{100 * share:+.1f} points"


def chance(p: float) -> str:
    """`p = 0.031`."""
    return f"p = {p:.2g}"


def power(value: float) -> str:
    """`1.8e+10`."""
    return f"{value:.2g}"


def span(low: float, high: float, number: Callable[[float], str] = percent) -> str:
    """An interval beside its value, the unit left out where both ends have the same: `[37.0, 45.5]`."""
    ends = [number(low), number(high)]
    units = {end.partition(" ")[2] for end in ends}
    if len(units) == 1:
        ends = [end.partition(" ")[0] for end in ends]
    return f"[{ends[0]}, {ends[1]}]"


def between(low: float, high: float) -> str:
    """An interval of a difference in place of its value: `-42.0 to +100.0 points`."""
    return f"{points(low).removesuffix(' points')} to {points(high)}"


def with_interval(estimate: Any, number: Callable[[float], str] = percent) -> str:
    """`41.2 % [37.0, 45.5]`; without an interval `41.2 % (no interval: 3 problems; …)`.

    `estimate` has `value`, `low`, `high` and `method`, as a `types.Estimate`.
    """
    said = number(estimate.value)
    if math.isnan(estimate.low):
        return f"{said} ({estimate.method})"
    return f"{said} {span(estimate.low, estimate.high, number)}"


def difference(estimate: Any) -> str:
    """A difference of accuracies: `+4.2 points [+1.0, +7.5]`; of too few problems its interval alone, and why."""
    few = estimate.method.partition("; ")[2]
    return f"{between(estimate.low, estimate.high)}; {few}" if few else with_interval(estimate, points)
