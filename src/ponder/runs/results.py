"""What a run directory holds, read back and checked: the one input of plots and report.

Every part may be missing, since an RL run, an evaluation and the quickstart write different parts:

- `curves.json`: `{"train": [point], "test": {"sequential": [point], "parallel": [point]}, "base": {the same two lists},
  "base_accuracy", "trained_accuracy", "run_seconds", "peak_memory_bytes", "seed"}`, and optionally `"interval"`, the
  name of the interval's method (names of older versions are read: `figures.current`);
- `metrics.jsonl`: one object a step;
- `samples.json`: `[{"problem_id", "prompt", "gold", "before": {"text", "verdict", "reason"}, "after": {...}}]`, or
  `"response"` in place of before and after;
- `rollouts.jsonl`: one search a line, as `search.record.to_row` writes it; those of a training have a `step`, and their
  samples a `reward`;
- `config.toml`, or `rl.toml` of a training within another command;
- `summary.json`: `"title"`, `"facts": {name: value}`, `"cost": [{"phase", "run_seconds", "sampled_tokens",
  "trained_tokens", "flops"}]`, `"verdicts": {kind: count}`, `"next": [command]`, `"warnings": [sentence]`,
  `"gain"`: an `Estimate` of the paired difference that training made.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from ponder import figures, reading, show
from ponder.errors import UserError
from ponder.numbers import percent
from ponder.runs.files import read_json, read_lines
from ponder.runs.lines import searches
from ponder.runs.run import read_manifest

_log = logging.getLogger(__name__)
Row = Mapping[str, Any]
TOKENS = "mean_response_tokens_per_search"
"""The x axis of curves of test-time compute."""


@dataclass(frozen=True, slots=True)
class Results:
    """The parts of a run that a report shows; empty where the run has none."""

    path: Path
    manifest: Row
    train: tuple[Row, ...] = ()
    """Held-out accuracy along training: `step`, `flops`, `sampled_tokens`, `accuracy`, `low`, `high`, `n`."""
    sequential: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    """`base` and `trained`: `budget_tokens`, `mean_response_tokens_per_search`, `accuracy`, `low`, `high`, `no_answer`,
    `n`."""
    parallel: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    """`base` and `trained`: `samples`, `mean_response_tokens_per_search`, `accuracy`, `low`, `high` (None without a
    checker), `coverage`, `coverage_low`, `coverage_high` (where known), `n`."""
    curves: Row = field(default_factory=dict)
    """The whole of `curves.json`."""
    metrics: tuple[Row, ...] = ()
    samples: tuple[Row, ...] = ()
    searches: tuple[Row, ...] = ()
    """Some lines of `rollouts.jsonl`, in the order of the problems."""
    searched: int = 0
    """How many searches there are."""
    groups: tuple[Row, ...] = ()
    """Of a training: the lines of `rollouts.jsonl` of its first and its last step."""
    config: Row = field(default_factory=dict)
    """The settings of the run, of its training where it has one."""
    searches_torn: str = ""
    """A sentence about a torn last line that was skipped."""
    summary: Row = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Sentences about torn lines that were skipped."""

    def __repr__(self) -> str:
        parts = [str(self.manifest.get("status", "unknown"))]
        parts += [f"{len(self.metrics)} steps"] if self.metrics else []
        parts += [f"{self.searched} searches"] if self.searched else []
        if self.train:
            parts.append(
                f"held-out accuracy {percent(self.train[0]['accuracy'])} to {percent(self.train[-1]['accuracy'])}"
            )
        return f"Results({str(self.path)!r}, {', '.join(parts)})"

    def _repr_html_(self) -> str:
        facts = [("run", str(self.path)), ("status", self.manifest.get("status"))]
        facts += [(str(name), str(value)) for name, value in dict(self.summary.get("facts") or {}).items()]
        head = ("step", "held-out accuracy", "95 % interval", "n")
        rows = [
            (p.get("step"), percent(p["accuracy"]), f"{percent(p['low'])} to {percent(p['high'])}", p.get("n"))
            for p in self.train
        ]
        return show.table(facts) + (show.table(rows, head) if rows else "")


MOST_SEARCHES = 12
"""That a report shows where none are named."""


def read(path: str | Path, problems: Sequence[str] = ()) -> Results:
    """Read a run directory; of its searches those of `problems` (default: of the first few).

    Raises `UserError` that names the file and field that cannot be read, or a problem that is not there.
    """
    path = Path(path)
    manifest = read_manifest(path)
    curves = figures.current(_optional(path / "curves.json", dict), "curves")
    summary = _optional(path / "summary.json", dict)
    summary |= {part: figures.current(summary[part], part) for part in ("cost", "facts") if part in summary}
    test, base = (_part(curves, key, dict, path / "curves.json") for key in ("test", "base"))
    lines = read_lines(path / "metrics.jsonl")
    both = {"base": base, "trained": test}
    rollouts = _rollouts(path / "rollouts.jsonl", problems)
    for sentence in filter(None, (lines.torn, rollouts.torn)):
        _log.warning("warning: %s", show.visible(sentence))
    return Results(
        path=path,
        manifest=manifest,
        train=_points(curves, "train", ("flops", "accuracy", "low", "high"), path),
        sequential={
            who: _points(part, "sequential", (TOKENS, "accuracy", "low", "high"), path) for who, part in both.items()
        },
        parallel={who: _points(part, "parallel", ("samples", "coverage"), path) for who, part in both.items()},
        curves=curves,
        metrics=lines.rows,
        samples=tuple(s for s in _optional(path / "samples.json", list) if isinstance(s, dict)),
        searches=rollouts.searches,
        searched=rollouts.searched,
        groups=rollouts.groups,
        config=_config(path),
        summary=summary,
        searches_torn=rollouts.torn,
        notes=(lines.torn,) if lines.torn else (),
    )


def _config(path: Path) -> Row:
    found = next((path / name for name in ("rl.toml", "config.toml") if (path / name).exists()), None)
    return {} if found is None else reading.toml_table(found)


@dataclass(frozen=True, slots=True)
class _Rollouts:
    """What is kept of `rollouts.jsonl`."""

    searches: tuple[Row, ...]
    searched: int
    groups: tuple[Row, ...]
    torn: str
    """A sentence about a torn last line."""


def _rollouts(path: Path, problems: Sequence[str]) -> _Rollouts:
    """The searches to show, and the first and last step's groups of a training; holds few lines at a time."""
    kept: dict[tuple[int, int], Row] = {}
    seen: set[tuple[int, int]] = set()
    steps: dict[int, list[Row]] = {}
    torn: list[str] = []
    for _, _, line in searches(path, torn):
        if not isinstance(line.get("samples"), list):
            continue
        if "step" in line:
            step = _whole(line["step"], 0)
            if step not in steps and len(steps) > 1:
                steps.popitem()
            steps.setdefault(step, []).append(line)
        elif isinstance(line.get("stop"), str):
            place = (_whole(line.get("index"), len(seen)), _whole(line.get("sample"), 0))
            seen.add(place)
            if not problems or line.get("problem") in problems:
                kept[place] = line
                if not problems and len(kept) > MOST_SEARCHES:
                    del kept[max(kept)]
    missing = set(problems) - {str(row["problem"]) for row in kept.values()}
    if missing:
        raise UserError(f"--problem {sorted(missing)[0]}: {path} has no search of it")
    groups = tuple(line for lines in steps.values() for line in lines)
    return _Rollouts(tuple(kept[place] for place in sorted(kept)), len(seen), groups, "".join(torn))


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any, default: int) -> int:
    return value if isinstance(value, int) else default


def _optional(path: Path, kind: type) -> Any:
    if not path.exists():
        return kind()
    value = read_json(path)
    if not isinstance(value, kind):
        raise UserError(f"{path}: expected a JSON {'object' if kind is dict else 'array'} at the top")
    return value


def _part(curves: Row, key: str, kind: type, where: Path) -> Any:
    value = curves.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise UserError(f"{where}: {key!r} must be a JSON {'object' if kind is dict else 'array'}")
    return value


def _points(part: Row, key: str, needed: Sequence[str], path: Path) -> tuple[Row, ...]:
    where = path / "curves.json"
    points = _part(part, key, list, where)
    for i, point in enumerate(points):
        for name in needed:
            value = point.get(name) if isinstance(point, dict) else None
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise UserError(f"{where}: point {i} of {key!r} has no number {name!r}")
    return tuple(points)
