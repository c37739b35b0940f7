"""An engine behind a meter: a scorer calls it within the budget without handling the budget."""

from __future__ import annotations

import asyncio
from typing import Self

from ponder.budget.meter import Meter
from ponder.errors import PonderError
from ponder.protocols import Engine
from ponder.types import Capabilities, Completion, ModelInfo, Prompt, Request


class MeteredEngine:
    """`protocols.Caller`: every call of this engine goes through this meter, and ends with the context at the latest.

    So the caller need not cancel its other calls when one of them fails, and can make none later.
    """

    def __init__(self, meter: Meter, engine: Engine) -> None:
        self.info: ModelInfo = engine.info
        self.capabilities: Capabilities = engine.capabilities
        self._meter, self._engine = meter, engine
        self._running: set[asyncio.Task[tuple[Completion, ...]]] = set()
        self._over = False

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        return self._engine.count_tokens(prompt)

    async def generate(self, request: Request, *, minimum: int = 1) -> tuple[Completion, ...]:
        if self._over:
            raise PonderError("a call of the engine after the scores were given")
        call = asyncio.create_task(self._meter.generate(self._engine, request, minimum=minimum))
        self._running.add(call)
        try:
            return await call
        finally:
            self._running.discard(call)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        calls = tuple(self._running)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
