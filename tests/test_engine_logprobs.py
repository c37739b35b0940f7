"""What is reported of the distributions, and the ids that end a response."""

from __future__ import annotations

import pytest
import torch
from engine_fixture import log_softmax_of, request

from ponder.engines.torch import TorchEngine
from ponder.errors import UserError
from ponder.models.base import LoadedModel
from ponder.types import Completion, FinishReason, Request, SamplingParams, SegmentKind, Thinking


def chosen_of(table: torch.Tensor, c: Completion) -> torch.Tensor:
    return table[torch.arange(len(c.ids)), torch.tensor(c.ids)]


def sampled_of(c: Completion) -> torch.Tensor:
    return torch.tensor([x for s in c.segments for x in s.logprobs or ()])


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"top_p": 0.5}, {"temperature": 0.0}, {"top_k": 2}])
def test_raw_logprobs_are_of_the_model_itself(
    engine: TorchEngine, model: LoadedModel, options: dict[str, float]
) -> None:
    [sampled], [raw] = engine.generate_many([request(1, **options), request(1, logprobs_of="raw", **options)])
    assert sampled.ids == raw.ids
    assert [s.logprobs_of for s in sampled.segments] == ["sampled"]
    assert [s.logprobs_of for s in raw.segments] == ["raw"]
    assert torch.allclose(sampled_of(raw), chosen_of(log_softmax_of(model, raw), raw), atol=1e-4)
    assert not torch.allclose(sampled_of(raw), sampled_of(sampled), atol=1e-2)


def test_the_best_ids_are_reported_with_their_logprobs(engine: TorchEngine, model: LoadedModel) -> None:
    plain = request(2, 12, n=2)
    asked = request(2, 12, n=2, top_logprobs=5)
    warm = request(3, 12, temperature=0.7, top_logprobs=2)
    raw = request(3, 12, temperature=0.7, top_logprobs=3, logprobs_of="raw")
    greedy, cut = request(4, 12, temperature=0.0, top_logprobs=3), request(5, 12, top_k=2, top_logprobs=4)
    results = engine.generate_many([plain, asked, warm, raw, greedy, cut])
    assert [c.ids for c in results[0]] == [c.ids for c in results[1]]
    assert all(s.top_logprobs is None for c in results[0] for s in c.segments)
    for c, temperature, count in [(results[1][1], 1.0, 5), (results[2][0], 0.7, 2), (results[3][0], 1.0, 3)]:
        expected = log_softmax_of(model, c, temperature).topk(count)
        [segment] = c.segments
        assert segment.top_logprobs is not None
        assert [[i for i, _ in best] for best in segment.top_logprobs] == expected.indices.tolist()
        got = torch.tensor([[x for _, x in best] for best in segment.top_logprobs])
        assert torch.allclose(got, expected.values, atol=1e-4)
    [c] = results[4]
    assert c.segments[0].top_logprobs == tuple(((i, 0.0),) for i in c.ids)  # a point mass has one possible id
    [c] = results[5]
    top = c.segments[0].top_logprobs
    assert top
    assert all(len(best) == 2 for best in top)
    assert all(abs(sum(2.718281828**x for _, x in best) - 1) < 1e-4 for best in top)


def test_forced_tokens_have_no_logprobs_and_shift_none(engine: TorchEngine, model: LoadedModel) -> None:
    params = SamplingParams(20, seed=1, top_logprobs=1, thinking=Thinking(max_tokens=4))
    [[c]] = engine.generate_many([Request("q", params, prefix="ab")])
    best = log_softmax_of(model, c).argmax(-1).tolist()
    at = 0
    for s in c.segments:
        if s.kind is SegmentKind.FORCED:
            assert s.logprobs is s.top_logprobs is None
        else:
            assert [b[0][0] for b in s.top_logprobs or ()] == best[at : at + len(s.ids)]
        at += len(s.ids)
    assert {s.kind for s in c.segments} == {SegmentKind.FORCED, SegmentKind.SAMPLED}


def test_stop_ids_end_a_response_besides_the_end_ids_of_the_model(engine: TorchEngine, model: LoadedModel) -> None:
    stop = tuple(range(100, 300))
    asked = Request("x", SamplingParams(60, seed=4, stop_ids=stop), n=8)
    free = Request("x", SamplingParams(60, seed=4), n=8)
    stopped, whole = engine.generate_many([asked, free])
    for a, b in zip(stopped, whole, strict=True):
        ends = [i for i, t in enumerate(b.ids) if t in stop or t in model.end_ids]
        assert a.ids == b.ids[: ends[0] + 1]
        assert a.finish_reason is FinishReason.STOP
        assert a.text == model.tokenizer.decode(a.ids[:-1])
    assert any(c.ids[-1] in stop for c in stopped)


def test_questions_about_logprobs_that_make_no_sense_are_refused(engine: TorchEngine) -> None:
    for options, words in [
        ({"logprobs_of": "both"}, "logprobs_of"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"top_logprobs": 101}, "top_logprobs"),
        ({"stop_ids": (480,)}, "stop_ids"),
    ]:
        with pytest.raises(UserError, match=words):
            engine.generate_many([request(1, **options)])
    with pytest.raises(UserError, match="end token"):
        engine.generate_many(
            [Request("q", SamplingParams(9, stop_ids=(engine.model.tokenizer.id_of("b"),)), prefix="abc")]
        )
