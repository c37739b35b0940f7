"""What the tests of `ponder eval` share: a mock engine in place of the model, the command, what a run holds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mocks import MockEngine, MockEnvironment, doubler

from ponder import registry
from ponder.cli.main import main
from ponder.engines.opening import EngineOptions
from ponder.runs.files import read_lines


def mocked(monkeypatch: pytest.MonkeyPatch) -> MockEngine:
    """An engine that doubles correctly three times in four, and an environment `doubling` that asks for it."""
    made = MockEngine(texts=doubler(0.75))
    real = registry.build

    @contextlib.contextmanager
    def opened(options: EngineOptions, _: Any) -> Iterator[tuple[MockEngine, dict[str, MockEngine]]]:
        yield made, dict.fromkeys(options.others, made)

    def build(room: str, spec: str, options: Any = None) -> Any:
        return MockEnvironment(**(options or {})) if spec == "doubling" else real(room, spec, options)

    monkeypatch.setattr("ponder.cli.eval.engines_for", opened)
    monkeypatch.setattr(registry, "build", build)
    return made


def evaluate(*args: str) -> int:
    return main(["eval", "--environment", "doubling", *args])


TIMES = {"run_seconds", "run_seconds_per_correct", "mean_seconds_per_search", "at_once", "lost"}
CLOCK = {"seconds", "at", "device_seconds"}


def searches(run: Path) -> list[dict[str, Any]]:
    """The searches of a run in the order of the problems, without what the clock says."""

    def still(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: still(v) for k, v in value.items() if k not in CLOCK}
        return [still(v) for v in value] if isinstance(value, list) else value

    last = {(r["index"], r["sample"]): still(r) for r in read_lines(run / "rollouts.jsonl").rows}
    return [last[place] for place in sorted(last)]


def result(run: Path) -> dict[str, Any]:
    """What an evaluation found, without what the clock says and what was spent besides."""
    found = json.loads((run / "evaluation.json").read_text())
    found["spend"] = {k: v for k, v in found["spend"].items() if k not in CLOCK}
    return {k: v for k, v in found.items() if k not in TIMES}
