"""Parts of the RL benchmark: an environment whose problems say how long each sample is, and the strategy for it.

Both sides of the comparison read the same file of problems, so that they sample and train on the same number of tokens.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponder.environments.base import SingleTurn
from ponder.protocols import Ask, Generate, SearchContext
from ponder.search.seeds import derive
from ponder.search.trace import Tree
from ponder.types import (
    Gold,
    Outcome,
    Problem,
    Request,
    Response,
    SamplingParams,
    Spend,
    Split,
    StopReason,
    Verdict,
    VerdictKind,
)


def reward(text: str) -> float:
    """A pseudo-random number in [0, 1) from the text: every group has a signal."""
    return zlib.crc32(text.encode("utf-8", "replace")) / 2**32


class FileOfProblems(SingleTurn):
    """Problems of a JSON list of `{"prompt", "ids", "lengths"}`, in order, repeated."""

    name = "forced"

    def __init__(self, file: Path) -> None:
        self.rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))

    def problem(self, split: Split, index: int) -> Problem:
        row = self.rows[index % len(self.rows)]
        return Problem(f"forced-{split}-{index}", row["prompt"], {"ids": row["ids"], "lengths": row["lengths"]})

    def gold(self, problem: Problem) -> Gold:
        return Gold(None)

    def judge(self, problem: Problem, response: Response) -> Verdict:
        # Not through `SingleTurn.judge`, to which a response of forced length is truncated.
        return Verdict(VerdictKind.WRONG, reward(response.text), "by the text's checksum")


@dataclass(frozen=True)
class ForcedLengths:
    """One request a sample, each as long as its problem says; the model must have no end ids."""

    n: int = 1
    """Samples."""
    temperature: float = 1.0

    def start(self, problem: Problem, context: SearchContext) -> ForcedSearch:
        return ForcedSearch(problem, context, self)


class ForcedSearch:
    def __init__(self, problem: Problem, context: SearchContext, strategy: ForcedLengths) -> None:
        self._tree = Tree(problem.id, context.info.thought)
        ids, lengths = tuple(problem.public["ids"]), problem.public["lengths"][: strategy.n]
        self._asks = [
            Ask(i, Generate(Request(ids, SamplingParams(n, strategy.temperature, seed=_seed(context, problem, i)))))
            for i, n in enumerate(lengths)
        ]
        self._waiting = set(range(len(lengths)))

    def ask(self) -> list[Ask]:
        asks, self._asks = self._asks, []
        return asks

    def tell(self, ask_id: int, answer: Any) -> None:
        if ask_id in self._waiting:
            self._waiting.discard(ask_id)
            if not isinstance(answer, Exception):
                self._tree.add(ask_id, answer[0])

    def unwanted(self) -> list[int]:
        return []

    def reserve(self) -> tuple[int, int]:
        return 0, 0

    @property
    def done(self) -> bool:
        return not self._waiting

    def outcome(self, spend: Spend, stop: StopReason) -> Outcome:
        return Outcome(Response(None), None, self._tree.trace(), spend, stop)


def _seed(context: SearchContext, problem: Problem, sample: int) -> int:
    return derive(context.seed, problem.id, sample)
