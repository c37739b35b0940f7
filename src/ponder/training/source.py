"""Where rollouts come from: what the trainer asks of it, and the source that samples in this process.

The trainer holds no engine. It collects groups, learns, and publishes its weights; who samples, where and on what
machine, is up to the source.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ponder.environments.judging import judge, judge_path
from ponder.environments.loading import problem_at, size_of
from ponder.errors import PartFailed, PonderError, UserError
from ponder.outside import call, whose
from ponder.protocols import Feedback
from ponder.search.runner import solve
from ponder.search.seeds import derive
from ponder.search.trace import samples
from ponder.sync import gather_all
from ponder.training.rollouts import Group, has_signal, judged_group
from ponder.types import Outcome, Problem, Response, StopReason, Verdict, finite

if TYPE_CHECKING:
    from ponder.protocols import Delivery, Engine, Environment, Strategy, WeightsUpdate


@dataclass(frozen=True, slots=True)
class Collected:
    """What a source gives for a step."""

    groups: tuple[Group, ...]
    """To train on."""
    replaced: tuple[Group, ...] = ()
    """Drawn too, but without a signal and replaced; what they spent counts."""
    drawn: int = 0
    """Training problems drawn by now, since the beginning of the run."""
    rounds: int = 1
    """How often the source drew problems."""

    @property
    def all(self) -> tuple[Group, ...]:
        return self.groups + self.replaced


class RolloutSource(Protocol):
    """Gives judged groups of training problems, and takes the weights that the next ones are sampled with."""

    async def groups(self, count: int, drawn: int) -> Collected:
        """Groups of `count` problems, the first of them training problem number `drawn` of the run.

        Asked again with the same number, by a resumed run or after a failure, it draws the same problems.
        """
        ...

    async def publish(self, update: WeightsUpdate) -> Delivery:
        """Hand new weights to the sampler; returns the proof that they arrived."""
        ...


Reward = Callable[[Problem, Response, Verdict], float]
"""The reward of a judged response; any number. Not called where the judge failed."""


@dataclass
class EngineSource:
    """Problems of an environment's training split, solved by a strategy over an engine in this process."""

    strategy: Strategy
    environment: Environment
    engine: Engine
    group_size: int
    """Samples of a problem: what the strategy must draw."""
    resample: int = 0
    """Most extra rounds that replace groups without signal by new problems."""
    seed: int = 0
    reward: Reward | None = None
    """In place of the verdict's reward and what the turns of a conversation earned."""
    _indices: dict[str, int] = field(default_factory=dict)
    """Of each id that was drawn."""

    @property
    def feedback(self) -> Feedback:
        """What its searches may ask: the environment's turns alone, so that only what the model did is trained."""
        return Feedback(episode=self.environment.feedback.episode)

    async def groups(self, count: int, drawn: int) -> Collected:
        """See `RolloutSource`.

        Raises `PonderError` for a search that failed or drew too few samples, `Unsupported` for conversations with a
        strategy that plays no turns.
        """
        kept: list[Group] = []
        idle: list[Group] = []
        rounds = 0
        while rounds == 0 or (rounds <= self.resample and len(kept) < count):
            rounds += 1
            more = count if rounds == 1 else count - len(kept)
            for group in await self._sample(more, drawn):
                (kept if has_signal(group) or self.resample == 0 else idle).append(group)
            drawn += more
        missing = count - len(kept)
        return Collected((*kept, *idle[:missing]), tuple(idle[missing:]), drawn, rounds)

    async def publish(self, update: WeightsUpdate) -> Delivery:
        """See `RolloutSource`."""
        return await self.engine.load_weights(update)

    def problem(self, number: int) -> Problem:
        """Training problems in order; a finite set is shuffled again for each epoch."""
        size = size_of(self.environment, "train")
        if size is None:
            return self._at(number + self.seed * 10_000_000)
        epoch, place = divmod(number, size)
        order = list(range(size))
        random.Random(derive(self.seed, "epoch", epoch)).shuffle(order)
        return self._at(order[place])

    def _at(self, index: int) -> Problem:
        problem = problem_at(self.environment, "train", index)
        before = self._indices.setdefault(problem.id, index)
        if before != index:
            who = whose(self.environment, "environment")
            raise UserError(
                f"{who}: train problems {before} and {index} have the same id {problem.id!r}: give each its own"
            )
        return problem

    async def _sample(self, count: int, first: int) -> list[Group]:
        problems = [self.problem(first + i) for i in range(count)]
        # A seed for each draw: the same problem drawn twice must not give the same samples.
        seeds = [derive(self.seed, "rollouts", first + i) for i in range(count)]
        feedback = self.feedback
        searches = (
            solve(self.strategy, p, self.engine, feedback=feedback, seed=s)
            for p, s in zip(problems, seeds, strict=True)
        )
        outcomes = await gather_all(searches)
        return [await self._judged(p, o) for p, o in zip(problems, outcomes, strict=True)]

    async def _judged(self, problem: Problem, outcome: Outcome) -> Group:
        leaves = samples(outcome.trace)
        if outcome.stop is StopReason.FAILED:
            raise PonderError(f"{problem.id}: no group to train on: {outcome.reason}")
        if len(leaves) != self.group_size:
            said = outcome.reason and f" ({outcome.reason})"
            raise PonderError(
                f"{problem.id}: no group to train on: the strategy drew {len(leaves)} samples, not "
                f"{self.group_size}{said}"
            )
        rewards: dict[int, float | None] | None = None
        if self.environment.turns:
            paths = ([m.response for m in outcome.trace.path(n.id)] for n in leaves)
            found = await gather_all(judge_path(self.environment, problem, path) for path in paths)
            verdicts = {n.id: f.verdict for n, f in zip(leaves, found, strict=True)}
            rewards = {n.id: f.reward for n, f in zip(leaves, found, strict=True)}
        else:
            judged = await self._judge(problem, [n.response for n in leaves])
            verdicts = {n.id: v for n, v in zip(leaves, judged, strict=True)}
        if self.reward is not None:
            by_id = {n.id: n.response for n in leaves}
            rewards = {i: self._rewarded(problem, by_id[i], v) for i, v in verdicts.items()}
        return judged_group(problem, outcome, verdicts, rewards)

    def _rewarded(self, problem: Problem, response: Response, verdict: Verdict) -> float | None:
        """What the reward function gives. Raises `PartFailed` for what is no finite number."""
        if verdict.reward is None or self.reward is None:
            return None
        given = call("the reward function", self.reward, problem, response, verdict)
        try:
            return finite(given, f"reward of {problem.id}")
        except ValueError as error:
            raise PartFailed(str(error)) from None

    async def _judge(self, problem: Problem, responses: list[Response]) -> list[Verdict]:
        return await gather_all(judge(self.environment, problem, r) for r in responses)
