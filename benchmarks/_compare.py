"""The pure functions that the benchmarks share: paired ratios with intervals, rows, the table and its JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ponder.types import Estimate

NEAR_BEST = 0.9
"""A peer's settings within this share of its best one in a first run take part in every round."""


def median_interval(values: Sequence[float]) -> Estimate:
    """The median with the narrowest symmetric interval of order statistics that covers at least 95 %.

    Distribution-free: `(x_(k), x_(n+1-k))` covers the median with 1 - 2 P(X < k), X binomial (n, 1/2) (David and
    Nagaraja, Order Statistics, 2003, §7.1). With fewer than 6 values no such interval covers 95 %: it
    is then the smallest and the largest, and the method says what they cover. Raises `ValueError` without values.
    """
    if not values:
        raise ValueError("no values: there is nothing to estimate")
    ordered, n = sorted(values), len(values)

    def covers(k: int) -> float:
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    k = max((k for k in range(1, (n + 1) // 2 + 1) if covers(k) >= 0.95), default=1)
    method = f"order statistics {k} and {n + 1 - k} of {n}, covering {covers(k):.1%}"
    return Estimate(statistics.median(ordered), ordered[k - 1], ordered[n - k], n, method)


def paired_ratio(ours: Sequence[float], peer: Sequence[float]) -> Estimate:
    """Median of ponder / peer over alternating runs. Raises `ValueError` if they are not pairs."""
    if len(ours) != len(peer):
        raise ValueError(f"{len(ours)} and {len(peer)} runs are not pairs")
    return median_interval([a / b for a, b in zip(ours, peer, strict=True)])


@dataclass(frozen=True)
class Row:
    """One line of a benchmark. `ours` is ponder's figure, `ratio` how many times better it is; above 1 is better."""

    name: str
    units: str
    ours: float | None = None
    """Median over the rounds."""
    peer: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    method: str = ""
    """How the interval was computed."""
    dtype: str = ""
    mode: str = ""
    """The mode of ponder, and the peer's setting."""
    parity: float | None = None
    """Largest |log-probability of the sampler - of the trainer| over the timed samples; None where there are none."""
    parity_limit: float | None = None
    """Upper limit of `parity`; None where it is only reported."""
    note: str = ""
    skipped: str = ""
    """Why there are no numbers, if the peer is not available."""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """True if the timed samples do not have the trainer's log-probabilities."""
        limit = self.parity_limit
        return limit is not None and self.parity is not None and not self.parity <= limit


def compare(
    name: str,
    units: str,
    ours: Sequence[float],
    peer: Sequence[float],
    *,
    better: Literal["more", "less"],
    **facts: Any,
) -> Row:
    """The row of paired runs; `better` says whether more (tokens/s) or less (seconds, bytes) of the unit is better."""
    ratio = paired_ratio(ours, peer) if better == "more" else paired_ratio(peer, ours)
    return Row(
        name,
        units,
        statistics.median(ours),
        statistics.median(peer),
        ratio.value,
        ratio.low,
        ratio.high,
        ratio.n,
        ratio.method,
        **facts,
    )


def alternate(sides: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Run every side once a round, in order, so that the machine's other load affects all of them alike."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for r in range(rounds):
        for name, run in sides.items():
            found[name].append(run(r))
    return found


def near_best(first: Mapping[str, float]) -> list[str]:
    """Settings worth a full comparison, from one run of each (more is better), the best first."""
    best = max(first.values())
    return sorted((name for name in first if first[name] >= NEAR_BEST * best), key=lambda name: -first[name])


def best_of(runs: Mapping[str, Sequence[float]]) -> str:
    """The setting with the highest median."""
    return max(runs, key=lambda name: statistics.median(runs[name]))


# What is printed ------------------------------------------------------------------------------------------------------

HEADINGS = ("what", "ponder", "peer", "units", "ratio", "95 % interval", "n", "dtype", "mode", "parity")
WIDTHS = (60, 8, 8, 8, 5, 14, 2, 8, 48, 7)


def number(value: float | None) -> str:
    """Three digits and more where there are more; no exponent."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cells(row: Row) -> tuple[str, ...]:
    interval = "–" if row.low is None or row.high is None else f"{row.low:.2f} to {row.high:.2f}"
    parity = "–" if row.parity is None else f"{row.parity:.1e}" + (" FAILED" if row.failed else "")
    return (
        row.name,
        number(row.ours),
        number(row.peer),
        row.units,
        "–" if row.ratio is None else f"{row.ratio:.2f}",
        interval,
        str(row.rounds) if row.rounds else "–",
        row.dtype or "–",
        row.mode or "–",
        parity,
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, WIDTHS, strict=True)) + " |"


def heading() -> str:
    """The first two lines of the table (Markdown)."""
    return _line(HEADINGS) + "\n|" + "|".join("-" * (w + 2) for w in WIDTHS) + "|"


def table_line(row: Row) -> str:
    """A row of the table; what was skipped gets one line of its own."""
    return f"skipped: {row.name}: {row.skipped}" if row.skipped else _line(_cells(row))


def json_line(row: Row, machine: str) -> str:
    """A row as one JSON object."""
    fields = {
        "name": row.name,
        "ours": row.ours,
        "peer": row.peer,
        "ratio": row.ratio,
        "low": row.low,
        "high": row.high,
        "machine": machine,
        "units": row.units,
        "rounds": row.rounds,
        "method": row.method,
        "dtype": row.dtype,
        "mode": row.mode,
        "parity": row.parity,
        "parity_limit": row.parity_limit,
        "note": row.note,
        "skipped": row.skipped,
        "details": dict(row.details),
    }
    return json.dumps(fields, ensure_ascii=False)


class Printer:
    """Prints rows as they are ready and remembers whether one failed."""

    def __init__(self, *, as_json: bool, machine: str) -> None:
        self.as_json, self.machine = as_json, machine
        self.rows: list[Row] = []
        if not as_json:
            print(f"{machine}\n\n{heading()}", flush=True)

    def show(self, row: Row) -> None:
        self.rows.append(row)
        print(json_line(row, self.machine) if self.as_json else table_line(row), flush=True)

    def end(self) -> int:
        """Print the notes; returns the exit code, 1 if a row's samples did not have the trainer's log-probabilities."""
        if not self.as_json:
            for row in self.rows:
                if row.note and not row.skipped:
                    print(f"\n{row.name}: {row.note}")
        failed = [row.name for row in self.rows if row.failed]
        if failed and not self.as_json:
            print(f"\nsampler and trainer disagree in: {'; '.join(failed)}")
        return 1 if failed else 0
