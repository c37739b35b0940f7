"""ponder: teach a language model to think, let it search under a hard budget, see what every extra token buys.

    import ponder
    outcome = ponder.solve("Make 24 from 3 5 7 2.", strategy="budget_forcing", thought_tokens=64)

Names are imported when they are first used, so `import ponder` is quick. docs/api.md explains them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ponder.openmp import bound_spinning

if TYPE_CHECKING:
    from ponder.api import (
        compare,
        environment,
        evaluate,
        evaluate_async,
        generate,
        generate_async,
        open_engine,
        open_engine_async,
        publish,
        publish_async,
        read_run,
        report,
        solve,
        solve_async,
        strategy,
        train_rl,
        train_rl_async,
    )
    from ponder.environments.base import SingleTurn
    from ponder.protocols import Feedback
    from ponder.training.rl_config import RLConfig
    from ponder.types import Budget, Gold, Outcome, Problem, SamplingParams, Verdict, VerdictKind

__all__ = [
    "Budget",
    "Feedback",
    "Gold",
    "Outcome",
    "Problem",
    "RLConfig",
    "SamplingParams",
    "SingleTurn",
    "Verdict",
    "VerdictKind",
    "compare",
    "environment",
    "evaluate",
    "evaluate_async",
    "generate",
    "generate_async",
    "open_engine",
    "open_engine_async",
    "publish",
    "publish_async",
    "read_run",
    "report",
    "solve",
    "solve_async",
    "strategy",
    "train_rl",
    "train_rl_async",
]

_ELSEWHERE = {
    "SingleTurn": "ponder.environments.base",
    "RLConfig": "ponder.training.rl_config",
    "Feedback": "ponder.protocols",
    **dict.fromkeys(
        ("Budget", "Gold", "Outcome", "Problem", "SamplingParams", "Verdict", "VerdictKind"), "ponder.types"
    ),
}

bound_spinning()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ponder' has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    value = getattr(importlib.import_module(_ELSEWHERE.get(name, "ponder.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
