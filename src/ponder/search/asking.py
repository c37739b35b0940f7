"""What searches share: a queue of asks, and answers that count once, in any order.

A subclass asks with `push`, gets each answer in `told`, and names what it no longer wants with `drop`. For the result
to be the same in any order of answers, it may act on an answer only in a way that commutes: keep it until all of a
round are there, or until all with a lower index are.
"""

from __future__ import annotations

from typing import Any

from ponder.protocols import Ask, SearchContext
from ponder.search.trace import Tree
from ponder.types import Problem


class Asking:
    """Base of searches; a subclass gives `told` and `outcome`."""

    def __init__(self, problem: Problem, context: SearchContext) -> None:
        self.problem = problem
        self.context = context
        self.tree = Tree(problem.id, context.info.thought, context.info.tools)
        self._queue: list[Ask] = []
        self._waiting: set[int] = set()
        self._dropped: set[int] = set()
        """Asks that run or ran without being waited for."""
        self._unwanted: list[int] = []

    def push(self, ask: Ask) -> None:
        """Queue an ask."""
        self._waiting.add(ask.id)
        self._queue.append(ask)

    def drop(self, *ask_ids: int) -> None:
        """Stop waiting for these: they are cancelled, or never asked. What is known of them goes to `cut`."""
        queued = {ask.id for ask in self._queue}
        self._queue = [ask for ask in self._queue if ask.id not in ask_ids]
        for ask_id in ask_ids:
            if ask_id in self._waiting:
                self._waiting.discard(ask_id)
                if ask_id not in queued:
                    self._dropped.add(ask_id)
                    self._unwanted.append(ask_id)

    @property
    def waiting(self) -> tuple[int, ...]:
        """Asks without an answer, ascending."""
        return tuple(sorted(self._waiting))

    def told(self, ask_id: int, answer: Any) -> None:
        """The answer of an ask that is waited for, or the exception that it failed with."""
        raise NotImplementedError

    def cut(self, ask_id: int, answer: Any) -> None:
        """The answer of an ask that was dropped (often `CallCancelled`), for the trace alone."""

    # The protocol's part ----------------------------------------------------------------------------------------------

    def ask(self) -> list[Ask]:
        asks, self._queue = self._queue, []
        return asks

    def tell(self, ask_id: int, answer: Any) -> None:
        if ask_id in self._waiting:
            self._waiting.discard(ask_id)
            self.told(ask_id, answer)
        elif ask_id in self._dropped:
            self._dropped.discard(ask_id)
            self.cut(ask_id, answer)

    def unwanted(self) -> list[int]:
        ids, self._unwanted = self._unwanted, []
        return ids

    def reserve(self) -> tuple[int, int]:
        return 0, 0

    @property
    def done(self) -> bool:
        return not self._waiting
