"""Asking the judge of an environment, wherever a verdict is needed: evaluation, training, the command line."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from ponder.protocols import Environment
from ponder.types import Problem, Response, Verdict, VerdictKind


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


async def judge_path(environment: Environment, problem: Problem, responses: Sequence[Response]) -> PathVerdict:
    """Judge responses that follow from one another, the last of which is the answer; never raises.

    Searches do not see what turns earn, so the responses are given to a new episode once more: tools run again. With
    one question and one answer there is nothing to repeat, and only the last response counts.
    """
    *_, last = responses
    earned = 0.0
    if environment.turns:
        try:
            episode = environment.episode(problem)
            for number, response in enumerate(responses, 1):
                turn = await episode.step(response)
                earned += turn.reward
                if turn.done and number < len(responses):
                    raise ValueError(f"it ended after {number} of {len(responses)} turns")
        except Exception as error:
            why = f"the episode could not be repeated: {type(error).__name__}: {error}"
            return PathVerdict(Verdict(VerdictKind.JUDGE_ERROR, None, why))
    return PathVerdict(await judge(environment, problem, last), earned)
