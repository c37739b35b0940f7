"""A custom engine is short: `BaseEngine` does the rest."""

from __future__ import annotations

import asyncio

import pytest

from ponder.budget.meter import Meter
from ponder.engines.base import BaseEngine
from ponder.errors import Unsupported
from ponder.protocols import Engine, Receipt, WeightsUpdate
from ponder.search.runner import solve
from ponder.search.strategies.direct import Direct
from ponder.types import (
    Budget,
    Capabilities,
    Completion,
    FinishReason,
    ModelInfo,
    Problem,
    Prompt,
    Request,
    SamplingParams,
    Spend,
)


class Parrot(BaseEngine):
    """Says what it was asked."""

    info = ModelInfo("parrot", 1000)
    capabilities = Capabilities(n=True)

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        return len(prompt)

    async def generate(self, request: Request, receipt: Receipt | None = None) -> tuple[Completion, ...]:
        spend = Spend(prompt_tokens=len(request.prompt), sampled_tokens=1)
        return (Completion(str(request.prompt), FinishReason.STOP, spend),) * request.n


def test_a_short_engine_is_a_whole_one() -> None:
    engine = Parrot()
    assert isinstance(engine, Engine)
    outcome = asyncio.run(solve(Direct(), Problem("p", "seven"), engine, budget=Budget(tokens=500, seconds=10.0)))
    assert outcome.response.answer == "seven"
    assert outcome.spend.tokens == 6


def test_it_streams_each_completion_in_one_piece() -> None:
    async def main() -> None:
        deltas = [d async for d in Parrot().stream(Request("ab", SamplingParams(4), n=2))]
        assert [(d.sample, d.text) for d in deltas] == [(0, "ab"), (1, "ab")]
        assert all(d.completion is not None and d.completion.text == "ab" for d in deltas)

    asyncio.run(main())


def test_it_has_no_weights_no_caches_and_cost_nothing_to_open() -> None:
    async def main() -> None:
        engine = Parrot()
        await engine.drop_caches()
        await engine.close()
        assert (engine.grace, engine.weights_version, dict(engine.known)) == (0.0, 0, {})
        assert Meter().add_opening(engine) == Spend()
        with pytest.raises(Unsupported, match="parrot"):
            await engine.load_weights(WeightsUpdate({}, 1))

    asyncio.run(main())


def test_an_engine_without_generate_cannot_be_made() -> None:
    class Mute(BaseEngine):
        def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
            return 0

    with pytest.raises(TypeError, match="generate"):
        Mute()  # type: ignore[abstract]
