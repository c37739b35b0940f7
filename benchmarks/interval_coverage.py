"""How often ponder's 95 % intervals cover the truth, simulated where the truth is known; the table of
`docs/results/coverage.md`.

Each cell draws n problems from a known set of problems, with their samples, many times, and counts how often the
interval that an evaluation would report covers the set's own value. Beside it the percentile bootstrap over problems on
some of the same draws, which ponder used before. `tests/test_interval_coverage.py` holds every cell to at least 93 %.

The strategies are those of `ponder replay` on simulated pools: a problem is never solvable with some chance, else
solved by a share of samples that is uniform between 5 and 95 %; wrong answers are spread over five; a noisy score
ranks. A pool has 16 samples a problem. The problems of a pool are drawn from 3,000 whose mean is the truth.

    python benchmarks/interval_coverage.py [--repetitions 2000] [--only WORD]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from ponder.engines.recorded import RecordedRow, RecordedSample
from ponder.evaluation.equal_spend import Yardstick, at_equal_spend
from ponder.evaluation.estimators import pass_at_k
from ponder.evaluation.intervals import (
    clopper_pearson,
    differences,
    mean_of_problems,
    mean_unbounded,
    over_seeds,
    paired_difference,
)
from ponder.evaluation.pools.adaptive import Adaptive
from ponder.evaluation.pools.formulas import BestOfK, Majority
from ponder.evaluation.pools.judging import JudgedProblem
from ponder.types import Estimate, Problem, Response, to_json

Floats = NDArray[np.float64]
Rng = np.random.Generator

LEAST = 0.93
"""Every cell covers at least this share."""
BOOTSTRAPPED = 400
"""Draws of a cell that are bootstrapped too, with 1,000 resamples each."""
POPULATION = 3_000
SAMPLES = 16


@dataclass(frozen=True)
class Cell:
    """One line of the table."""

    group: str
    name: str
    n: int
    """Problems (seeds × problems for training seeds)."""
    truth: float
    estimate: Callable[[Rng], tuple[Estimate, Floats | None]]
    """Draws, and gives the estimate with the values by problem whose mean it is (None: not bootstrapped)."""


@dataclass(frozen=True)
class Measured:
    """What a cell came to."""

    cell: Cell
    covered: int
    intervals: int
    """How many draws had an interval; the others said that they cannot carry one."""
    repetitions: int
    width: float
    """Mean."""
    narrowest: float
    bootstrap: tuple[float, float] | None
    """Coverage and mean width of the bootstrap."""

    @property
    def coverage(self) -> float:
        return self.covered / self.intervals if self.intervals else math.nan


def measure(cell: Cell, repetitions: int, seed: int = 0, bootstrapped: int = BOOTSTRAPPED) -> Measured:
    """Draw a cell that often; the same seed gives the same numbers."""
    rng, other = np.random.default_rng([seed, *cell.group.encode(), *cell.name.encode(), cell.n]).spawn(2)
    covered, widths, boots = 0, [], []
    for i in range(repetitions):
        found, values_P = cell.estimate(rng)
        if not math.isnan(found.low):
            # Rounding must not decide where the truth is the end of an interval.
            covered += found.low - 1e-12 <= cell.truth <= found.high + 1e-12
            widths.append(found.high - found.low)
        if values_P is not None and i < bootstrapped:
            low, high = _bootstrap(values_P, other)
            boots.append((low <= cell.truth <= high, high - low))
    bootstrap = (float(np.mean([c for c, _ in boots])), float(np.mean([w for _, w in boots]))) if boots else None
    width, narrowest = (float(f(widths)) if widths else math.nan for f in (np.mean, np.min))
    return Measured(cell, covered, len(widths), repetitions, width, narrowest, bootstrap)


def _bootstrap(values_P: Floats, rng: Rng, resamples: int = 1_000) -> tuple[float, float]:
    """The percentile bootstrap (Efron 1979, Ann. Stat. 7)."""
    distinct, counts = np.unique(values_P, return_counts=True)
    if len(distinct) <= 64:
        means = rng.multinomial(values_P.size, counts / values_P.size, size=resamples) @ distinct / values_P.size
    else:
        means = values_P[rng.integers(0, values_P.size, (resamples, values_P.size))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


# Evaluations with one sample a problem --------------------------------------------------------------------------------


def paired() -> Iterator[Cell]:
    """Two evaluations whose verdicts differ on few problems: on one side, three to one, and evenly."""
    for n in (20, 50, 100, 200, 500, 1000):
        for discordant in (0.01, 0.02, 0.05, 0.1, 0.2):
            for split, share in (("one side", 1.0), ("3 : 1", 0.75), ("even", 0.5)):
                chances = [discordant * share, discordant * (1 - share), 1 - discordant]
                yield Cell(
                    "Paired difference of two 0/1 evaluations",
                    f"{discordant:.0%} discordant, {split}",
                    n,
                    chances[0] - chances[1],
                    _of_pairs(n, chances),
                )


def _of_pairs(n: int, chances: list[float]) -> Callable[[Rng], tuple[Estimate, Floats | None]]:
    @cache
    def estimate(only_a: int, only_b: int) -> Estimate:
        a = np.repeat([1.0, 0.0, 1.0], [only_a, only_b, n - only_a - only_b])
        b = np.repeat([0.0, 1.0, 1.0], [only_a, only_b, n - only_a - only_b])
        return paired_difference(a, b)

    def draw(rng: Rng) -> tuple[Estimate, Floats | None]:
        only_a, only_b, rest = rng.multinomial(n, chances).tolist()
        return estimate(only_a, only_b), np.repeat([1.0, -1.0, 0.0], [only_a, only_b, rest])

    return draw


def shares() -> Iterator[Cell]:
    """Accuracy with one sample a problem."""
    for n in (20, 50, 200, 1000):
        for accuracy in (0.01, 0.05, 0.1, 0.5, 0.98):
            yield Cell("Accuracy, one sample a problem", f"{accuracy:.0%} solved", n, accuracy, _of_shares(n, accuracy))


def _of_shares(n: int, accuracy: float) -> Callable[[Rng], tuple[Estimate, Floats | None]]:
    estimate = cache(lambda k: clopper_pearson(k, n))

    def draw(rng: Rng) -> tuple[Estimate, Floats | None]:
        k = int(rng.binomial(n, accuracy))
        return estimate(k), np.repeat([1.0, 0.0], [k, n - k])

    return draw


# Pools of samples -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Population:
    """What strategies reach on each of the problems that are drawn from (`_P`)."""

    columns: dict[str, Floats]
    curve_PK: Floats
    """Majority at 1, 2, … samples."""


@cache
def population(unsolvable: float) -> Population:
    """3,000 problems with a pool each."""
    rng = np.random.default_rng(7)
    chances_P = rng.uniform(0.05, 0.95, POPULATION)
    chances_P[: round(unsolvable * POPULATION)] = 0.0
    problems = [_problem(i, chance, rng) for i, chance in enumerate(chances_P)]
    correct_P = np.array([p.correct_G.sum() for p in problems])
    curve = Majority().reach(problems, range(1, SAMPLES + 1))
    best, adaptive = BestOfK("score").reach(problems, (8,)), Adaptive("beta", orders=64).reach(problems, (SAMPLES,))
    columns = {
        "mean of 8 samples": np.array([p.correct_G[:8].mean() for p in problems]),
        "majority@4": np.array([r.accuracy_K[3] for r in curve]),
        "majority@8": np.array([r.accuracy_K[7] for r in curve]),
        "majority@16": np.array([r.accuracy_K[15] for r in curve]),
        "best of 8": np.array([r.accuracy_K[0] for r in best]),
        "pass@8": pass_at_k(SAMPLES, correct_P, 8),
        "adaptive": np.array([r.accuracy_K[0] for r in adaptive]),
        "adaptive's tokens": np.array([r.tokens_K[0] for r in adaptive]),
        "a sample's tokens": np.array([p.tokens_G.mean() for p in problems]),
        "best of 8, decided": np.array([r.decision for r in best]),
        "majority, decided": np.array([r.decision for r in curve]),
    }
    return Population(columns, np.stack([r.accuracy_K for r in curve]))


def _problem(number: int, chance: float, rng: Rng) -> JudgedProblem:
    correct_G = (rng.random(SAMPLES) < chance).astype(np.float64)
    wrong_G = 1 + rng.choice(5, SAMPLES, p=[0.4, 0.25, 0.15, 0.1, 0.1])
    responses = tuple(Response(str(i), text=str(i)) for i in range(SAMPLES))
    return JudgedProblem(
        Problem(str(number), ""),
        RecordedRow(str(number), number, (RecordedSample("", 1, score=0.0),)),
        tuple(range(SAMPLES)),
        responses,
        correct_G,
        np.unique(np.where(correct_G == 1, 0, wrong_G), return_inverse=True)[1],
        np.round(rng.lognormal(4.5, 0.5) * rng.lognormal(0, 0.3, SAMPLES)),
        correct_G + rng.normal(0, 0.7, SAMPLES),
        np.full(SAMPLES, np.nan),
        {},
    )


MEANS = ("mean of 8 samples", "majority@4", "best of 8", "pass@8")
PAIRS = (
    ("best of 8", "majority@8"),
    ("best of 8, decided", "majority, decided"),
    ("adaptive", "majority@16"),
    ("majority@4", "majority@8"),
)


def pools(parts: Sequence[float] = (0.9, 0.97, 0.5), counts: Sequence[int] = (20, 50, 200)) -> Iterator[Cell]:
    """Fractions from exact estimators, most of them 0 where most problems are never solvable."""
    for unsolvable in parts:
        for n in counts:
            group = f"Pools, {unsolvable:.0%} of problems never solvable"
            columns = population(unsolvable).columns
            for name in MEANS:
                yield Cell(group, name, n, float(columns[name].mean()), _of_means(unsolvable, name, n))
            for a, b in PAIRS:
                truth = float((columns[a] - columns[b]).mean())
                yield Cell(group, f"{a} − {b}, paired", n, truth, _of_differences(unsolvable, a, b, n))
            truth = _equal_spend(unsolvable, np.arange(POPULATION)).value
            yield Cell(group, "adaptive − majority at equal spend", n, truth, _of_equal_spend(unsolvable, n))


def _of_means(unsolvable: float, name: str, n: int) -> Callable[[Rng], tuple[Estimate, Floats | None]]:
    def draw(rng: Rng) -> tuple[Estimate, Floats | None]:
        values_P = population(unsolvable).columns[name][rng.integers(0, POPULATION, n)]
        return mean_of_problems(values_P), values_P

    return draw


def _of_differences(unsolvable: float, a: str, b: str, n: int) -> Callable[[Rng], tuple[Estimate, Floats | None]]:
    def draw(rng: Rng) -> tuple[Estimate, Floats | None]:
        columns, drawn = population(unsolvable).columns, rng.integers(0, POPULATION, n)
        a_P, b_P = columns[a][drawn], columns[b][drawn]
        return paired_difference(a_P, b_P), a_P - b_P

    return draw


def _of_equal_spend(unsolvable: float, n: int) -> Callable[[Rng], tuple[Estimate, Floats | None]]:
    return lambda rng: (_equal_spend(unsolvable, rng.integers(0, POPULATION, n)), None)


def _equal_spend(unsolvable: float, drawn: NDArray[np.int64]) -> Estimate:
    of = population(unsolvable)
    stick = Yardstick(np.arange(1, SAMPLES + 1), of.curve_PK[drawn], of.columns["a sample's tokens"][drawn])
    return at_equal_spend(of.columns["adaptive"][drawn], of.columns["adaptive's tokens"][drawn], stick).difference


# Other means ----------------------------------------------------------------------------------------------------------

FRACTIONS: dict[str, tuple[Callable[[Rng, int], Floats], float]] = {
    "Beta(0.3, 6)": (lambda rng, n: rng.beta(0.3, 6, n), 0.3 / 6.3),
    "97 % always solved, else uniform": (lambda rng, n: np.where(rng.random(n) < 0.97, 1.0, rng.random(n)), 0.985),
    "uniform": (lambda rng, n: rng.random(n), 0.5),
}
TOKENS: dict[str, tuple[Callable[[Rng, int], Floats], float]] = {
    "normal": (lambda rng, n: rng.normal(300, 50, n), 300.0),
    "log-normal, σ 0.5": (lambda rng, n: _log_normal(rng, n, 0.5), math.exp(5.125)),
    "exponential": (lambda rng, n: rng.exponential(100, n), 100.0),
    "exponential, 20 % cut at 161": (lambda rng, n: np.minimum(rng.exponential(100, n), 100 * math.log(5)), 80.0),
}


def _log_normal(rng: Rng, n: int, spread: float) -> Floats:
    return rng.lognormal(5, spread, n)


def fractions() -> Iterator[Cell]:
    """Values in [0, 1] of other shapes."""
    for name, (draw, truth) in FRACTIONS.items():
        for n in (20, 50, 200, 1000):
            yield Cell("Fractions of other shapes", name, n, truth, _of(draw, n, mean_of_problems))


def tokens() -> Iterator[Cell]:
    """Means without known bounds."""
    for name, (draw, truth) in TOKENS.items():
        for n in (10, 20, 50, 200, 1000):
            yield Cell("Tokens (no known bounds)", name, n, truth, _of(draw, n, mean_unbounded))
    for n in (50, 200, 1000):
        draw = partial(_log_normal, spread=1.0)
        yield Cell("Tokens (no known bounds)", "log-normal, σ 1", n, math.exp(5.5), _of(draw, n, mean_unbounded))
    for rare in (0.1, 0.3):
        for n in (50, 200, 1000):
            name = f"paired difference, {rare:.0%} of problems differ"
            yield Cell("Tokens (no known bounds)", name, n, -20 * rare, _of(_rarely(rare), n, mean_unbounded))


def _rarely(rare: float) -> Callable[[Rng, int], Floats]:
    return lambda rng, n: differences(rng.normal(80, 50, n), np.full(n, 100.0)) * (rng.random(n) < rare)


def _of(
    draw: Callable[[Rng, int], Floats], n: int, estimate: Callable[[Floats], Estimate]
) -> Callable[[Rng], tuple[Estimate, Floats | None]]:
    def once(rng: Rng) -> tuple[Estimate, Floats | None]:
        values_P = draw(rng, n)
        return estimate(values_P), values_P

    return once


def seeds() -> Iterator[Cell]:
    """Accuracy over training seeds: seeds differ by some points, and all answer the same problems."""
    for count in (5, 10):
        for spread in (0.0, 0.03, 0.1):
            for name, skill in (("uniform difficulty", 1.0), ("90 % never solved", 0.1)):
                yield Cell(
                    "Training seeds, accuracy on 100 problems",
                    f"{count} seeds, σ {spread:.0%}, {name}",
                    100,
                    0.5 * skill,
                    _of_seeds(count, spread, skill),
                )


def _of_seeds(count: int, spread: float, skill: float) -> Callable[[Rng], tuple[Estimate, Floats | None]]:
    def draw(rng: Rng) -> tuple[Estimate, Floats | None]:
        # Between 0.2 and 0.8, so that a seed's shift by up to 2 σ stays a chance, and the mean is that without seeds.
        chances_SP = rng.uniform(0.2, 0.8, 100) + np.clip(spread * rng.standard_normal((count, 1)), -0.2, 0.2)
        right_SP = rng.random((count, 100)) < chances_SP * (rng.random(100) < skill)
        return over_seeds(right_SP.astype(np.float64)), None

    return draw


def chosen() -> Iterator[Cell]:
    """The highest of eight equally good strategies on the same problems; its interval allows for the choice."""
    for n in (50, 200):
        yield Cell("Chosen on the same data", "highest accuracy of 8 equal strategies", n, 0.4, _of_chosen(n, 8))


def _of_chosen(n: int, of: int) -> Callable[[Rng], tuple[Estimate, Floats | None]]:
    def draw(rng: Rng) -> tuple[Estimate, Floats | None]:
        right_SP = (rng.random((of, n)) < 0.4).astype(np.float64)
        best_P = right_SP[right_SP.mean(axis=1).argmax()]
        return mean_of_problems(best_P, chosen_of=of), best_P

    return draw


PARTS = (paired, shares, pools, fractions, tokens, seeds, chosen)


def cells(only: str = "") -> list[Cell]:
    """All cells, or those with a word in their group or name."""
    return [c for part in PARTS for c in part() if only in f"{c.group}: {c.name}, n {c.n}"]


# The table ------------------------------------------------------------------------------------------------------------


def table(found: list[Measured]) -> Iterator[str]:
    """Markdown, one table a group."""
    group = ""
    for m in found:
        if m.cell.group != group:
            group = m.cell.group
            yield f"\n## {group}\n"
            yield "| cell | n | coverage (95 % interval) | mean width | bootstrap: coverage | its width |"
            yield "|---|---|---|---|---|---|"
        yield _line(m)


def _line(m: Measured) -> str:
    if not m.intervals:
        said = f"no interval in any of {m.repetitions:,}"
    else:
        share = clopper_pearson(m.covered, m.intervals)
        said = f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f})"
        none = m.repetitions - m.intervals
        said += f"; no interval in {none / m.repetitions:.1%}" if none else ""
    boot = ("–", "–") if m.bootstrap is None else (f"{m.bootstrap[0]:.3f}", f"{m.bootstrap[1]:.3g}")
    return f"| {m.cell.name} | {m.cell.n:,} | {said} | {m.width:.3g} | {boot[0]} | {boot[1]} |"


def main() -> None:
    from _limits import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2_000)
    parser.add_argument("--only", default="", help="cells with this word in their name")
    parser.add_argument("--quick", action="store_true", help="20 repetitions")
    parser.add_argument("--json", action="store_true", help="one object a cell")
    options = parser.parse_args()
    began = time.perf_counter()
    repetitions = 20 if options.quick else options.repetitions
    found = [measure(cell, repetitions) for cell in cells(options.only)]
    if options.json:
        for m in found:
            known = {"group": m.cell.group, "name": m.cell.name, "n": m.cell.n, "truth": m.cell.truth}
            share = to_json(clopper_pearson(m.covered, m.intervals)) if m.intervals else None
            width = None if math.isnan(m.width) else m.width
            print(json.dumps({**known, "coverage": share, "width": width, "bootstrap": m.bootstrap}))
        return
    worst = min((m.coverage for m in found if m.intervals), default=math.nan)
    print(
        f"{len(found)} cells, {repetitions:,} repetitions each, seed 0; the lowest coverage is {worst:.3f}. "
        f"{time.perf_counter() - began:.0f} s on {machine()}."
    )
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
