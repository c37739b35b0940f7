"""Collecting a stream into completions, and adding up their cost."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable

from ponder.types import Completion, Delta, Spend


async def collected(deltas: AsyncGenerator[Delta, None], n: int) -> tuple[Completion, ...]:
    """The completions of `n` samples, in order; the stream is always closed."""
    completions: dict[int, Completion] = {}
    async with contextlib.aclosing(deltas):
        async for delta in deltas:
            if delta.completion is not None:
                completions[delta.sample] = delta.completion
    return tuple(completions[i] for i in range(n))


def total(completions: Iterable[Completion]) -> Spend:
    """What completions cost together."""
    return sum((c.spend for c in completions), Spend())
