"""Small pools for tests of what is done with recorded samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ponder.evaluation.pools.judges import VerifierJudge
from ponder.evaluation.pools.judging import JudgedPool, judge_pool
from ponder.evaluation.pools.record import read_pool
from ponder.verifiers.numeric import Numeric


def sample(answer: Any, tokens: int = 10, **more: Any) -> dict[str, Any]:
    """A response that gives an answer; None truncates it."""
    if answer is None:
        return {"text": "The answer", "tokens": tokens, "finish_reason": "length", **more}
    return {"text": f"The answer is {answer}.", "tokens": tokens, "finish_reason": "stop", **more}


def row(name: str, samples: Sequence[Any], gold: Any = 1, **more: Any) -> dict[str, Any]:
    """A problem; samples are answers or whole samples."""
    whole = [s if isinstance(s, dict) else sample(s) for s in samples]
    return {"problem_id": name, "gold": gold, "samples": whole, **more}


def write(path: Path, *rows: Any) -> Path:
    """Rows, or lines as they are."""
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def judged(path: Path, *rows: Any, **options: Any) -> JudgedPool:
    """A pool of these rows, judged by number."""
    return judge_pool(read_pool(write(path, *rows)), VerifierJudge(Numeric(), "numeric"), **options)
