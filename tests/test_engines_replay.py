"""Recorded samples in place of a model: pools."""

import asyncio
import json
import random

import pytest
from search_play import context

from ponder import registry
from ponder.budget.meter import Meter
from ponder.engines.replay import Replay
from ponder.errors import EngineClosed, Unsupported, UserError
from ponder.protocols import Engine, Receipt, WeightsUpdate
from ponder.search.runner import solve
from ponder.search.strategies.best_of_n import BestOfN
from ponder.search.strategies.direct import Direct
from ponder.types import Budget, FinishReason, Message, Problem, Request, SamplingParams, Spend, Thinking


def sample(i, **more):
    return {"text": f"answer {i}", "tokens": 10 + i, **more}


def row(name, n=8, **more):
    return {"problem_id": name, "gold": "1", "samples": [sample(i) for i in range(n)], **more}


@pytest.fixture
def pool(tmp_path):
    def write(*rows, raw=""):
        path = tmp_path / "pool.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows) + raw)
        return str(path)

    return write


def ask(engine, prompt="?", n=1, seed=0, **more):
    return asyncio.run(engine.generate(Request(prompt, SamplingParams(1000, seed=seed), n=n, **more)))


def texts(engine, **more):
    return [c.text for c in ask(engine, **more)]


def test_replay_is_an_engine_by_name(pool):
    engine = registry.build("engines", "replay", {"seed": 1}).open(pool(row("a")))
    assert isinstance(engine, Engine)
    assert engine.capabilities.n
    assert not engine.capabilities.prefix


def test_a_problem_is_found_by_its_id_and_by_its_prompt(pool):
    chat = [{"role": "user", "content": "What?"}]
    engine = Replay(order="recorded").open(pool(row("a"), row("b", 1, prompt="Why?"), row("c", 1, prompt=chat)))
    assert texts(engine, metadata={"problem": "a"}) == ["answer 0"]
    assert texts(engine, prompt="Why?") == ["answer 0"]
    assert texts(engine, prompt=(Message("user", "What?"),)) == ["answer 0"]
    for request in ({"prompt": "Who?"}, {"metadata": {"problem": "d"}}, {"prompt": (1, 2)}):
        with pytest.raises(UserError, match=r"pool\.jsonl: .* is not among its 3 recorded problems"):
            ask(engine, **request)


def test_a_prompt_that_was_not_asked_is_not_answered_with_what_another_one_gave(pool):
    """A critique or a hint of a strategy is no sample of the problem."""
    engine = Replay().open(pool(row("a", prompt="Why?")))
    with pytest.raises(Unsupported, match="problem 'a' was recorded with another prompt"):
        ask(engine, prompt="Why? Think step by step.", metadata={"problem": "a"})
    assert texts(engine, prompt=(1, 2), metadata={"problem": "a"})


def test_samples_come_in_the_seeds_order_without_replacement(pool):
    path = pool(row("a", prompt="?"))
    drawn = texts(Replay().open(path), n=8, seed=3)
    assert sorted(drawn) == [f"answer {i}" for i in range(8)]
    assert drawn == texts(Replay().open(path), n=8, seed=3)
    assert drawn[:3] == texts(Replay().open(path), n=3, seed=3)
    assert len({tuple(texts(Replay().open(path), n=8, seed=s)) for s in range(10)}) > 5
    assert texts(Replay(order="recorded").open(path), n=8, seed=3) == [f"answer {i}" for i in range(8)]


def test_the_requests_of_one_search_share_an_order(pool):
    """A search that asks one by one, each time with another seed, sees no sample twice."""
    engine = Replay().open(pool(row("a")))
    where = {"problem": "a", "seed": 5}
    whole = texts(engine, n=8, seed=11, metadata={**where, "sample": 0})
    one_by_one = [texts(engine, seed=100 + i, metadata={**where, "sample": i})[0] for i in range(8)]
    assert one_by_one == whole
    assert texts(engine, n=2, seed=0, metadata={**where, "sample": 6}) == whole[6:]
    other = [texts(engine, metadata={"problem": "a", "seed": s, "sample": 0})[0] for s in range(20)]
    assert len(set(other)) > 3


def test_more_samples_than_were_recorded_are_refused_with_the_numbers(pool):
    engine = Replay().open(pool(row("a")))
    with pytest.raises(UserError, match=r"problem 'a' has 8 recorded samples, and sample 9 is asked for"):
        ask(engine, n=9, metadata={"problem": "a"})
    with pytest.raises(UserError, match="sample 9 is asked"):
        ask(engine, n=1, metadata={"problem": "a", "sample": 8})


def test_a_call_settles_its_receipt_also_where_its_stream_is_closed_or_comes_after_the_end(pool):
    async def go():
        engine = Replay(order="recorded").open(pool(row("a", prompt="?")))
        request = Request("?", SamplingParams(100), 3)
        whole, left, late = Receipt(), Receipt(), Receipt()
        completions = await engine.generate(request, whole)
        stream = engine.stream(request, left)
        await anext(stream)
        await stream.aclose()
        await engine.close()
        with pytest.raises(EngineClosed):
            await engine.generate(request, late)
        return completions, whole, left, late

    completions, whole, left, late = asyncio.run(go())
    assert whole == left == Receipt(Spend(sampled_tokens=10 + 11 + 12), completions)
    assert late == Receipt(Spend())


def test_tokens_are_counted_as_recorded_and_nothing_else_is_spent(pool):
    engine = Replay(order="recorded").open(pool(row("a", prompt="a long prompt")))
    meter = Meter(Budget(tokens=1000))
    strategy = Direct(n=4, max_tokens=100)
    outcome = asyncio.run(solve(strategy, Problem("a", "a long prompt"), engine, parent=meter))
    assert outcome.spend.tokens == outcome.spend.sampled_tokens == 10 + 11 + 12 + 13
    assert (outcome.spend.flops, outcome.spend.dollars) == (0.0, 0.0)


def test_a_sample_longer_than_max_tokens_is_cut_and_abstains(pool):
    engine = Replay().open(pool(row("a", 1, prompt="?")))
    done = asyncio.run(engine.generate(Request("?", SamplingParams(5))))[0]
    assert done.finish_reason is FinishReason.LENGTH
    assert done.spend.sampled_tokens == 5
    assert done.text == "answ"


def test_recorded_log_probabilities_choose_the_best_of_n(pool):
    samples = [sample(i, mean_logprob=-1.0 + (i == 5) * 0.5) for i in range(8)]
    engine = Replay().open(pool({"problem_id": "a", "prompt": "?", "gold": "1", "samples": samples}))
    assert engine.capabilities.logprobs
    outcome = asyncio.run(solve(BestOfN(n=8), Problem("a", "?"), engine))
    assert outcome.response.text == "answer 5"
    assert not Replay().open(pool(row("a"))).capabilities.logprobs


def test_a_recorded_truncation_is_one(pool):
    engine = Replay().open(pool({"problem_id": "a", "prompt": "?", "samples": [sample(0, finish_reason="length")]}))
    assert ask(engine)[0].finish_reason is FinishReason.LENGTH


def test_a_pool_neither_continues_nor_bounds_a_thought(pool):
    engine = Replay().open(pool(row("a", prompt="?")))
    with pytest.raises(Unsupported, match="cannot continue a response"):
        ask(engine, prefix="so far")
    with pytest.raises(Unsupported, match="bound a thought"):
        asyncio.run(engine.generate(Request("?", SamplingParams(10, thinking=Thinking(5)))))
    with pytest.raises(Unsupported):
        asyncio.run(engine.load_weights(WeightsUpdate({}, 1)))


def test_a_closed_pool_says_so(pool):
    engine = Replay().open(pool(row("a", prompt="?")))
    asyncio.run(engine.close())
    asyncio.run(engine.close())
    with pytest.raises(EngineClosed):
        ask(engine)


def test_files_that_are_no_pool_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Replay().open(str(tmp_path / "none.jsonl"))
    (tmp_path / "x.jsonl").write_text("")
    with pytest.raises(UserError, match="is empty"):
        Replay().open(str(tmp_path / "x.jsonl"))
    (tmp_path / "x.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="line 1: 'problem' must"):
        Replay().open(str(tmp_path / "x.jsonl"))
    (tmp_path / "y.jsonl").write_text(json.dumps(row("a")) + "\n")
    with pytest.raises(UserError, match="order"):
        Replay(order="reversed").open(str(tmp_path / "y.jsonl"))


def test_rollouts_of_a_training_are_refused_since_their_weights_change(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    path.write_text(json.dumps({"step": 1, "problem": "a", "prompt": "?", "samples": [{"text": "4", "tokens": 1}]}))
    with pytest.raises(UserError, match=r"rollouts.jsonl.*1: rollouts of a training .* of other weights at each step"):
        Replay().open(str(path))


def test_context_of_a_replayed_search_is_that_of_its_file(pool):
    thought = {"open": "<think>", "close": "</think>"}
    engine = Replay().open(pool(row("a", thought=thought), row("b")))
    assert engine.info.thought is not None
    assert engine.info.thought.close == "</think>"
    assert context(engine).capabilities.exact
    other = row("b", thought={"open": "[", "close": "]"})
    with pytest.raises(UserError, match="2 ways"):
        Replay().open(pool(row("a", thought=thought), other))


def test_orders_are_uniform(pool):
    engine = Replay().open(pool(row("a", 4, prompt="?")))
    firsts = [texts(engine, seed=random.Random(s).getrandbits(60))[0] for s in range(400)]
    assert all(60 < firsts.count(f"answer {i}") < 140 for i in range(4))
