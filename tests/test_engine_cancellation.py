"""What a call that was cut short says of itself, and whose seconds of the machine they were."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from engine_fixture import make_model, opened, request
from test_engine_lifecycle import LONG, slow, until

from ponder.engines.torch import TorchEngine
from ponder.engines.torch import engine as engine_module
from ponder.search import Meter
from ponder.types import Budget, Delta, FinishReason


def count_steps(engine: TorchEngine) -> list[int]:
    """Rows of each step from now on: what was truly sampled."""
    steps: list[int] = []
    step = engine._batch.step

    def counted() -> Any:
        steps.append(len(engine._batch))
        return step()

    engine._batch.step = counted  # type: ignore[method-assign]
    return steps


def test_a_cancelled_call_says_what_was_sampled_and_used() -> None:
    async def main() -> None:
        async with opened(slow(make_model(end=False), 0.005)) as engine:
            steps = count_steps(engine)
            task = asyncio.create_task(engine.generate(request(1, LONG, n=3)))
            await until(lambda: len(steps) > 4)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert engine.running == 0  # it was waited for
            parts, spend = caught.value.completions, caught.value.spend  # type: ignore[attr-defined]
            assert [c.finish_reason for c in parts] == [FinishReason.CANCELLED] * 3
            assert spend.sampled_tokens == sum(len(c.ids) for c in parts) == sum(steps)
            assert spend.prompt_tokens + spend.cached_tokens == 3 * len(parts[0].prompt_ids)
            whole = (await engine.generate(request(1, LONG, n=3)))[1]
            assert whole.ids[: len(parts[1].ids)] == parts[1].ids
            assert whole.text.startswith(parts[1].text)

    asyncio.run(main())


def test_a_cancelled_call_that_waits_has_used_nothing_and_one_that_ended_all_of_it() -> None:
    async def main() -> None:
        async with opened(slow(make_model(end=False), 0.005), max_rows=1) as engine:
            running = asyncio.create_task(engine.generate(request(1, LONG, n=2)))
            waiting = asyncio.create_task(engine.generate(request(2, LONG)))
            await until(lambda: engine.running == 1 and engine.waiting == 2)
            for task, parts in ((waiting, 0), (running, 1)):
                task.cancel()
                with pytest.raises(asyncio.CancelledError) as caught:
                    await task
                assert len(caught.value.completions) == parts  # type: ignore[attr-defined]
                assert caught.value.spend.tokens == sum(c.spend.tokens for c in caught.value.completions)  # type: ignore[attr-defined]

    asyncio.run(main())


def test_a_cancelled_stream_says_what_was_sampled_and_used() -> None:
    async def main() -> None:
        async with opened(slow(make_model(end=False), 0.005)) as engine:
            steps = count_steps(engine)

            async def reading() -> None:
                async for _ in engine.stream(request(1, LONG, n=2)):
                    pass

            task = asyncio.create_task(reading())
            await until(lambda: len(steps) > 4)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert caught.value.spend.sampled_tokens == sum(steps)  # type: ignore[attr-defined]
            assert len(caught.value.completions) == 2  # type: ignore[attr-defined]

    asyncio.run(main())


@pytest.mark.parametrize("streamed", [False, True])
def test_the_meter_books_what_a_cancelled_call_sampled_and_not_its_worst_case(streamed: bool) -> None:
    async def main() -> None:
        async with opened(slow(make_model(end=False), 0.005)) as engine:
            steps = count_steps(engine)
            meter = Meter(Budget(tokens=10_000))
            pieces: list[Delta] = []
            on_delta = pieces.append if streamed else None
            task = asyncio.create_task(meter.generate(engine, request(1, LONG, n=2), on_delta=on_delta))
            await until(lambda: len(steps) > 4)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert meter.spend.sampled_tokens == sum(steps) < LONG
            assert meter.idle

    asyncio.run(main())


def test_a_step_that_takes_longer_than_the_grace_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "GRACE", 0.01)

    async def main() -> None:
        async with opened(slow(make_model(end=False), 0.5)) as engine:
            task = asyncio.create_task(engine.generate(request(1, LONG)))
            await until(lambda: engine.running == 1)
            started = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert time.monotonic() - started < 0.4
            assert not hasattr(caught.value, "spend")

    asyncio.run(main())


def test_seconds_of_the_machine_are_shared_among_what_runs_beside_each_other() -> None:
    engine = TorchEngine(slow(make_model(end=False), 0.002), prefill_chunk=8)
    try:
        started = time.perf_counter()
        groups = engine.generate_many([request(i, 10 + 3 * i, n=2) for i in range(4)])
        passed = time.perf_counter() - started
        shares = [c.spend.device_seconds for group in groups for c in group]
        assert all(share > 0 for share in shares)
        assert 8 * 0.002 < sum(shares) <= passed
        assert sum(c.spend.seconds for group in groups for c in group) > passed  # those overlap
    finally:
        engine.close_now()
