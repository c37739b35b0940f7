"""Budget forcing inside the batch, forced prefixes, and stop strings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from engine_fixture import log_softmax_of, make_model, only_letters

from ponder.engines.torch import TorchEngine
from ponder.errors import Unsupported, UserError
from ponder.models import tiny
from ponder.models.base import LoadedModel
from ponder.responses import split_response
from ponder.types import (
    Completion,
    FinishReason,
    ModelInfo,
    Request,
    SamplingParams,
    SegmentKind,
    Thinking,
    ThoughtFormat,
)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return make_model(scale=0.05)


@pytest.fixture(scope="module")
def engine(model: LoadedModel) -> Iterator[TorchEngine]:
    engine = TorchEngine(model, max_rows=32)
    yield engine
    engine.close_now()


def think(max_tokens: int, thinking: Thinking | None, seed: int = 0, **options: object) -> SamplingParams:
    return SamplingParams(max_tokens, thinking=thinking, seed=seed, **options)  # type: ignore[arg-type]


def kinds(completion: Completion) -> list[tuple[str, int]]:
    return [(s.kind.value, len(s.ids)) for s in completion.segments]


def ids_of(model: LoadedModel, text: str) -> tuple[int, ...]:
    return tuple(model.tokenizer.encode(text, special=True))


def bias_towards(model: LoadedModel, text: str, strength: float) -> LoadedModel:
    """The same shape of model, that strongly prefers one token: its embedding is aligned with every hidden state."""
    biased = make_model(scale=0.05)
    module = biased.module
    with torch.no_grad():
        module.model.norm.weight.zero_()  # hidden states are 0 but for one direction
        module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.clone())
        # A constant logit needs a constant hidden state: replace the norm by one that returns it.
        constant = torch.zeros(module.config.hidden_size)
        constant[0] = 1.0
        module.lm_head.weight.zero_()
        module.lm_head.weight[ids_of(model, text)[0], 0] = strength
    module.model.norm.forward = lambda x: constant.expand_as(x)
    return biased


@pytest.mark.parametrize("budget", [0, 1, 7, 20])
def test_the_end_of_thought_is_forced_exactly_at_the_limit(
    engine: TorchEngine, model: LoadedModel, budget: int
) -> None:
    close = ids_of(model, "</think>")
    params = [think(40, Thinking(max_tokens=budget), seed) for seed in range(12)]
    results = engine.generate_many([Request("count", p) for p in params])
    forced = 0
    for [c] in results:
        before, after = c.ids[:budget], c.ids[budget + 1 :]
        if any(i in before for i in (*close, *model.end_ids)) or ids_of(model, "<think>")[0] in after:
            continue  # it closed or ended on its own, or thinks again
        forced += 1
        assert c.ids[budget : budget + 1] == close
        mask = c.transcript.loss_mask[len(c.prompt_ids) :]
        assert not mask[budget]
        assert all(m for i, m in enumerate(mask) if i != budget)
        assert c.spend.forced_tokens == 1
        assert c.spend.sampled_tokens == len(c.ids) - 1
        assert kinds(c) == [
            k for k in [("sampled", budget), ("forced", 1), ("sampled", len(c.ids) - budget - 1)] if k[1]
        ]
        expected = log_softmax_of(model, c)
        chosen = expected[torch.arange(len(c.ids)), torch.tensor(c.ids)]
        chosen[budget] = 0.0
        got = torch.tensor(c.transcript.logprobs[len(c.prompt_ids) :])
        assert torch.allclose(chosen, got, atol=1e-4)
    assert forced >= 8


def test_rows_with_and_without_a_budget_share_a_batch(engine: TorchEngine) -> None:
    bounded = Request("one", think(30, Thinking(max_tokens=5), 3), n=4)
    free = Request("two", think(30, None, 4), n=4)
    together = engine.generate_many([bounded, free])
    alone = [engine.generate_many([bounded])[0], engine.generate_many([free])[0]]
    assert [[c.ids for c in r] for r in together] == [[c.ids for c in r] for r in alone]
    assert all(s.kind is SegmentKind.SAMPLED for c in together[1] for s in c.segments)


def test_a_forced_end_of_thought_makes_the_answer_readable(engine: TorchEngine) -> None:
    results = engine.generate_many([Request("q", think(60, Thinking(max_tokens=4), s)) for s in range(30)])
    readable = 0
    for [c] in results:
        if (
            c.finish_reason is FinishReason.STOP
            and "</think>" in c.text
            and "<think>" not in c.text.removeprefix("<think>")
        ):
            response = split_response(c.text, c.finish_reason, tiny.THOUGHT)
            thought, _, rest = c.text.partition("</think>")
            assert response.thought == thought.removeprefix("<think>")
            # A further end marker is the end of a line.
            assert response.answer is not None
            assert response.answer.split() == rest.replace("</think>", "\n").split()
            readable += 1
    assert readable >= 3


@pytest.mark.parametrize("marker", ["</think>", tiny.END])
def test_an_early_end_of_thought_is_replaced_by_the_extension(model: LoadedModel, marker: str) -> None:
    eager = bias_towards(model, marker, 50.0)
    engine = TorchEngine(eager)
    try:
        [[c]] = engine.generate_many([Request("q", think(30, Thinking(min_tokens=9, extend=" Wait"), 1))])
    finally:
        engine.close_now()
    wait = tuple(model.tokenizer.encode(" Wait"))
    # Three times " Wait" (5 tokens each) would be 15: two are enough to reach 9, the third end then stands.
    assert c.ids[:10] == wait * 2
    assert c.segments[0].kind is SegmentKind.FORCED
    assert len(c.segments[0].ids) == 10
    assert c.ids[10] == ids_of(model, marker)[0]
    assert c.segments[1].kind is SegmentKind.SAMPLED


def test_a_sampled_close_before_the_budget_leaves_the_answer_alone(model: LoadedModel) -> None:
    eager = bias_towards(model, "</think>", 50.0)
    engine = TorchEngine(eager)
    try:
        [[c]] = engine.generate_many([Request("q", think(12, Thinking(max_tokens=3), 1))])
    finally:
        engine.close_now()
    assert kinds(c) == [("sampled", 12)]


def test_a_model_whose_template_opens_no_thought_is_bounded_from_its_own_marker_on(model: LoadedModel) -> None:
    closed = make_model(scale=0.05)
    closed.info = ModelInfo("closed", 256, thought=ThoughtFormat("<think>", "</think>"), chat=False)
    engine = TorchEngine(closed)
    try:
        [[plain], [opened], [prompted]] = engine.generate_many(
            [
                Request("q", think(20, Thinking(max_tokens=3), 1)),
                Request("q", think(20, Thinking(max_tokens=3), 1), prefix="<think>ab"),
                Request((5, *ids_of(model, "<think>")), think(20, Thinking(max_tokens=3), 1)),
            ]
        )
    finally:
        engine.close_now()
    assert kinds(plain)[0] == ("sampled", 20)
    assert kinds(opened)[:3] == [("forced", 3), ("sampled", 1), ("forced", 1)]  # <think>, a, b, then 1 of 3 is left
    assert kinds(prompted)[:2] == [("sampled", 3), ("forced", 1)]


def test_a_marker_of_several_tokens_is_forced_and_recognised(model: LoadedModel) -> None:
    spelled = make_model(scale=0.05)
    spelled.info = ModelInfo("spelled", 256, thought=ThoughtFormat("[think]", "[/think]", opened_by_template=True))
    marker = tuple(model.tokenizer.encode("[/think]"))
    assert len(marker) > 1
    engine = TorchEngine(spelled)
    try:
        [[forced], [given]] = engine.generate_many(
            [
                Request("q", think(30, Thinking(max_tokens=4), 2)),
                Request("q", think(30, Thinking(max_tokens=4), 2), prefix="ab[/think]"),
            ]
        )
        with pytest.raises(Unsupported, match="one token"):
            engine.generate_many([Request("q", think(9, Thinking(min_tokens=2, extend="x")))])
    finally:
        engine.close_now()
    assert kinds(forced)[:2] == [("sampled", 4), ("forced", len(marker))]
    assert forced.ids[4 : 4 + len(marker)] == marker
    assert kinds(given) == [("forced", 2 + len(marker)), ("sampled", 30 - 2 - len(marker))]


def test_a_marker_of_several_tokens_that_was_sampled_ends_the_thought() -> None:
    spelled = bias_towards(make_model(), "a", 50.0)
    spelled.info = ModelInfo("spelled", 256, thought=ThoughtFormat("bb", "aaa", opened_by_template=True))
    engine = TorchEngine(spelled)
    try:
        [[c]] = engine.generate_many([Request("q", think(20, Thinking(max_tokens=5), 2))])
    finally:
        engine.close_now()
    assert kinds(c) == [("sampled", 20)]


def test_the_length_limit_holds_within_a_forced_marker(model: LoadedModel) -> None:
    spelled = make_model(scale=0.05)
    spelled.info = ModelInfo("spelled", 256, thought=ThoughtFormat("[think]", "[/think]", opened_by_template=True))
    engine = TorchEngine(spelled)
    try:
        [[c]] = engine.generate_many([Request("q", think(6, Thinking(max_tokens=4), 2))])
    finally:
        engine.close_now()
    assert kinds(c) == [("sampled", 4), ("forced", 2)]
    assert c.finish_reason is FinishReason.LENGTH


def test_thinking_is_refused_where_it_makes_no_sense(engine: TorchEngine) -> None:
    for thinking, words in [
        (Thinking(min_tokens=3), "extend"),
        (Thinking(max_tokens=-1), "at least 0"),
        (Thinking(max_tokens=3, min_tokens=4, extend="x"), "above"),
    ]:
        with pytest.raises(UserError, match=words):
            engine.generate_many([Request("q", think(9, thinking))])
    silent = make_model()
    silent.info = ModelInfo("silent", 256)
    other = TorchEngine(silent)
    try:
        assert not other.capabilities.thinking
        with pytest.raises(Unsupported, match="silent"):
            other.generate_many([Request("q", think(9, Thinking(max_tokens=3)))])
    finally:
        other.close_now()


@pytest.fixture(scope="module")
def speller() -> Iterator[TorchEngine]:
    """An engine whose model samples nothing but letters and spaces, one token each."""
    engine = TorchEngine(only_letters(make_model()), max_rows=32)
    yield engine
    engine.close_now()


def test_a_prefix_is_forced_and_the_rest_is_as_if_it_had_been_sampled(speller: TorchEngine) -> None:
    [whole] = speller.generate_many([Request("say", think(20, None, 5), n=3)])
    for head in (1, 7, 19):
        prefix = whole[0].text[:head]
        [[rest, *others]] = speller.generate_many([Request("say", think(20, None, 5), n=3, prefix=prefix)])
        assert rest.ids == whole[0].ids  # the stream of random numbers goes by position
        assert all(c.text.startswith(prefix) for c in others)
        assert kinds(rest) == [("forced", head), ("sampled", 20 - head)]
        assert rest.spend.forced_tokens == 0  # what the caller gave is spent like a prompt
        assert [c.spend.cached_tokens for c in others] == [len(rest.prompt_ids) + head] * 2


def test_a_prefix_that_leaves_nothing_to_sample_is_refused(engine: TorchEngine) -> None:
    with pytest.raises(UserError, match="nothing is left"):
        engine.generate_many([Request("q", think(3, None), prefix="abc")])
    with pytest.raises(UserError, match="end token"):
        engine.generate_many([Request("q", think(9, None), prefix="a<|end|>b")])


@pytest.mark.parametrize("stop", ["aa", "aaaaa", "a"])
def test_a_stop_string_ends_the_text_before_it_and_the_ids_after_it(stop: str) -> None:
    eager = bias_towards(make_model(), "a", 50.0)
    engine = TorchEngine(eager)
    try:
        [[c], [p]] = engine.generate_many(
            [
                Request("q", think(20, None, stop=(stop, "zz"))),
                Request("q", think(20, None, stop=("xa" + stop[1:], "zz")), prefix="bx"),
            ]
        )
    finally:
        engine.close_now()
    assert (c.text, len(c.ids), c.finish_reason) == ("", len(stop), FinishReason.STOP)
    assert p.text == "b"  # the match began in the forced prefix
    assert p.finish_reason is FinishReason.STOP


def test_stop_strings_are_found_across_tokens(speller: TorchEngine) -> None:
    """Any piece of a free response, used as a stop string, stops the same response at its first place."""
    [[free]] = speller.generate_many([Request("go", think(60, None, 9))])
    stops = [free.text[start : start + 1 + start % 4] for start in range(50)]
    results = speller.generate_many([Request("go", think(60, None, 9, stop=(stop,))) for stop in stops])
    for stop, [c] in zip(stops, results, strict=True):
        assert c.text == free.text[: free.text.index(stop)]
        assert c.ids == free.ids[: free.text.index(stop) + len(stop)]
        assert c.finish_reason is FinishReason.STOP
