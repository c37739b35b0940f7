"""What the in-process engine samples: against a plain forward pass, alone and in any batch."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from engine_fixture import log_softmax_of, request

from ponder.engines.torch import TorchEngine
from ponder.models import tiny
from ponder.models.base import LoadedModel
from ponder.types import Completion, FinishReason, Request, SamplingParams, SegmentKind


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_full_forward_pass(engine: TorchEngine, model: LoadedModel, temperature: float) -> None:
    results = engine.generate_many([request(i, n=3, temperature=temperature) for i in range(7)])
    for completion in [c for r in results for c in r]:
        expected = log_softmax_of(model, completion, temperature)
        chosen = expected[torch.arange(len(completion.ids)), torch.tensor(completion.ids)]
        assert torch.allclose(chosen, torch.tensor(completion.transcript.logprobs[-len(completion.ids) :]), atol=1e-4)


def test_greedy_takes_the_most_likely_token_each_time(engine: TorchEngine, model: LoadedModel) -> None:
    [[completion]] = engine.generate_many([request(3, temperature=0.0)])
    assert completion.ids == tuple(log_softmax_of(model, completion).argmax(-1).tolist())
    assert set(completion.transcript.logprobs) == {0.0}


def test_a_sample_is_the_same_with_any_batch_composition(engine: TorchEngine) -> None:
    alone = [engine.generate_many([request(i, max_tokens=5 + i, n=2)])[0] for i in range(12)]
    together = engine.generate_many([request(i, max_tokens=5 + i, n=2) for i in range(12)])
    for a, b in zip(alone, together, strict=True):
        assert [c.ids for c in a] == [c.ids for c in b]
        assert [c.text for c in a] == [c.text for c in b]
        for x, y in zip(a, b, strict=True):
            assert x.transcript.logprobs == pytest.approx(y.transcript.logprobs, abs=1e-4)


def test_the_same_group_gives_the_same_bits(engine: TorchEngine) -> None:
    requests = [request(i, max_tokens=4 + i % 9, n=1 + i % 3) for i in range(200)]

    def key(results: list[tuple[Completion, ...]]) -> list[object]:
        return [(c.ids, c.transcript.logprobs, c.finish_reason, c.text) for r in results for c in r]

    async def gathered() -> list[tuple[Completion, ...]]:
        return list(await asyncio.gather(*(engine.generate(r) for r in requests)))

    first = key(engine.generate_many(requests))
    assert key(engine.generate_many(requests)) == first
    assert key(asyncio.run(gathered())) == first


def test_samples_differ_by_index_and_by_seed(engine: TorchEngine) -> None:
    a, b = engine.generate_many([Request("hello", SamplingParams(16, seed=s), n=8) for s in (0, 1)])
    assert len({c.ids for c in a + b}) == 16


def test_siblings_share_the_cost_of_the_prompt(engine: TorchEngine) -> None:
    engine.drop_caches_now()
    [results] = engine.generate_many([request(1, n=100)])  # more samples than rows
    prompt = len(results[0].prompt_ids)
    assert [c.spend.prompt_tokens for c in results] == [prompt] + [0] * 99
    assert [c.spend.cached_tokens for c in results] == [0] + [prompt] * 99
    assert all(c.spend.sampled_tokens == len(c.ids) for c in results)
    assert results[0].spend.flops > results[1].spend.flops > 0


def test_more_requests_than_rows_all_come_back_in_order(model: LoadedModel) -> None:
    small = TorchEngine(model, max_rows=3)
    try:
        requests = [request(i, max_tokens=3 + i % 7, n=2) for i in range(20)]
        results = small.generate_many(requests)
        for r, completions in zip(requests, results, strict=True):
            assert len(completions) == 2
            assert all(c.prompt_ids == model.prompt_ids(r.prompt) for c in completions)
        assert small.running == small.waiting == 0
    finally:
        small.close_now()


def test_the_end_token_is_in_the_ids_and_not_in_the_text(model: LoadedModel) -> None:
    engine = TorchEngine(model)
    try:
        results = engine.generate_many([request(i, max_tokens=200, n=16) for i in range(8)])
    finally:
        engine.close_now()
    ended = [c for r in results for c in r if c.finish_reason is FinishReason.STOP]
    cut = [c for r in results for c in r if c.finish_reason is FinishReason.LENGTH]
    assert ended
    assert all(c.ids[-1] == model.end_ids[0] and tiny.END not in c.text for c in ended)
    assert all(len(c.ids) == 200 and model.end_ids[0] not in c.ids for c in cut)
    assert all(s.kind is SegmentKind.SAMPLED for c in ended for s in c.segments)


def test_no_thread_is_left_behind(model: LoadedModel) -> None:
    before = threading.active_count()
    engine = TorchEngine(model)
    engine.generate_many([request(1)])
    engine.close_now()
    engine.close_now()
    assert threading.active_count() == before
    forgotten = TorchEngine(model)
    forgotten.generate_many([request(1)])
    del forgotten
    assert threading.active_count() == before
