"""What scorers share: one that only computes defines `value`, one that calls an engine `engine` and `score`."""

from __future__ import annotations

from collections.abc import Sequence

from ponder.outside import required
from ponder.protocols import Caller
from ponder.types import Problem, Response, Score, Spend


class BaseScorer:
    """Base of scorers: `protocols.Scorer` but for the score itself."""

    engine: str | None = None
    """Which engine it calls: empty is the search's own, None is none."""

    def worst(self, problem: Problem, responses: Sequence[Response]) -> Spend:
        """What scoring may cost at most besides metered calls: nothing."""
        return Spend()

    @required(unless="score")
    def value(self, problem: Problem, response: Response) -> float:
        """The score of one response, for a scorer that costs nothing."""
        raise NotImplementedError

    async def score(self, problem: Problem, responses: Sequence[Response], engine: Caller | None) -> Sequence[Score]:
        """The `value` of each response."""
        return tuple(Score(self.value(problem, r)) for r in responses)
