"""The engine over one function on a toy model, and what the `llamacpp` engine does around its library.

With the library itself: tests/test_engines_llamacpp_real.py.
"""

import asyncio
import ctypes
import gc
import threading

import numpy as np
import pytest
from mocks import CLOSE, END, OPEN, decode, encode, sample

from ponder import registry
from ponder.budget.meter import Meter
from ponder.engines import llamacpp
from ponder.engines._deltas import total
from ponder.engines._draw import draw
from ponder.engines._stepwise import StepwiseEngine
from ponder.engines.llamacpp import LlamaCpp
from ponder.errors import EngineClosed, PonderError, Unsupported, UserError
from ponder.models.base import LoadedModel
from ponder.models.tokenizer import Piece
from ponder.protocols import Receipt, WeightsUpdate
from ponder.types import (
    Budget,
    FinishReason,
    ModelInfo,
    Request,
    SamplingParams,
    SegmentKind,
    Spend,
    Thinking,
    ThoughtFormat,
)

SIZE = 128


class Letters:
    """The mock engine's characters as a tokenizer."""

    vocab_size = SIZE
    markers = ("<think>", "</think>")

    def encode(self, text, *, special=False, continues=False):
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

    def __call__(self, ids, computed):
        self.entered.set()
        self.go.wait(10)
        common = 0
        while common < min(len(ids) - 1, len(self.kept)) and self.kept[common] == ids[common]:
            common += 1
        self.kept, self.steps = tuple(ids), self.steps + 1
        computed(len(ids) - common)
        self.computed += len(ids) - common
        logits = np.full(SIZE, -20.0)
        logits[97:123] = np.cos(np.arange(26) * (1 + ids[-1] % 7))
        logits[CLOSE if self.thinks else END] = 0.5
        if self.thinks and CLOSE in ids:
            logits[END], logits[CLOSE] = 3.0, -20.0
        return logits


def engine(logits=None, thinks=False, context=1000):
    thought = ThoughtFormat("<think>", "</think>", opened_by_template=True) if thinks else None
    model = LoadedModel(None, Letters(), ModelInfo("toy", context, flops_per_token=3.0, thought=thought), (END,))
    return StepwiseEngine(model, logits or Babble(thinks))


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
    assert [c.spend.prompt_tokens for c in completions] == [8, 0, 0]
    assert [c.spend.cached_tokens for c in completions] == [0, 8, 8]
    assert sum(c.spend.sampled_tokens for c in completions) == logits.steps + 2 == sum(len(c.ids) for c in completions)
    assert sum(c.spend.flops for c in completions) == 3.0 * logits.computed


def test_a_response_continues_from_its_prefix_as_if_not_interrupted():
    whole = sample(engine(), Request("abc", SamplingParams(30, seed=9)))[0]
    prefix = whole.ids[:5]
    again = sample(engine(), Request("abc", SamplingParams(30, seed=9), prefix=prefix))[0]
    assert again.ids == whole.ids
    assert [s.kind for s in again.segments] == [SegmentKind.FORCED, SegmentKind.SAMPLED]
    assert again.spend.sampled_tokens == len(whole.ids) - 5


def test_the_end_of_thought_is_forced_at_the_limit_and_not_before_its_minimum():
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
    assert stopped.stopped_by == stop
    assert plain.stopped_by is None


def test_log_probabilities_are_of_what_was_drawn_and_truncation_renormalises():
    logits = np.array([0.0, 1.0, 2.0, 3.0])
    for p in (SamplingParams(1, top_k=2), SamplingParams(1, top_p=0.6), SamplingParams(1, min_p=0.3)):
        drawn = {(d.id, d.logprob) for d in (draw(logits, p, u) for u in np.linspace(0, 0.9999, 400))}
        assert sum(np.exp(logprob) for _, logprob in drawn) == pytest.approx(1.0)
        assert {token for token, _ in drawn} <= {2, 3}
    greedy = draw(logits, SamplingParams(1, temperature=0.0, top_logprobs=3), 0.1)
    assert (greedy.id, greedy.logprob, greedy.best) == (3, 0.0, ((3, 0.0),))
    shares = np.bincount([draw(logits, SamplingParams(1), u).id for u in np.linspace(0, 0.99999, 5000)]) / 5000
    assert shares == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=1e-3)


def test_top_p_counts_within_what_top_k_keeps():
    logits = np.log([0.3, 0.25, 0.2, 0.15, 0.1])
    # Of the two best, the first has 0.3 / 0.55 > 0.5: it alone is the nucleus.
    assert draw(logits, SamplingParams(1, top_k=2, top_p=0.5), 0.999).id == 0


def test_the_smallest_temperature_is_almost_greedy_and_broken_logits_are_reported():
    tiny = SamplingParams(1, temperature=5e-324)
    assert draw(np.array([1.0, 3.0, 2.0]), tiny, 0.9).id == 1
    for broken in (np.array([0.0, np.nan]), np.array([0.0, np.inf]), np.full(2, -np.inf)):
        with pytest.raises(PonderError, match="not finite"):
            draw(broken, SamplingParams(1), 0.5)


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
        used = await cut(toy, Request("abc", SamplingParams(900, seed=1), 50), logits)
        steps = logits.steps
        await toy.close()
        return used, steps

    used, steps = asyncio.run(go())
    assert steps <= 2
    assert used.spend.prompt_tokens == 3
    assert used.spend.sampled_tokens == 0
    assert used.completions == ()


async def cut(toy, request, logits, streamed=False):
    """Cancel a call while its logits are being computed; its receipt."""
    receipt = Receipt()

    async def reading():
        async for _ in toy.stream(request, receipt):
            pass

    call = asyncio.create_task(reading() if streamed else toy.generate(request, receipt))
    await asyncio.to_thread(logits.entered.wait, 10)
    call.cancel()
    await asyncio.sleep(0)
    logits.go.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    return receipt


class Chunks(Babble):
    """Computes two ids of a prompt at a time, and may break at a step."""

    def __init__(self, breaks=1 << 30):
        super().__init__()
        self.breaks = breaks

    def __call__(self, ids, computed):
        if self.steps == self.breaks:
            raise OSError("the disk is gone")
        row = super().__call__(ids, lambda count: None)
        for part in [2] * (len(ids) // 2) if self.steps == 1 else [1]:
            computed(part)
        return row


class Endless(Babble):
    def __call__(self, ids, computed):
        row = super().__call__(ids, computed)
        row[END] = -np.inf
        return row


@pytest.mark.parametrize("closed", [False, True])
def test_a_call_that_ends_in_its_response_hands_over_what_was_sampled(closed):
    async def go():
        toy, seen, receipt = engine(Endless(), context=200_000), [], Receipt()
        await toy.generate(Request("abcdefgh", SamplingParams(1)))
        stream = toy.stream(Request("abcdefgh", SamplingParams(100_000, seed=3), 3), receipt)
        async for delta in stream:
            seen += delta.ids
            if len(seen) >= 3:
                break
        if closed:
            await stream.aclose()
        else:
            with pytest.raises(asyncio.CancelledError):
                await stream.athrow(asyncio.CancelledError())
        await toy.close()
        return receipt, seen

    used, seen = asyncio.run(go())
    [cut_short] = used.completions
    assert cut_short.finish_reason is FinishReason.CANCELLED
    assert list(cut_short.ids[: len(seen)]) == seen
    assert used.spend == cut_short.spend
    assert used.spend.sampled_tokens == len(cut_short.ids)
    assert (used.spend.prompt_tokens, used.spend.cached_tokens) == (1, 7)


def test_a_call_that_ends_well_settles_its_receipt_and_one_after_the_end_used_nothing():
    async def go():
        toy, receipt, late = engine(), Receipt(), Receipt()
        completions = await toy.generate(Request("abc", SamplingParams(25, seed=4), 2), receipt)
        await toy.close()
        with pytest.raises(EngineClosed):
            await toy.generate(Request("abc", SamplingParams(25)), late)
        return completions, receipt, late

    completions, receipt, late = asyncio.run(go())
    assert (receipt.spend, receipt.completions) == (total(completions), completions)
    assert late == Receipt(Spend())


def test_a_slow_reader_finds_what_waited_in_one_piece_and_slows_down_no_other_call():
    async def go():
        toy = engine(Endless())
        stream = toy.stream(Request("abc", SamplingParams(50, seed=3), 3))
        got = [await anext(stream)]
        # One thread for all: it starts this call only after the other, which is not read.
        await asyncio.wait_for(toy.generate(Request("xyz", SamplingParams(5))), 10)
        got += [delta async for delta in stream]
        await toy.close()
        return got

    got = asyncio.run(go())
    assert len(got) <= 1 + 3 + 3
    for number in range(3):
        mine = [d for d in got if d.sample == number]
        assert "".join(d.text for d in mine) == mine[-1].completion.text
        assert tuple(i for d in mine for i in d.ids) == mine[-1].completion.ids


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_that_is_cancelled_in_its_prompt_books_the_ids_that_were_computed(streamed):
    async def go():
        logits = Chunks()
        logits.go.clear()
        toy = engine(logits)
        used = await cut(toy, Request("abcdefgh", SamplingParams(9), 3), logits, streamed)
        await toy.close()
        return used

    used = asyncio.run(go())
    assert (used.spend.prompt_tokens, used.spend.cached_tokens, used.spend.sampled_tokens) == (2, 0, 0)
    assert used.spend.flops == 3.0 * 2
    assert used.spend.device_seconds == used.spend.seconds > 0
    assert used.completions == ()


def test_a_call_that_fails_books_the_row_being_computed_and_says_why():
    toy, receipt = engine(Chunks(breaks=5)), Receipt()
    with pytest.raises(PonderError, match="toy failed: OSError: the disk is gone") as failed:
        sample(toy, Request("abcdefgh", SamplingParams(9, seed=3), 3), receipt)
    assert isinstance(failed.value.__cause__, OSError)
    assert (receipt.spend.prompt_tokens, receipt.spend.sampled_tokens) == (8, 5)
    assert [len(c.ids) for c in receipt.completions] == [5]


def test_the_meter_books_a_failed_call_at_what_was_computed():
    async def go():
        meter, toy = Meter(Budget(tokens=10_000)), engine(Chunks(breaks=5))
        with pytest.raises(PonderError):
            await meter.generate(toy, Request("abcdefgh", SamplingParams(900, seed=3), 3))
        await toy.close()
        return meter.spend

    assert asyncio.run(go()).tokens == 8 + 5


def test_what_takes_longer_than_the_grace_is_not_waited_for():
    async def go():
        logits = Babble()
        logits.go.clear()
        toy = engine(logits)
        assert toy.grace > 0
        toy.grace = 0.01
        receipt = Receipt()
        call = asyncio.create_task(toy.generate(Request("abc", SamplingParams(9)), receipt))
        await asyncio.to_thread(logits.entered.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        logits.go.set()
        await toy.close()
        return receipt, logits.steps

    receipt, steps = asyncio.run(go())
    assert receipt == Receipt()
    assert steps == 1


def test_a_call_that_still_waits_for_its_turn_is_cancelled_at_once_and_costs_nothing():
    async def go():
        logits = Babble()
        logits.go.clear()
        toy = engine(logits)
        running = asyncio.create_task(toy.generate(Request("abc", SamplingParams(5))))
        await asyncio.to_thread(logits.entered.wait, 10)
        receipt = Receipt()
        waiting = asyncio.create_task(toy.generate(Request("xyz", SamplingParams(5)), receipt))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not running.done()
        logits.go.set()
        await running
        await toy.close()
        return receipt

    assert asyncio.run(go()) == Receipt(Spend())


def test_closing_a_stream_ends_its_call():
    async def go():
        logits = Endless()
        toy = engine(logits)
        stream = toy.stream(Request("abc", SamplingParams(900, seed=1, stop=("no such text",)), 50))
        await anext(stream)
        await stream.aclose()
        first = await toy.generate(Request("abc", SamplingParams(5)))
        await toy.close()
        return first, logits.steps

    first, steps = asyncio.run(go())
    assert first[0].text
    assert steps < 50 * 900 / 2


def test_a_garbage_collected_engine_ends_its_thread():
    freed = threading.Event()
    toy = StepwiseEngine(engine().model, Babble(), freed.set)
    asyncio.run(toy.generate(Request("abc", SamplingParams(5))))
    del toy
    gc.collect()
    assert freed.wait(10)


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
        (Request("abc", SamplingParams(48)), UserError, "3 tokens and max_tokens is 48: together 51"),
        (Request("abc", SamplingParams(2), prefix="xy"), UserError, "nothing is left"),
        (Request("abc", SamplingParams(9, temperature=-1.0)), UserError, "temperature is -1"),
        (Request("abc", SamplingParams(9, top_logprobs=-1)), UserError, "top_logprobs is -1"),
        (Request("abc", SamplingParams(9, stop=("",))), UserError, "stop string is empty"),
        (Request("abc", SamplingParams(9), prefix=(97, END)), UserError, "after its end"),
        (Request((1, SIZE), SamplingParams(9)), UserError, f"id {SIZE}"),
        (Request("abc", SamplingParams(9, thinking=Thinking(3))), Unsupported, "thoughts"),
    ):
        with pytest.raises(error, match=words):
            asyncio.run(toy.generate(request))
    with pytest.raises(Unsupported, match="trained"):
        asyncio.run(toy.load_weights(WeightsUpdate({}, 1)))
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
    llama, parts = Llama(rewinds), []
    logits = llamacpp._Logits(llama, batch=3)
    assert int(logits((1, 2, 3, 4, 5, 6, 7), parts.append).argmax()) == 7
    assert llama.evals == parts == [3, 3, 1]
    logits((1, 2, 3, 4, 5, 6, 7, 8), parts.append)
    assert parts[3:] == [1]
    assert int(logits((1, 2, 3, 9), parts.append).argmax()) == 9
    assert parts[4:] == ([1] if rewinds else [3, 1])
    assert list(llama.input_ids[: llama.n_tokens]) == [1, 2, 3, 9]

    def stop(count):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        logits((5, 5, 5, 5), stop)
    # What was computed by then is kept, if it can be.
    assert int(logits((5, 5, 5, 7), parts.append).argmax()) == 7
    assert parts[-1] == 1


class Spelled(llamacpp._Tokenizer):
    """The `llamacpp` tokenizer over a stand-in for its library: letters, a space before a text, two markers."""

    def __init__(self):
        self.markers = ("<|end|>", "<think>")
        self._known, self._loose = llamacpp._any_of(self.markers), llamacpp._any_of(["<think>"])
        self._adds_space = True

    def _encode(self, text, special):
        known = self.markers[0 if special else 1 :]
        ids = [] if text.startswith(known) else [0]
        while text:
            # llama.cpp finds `<think>` in any text, and `<|end|>` where it is told to.
            found = next((m for m in known if text.startswith(m)), text[0])
            ids.append(1000 + self.markers.index(found) if found in self.markers else ord(found))
            text = text[len(found) :]
        return ids


def test_llamacpp_takes_meant_markers_alone_and_no_space_within_a_text():
    spelled, end, think = Spelled(), 1000, 1001
    assert spelled.encode("ab") == [0, 97, 98]
    assert spelled.encode("ab", continues=True) == [97, 98]
    # A text whose markers are all meant is llama.cpp's own work.
    assert spelled.encode_pieces([Piece("a"), Piece("<|end|>b", own=True)]) == [0, 97, end, 98]
    letters = [ord(c) for c in "<|end|>"]
    assert spelled.encode_pieces([Piece("<|end|>"), Piece("<|end|>", own=True)]) == [0, *letters, end]
    ids = spelled.encode_pieces([Piece("<think>", own=True), Piece("a<think>"), Piece(ids=(7, 8)), Piece("b")])
    assert ids == [think, 97, *(ord(c) for c in "<think>"), 7, 8, 98]
