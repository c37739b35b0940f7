"""One search inside another: its asks and its nodes are renumbered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ponder.errors import Unsupported
from ponder.protocols import Ask, Generate, Release, Search, SearchContext
from ponder.search.seeds import derive
from ponder.types import Node, Outcome, Problem


class Nested:
    """Search number `place` of `places`, seen from outside.

    Inner ask `i` is ask `i · places + place`. Calls of the search's own engine go to `engine`.
    """

    def __init__(self, inner: Search, place: int, places: int, engine: str = "") -> None:
        self.inner = inner
        self._place, self._places, self._engine = place, places, engine

    def ask(self) -> list[Ask]:
        return [Ask(self._out(ask.id), self._work(ask.work)) for ask in self.inner.ask()]

    def tell(self, ask_id: int, answer: Any) -> None:
        """Pass an answer on, if it belongs to this search."""
        inner_id, place = divmod(ask_id, self._places)
        if place == self._place:
            self.inner.tell(inner_id, answer)

    def unwanted(self) -> list[int]:
        return [self._out(i) for i in self.inner.unwanted()]

    def _out(self, ask_id: int) -> int:
        return ask_id * self._places + self._place

    def _work(self, work: Any) -> Any:
        if isinstance(work, Generate) and self._engine and not work.engine:
            return dataclasses.replace(work, engine=self._engine)
        if isinstance(work, Release):
            return Release(self._out(work.ask))
        return work


def context_of(context: SearchContext, problem: Problem, engine: str, name: str) -> SearchContext:
    """The context of a nested search: another engine's model, where one is named, and its own seed.

    Raises `Unsupported` if there is no engine of this name.
    """
    seed = derive(context.seed, f"{problem.id}\x1f{name}", 0)
    if not engine:
        return dataclasses.replace(context, seed=seed)
    if engine not in context.others:
        known = ", ".join(map(repr, context.others)) or "none"
        raise Unsupported(f"engine = {engine!r}: there is no further engine of this name (there are: {known})")
    info, capabilities = context.others[engine]
    # A lease is held by the search's own engine.
    capabilities = dataclasses.replace(capabilities, leases=False)
    return dataclasses.replace(context, info=info, capabilities=capabilities, seed=seed)


def moved(nodes: Sequence[Node], by: int) -> list[Node]:
    """Nodes with other numbers, so that one trace can hold them and those of another search."""
    return [dataclasses.replace(n, id=n.id + by, parent=None if n.parent is None else n.parent + by) for n in nodes]


def chosen(outcome: Outcome, by: int) -> int | None:
    """The chosen node of an outcome whose nodes were moved."""
    return None if outcome.chosen is None else outcome.chosen + by
