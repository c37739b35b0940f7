"""The exact mode: the same bits with any batch composition, order and cache, for thousands of requests."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from engine_fixture import CONFIG, log_softmax_of, make_model, request

from ponder.engines.torch import TorchEngine
from ponder.engines.torch import pool as pool_module
from ponder.engines.torch.exact import Exact
from ponder.errors import EngineClosed, UserError
from ponder.models import tiny
from ponder.models.base import LoadedModel
from ponder.protocols import WeightsUpdate
from ponder.types import Completion, Request, SamplingParams, Thinking

SMALLEST = dataclasses.replace(
    CONFIG,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=128,
)
PER_TOKEN = 2 * SMALLEST.head_dim * 4


def smallest_model(seed: int) -> LoadedModel:
    model = tiny.new_model(seed, SMALLEST)
    ends = (tiny.END, "z", "Q")
    model.end_ids = tuple(i for end in ends if (i := model.tokenizer.id_of(end)) is not None)
    return model


def bits(completions: tuple[Completion, ...]) -> list[Any]:
    """All that must not change."""
    return [(c.text, c.finish_reason, c.prompt_ids, c.segments) for c in completions]


@pytest.fixture
def engine(model: LoadedModel) -> Iterator[TorchEngine]:
    engine = TorchEngine(model, exact=True)
    yield engine
    engine.close_now()


def test_bits_do_not_depend_on_batch_composition_or_order(engine: TorchEngine, model: LoadedModel) -> None:
    assert engine.capabilities.exact
    options = [{}, {"temperature": 0.6}, {"top_p": 0.7, "top_logprobs": 3}, {"top_k": 5, "logprobs_of": "raw"}]
    requests = [request(i, 3 + 2 * i, n=1 + i % 3, **options[i % 4]) for i in range(24)]
    together = engine.generate_many(requests)
    backwards = engine.generate_many(requests[::-1])[::-1]
    small = TorchEngine(model, exact=True, max_rows=5, prefill_chunk=7)
    try:
        queued = small.generate_many(requests)
        for i, r in enumerate(requests):
            small.drop_caches_now()
            assert bits(together[i]) == bits(backwards[i]) == bits(queued[i]) == bits(small.generate_many([r])[0])
    finally:
        small.close_now()


def test_exact_logprobs_are_those_of_a_full_forward_pass(engine: TorchEngine, model: LoadedModel) -> None:
    [completions] = engine.generate_many([Request((40, 41, 42) * 30, SamplingParams(60, seed=3), n=3)])
    for c in completions:
        chosen = log_softmax_of(model, c)[torch.arange(len(c.ids)), torch.tensor(c.ids)]
        assert torch.allclose(chosen, torch.tensor(c.transcript.logprobs[90:]), atol=1e-4)


def test_a_tile_in_which_the_place_matters_is_not_used() -> None:
    model = make_model()
    head = model.module.lm_head
    model.module.logits = lambda hidden: head(hidden) + torch.arange(len(hidden)).unsqueeze(1) * 1e-3
    engine = TorchEngine(model, exact=True)
    try:
        assert engine._batch.forward.tile == 1  # type: ignore[union-attr]
    finally:
        engine.close_now()


def test_a_wider_tile_is_used_only_if_it_gives_the_same_bits() -> None:
    model = make_model()
    head = model.module.lm_head
    model.module.logits = lambda hidden: head(hidden) + 1e-3 * len(hidden)
    engine = TorchEngine(model, exact=True)
    forward = engine._batch.forward
    try:
        assert isinstance(forward, Exact)
        assert forward.tiles == [forward.tile] == [16]
        assert forward.cuts(40) == [16, 16, 16]
        forward.tiles = [64, 32, 16]
        assert [forward.cuts(n) for n in (1, 40, 64, 100)] == [[16], [32, 16], [64], [64, 32, 16]]
    finally:
        engine.close_now()


def test_the_exact_mode_is_refused_where_it_does_not_hold() -> None:
    model = make_model()
    model.module.to(torch.bfloat16)
    with pytest.raises(UserError, match="bfloat16"):
        TorchEngine(model, exact=True)
    other = make_model()
    other.supports_cache = False
    with pytest.raises(UserError, match="transformers"):
        TorchEngine(other, exact=True)


# Under stress --------------------------------------------------------------------------------------------------------


def random_request(rng: random.Random, number: int) -> Request:
    """Short and long, shared and unshared beginnings, every way of stopping and of cutting the distribution."""
    ids = np.random.default_rng(rng.randrange(4)).integers(20, 470, 90).tolist()[: rng.randint(1, 90)]
    if rng.random() < 0.5:
        ids = ids[:60] + [rng.randrange(20, 470) for _ in range(rng.randint(1, 20))]
    thinking = None
    if rng.random() < 0.3:
        least = rng.choice([0, 0, 3])
        thinking = Thinking(rng.randint(least, 6), least, "hm" if least else "")
    params = SamplingParams(
        max_tokens=rng.randint(4, 30) if rng.random() < 0.3 else rng.randint(4, 10),
        temperature=rng.choice([0.0, 0.7, 1.0, 1.0]),
        top_p=rng.choice([1.0, 1.0, 0.8]),
        top_k=rng.choice([0, 0, 20]),
        min_p=rng.choice([0.0, 0.0, 0.05]),
        stop=rng.choice([(), (), ("a", "12")]),
        stop_ids=rng.choice([(), (), (100, 200, 300)]),
        seed=number,
        thinking=thinking,
        logprobs_of=rng.choice(["sampled", "raw"]),
        top_logprobs=rng.choice([0, 0, 0, 2]),
    )
    return Request(tuple(ids), params, n=rng.choice([1, 1, 2, 5]), prefix=rng.choice(["", "", "ab"]))


async def under_stress(count: int) -> None:
    """`count` requests in rounds; some are cancelled, some streamed, some under leases; every result is checked."""
    rng = random.Random(0)
    kinds = [random_request(rng, i) for i in range(80)]
    engine = TorchEngine(smallest_model(0), exact=True, max_rows=40, kv_memory=1200 * PER_TOKEN, prefill_chunk=48)
    alone = TorchEngine(smallest_model(0), exact=True)
    pool, step = engine._batch.pool, engine._batch.step
    assert pool is not None
    peak = 0

    def watched() -> Any:
        nonlocal peak
        peak = max(peak, pool.tokens)
        assert pool.tokens <= pool.limit
        assert pool.tree.held_tokens <= pool.tree.tokens
        done = step()
        assert pool.tokens <= pool.limit
        return done

    engine._batch.step = watched  # type: ignore[method-assign]
    known: dict[tuple[int, int], list[Any]] = {}
    few = asyncio.Semaphore(3)  # more leases could leave no room for any request, which is refused
    weights = 0

    async def expected(kind: int) -> list[Any]:
        if (weights, kind) not in known:
            await alone.drop_caches()
            known[weights, kind] = bits(await alone.generate(kinds[kind]))
        return known[weights, kind]

    async def streamed(kind: int) -> tuple[Completion, ...]:
        got = {}
        async for delta in engine.stream(kinds[kind]):
            if delta.completion is not None:
                got[delta.sample] = delta.completion
        return tuple(got[i] for i in sorted(got))

    async def one(kind: int) -> bool:
        """True if it came to its end."""
        await asyncio.sleep(rng.random() * 0.02)
        if rng.random() < 0.05:
            async with few, engine.hold(kinds[kind].prompt):  # type: ignore[arg-type]
                got = await engine.generate(kinds[kind])
                assert all(c.spend.prompt_tokens == 0 for c in got[1:])
        elif rng.random() < 0.1:
            got = await streamed(kind)
        elif rng.random() < 0.15:
            task = asyncio.create_task(engine.generate(kinds[kind]))
            await asyncio.sleep(rng.random() * 0.03)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            return False
        else:
            got = await engine.generate(kinds[kind])
        assert bits(got) == await expected(kind)
        return True

    ended = left = 0
    try:
        while left < count:
            size = min(rng.choice([1, 20, 150, 300]), count - left)
            left += size
            ended += sum(await asyncio.gather(*(one(rng.randrange(len(kinds))) for _ in range(size))))
            if rng.random() < 0.3:
                weights = rng.randrange(3)
                for e in (engine, alone):
                    await e.load_weights(WeightsUpdate(smallest_model(weights).module, e.weights_version + 1))
            elif rng.random() < 0.2:
                await engine.drop_caches()
        assert 0.7 * count < ended < count
        assert peak > 0.8 * pool.limit
        await engine.drop_caches()
        assert engine.running == engine.waiting == 0
        assert pool.tree.tokens == pool.tree.held_tokens == pool.making == 0
        assert list(pool.tree.nodes()) == pool.loads == engine._worker.leases == engine._worker.joining == []
    finally:
        await engine.close()
        await alone.close()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_requests_equal_the_same_requests_alone(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole proof: `pytest -m slow -k random_requests`."""
    monkeypatch.setattr(pool_module, "HANG_WORTH", 1000)
    asyncio.run(under_stress(count))


def test_closing_ends_prompts_rows_queued_requests_and_leases() -> None:
    async def main() -> None:
        engine = TorchEngine(smallest_model(0), exact=True, max_rows=6, prefill_chunk=16)
        rng = random.Random(1)
        tasks = [asyncio.create_task(engine.generate(random_request(rng, i))) for i in range(60)]

        async def holding() -> None:
            async with engine.hold(tuple(range(30, 110))):
                await engine.generate(Request(tuple(range(30, 110)), SamplingParams(20), n=6))

        tasks += [asyncio.create_task(holding()) for _ in range(3)]  # type: ignore[list-item]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait_for(engine.close(), 20)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        assert any(isinstance(r, EngineClosed) for r in results)
        assert all(r is None or isinstance(r, EngineClosed | tuple) for r in results)

    asyncio.run(main())
