"""The engine over one function samples as the torch engine does, whatever is asked for."""

import asyncio

import numpy as np
import pytest
import torch
from engine_fixture import make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.engines._draw import draw
from ponder.engines._stepwise import StepwiseEngine
from ponder.engines.torch import TorchEngine
from ponder.engines.torch.sampler import Rules, sample
from ponder.models import tiny
from ponder.types import ModelInfo, Request, SamplingParams, Thinking, ThoughtFormat


@pytest.fixture(scope="module")
def model():
    return make_model(scale=0.1)


def stepwise(model):
    @torch.inference_mode()
    def logits(ids, computed):
        computed(1)
        return model.module.logits(model.module(torch.tensor([ids]))[0, -1:])[0].float().numpy()

    return StepwiseEngine(model, logits)


def both(model, requests):
    engine, toy = TorchEngine(model), stepwise(model)

    async def go():
        answers = [await toy.generate(r) for r in requests]
        await toy.close()
        return answers

    try:
        return asyncio.run(go()), engine.generate_many(requests)
    finally:
        engine.close_now()


def same(ours, theirs):
    for mine, their in zip(ours, theirs, strict=True):
        assert (mine.ids, mine.text, mine.finish_reason) == (their.ids, their.text, their.finish_reason)
        assert mine.stopped_by == their.stopped_by
        assert [(s.kind, s.ids, s.logprobs_of) for s in mine.segments] == [
            (s.kind, s.ids, s.logprobs_of) for s in their.segments
        ]
        assert mine.transcript.logprobs == pytest.approx(their.transcript.logprobs, abs=1e-3)
        for a, b in zip(mine.segments, their.segments, strict=True):
            if a.logprobs is None:
                continue
            assert (a.top_logprobs is None) == (b.top_logprobs is None)
            for pairs, others in zip(a.top_logprobs or (), b.top_logprobs or (), strict=True):
                assert dict(pairs) == pytest.approx(dict(others), abs=1e-3)
        for name in ("sampled_tokens", "forced_tokens", "tokens"):
            assert getattr(mine.spend, name) == getattr(their.spend, name)


OPTIONS = {
    "plain": {},
    "warm": {"temperature": 1.7},
    "greedy": {"temperature": 0.0, "top_logprobs": 3},
    "greedy, raw": {"temperature": 0.0, "logprobs_of": "raw", "top_logprobs": 3},
    "top-k": {"top_k": 5, "top_logprobs": 8},
    "top-p": {"top_p": 0.7},
    "top-k, then top-p": {"top_k": 20, "top_p": 0.5, "temperature": 0.8},
    "min-p": {"min_p": 0.05, "logprobs_of": "raw"},
    "best ids": {"top_logprobs": 5, "logprobs_of": "raw", "temperature": 0.6},
    "stop strings": {"stop": ("a", "zz", "e")},
    "stop ids": {"stop_ids": tuple(range(300, 400))},
    "thought": {"thinking": Thinking(max_tokens=5)},
    "no thought": {"thinking": Thinking(max_tokens=0)},
    "long thought": {"thinking": Thinking(min_tokens=9, max_tokens=12, extend=" Wait")},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_seed_gives_the_same_response_as_the_torch_engine(model, name):
    requests = [
        Request("count", SamplingParams(16, seed=1, **OPTIONS[name]), 3),
        Request("count", SamplingParams(16, seed=2, **OPTIONS[name]), prefix="a<think>bc"),
        Request((5, 6, 7), SamplingParams(16, seed=3, **OPTIONS[name]), prefix=(97, 98)),
    ]
    for ours, theirs in zip(*both(model, requests), strict=True):
        same(ours, theirs)


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("marks", [tiny.THOUGHT, ThoughtFormat("[t]", "[/t]")])
def test_thoughts_are_bounded_alike_however_opened_and_spelled(marks, opened):
    model = make_model(scale=0.1)
    thought = ThoughtFormat(marks.open, marks.close, opened_by_template=opened)
    model.info = ModelInfo("marked", 256, thought=thought)
    params = [SamplingParams(20, seed=s, thinking=Thinking(max_tokens=4)) for s in range(3)]
    requests = [Request("q", p) for p in params]
    requests += [Request("q", p, prefix=f"a{marks.open}bc") for p in params]
    requests += [Request("q", p, prefix=f"abc{marks.close}d") for p in params]
    for ours, theirs in zip(*both(model, requests), strict=True):
        same(ours, theirs)


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.integers(2, 700),
    seed=st.integers(0, 99),
    u=st.floats(0, 1, exclude_max=True),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 400]),
    top_p=st.sampled_from([0.05, 0.9, 0.9999, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 1.0]),
    raw=st.booleans(),
    best=st.sampled_from([0, 1, 7]),
)
def test_one_draw_is_the_torch_samplers(vocab, seed, u, temperature, top_k, top_p, min_p, raw, best):
    logits = np.random.default_rng(seed).normal(0, 3, vocab).astype(np.float32)
    of = "raw" if raw else "sampled"
    p = SamplingParams(1, temperature, top_p, top_k, min_p, logprobs_of=of, top_logprobs=best)
    rules = Rules.of([p], torch.device("cpu"))
    theirs = sample(torch.from_numpy(logits.copy())[None], rules, torch.tensor([u], dtype=torch.float64))
    ours = draw(logits, p, u)
    chance = np.exp(ours.logprob)
    if ours.id != int(theirs.ids_B[0]):
        # Only where the number falls on the edge between two ids, as float32 and float64 have it.
        nearby = {draw(logits, p, min(max(u + d, 0.0), 1 - 1e-12)).id for d in (-1e-5, 1e-5)}
        assert int(theirs.ids_B[0]) in nearby
        return
    assert chance == pytest.approx(float(theirs.logprobs_B.exp()[0]), rel=1e-4)
    if best:
        pairs = zip(theirs.best_ids_BK[0].tolist(), theirs.best_logprobs_BK[0].tolist(), strict=True)
        assert dict(ours.best) == pytest.approx({i: x for i, x in pairs if x > -np.inf}, abs=1e-3)
