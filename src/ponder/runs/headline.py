"""The first sentence of a report: what training changed, as far as the held-out problems can tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ponder import numbers
from ponder.runs.results import Results, Row, is_number


def headline(results: Results, shown: Callable[[Row], str]) -> str:
    """Accuracy before and after; a difference only together with its interval. Empty where nothing was evaluated twice.

    `shown` writes an accuracy with its interval.
    """
    ends = _ends(results)
    if ends is None:
        return ""
    before, after = (shown(end) for end in ends)
    count = ends[1].get("n") or (results.train[-1].get("n") if results.train else None)
    problems = f" on {count:,} held-out problem{'s' * (count != 1)}" if isinstance(count, int) else ""
    went = f"accuracy{problems} went from {before} to {after}"
    gain = results.summary.get("gain")
    if not (isinstance(gain, Mapping) and all(is_number(gain.get(key)) for key in ("value", "low", "high"))):
        return f"In training, {went}."
    value, low, high = (gain[key] for key in ("value", "low", "high"))
    few = str(gain.get("method", "")).partition("; ")[2]
    if few:
        return f"What training changed cannot be told ({few}): {numbers.between(low, high)}; {went}."
    if low <= 0 <= high:
        return f"Training changed accuracy by {numbers.between(low, high)} (paired, 95 %), maybe not at all: {went}."
    said = f"{numbers.points(value)} {numbers.span(low, high, numbers.points)}"
    return f"Training changed accuracy by {said} (paired, 95 %): {went}."


def _ends(results: Results) -> tuple[Row, Row] | None:
    """The points before and after training."""
    base, trained = results.curves.get("base_accuracy"), results.curves.get("trained_accuracy")
    if is_number(base) and is_number(trained):
        return (
            _measured(base, [*results.train[:1], *results.sequential.get("base", ())]),
            _measured(trained, [*results.train[-1:], *results.sequential.get("trained", ())]),
        )
    return (results.train[0], results.train[-1]) if len(results.train) > 1 else None


def _measured(accuracy: float, points: Sequence[Row]) -> Row:
    """The point that an accuracy was taken from, or the accuracy alone."""
    return next((p for p in points if abs(p["accuracy"] - accuracy) < 1e-9), {"accuracy": accuracy})
