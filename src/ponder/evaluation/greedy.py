"""Whether an evaluation is greedy where no temperature is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ponder import registry
from ponder.protocols import Environment


def greedy_by_default(environment: Environment, strategy: str, options: Mapping[str, Any], samples: int = 1) -> bool:
    """True for one response to each problem of an environment that the field measures greedily (GSM8K).

    `strategy` is a name, `options` are those given to it. Responses that are drawn several times, by `samples` or by
    the strategy, must differ: the strategy's own temperature holds.
    """
    cls, _ = registry.find("search.strategies", strategy)
    if not getattr(environment, "greedy", False) or not dataclasses.is_dataclass(cls):
        return False
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    drawn = options.get("n", defaults.get("n"))
    return samples == 1 and drawn == 1 and "temperature" in defaults and "temperature" not in options
