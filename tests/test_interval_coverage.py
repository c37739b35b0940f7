"""Intervals against simulated truth: the table of docs/results/coverage.md, and a small part of it in every run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import interval_coverage as simulation


def covers(cell: simulation.Cell, repetitions: int, least: float) -> None:
    found = simulation.measure(cell, repetitions, bootstrapped=0)
    assert found.coverage >= least, cell
    assert found.narrowest > 0, cell


@pytest.mark.slow
def test_every_cell_covers_at_least_93_percent() -> None:
    """`pytest -m slow tests/test_interval_coverage.py`, about 10 minutes: the cells of the table, with its draws."""
    for cell in simulation.cells():
        covers(cell, 2_000, simulation.LEAST)


def test_a_part_of_the_cells_covers_the_truth(monkeypatch) -> None:
    # 100 draws of an interval that covers 95 % fall below 88 % once in 500 cells; the seed is fixed.
    monkeypatch.setattr(simulation, "POPULATION", 300)
    simulation.population.cache_clear()
    few = [c for c in simulation.paired() if c.name.startswith("2%")]
    for cell in [*few, *simulation.pools((0.9,), (50,)), *simulation.chosen()]:
        covers(cell, 100, 0.88)
    simulation.population.cache_clear()


def test_the_bootstrap_that_was_used_before_fails_where_few_problems_differ() -> None:
    [cell] = [c for c in simulation.paired() if (c.n, c.name) == (50, "2% discordant, one side")]
    found = simulation.measure(cell, 200)
    assert found.bootstrap is not None
    assert found.bootstrap[0] < 0.8 < simulation.LEAST <= found.coverage


def test_the_same_seed_gives_the_same_table() -> None:
    cell = next(simulation.paired())
    assert list(simulation.table([simulation.measure(cell, 20)])) == list(
        simulation.table([simulation.measure(cell, 20)])
    )
