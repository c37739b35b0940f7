"""Running a real strategy over a recorded pool: for strategies without a formula, through the replay engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ponder import sync
from ponder.engines.recorded import RecordedPool, RecordedRow
from ponder.engines.replay import PoolEngine
from ponder.errors import PonderError, UserError
from ponder.evaluation.estimators import Floats
from ponder.evaluation.pools.formulas import Reached
from ponder.evaluation.pools.judging import JudgedProblem
from ponder.protocols import Checker, Feedback
from ponder.scorers.base import BaseScorer
from ponder.search.runner import solve
from ponder.search.seeds import derive
from ponder.search.trace import samples
from ponder.types import Problem, Response, StopReason, Verdict, VerdictKind

ORDERS = 8
"""Orders of the samples that a search is run over."""


@dataclass(frozen=True)
class Live:
    """A strategy of the registry, run over several seeded orders of the samples and averaged.

    An option `n` of the strategy is set to each budget in turn; without one, or with a second search of its own
    (`slow`), there is a single point, of the strategy as it is given. `max_tokens` is the longest response of the pool,
    so that none is cut. A second search draws from the same samples again, so it may get the first one's.
    """

    strategy: Any
    name: str
    checker: Checker | None = None
    """The environment's, where the pool is judged by one."""
    seed: int = 0
    orders: int = ORDERS

    def check(self, rows: Sequence[RecordedRow]) -> None:
        """Try it on the first problem. Raises `UserError` if it does not work with recorded samples."""
        row = dataclasses.replace(rows[0], prompt=rows[0].prompt or rows[0].id)
        engine = PoolEngine(RecordedPool(Path("pool"), (row,)), "recorded")
        scored = any(s.score is not None for r in rows for s in r.samples)
        strategy = self._with(len(row.samples), _longest(rows))
        outcome = sync.run(
            solve(
                strategy,
                Problem(row.id, row.prompt or row.id),
                engine,
                seed=self.seed,
                feedback=Feedback(
                    checker=None if self.checker is None else _never, scorer=_Nothing() if scored else None
                ),
            )
        )
        if outcome.stop is StopReason.FAILED:
            raise UserError(f"{self.name} does not work with recorded samples: {outcome.reason}")

    def counts(self, ladder: Sequence[int]) -> Sequence[int]:
        return tuple(ladder) if self._by_samples else (max(ladder),)

    def reach(self, problems: Sequence[JudgedProblem], counts: Sequence[int]) -> list[Reached]:
        """Raises `UserError` if the strategy does not work with recorded samples, `PonderError` if a search fails."""
        return sync.run(self._reach(problems, counts))

    async def _reach(self, problems: Sequence[JudgedProblem], counts: Sequence[int]) -> list[Reached]:
        rows = [_row(p) for p in problems if p.n]
        pool = RecordedPool(Path("pool"), tuple(rows))
        drawn = [PoolEngine(pool, "drawn", derive(self.seed, "orders", r)) for r in range(self.orders)]
        recorded = PoolEngine(pool, "recorded")
        return [await self._one(p, counts, drawn, recorded, _longest(rows)) for p in problems]

    async def _one(
        self,
        problem: JudgedProblem,
        counts: Sequence[int],
        drawn: Sequence[PoolEngine],
        recorded: PoolEngine,
        longest: int,
    ) -> Reached:
        found = np.full((3, len(counts), len(drawn)), np.nan)
        decision = np.nan
        for i, k in enumerate(counts):
            if k > problem.n:
                continue
            strategy = self._with(k, longest)
            for r, engine in enumerate(drawn):
                found[:, i, r] = await self._search(strategy, problem, engine, derive(self.seed, "orders", r))
            if not self._has("slow") and (most := found[1, i].max()) > k:
                raise UserError(
                    f"{self.name} drew {most:.0f} samples of problem {problem.row.id!r} at a budget of {k}: "
                    "its budget is not in samples; leave out --budgets or the strategy"
                )
            if k == max(counts):
                decision = (await self._search(strategy, problem, recorded, self.seed))[0]
        accuracy, used, tokens = found.mean(axis=2)
        spread = found[0].var(axis=1, ddof=1) if len(drawn) > 1 else np.zeros(len(counts))
        return Reached(accuracy, used, tokens, decision, np.nan_to_num(spread / len(drawn)))

    async def _search(self, strategy: Any, problem: JudgedProblem, engine: PoolEngine, seed: int) -> Floats:
        """Right or not, samples, response tokens."""
        asked = Problem(problem.row.id, _prompt(problem), problem.problem.public, problem.problem.metadata)
        known = _Known(problem)
        scorer = known if np.isfinite(problem.score_G).any() else None
        outcome = await solve(strategy, asked, engine, seed=seed, feedback=Feedback(self.checker, scorer, known))
        if outcome.stop is StopReason.FAILED:
            raise PonderError(f"{self.name} on problem {problem.row.id!r}: {outcome.reason}")
        right = 0.0
        if outcome.response.answer is not None:
            if outcome.response not in known.correct:
                raise PonderError(f"{self.name} answers {problem.row.id!r} with a text that is no response of the pool")
            right = known.correct[outcome.response]
        return np.array([right, len(samples(outcome.trace)), outcome.spend.response_tokens])

    def _has(self, field: str) -> bool:
        return dataclasses.is_dataclass(self.strategy) and field in (f.name for f in dataclasses.fields(self.strategy))

    @property
    def _by_samples(self) -> bool:
        """Its `n` is how many samples it draws."""
        return self._has("n") and not self._has("slow")

    def _with(self, k: int, longest: int) -> Any:
        values: dict[str, Any] = {"n": k} if self._by_samples else {}
        if self._has("max_tokens") and getattr(self.strategy, "thought_tokens", None) is None:
            values["max_tokens"] = max(longest, 1)
        if self._has("slow") and hasattr(self.strategy.slow_strategy(), "max_tokens"):
            values["slow_options"] = {"max_tokens": max(longest, 1), **self.strategy.slow_options}
        return dataclasses.replace(self.strategy, **values) if values else self.strategy


def _longest(rows: Sequence[RecordedRow]) -> int:
    return max(s.tokens for row in rows for s in row.samples)


def _prompt(problem: JudgedProblem) -> Any:
    """What it asks; its id where that was not recorded."""
    return problem.problem.prompt or problem.row.id


def _row(problem: JudgedProblem) -> RecordedRow:
    """The judged samples of a problem."""
    kept = tuple(problem.row.samples[i] for i in problem.kept)
    return dataclasses.replace(problem.row, samples=kept, prompt=_prompt(problem))


def _never(problem: Problem, response: Response) -> Verdict:
    """A checker that accepts nothing, so that a trial runs to its end."""
    return Verdict(VerdictKind.WRONG, 0.0, "not checked", response.answer)


class _Nothing(BaseScorer):
    """A scorer that gives all the same score."""

    def value(self, problem: Problem, response: Response) -> float:
        return 0.0


class _Known(BaseScorer):
    """What was found out about a problem's responses, as `Answers` and `Scorer`: nothing is judged or scored again."""

    def __init__(self, problem: JudgedProblem) -> None:
        self._votes: Mapping[Response, str | None] = problem.votes
        self.correct = dict(zip(problem.responses, problem.correct_G.tolist(), strict=True))
        self._scores = dict(zip(problem.responses, problem.score_G.tolist(), strict=True))
        clusters = zip(problem.responses, problem.cluster_G.tolist(), strict=True)
        self._cluster = {problem.votes[response]: cluster for response, cluster in clusters}

    def extract(self, problem: Problem, response: Response) -> str | None:
        return self._votes.get(response)

    def same(self, a: str, b: str) -> bool:
        return self._cluster[a] == self._cluster[b]

    def value(self, problem: Problem, response: Response) -> float:
        return self._scores[response]
