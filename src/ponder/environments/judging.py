"""Asking the judge of an environment, wherever a verdict is needed: evaluation, training, the command line.

A judge is a user's code: whatever it raises, and whatever it gives that is no verdict, is a `judge_error` that names
the environment, and the file and line where it raised.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ponder import outside, sync
from ponder.environments.base import judge_error
from ponder.environments.turns import checked, closed, opened
from ponder.errors import PartFailed
from ponder.protocols import Environment
from ponder.types import Problem, Response, Verdict

REPLAY_SECONDS = 120.0
"""Most time that repeating an episode may take."""


async def judge(environment: Environment, problem: Problem, response: Response) -> Verdict:
    """The verdict of the environment's judge, on a thread if it is slow (`slow_judge`). Never raises."""
    if environment.slow_judge:
        return await sync.on_thread(judge_now, environment, problem, response)
    return judge_now(environment, problem, response)


def judge_now(environment: Environment, problem: Problem, response: Response) -> Verdict:
    """`judge` on this thread. Raises a signal's interrupt alone."""
    who = outside.whose(environment, "environment")
    try:
        given = environment.judge(problem, response)
    except BaseException as error:
        if outside.is_stop(error, waits=False):
            raise
        return judge_error(f"the judge of {who} failed: {outside.sentence(error)}")
    if not isinstance(given, Verdict):
        at = outside.defined(environment.judge)
        return judge_error(f"the judge of {who} gave a {type(given).__name__}, not a Verdict{at}")
    return given


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
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                earned = await _earned(environment, problem, responses)
        except BaseException as error:
            failure = outside.failure(error)
            late = f"it took longer than {seconds:g} seconds"
            said = late if limit.expired() else outside.sentence(failure)
            who = outside.whose(environment, "environment")
            return PathVerdict(judge_error(f"the episode of {who} could not be repeated: {said}"))
    return PathVerdict(await judge(environment, problem, responses[-1]), earned)


async def _earned(environment: Environment, problem: Problem, responses: Sequence[Response]) -> float:
    """The sum of what the turns of a new episode earn. Raises what it raises, `ValueError` if it ends too early."""
    episode = opened(environment.episode, problem)
    rewards = []
    try:
        for number, response in enumerate(responses, 1):
            turn = checked(await episode.step(response))
            rewards.append(turn.reward)
            if turn.done and number < len(responses):
                raise ValueError(f"it ended after {number} of {len(responses)} turns")
    finally:
        await closed(episode)
    try:
        total = math.fsum(rewards)
    except OverflowError:
        total = math.inf
    if not math.isfinite(total):
        raise PartFailed(f"the rewards of its turns add up to {total}")
    return total
