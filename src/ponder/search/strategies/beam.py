"""Beam search over steps."""

from __future__ import annotations

from dataclasses import dataclass

from ponder.protocols import SearchContext
from ponder.search.step import Step, StepOptions, check_positive
from ponder.search.step_search import Stepping
from ponder.types import Problem


@dataclass(frozen=True)
class Beam(StepOptions):
    """Grow the best steps (ToT, arXiv:2305.10601); cost ≤ depth × width × expand × (step_tokens + answer_tokens).

    Each call also reads the prompt and the response so far, once for each sample (from the cache where the engine kept
    it): with short steps that is most of what a budget in tokens counts. Only a step that ends its thought, or is in
    the beam at the end, costs `answer_tokens`. Yao et al. 2023 (Tree of Thoughts, BFS) and Snell et al. 2024
    (arXiv:2408.03314, §5.2).

    The first wave samples width × expand first steps. Of all steps of a wave the `width` with the highest scores are
    kept; each is grown by `expand` samples. A scorer of partial responses guides it; without one, or if it fails, the
    mean log-probability of the sampled tokens so far. Equal siblings are one step. The first whole response that a
    checker accepts ends the search, one that it rejects leaves the beam; without a checker a whole response keeps its
    place by its score. Open responses are closed at the end and answered, the best first, from the answer reserve.
    """

    width: int = 4
    """Partial responses that are kept after each step."""
    expand: int = 4
    """Samples of the next step of each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "width", "expand")

    def start(self, problem: Problem, context: SearchContext) -> Stepping:
        search = _BeamSearch(problem, context, self)
        search.grow(None, self.width * self.expand)
        return search


class _BeamSearch(Stepping):
    def __init__(self, problem: Problem, context: SearchContext, options: Beam) -> None:
        super().__init__(problem, context, options)
        self._options = options
        self._beam: list[Step] = []

    def advance(self, steps: list[Step]) -> None:
        # Steps whose call failed or did not fit the budget stay in the pool.
        waiting = [s for s in self._beam if s.ended or not s.children]
        pool = [s for s in steps if not s.ended or (self.answered(s) and not s.rejected)] + waiting
        pool.sort(key=lambda s: (-self.value(s), s.id))
        self._beam = pool[: self._options.width]
        for step in pool[self._options.width :]:
            self.tree.note(step.id, "pruned")
        growing = [s for s in self._beam if self.can_grow(s)]
        if growing and not self.spent and not self.failed:
            self.lease(growing)
            for step in growing:
                self.grow(step, self._options.expand)
            return
        still_open = [s for s in self._beam if not s.ended]
        if self.spent:
            # Only the answer reserve is left, for the best.
            still_open = [s for s in self._beam[:1] if not s.ended]
        self.close(still_open)
