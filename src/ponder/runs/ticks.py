"""Ticks of an axis: round values, and labels with as many digits as these need.

A label is exact: read as a number it is its tick's place, with nothing rounded. Neighbours differ, and there are at
least three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

FEWEST, MOST = 3, 8
SMALLEST, LARGEST = Decimal("0.001"), Decimal(1_000_000)
"""Of an axis whose numbers are written without a power of ten."""
NARROWEST = 1e-6
"""A linear axis is at least this wide, as a share of its numbers: beyond that labels are too long."""
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class Ticks:
    """What an axis shows."""

    low: float
    high: float
    places: tuple[float, ...]
    labels: tuple[str, ...]


def linear(low: float, high: float, *, percent: bool = False, whole: bool = False) -> Ticks:
    """Ticks at multiples of 1, 2 or 5 × 10^k, on an axis from `low` to `high`.

    An axis without width is widened around its value. `percent` writes shares as `25 %`; with `whole` all ticks are
    whole numbers. Raises `ValueError` for an axis that is not finite.
    """
    low, high = _widened(low, high, whole)
    step = _step(low, high, whole)
    first, last = math.ceil(Decimal(low) / step), math.floor(Decimal(high) / step)
    values = [i * step for i in range(first, last + 1)]
    written = _labels([100 * v for v in values] if percent else values)
    unit = "\u00a0%" if percent else ""
    return Ticks(low, high, tuple(float(v) for v in values), tuple(f"{text}{unit}" for text in written))


def _widened(low: float, high: float, whole: bool) -> tuple[float, float]:
    if not math.isfinite(high - low):
        raise ValueError(f"an axis from {low} to {high} has no ticks")
    if whole:
        return low, max(high, math.ceil(low) + FEWEST - 1)
    middle = (low + high) / 2
    if high > low and high - low >= NARROWEST * abs(middle):
        return low, high
    if low == high:
        return (min(0.0, 2 * low), max(0.0, 2 * low)) if low else (0.0, 1.0)
    return middle - NARROWEST * abs(middle), middle + NARROWEST * abs(middle)


def _step(low: float, high: float, whole: bool) -> Decimal:
    """The largest of 1, 2, 5 × 10^k with `FEWEST` multiples or more from low to high: that has `MOST` at most."""
    exponent = math.floor(math.log10(high - low))
    while True:
        for digit in (5, 2, 1):
            step = Decimal(digit).scaleb(exponent)
            inside = math.floor(Decimal(high) / step) - math.ceil(Decimal(low) / step) + 1
            if inside >= FEWEST or (whole and step == 1):
                return step
        exponent -= 1


def logarithmic(low: float, high: float) -> Ticks:
    """Ticks at 1, 2, 5 × 10^k, or at powers of ten where those are too many; a short axis is made longer.

    Raises `ValueError` unless 0 < low ≤ high < infinity.
    """

    def value(i: int) -> Decimal:
        return Decimal((1, 2, 5)[i % 3]).scaleb(i // 3)

    low, high, found = _on_grid(low, high, value, 3 / math.log(10))
    if len(found) > MOST:
        found = [i for i in found if i % 3 == 0]
    return _logarithmic(low, high, [value(i) for i in found])


def powers_of_two(low: float, high: float) -> Ticks:
    """Ticks at whole powers of two, on a logarithmic axis; a short one is made longer.

    Raises `ValueError` unless 1 ≤ low ≤ high < infinity.
    """
    if low < 1:
        raise ValueError(f"an axis from {low} to {high} has no ticks that are whole powers of two")
    high = max(high, 2.0 ** (math.ceil(math.log2(low)) + FEWEST - 1))
    low, high, found = _on_grid(low, high, lambda i: Decimal(2) ** i, 1 / math.log(2))
    return _logarithmic(low, high, [Decimal(2) ** i for i in found])


def _on_grid(
    low: float, high: float, value: Callable[[int], Decimal], density: float
) -> tuple[float, float, list[int]]:
    """The axis, widened until it holds `FEWEST` values of a grid, and their numbers; about `density` a factor of e."""
    if not 0 < low <= high < math.inf:
        raise ValueError(f"a logarithmic axis from {low} to {high} has no ticks")
    first, last = math.floor(math.log(low) * density) - 2, math.ceil(math.log(high) * density) + 2
    while value(first) < Decimal(low):
        first += 1
    while value(last) > Decimal(high):
        last -= 1
    while last - first + 1 < FEWEST:
        below, above = float(value(first - 1)), float(value(last + 1))
        if low / below <= above / high:
            first, low = first - 1, below
        else:
            last, high = last + 1, above
    return low, high, list(range(first, last + 1))


def _logarithmic(low: float, high: float, values: Sequence[Decimal]) -> Ticks:
    kept = values[:: -(-len(values) // MOST)]
    plain = min(kept) >= SMALLEST and max(kept) < LARGEST
    labels = (_plain(v, _decimals(v)) if plain else _power_of_ten(v) for v in kept)
    return Ticks(low, high, tuple(float(v) for v in kept), tuple(labels))


def _labels(values: Sequence[Decimal]) -> list[str]:
    """Labels of a linear axis: all with the same number of digits after the point, and the same power of ten."""
    size = max(abs(v) for v in values)
    if SMALLEST <= size < LARGEST:
        decimals = max(map(_decimals, values))
        return [_plain(v, decimals) for v in values]
    exponent = size.adjusted()
    decimals = max(_decimals(v.scaleb(-exponent)) for v in values)
    return [f"{_plain(v.scaleb(-exponent), decimals)}×10{_raised(exponent)}" if v else "0" for v in values]


def _decimals(value: Decimal) -> int:
    """Digits after the point that the value needs."""
    exponent = value.normalize().as_tuple().exponent
    assert isinstance(exponent, int), value
    return max(0, -exponent)


def _plain(value: Decimal, decimals: int) -> str:
    return f"{value:,.{decimals}f}".replace("-", "−")


def _power_of_ten(value: Decimal) -> str:
    """`10¹²`, `5×10¹²`."""
    mantissa = value.scaleb(-value.adjusted())
    power = f"10{_raised(value.adjusted())}"
    return power if mantissa == 1 else f"{_plain(mantissa, _decimals(mantissa))}×{power}"


def _raised(exponent: int) -> str:
    return str(exponent).translate(_RAISED)
