"""What a call that was cut short reports, and how device seconds are shared."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from engine_fixture import make_model, only_letters, opened, request
from mocks import showing
from test_engine_lifecycle import LONG, slow, until

from ponder.engines._deltas import total
from ponder.engines._handover import Handover
from ponder.engines.torch import TorchEngine
from ponder.engines.torch import engine as engine_module
from ponder.errors import EngineClosed, PonderError
from ponder.protocols import Receipt
from ponder.search import Meter
from ponder.types import Budget, Delta, FinishReason, Spend


def count_steps(engine: TorchEngine) -> list[int]:
    """Rows of each step from now on: what was truly sampled."""
    steps: list[int] = []
    step = engine._batch.step

    def counted() -> Any:
        steps.append(len(engine._batch))
        return step()

    engine._batch.step = counted  # type: ignore[method-assign]
    return steps


def test_a_cancelled_call_reports_what_was_sampled_and_used() -> None:
    async def main() -> None:
        async with opened(slow(make_model(end=False), 0.005)) as engine:
            steps = count_steps(engine)
            receipt = Receipt()
            task = asyncio.create_task(engine.generate(request(1, LONG, n=3), receipt))
            await until(lambda: len(steps) > 4)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert engine.running == 0  # it was waited for
            parts, spend = receipt.completions, receipt.spend
            assert spend is not None
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
            receipts = Receipt(), Receipt()
            running = asyncio.create_task(engine.generate(request(1, LONG, n=2), receipts[0]))
            waiting = asyncio.create_task(engine.generate(request(2, LONG), receipts[1]))
            await until(lambda: engine.running == 1 and engine.waiting == 2)
            for task, receipt, parts in ((waiting, receipts[1], 0), (running, receipts[0], 1)):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert len(receipt.completions) == parts
                assert receipt.spend is not None
                assert receipt.spend.tokens == sum(c.spend.tokens for c in receipt.completions)

    asyncio.run(main())


@pytest.mark.parametrize("closed", [False, True])
def test_a_stream_that_is_cancelled_or_closed_reports_what_was_sampled_and_used(closed: bool) -> None:
    async def main() -> None:
        async with opened(slow(only_letters(make_model(end=False)), 0.005)) as engine:
            steps, receipt = count_steps(engine), Receipt()
            stream = engine.stream(request(1, LONG, n=2), receipt)

            async def reading() -> None:
                async for _ in stream:
                    if closed and len(steps) > 4:
                        await stream.aclose()

            task = asyncio.create_task(reading())
            if closed:
                await task
            else:
                await until(lambda: len(steps) > 4)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert receipt.spend is not None
            assert receipt.spend.sampled_tokens == sum(steps) < LONG
            assert len(receipt.completions) == 2

    asyncio.run(main())


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_that_ends_well_or_is_failed_by_its_engine_settles_its_receipt(streamed: bool) -> None:
    async def call(engine: TorchEngine, receipt: Receipt) -> None:
        if not streamed:
            await engine.generate(request(1, 12, n=2), receipt)
            return
        async for _ in engine.stream(request(1, 12, n=2), receipt):
            pass

    async def main() -> None:
        async with opened(make_model(end=False)) as engine:
            whole, broken, late = Receipt(), Receipt(), Receipt()
            await call(engine, whole)
            assert whole.spend == total(whole.completions)
            assert [len(c.ids) for c in whole.completions] == [12, 12]
            step, steps = engine._batch.step, 0

            def breaking() -> Any:
                nonlocal steps
                steps += 1
                if steps == 5:
                    raise OSError("the disk is gone")
                return step()

            engine._batch.step = breaking  # type: ignore[method-assign]
            with pytest.raises(PonderError, match="the disk is gone"):
                await call(engine, broken)
            assert broken.spend is not None
            assert broken.spend.sampled_tokens == 2 * 4
            assert [len(c.ids) for c in broken.completions] == [4, 4]
            await engine.close()
            with pytest.raises(EngineClosed):
                await call(engine, late)
            assert late == Receipt(Spend())

    asyncio.run(main())


def test_a_slow_reader_finds_one_piece_of_each_sample_and_slows_down_no_other_call() -> None:
    async def main() -> None:
        async with opened(only_letters(make_model(end=False))) as engine:
            handovers: list[Handover] = []
            prepare = engine._prepare

            def noting(request: Any, sink: Any, *rest: Any, **more: Any) -> Any:
                handovers.extend([sink] if isinstance(sink, Handover) else [])
                return prepare(request, sink, *rest, **more)

            engine._prepare = noting  # type: ignore[method-assign]
            stream = engine.stream(request(1, 200, n=3))
            got = [await anext(stream)]
            other = await asyncio.wait_for(engine.generate(request(2, 200)), 20)  # the stream is not read
            await until(lambda: engine.running == 0)
            assert len(other[0].ids) == 200
            assert len(handovers[0]) == 3
            got += [delta async for delta in stream]
            assert len(got) <= 1 + 3 + 3
            for sample, whole in enumerate(await engine.generate(request(1, 200, n=3))):
                assert "".join(d.text for d in got if d.sample == sample) == whole.text
                assert tuple(i for d in got if d.sample == sample for i in d.ids) == whole.ids

    asyncio.run(main())

    asyncio.run(main())


@pytest.mark.parametrize("streamed", [False, True])
def test_the_meter_books_what_a_cancelled_call_sampled_and_not_its_worst_case(streamed: bool) -> None:
    async def main() -> None:
        async with opened(slow(make_model(end=False), 0.005)) as engine:
            steps = count_steps(engine)
            meter = Meter(Budget(tokens=10_000))
            pieces: list[Delta] = []
            on_delta = showing(pieces.append) if streamed else None
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
            receipt = Receipt()
            task = asyncio.create_task(engine.generate(request(1, LONG), receipt))
            await until(lambda: engine.running == 1)
            started = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - started < 0.4
            assert receipt == Receipt()

    asyncio.run(main())


def test_device_seconds_are_shared_among_concurrent_calls() -> None:
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
