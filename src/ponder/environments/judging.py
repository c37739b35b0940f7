"""Asking the judge of an environment, wherever a verdict is needed: evaluation, training, the command line."""

from __future__ import annotations

import asyncio

from ponder.protocols import Environment
from ponder.types import Problem, Response, Verdict


async def judge(environment: Environment, problem: Problem, response: Response) -> Verdict:
    """What the environment's judge says, on a thread if it is slow (`slow_judge`)."""
    if environment.slow_judge:
        return await asyncio.to_thread(environment.judge, problem, response)
    return environment.judge(problem, response)
