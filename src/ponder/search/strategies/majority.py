"""Majority: the answer that most samples give."""

from __future__ import annotations

from dataclasses import dataclass

from ponder.protocols import SearchContext
from ponder.search.options import SamplingOptions
from ponder.search.voting import Voting
from ponder.types import Problem


@dataclass(frozen=True)
class Majority(SamplingOptions):
    """Vote over the answers of n samples (self-consistency, Wang et al. 2022, arXiv:2203.11171); cost n × max_tokens.

    Answers are read and compared by the environment (1/2 and 0.5 are one answer), as text where it cannot. A response
    without an answer abstains. Of answers with as many votes the one that came up at the lower sample index wins. The
    outcome is the first response that gave the answer; its `vote_share` the answer's share of the votes.
    """

    def start(self, problem: Problem, context: SearchContext) -> Voting:
        prompt = self.prompt(problem, context)
        return Voting(problem, context, self.params(), self.n, self.thought_budget(), prompt)
