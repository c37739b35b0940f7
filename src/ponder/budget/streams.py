"""A streamed call as its reader gets it: one piece at a time, each taken before the next one is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Awaitable, Callable

from ponder.errors import PonderError
from ponder.protocols import Engine, Receipt
from ponder.types import Completion, Delta, Request

Reader = Callable[[Delta], Awaitable[None]]
"""Takes a piece; the next one is asked for when it is done."""


class Pieces:
    """Passes on the pieces of a stream; after a retry, only what was not passed on before.

    Where the retry differs from what was passed on, only that sample's completion still is.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._passed: dict[int, list[str]] = {}
        self._to_repeat: dict[int, str] = {}
        """What was passed on before the retry and was not repeated yet, by sample."""
        self._diverged: set[int] = set()
        self.began = False
        """A piece of the stream has come."""

    def again(self) -> None:
        """The stream restarts: a retry."""
        self._to_repeat = {sample: "".join(texts) for sample, texts in self._passed.items()}
        self._diverged.clear()
        self.began = False

    async def __call__(self, delta: Delta) -> None:
        self.began = True
        text = self._new(delta) if self._to_repeat else delta.text
        if text:
            self._passed.setdefault(delta.sample, []).append(text)
        if text != delta.text:
            delta = dataclasses.replace(delta, text=text)
        await self._reader(delta)

    def _new(self, delta: Delta) -> str:
        text, before = delta.text, self._to_repeat.get(delta.sample, "")
        if delta.sample in self._diverged:
            return ""
        if before.startswith(text):
            self._to_repeat[delta.sample] = before[len(text) :]
            return ""
        if text.startswith(before):
            self._to_repeat[delta.sample] = ""
            return text[len(before) :]
        self._diverged.add(delta.sample)
        return ""


async def streamed(engine: Engine, request: Request, reader: Reader, receipt: Receipt) -> tuple[Completion, ...]:
    """Stream a call to a reader; the completions. Raises what the engine and the reader raise."""
    completions: dict[int, Completion] = {}
    async with contextlib.aclosing(engine.stream(request, receipt)) as deltas:
        async for delta in deltas:
            if delta.completion is not None:
                completions[delta.sample] = delta.completion
            await reader(delta)
    missing = [i for i in range(request.n) if i not in completions]
    if missing:
        raise PonderError(f"the engine's stream ended without the completion of sample {missing[0]}")
    return tuple(completions[i] for i in range(request.n))
