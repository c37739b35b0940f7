"""Asking the judge of an environment, wherever a verdict is needed: evaluation, training, the command line."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ponder.environments.turns import closed
from ponder.protocols import Environment
from ponder.types import Problem, Response, Verdict, VerdictKind

REPLAY_SECONDS = 120.0
"""Most time that repeating an episode may take."""


async def judge(environment: Environment, problem: Problem, response: Response) -> Verdict:
    """The verdict of the environment's judge, on a thread if it is slow (`slow_judge`)."""
    if environment.slow_judge:
        return await asyncio.to_thread(environment.judge, problem, response)
    return environment.judge(problem, response)


@dataclass(frozen=True, slots=True)
class PathVerdict:
    """What a conversation earned."""

    verdict: Verdict
    """Of its last response."""
    turns_reward: float = 0.0
    """The sum of what its turns earned by themselves (`Turn.reward`)."""

    @property
    def reward(self) -> float | None:
        """The reward in training, any number: both together; None if the judge or the environment failed."""
        return None if self.verdict.reward is None else self.verdict.reward + self.turns_reward


async def judge_path(
    environment: Environment, problem: Problem, responses: Sequence[Response], seconds: float = REPLAY_SECONDS
) -> PathVerdict:
    """Judge responses that follow from one another, the last of which is the answer; never raises.

    Searches do not see what turns earn, so the responses are given to a new episode once more: tools run again, for
    `seconds` at most. Where turns earn nothing (`turn_rewards`, or one question and one answer) there is nothing to
    repeat, and only the last response counts.
    """
    earned = 0.0
    if environment.turns and environment.turn_rewards:
        try:
            async with asyncio.timeout(seconds) as limit:
                earned = await _earned(environment, problem, responses)
        except Exception as error:
            said = f"it took longer than {seconds:g} seconds" if limit.expired() else f"{type(error).__name__}: {error}"
            why = f"the episode could not be repeated: {said}"
            return PathVerdict(Verdict(VerdictKind.JUDGE_ERROR, None, why))
    return PathVerdict(await judge(environment, problem, responses[-1]), earned)


async def _earned(environment: Environment, problem: Problem, responses: Sequence[Response]) -> float:
    """The sum of what the turns of a new episode earn. Raises what it raises, `ValueError` if it ends too early."""
    episode = environment.episode(problem)
    rewards = []
    try:
        for number, response in enumerate(responses, 1):
            turn = await episode.step(response)
            rewards.append(turn.reward)
            if turn.done and number < len(responses):
                raise ValueError(f"it ended after {number} of {len(responses)} turns")
    finally:
        await closed(episode)
    return math.fsum(rewards)
