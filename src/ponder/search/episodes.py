"""The episodes of one search, by the responses so far, for searches that branch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ponder.environments.turns import checked, closed, opened
from ponder.errors import Unsupported
from ponder.protocols import Episode, Turn
from ponder.types import Problem, Response

Path = tuple[Response, ...]


class Episodes:
    """Takes turns after any path of responses.

    A branch continues from a fork. If an episode cannot be forked, the first branch uses it, and the others replay the
    path from the opening: what an episode returns depends on the responses alone.
    """

    def __init__(self, problem: Problem, opening: Callable[[Problem], Episode]) -> None:
        self._problem, self._opening = problem, opening
        self._after: dict[Path, Episode] = {}
        """Episodes that are not being stepped: a branch takes a fork, or removes the episode."""
        self._open: dict[int, Episode] = {}
        """Every episode that is not closed, by its `id`."""

    async def turn(self, responses: Path) -> Turn:
        """The environment's turn after the last of these responses, without its reward: no search may see that.

        Raises what the environment raises, and `ValueError` if it ended before.
        """
        episode = await self._branch(responses[:-1])
        turn = checked(await episode.step(responses[-1]))
        if turn.done:
            del self._open[id(episode)]
            await closed(episode)
        else:
            self._after[responses] = episode
        return dataclasses.replace(turn, reward=0.0)

    async def close(self) -> None:
        """Close every episode that is left. Raises nothing."""
        self._after.clear()
        while self._open:
            await closed(self._open.popitem()[1])

    async def _branch(self, path: Path) -> Episode:
        """An episode after these responses, for this branch alone."""
        known = next((n for n in range(len(path), 0, -1) if path[:n] in self._after), 0)
        episode = self._taken(path[:known]) if known else self._opened(opened(self._opening, self._problem))
        for number, response in enumerate(path[known:], known + 1):
            if checked(await episode.step(response)).done:
                raise ValueError(f"the episode of {self._problem.id!r} ended after {number} turns: it cannot continue")
        return episode

    def _opened(self, episode: Episode) -> Episode:
        self._open[id(episode)] = episode
        return episode

    def _taken(self, path: Path) -> Episode:
        try:
            return self._opened(self._after[path].fork())
        except Unsupported:
            return self._after.pop(path)
