"""Every figure that ponder reports: its key in JSON, its label, what it counts, and how it is written.

Console, reports, viewer, JSON and `docs/figures.md` (`page`) take names and formats from here, so that one name means
one thing. The tables are in `searches` and `training`; what older versions called otherwise is read through `older`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ponder.figures.figure import Figure
from ponder.figures.older import current, vote_share
from ponder.figures.searches import SEARCHES
from ponder.figures.training import TRAINING
from ponder.numbers import money, quantity

__all__ = ["FIGURES", "GROUPS", "Figure", "calls", "current", "label", "labels", "line", "spend", "text", "vote_share"]

GROUPS: Mapping[str, tuple[Figure, ...]] = {**SEARCHES, "Training": TRAINING}
FIGURES: Mapping[str, Figure] = {figure.key: figure for group in GROUPS.values() for figure in group}


def label(key: str) -> str:
    """The label of a figure."""
    return FIGURES[key].label


def labels() -> dict[str, tuple[str, str]]:
    """Label and meaning of each figure by its key, for the viewer."""
    return {key: (figure.label, figure.meaning) for key, figure in FIGURES.items()}


def text(key: str, value: Any) -> str:
    """The figure as it is written: `42.5 % [27.0, 59.1]`."""
    return FIGURES[key].text(value)


def line(key: str, value: Any) -> tuple[str, str]:
    """Label and text of a figure."""
    return label(key), text(key, value)


def calls(count: int) -> str:
    """`3 checker or scorer calls`."""
    said = label("verifier_calls")
    return f"{quantity(count)} {said.removesuffix('s') if count == 1 else said}"


def spend(found: Any) -> str:
    """A `types.Spend` in a line: `120 prompt (96 cached) + 64 response tokens, 3 checker or scorer calls, $0.0021`."""
    cached = f" ({quantity(found.cached_tokens)} cached)" if found.cached_tokens else ""
    prompt = quantity(found.prompt_tokens + found.cached_tokens)
    parts = [f"{prompt} prompt{cached} + {quantity(found.response_tokens)} response tokens"]
    if found.verifier_calls:
        parts.append(calls(found.verifier_calls))
    if found.flops:
        parts.append(f"{text('flops', found.flops)} {label('flops')}")
    if found.dollars:
        parts.append(money(found.dollars))
    return ", ".join(parts)
