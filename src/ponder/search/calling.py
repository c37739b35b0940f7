"""What the meter needs to make one call: a request that fits, a counted stream, the cost of a call that failed."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from ponder.errors import PonderError, UserError
from ponder.protocols import Engine
from ponder.types import Completion, Delta, Request, Spend


def clamp(request: Request, max_tokens: int) -> Request:
    """The same request with fewer tokens: the thought gives way, the answer's share stays."""
    params = request.params
    thinking = params.thinking
    if thinking is not None and thinking.max_tokens is not None:
        thought = max(0, thinking.max_tokens - (params.max_tokens - max_tokens))
        thinking = dataclasses.replace(thinking, max_tokens=thought, min_tokens=min(thinking.min_tokens, thought))
    return dataclasses.replace(request, params=dataclasses.replace(params, max_tokens=max_tokens, thinking=thinking))


def grace_of(engine: Engine) -> float:
    """Seconds that an engine may need to stop a call that is cancelled."""
    return float(getattr(engine, "grace", 0.0))


class Deadline:
    """The time limit of what runs inside `Meter.clocked`."""

    def __init__(self, seconds: float | None, refusal: str) -> None:
        self.timeout = asyncio.timeout(seconds)
        self.refusal = refusal
        """What to say when it is over."""

    def tighten(self, seconds: float, refusal: str) -> None:
        """Let it end in so many seconds, if that is earlier."""
        when, now = self.timeout.when(), asyncio.get_running_loop().time() + seconds
        if when is None or now < when:
            self.timeout.reschedule(now)
            self.refusal = refusal


async def streamed(engine: Engine, request: Request, on_delta: Callable[[Delta], None]) -> tuple[Completion, ...]:
    """Stream a call and pass its pieces on.

    Raises what the engine and `on_delta` raise; the exception carries what the engine says that it used.
    """
    completions: dict[int, Completion] = {}
    stream: Any = engine.stream(request)
    try:
        async for delta in stream:
            if delta.completion is not None:
                completions[delta.sample] = delta.completion
            on_delta(delta)
    except BaseException as error:
        if not hasattr(error, "spend"):
            await _end(stream, error)
        raise
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()
    missing = [i for i in range(request.n) if i not in completions]
    if missing:
        raise PonderError(f"the engine's stream ended without the completion of sample {missing[0]}")
    return tuple(completions[i] for i in range(request.n))


async def _end(stream: Any, error: BaseException) -> None:
    """End a stream as a cancelled call ends (closing a generator could not say what it used)."""
    throw = getattr(stream, "athrow", None)
    if throw is None:
        return
    try:
        await throw(asyncio.CancelledError())
    except asyncio.CancelledError as ended:
        for name in ("spend", "completions"):
            if hasattr(ended, name):
                setattr(error, name, getattr(ended, name))
    except (Exception, StopAsyncIteration):
        return


def spent(error: BaseException) -> Spend | None:
    """What a call that failed or was cancelled has used; None if nobody knows."""
    spend = getattr(error, "spend", None)
    if isinstance(spend, Spend):
        return spend
    return Spend() if isinstance(error, UserError) else None
