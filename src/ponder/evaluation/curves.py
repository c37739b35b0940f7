"""`curves.json`: accuracy against train-time compute and against test-time compute, base and trained."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ponder import figures, reading
from ponder.config import from_mapping
from ponder.errors import UserError
from ponder.types import to_json


@dataclass(frozen=True)
class TrainPoint:
    """Held-out accuracy after a training step; FLOPs and sampled tokens are totals since step 0."""

    step: int
    flops: float
    sampled_tokens: int
    accuracy: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class SequentialPoint:
    """Accuracy when the thought may have `budget_tokens` tokens."""

    budget_tokens: int
    mean_response_tokens_per_search: float
    accuracy: float
    low: float
    high: float
    no_answer: float
    """Share of responses without an answer."""
    n: int


@dataclass(frozen=True)
class ParallelPoint:
    """The best of `samples` by the environment's checker (`accuracy`), and whether any is right (`coverage`)."""

    samples: int
    mean_response_tokens_per_search: float
    """Of all samples together."""
    accuracy: float | None
    """None for an environment without a checker; `low` and `high` are then None too."""
    coverage: float
    """pass@k by the judge: what no search without the gold can exceed."""
    low: float | None
    high: float | None
    n: int
    coverage_low: float | None = None
    coverage_high: float | None = None


@dataclass(frozen=True)
class TestTime:
    """Accuracy against test-time compute of one model."""

    __test__ = False

    sequential: tuple[SequentialPoint, ...] = ()
    parallel: tuple[ParallelPoint, ...] = ()


@dataclass(frozen=True)
class Curves:
    """All that `curves.json` holds."""

    train: tuple[TrainPoint, ...] = ()
    test: TestTime = field(default_factory=TestTime)
    """Of the trained model."""
    base: TestTime = field(default_factory=TestTime)
    base_accuracy: float | None = None
    trained_accuracy: float | None = None
    run_seconds: float = 0.0
    peak_memory_bytes: int = 0
    seed: int = 0
    interval: str = ""
    """The method of the intervals."""


def validate(curves: Curves, where: str = "curves") -> None:
    """Raises `UserError` that names the point if a number is impossible or a list is out of order."""
    lists: list[tuple[str, Sequence[Any], str]] = [("train", curves.train, "step")]
    for name, side in (("test", curves.test), ("base", curves.base)):
        lists.append((f"{name}.sequential", side.sequential, "budget_tokens"))
        lists.append((f"{name}.parallel", side.parallel, "samples"))
    for name, points, x in lists:
        for i, point in enumerate(points):
            _validate_point(point, f"{where}: {name}[{i}]")
        values = [getattr(p, x) for p in points]
        if any(b <= a for a, b in pairwise(values)):
            raise UserError(f"{where}: {name}: {x} must rise from point to point, and is {values}")
    for key in ("base_accuracy", "trained_accuracy"):
        _share(getattr(curves, key), f"{where}: {key}")
    for key in ("run_seconds", "peak_memory_bytes"):
        _amount(getattr(curves, key), f"{where}: {key}")


def _validate_point(point: Any, where: str) -> None:
    for key in ("accuracy", "coverage", "low", "high", "coverage_low", "coverage_high", "no_answer"):
        _share(getattr(point, key, None), f"{where}: {key}")
    for key in ("step", "flops", "sampled_tokens", "budget_tokens", "mean_response_tokens_per_search", "samples"):
        _amount(getattr(point, key, 0), f"{where}: {key}")
    if point.n < 1:
        raise UserError(f"{where}: n is {point.n}: a point needs at least one problem")
    for value, low, high in (("accuracy", "low", "high"), ("coverage", "coverage_low", "coverage_high")):
        v, a, b = (getattr(point, key, None) for key in (value, low, high))
        if v is not None and a is not None and b is not None and not a <= v <= b:
            raise UserError(f"{where}: {value} {v} is not between {low} {a} and {high} {b}")


def _share(value: float | None, where: str) -> None:
    if value is not None and not 0.0 <= value <= 1.0:
        raise UserError(f"{where} is {value}, not between 0 and 1")


def _amount(value: float, where: str) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise UserError(f"{where} is {value}, not a number from 0 up")


def to_mapping(curves: Curves) -> dict[str, Any]:
    """The JSON form; coverage intervals are left out where there are none."""
    mapping = to_json(curves)
    for side in (mapping["test"], mapping["base"]):
        for point in side["parallel"]:
            for key in ("coverage_low", "coverage_high"):
                if point[key] is None:
                    del point[key]
    return mapping


def write(path: str | Path, curves: Curves) -> None:
    """Validate and write, to a temporary file that is renamed. Raises `UserError` (see `validate`)."""
    path = Path(path)
    validate(curves, str(path))
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(to_mapping(curves), file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read(path: str | Path) -> Curves:
    """Read and validate. Raises `UserError` that names the file and what is wrong in it."""
    path = Path(path)
    values = reading.json_value(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object")
    curves = from_mapping(Curves, figures.current(values, "curves"), where=str(path))
    validate(curves, str(path))
    return curves
