"""Names that older versions gave to figures: their runs are read as today's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED: Mapping[str, Mapping[str, str]] = {
    "evaluation": {
        "mean_tokens": "mean_response_tokens_per_search",
        "seconds": "run_seconds",
        "seconds_per_correct": "run_seconds_per_correct",
    },
    "curves": {"mean_tokens": "mean_response_tokens_per_search", "seconds": "run_seconds"},
    "cost": {"seconds": "run_seconds"},
    "facts": {"mean tokens": "response tokens per search"},
}
"""Old and new key, by what holds them."""


def current(values: Any, kind: str) -> Any:
    """JSON of a run of an older version with today's keys, inside too."""
    if isinstance(values, list):
        return [current(v, kind) for v in values]
    if not isinstance(values, dict):
        return values
    names = RENAMED[kind]
    return {names.get(key, key): current(value, kind) for key, value in values.items()}


def vote_share(search: Mapping[str, Any]) -> float | None:
    """Of a line of `rollouts.jsonl`. It was `confidence`, which was a checker's reward where nothing voted."""
    found = search.get("vote_share")
    if found is None and any(s.get("vote") for s in search.get("samples") or () if isinstance(s, Mapping)):
        found = search.get("confidence")
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
