"""Conversations with an environment: one question and one answer, or tools that the model calls in between.

An environment whose problems have several turns says `turns = True` and opens an episode for a problem; `ToolEpisode`
is one for tools. What an episode says may depend on the responses alone (and its problem): a search that branches
continues from a fork, or from the same responses given to a new episode.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ponder import outside, show
from ponder.errors import PartFailed, Unsupported, nearest
from ponder.protocols import Episode, Turn
from ponder.types import Message, Problem, Response, Tool, ToolCall, finite

CLOSE_SECONDS = 10.0
"""Most time that closing an episode may take."""

_log = logging.getLogger(__name__)


async def closed(episode: Episode) -> None:
    """Close an episode. What it fails with, or that it takes too long, is a warning in the log and raises nothing."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await episode.close()
    except BaseException as error:
        failure = outside.failure(error)
        _log.warning("an episode could not be closed: %s", show.visible(outside.sentence(failure)))


def opened(opening: Callable[[Problem], Episode], problem: Problem) -> Episode:
    """The episode of a problem. Raises `PartFailed` for what is none."""
    episode = opening(problem)
    if not callable(getattr(episode, "step", None)):
        at = outside.defined(opening)
        raise PartFailed(f"episode({problem.id!r}) gave a {type(episode).__name__}, which has no step{at}")
    return episode


def checked(turn: Any) -> Turn:
    """What an episode's step gave. Raises `PartFailed` if it is no `Turn`, or its fields are not what they must be."""
    if not isinstance(turn, Turn):
        raise PartFailed(f"its step gave a {type(turn).__name__}, not a Turn")
    if not isinstance(turn.messages, tuple) or not all(isinstance(m, Message) for m in turn.messages):
        raise PartFailed("its step gave messages that are not a tuple of Message")
    try:
        reward = finite(turn.reward, "reward of a turn")
    except ValueError as error:
        raise PartFailed(str(error)) from None
    return dataclasses.replace(turn, reward=reward)


class BaseEpisode:
    """Base of episodes that hold nothing that must be freed, and have no forks; a subclass gives `step`."""

    async def step(self, response: Response) -> Turn:
        """Take the model's next response. Raises `ValueError` after the end."""
        raise NotImplementedError

    def fork(self) -> Episode:
        """Raises `Unsupported`: a branch replays its responses."""
        raise Unsupported(f"{type(self).__name__} has no forks")

    async def close(self) -> None:
        """Nothing to free."""


class OneStep(BaseEpisode):
    """The episode of an environment with one question and one answer: it says nothing more, and judges nothing."""

    def __init__(self) -> None:
        self._over = False

    async def step(self, response: Response) -> Turn:
        """Raises `ValueError` the second time."""
        if self._over:
            raise ValueError("the episode is over: it has one turn")
        self._over = True
        return Turn(done=True)

    def fork(self) -> OneStep:
        return copy.copy(self)


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool and what it does."""

    tool: Tool
    run: Callable[..., Awaitable[Any]]
    """Takes the arguments by name; its result is shown as text. What it raises becomes a result, too."""


class ToolEpisode(BaseEpisode):
    """An episode that runs the tools that a response calls, and ends with a response that calls none.

    The calls of a response run at the same time. A call that fails, takes too long or names no tool gets a result that
    says so in one sentence, so that the model can continue: the fault is the model's. After `most_turns` responses the
    episode ends in any case, and calls of the last one are not run.
    """

    def __init__(self, offers: Sequence[Offer], *, most_turns: int = 8, seconds: float = 10.0) -> None:
        """`seconds` is the limit of one call. The tools are offered by the problem's prompt (`Message.tools`)."""
        self._offers = {offer.tool.name: offer for offer in offers}
        self._most_turns, self._seconds = most_turns, seconds
        self._taken = 0
        self._over = False

    async def step(self, response: Response) -> Turn:
        """Raises `ValueError` after the end."""
        if self._over:
            raise ValueError(f"the episode is over, after {self._taken} turns")
        self._taken += 1
        if not response.tool_calls or self._taken >= self._most_turns:
            self._over = True
            return Turn(done=True)
        results = await asyncio.gather(*(self._result(call) for call in response.tool_calls))
        said = zip(response.tool_calls, results, strict=True)
        messages = tuple(Message("tool", text, tool_call_id=call.id, name=call.name) for call, text in said)
        return Turn(messages, done=False)

    def fork(self) -> ToolEpisode:
        """An independent copy; a subclass with state that changes copies that, too."""
        return copy.copy(self)

    async def _result(self, call: ToolCall) -> str:
        """The result of a call, or why there is none. Raises nothing."""
        offer = self._offers.get(call.name)
        if offer is None:
            return f"error: there is no tool {call.name!r}{nearest(call.name, self._offers)}"
        arguments = call.values()
        if arguments is None:
            return f"error: the arguments of {call.name} are no JSON object"
        try:
            inspect.signature(offer.run).bind(**arguments)
        except TypeError as error:
            return f"error: {call.name}: {error}"
        try:
            async with asyncio.timeout(self._seconds) as limit:
                return str(await offer.run(**arguments))
        except BaseException as error:
            failure = outside.failure(error)
            if limit.expired():
                return f"error: {call.name} took longer than {self._seconds:g} seconds"
            said = str(failure) if isinstance(failure, ValueError) else f"{type(failure).__name__}: {failure}"
            return f"error: {call.name}: {said}"
