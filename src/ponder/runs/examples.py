"""Responses of a training's first and last step, a right and a wrong one of each, from `rollouts.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ponder.numbers import quantity
from ponder.runs.results import Row, is_number


@dataclass(frozen=True, slots=True)
class Example:
    """Responses to one problem at one step."""

    step: int
    problem: str
    prompt: Any
    samples: tuple[Row, ...]
    """A right one, a wrong one, or both."""


def examples(groups: Sequence[Row]) -> list[Example]:
    """Of each step both to one problem where there is such a problem, else to two; those that there are."""
    found: list[Example] = []
    for step in dict.fromkeys(line.get("step") for line in groups):
        lines = [line for line in groups if line.get("step") == step]
        found += _of_step(step if isinstance(step, int) else 0, lines)
    return found


def _of_step(step: int, lines: Sequence[Row]) -> Iterator[Example]:
    pairs = [(line, _first(line, right=True), _first(line, right=False)) for line in lines]
    both = next((p for p in pairs if p[1] and p[2]), None)
    right, wrong = (next((p for p in pairs if p[i]), None) for i in (1, 2))
    if both is not None:
        yield _example(step, both[0], both[1], both[2])
    else:
        if right is not None:
            yield _example(step, right[0], right[1])
        if wrong is not None:
            yield _example(step, wrong[0], wrong[2])


def _example(step: int, line: Row, *samples: Row | None) -> Example:
    return Example(step, str(line.get("problem", "")), line.get("prompt", ""), tuple(s for s in samples if s))


def _first(line: Row, *, right: bool) -> Row | None:
    """The first sample that was judged so. Nodes within a tree have no reward: they are no samples."""
    for sample in line["samples"]:
        verdict = sample.get("verdict") if isinstance(sample, Mapping) else None
        if not isinstance(verdict, Mapping) or sample.get("reward") is None:
            continue
        if (verdict.get("kind") == "correct") == right:
            return sample
    return None


def said(sample: Row) -> tuple[str, str]:
    """Verdict, and the rest in words: `reward 0, advantage −0.13: ((5-5)*2)*12 is 0, not 45`."""
    verdict = sample["verdict"]
    facts = [f"{key} {quantity(sample[key])}" for key in ("reward", "advantage") if is_number(sample.get(key))]
    return str(verdict.get("kind") or ""), ": ".join(filter(None, (", ".join(facts), verdict.get("reason") or "")))
