"""Leases on the prefixes of steps: an engine keeps their cache while a search may still grow them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ponder.protocols import Ask, Hold, Release
from ponder.search.steps import HOLD, RELEASE, Step, ask_about


class Leases:
    """What is held; `push` asks the runner."""

    def __init__(self, push: Callable[[Ask], None]) -> None:
        self._push = push
        self._held: dict[int, int] = {}
        """Number of the lease of a step; a step may be held again later, under another number."""
        self._there: list[bool | None] = []
        """By number: None while asked for, then whether it is there."""

    def keep(self, prompt: tuple[int, ...], steps: Sequence[Step]) -> None:
        """Hold the prefixes of these steps, and no others."""
        # What is new is asked for first, so that what it shares with the old is never without a holder.
        before, self._held = self._held, {}
        for step in steps:
            if step.id not in before:
                before[step.id] = len(self._there)
                self._there.append(None)
                self._push(Ask(ask_about(before[step.id], HOLD), Hold(prompt + step.completion.ids)))
            self._held[step.id] = before.pop(step.id)
        for number in before.values():
            self._release(number)

    def told(self, number: int, *, there: bool) -> None:
        """The answer of the ask of a lease: whether the engine holds it."""
        self._there[number] = there
        if number not in self._held.values():
            self._release(number)

    def _release(self, number: int) -> None:
        """Let a lease go that is there; one that is not there yet is let go when it is."""
        if self._there[number]:
            self._push(Ask(ask_about(number, RELEASE), Release(ask_about(number, HOLD))))
