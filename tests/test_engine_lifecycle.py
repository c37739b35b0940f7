"""Requests that come and go: cancellation, closing, failures, streams, new weights, limits, refusals."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fixture import CONFIG, log_softmax_of, make_model, only_letters, opened, request

from ponder.engines.torch import TorchEngine
from ponder.errors import EngineClosed, PonderError, UserError
from ponder.models import tiny
from ponder.models.base import LoadedModel
from ponder.models.save import save
from ponder.protocols import Engine, WeightsUpdate
from ponder.types import Delta, FinishReason, Message, Request, SamplingParams, Thinking

LONG = 200


async def until(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.001)


def slow(model: LoadedModel, seconds: float = 0.02) -> LoadedModel:
    """Make each step take a while, so that a test can act while it runs."""
    logits = model.module.logits

    def delayed(hidden: torch.Tensor) -> torch.Tensor:
        time.sleep(seconds)
        return logits(hidden)

    model.module.logits = delayed  # type: ignore[assignment]
    return model


def test_the_engine_keeps_the_protocol() -> None:
    engine = TorchEngine(make_model(), max_rows=4)
    assert isinstance(engine, Engine)
    assert engine.capabilities.leases
    assert not engine.capabilities.exact
    assert engine.path == "native"
    engine.close_now()


def test_cancelling_a_task_frees_its_rows_and_spares_the_others() -> None:
    async def main() -> None:
        async with opened(slow(make_model(end=False))) as engine:
            first = asyncio.create_task(engine.generate(request(1, LONG, n=5)))
            second = asyncio.create_task(engine.generate(request(2, 30, n=2)))
            await until(lambda: engine.running == 7)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            await until(lambda: engine.running == 2)
            assert not second.done()  # the first would have outlived it
            kept = await second
            assert [c.ids for c in kept] == [c.ids for c in engine.generate_many([request(2, 30, n=2)])[0]]

    asyncio.run(main())


def test_cancelling_a_queued_request_removes_it_from_the_queue() -> None:
    async def main() -> None:
        async with opened(slow(make_model(end=False)), max_rows=1) as engine:
            running = asyncio.create_task(engine.generate(request(1, 20)))
            waiting = asyncio.create_task(engine.generate(request(2, LONG, n=3)))
            last = asyncio.create_task(engine.generate(request(3, 5)))
            await until(lambda: engine.running == 1 and engine.waiting == 2)
            waiting.cancel()
            assert len((await last)[0].ids) == 5
            assert len((await running)[0].ids) == 20
            assert engine.waiting == engine.running == 0

    asyncio.run(main())


def test_a_task_cancelled_before_its_group_is_handed_over_never_runs() -> None:
    async def main() -> None:
        async with opened() as engine:
            task = asyncio.create_task(engine.generate(request(1, LONG)))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await engine.generate(request(2, 3))
            assert engine.running == engine.waiting == 0

    asyncio.run(main())


def test_closing_ends_every_running_request() -> None:
    async def main() -> None:
        engine = TorchEngine(slow(make_model(end=False)), max_rows=2)
        tasks = [asyncio.create_task(engine.generate(request(i, LONG))) for i in range(5)]

        async def reading() -> None:
            async for _ in engine.stream(request(9, LONG)):
                pass

        tasks.append(asyncio.create_task(reading()))  # type: ignore[arg-type]
        await until(lambda: engine.running == 2)
        late = asyncio.create_task(engine.generate(request(7, LONG)))
        await asyncio.sleep(0)  # submitted, but its group is not handed over yet
        await asyncio.wait_for(asyncio.gather(engine.close(), engine.close()), 5)
        for result in await asyncio.wait_for(asyncio.gather(*tasks, late, return_exceptions=True), 5):
            assert isinstance(result, EngineClosed)
        await engine.close()
        with pytest.raises(EngineClosed):
            await engine.generate(request(1))
        with pytest.raises(EngineClosed):
            engine.generate_many([request(1)])
        with pytest.raises(EngineClosed):
            await engine.load_weights(WeightsUpdate(engine.model.module, 1))

    asyncio.run(main())


def test_a_failure_in_the_thread_reaches_every_caller_and_the_engine_keeps_working() -> None:
    async def main() -> None:
        model = make_model(end=False)
        async with opened(model, max_rows=2) as engine:
            good = model.module.logits

            def broken(hidden: torch.Tensor) -> torch.Tensor:
                raise RuntimeError("no such kernel")

            model.module.logits = broken  # type: ignore[assignment]
            calls = [engine.generate(request(i, 9)) for i in range(4)]
            for result in await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5):
                assert isinstance(result, PonderError)
                assert "no such kernel" in str(result)
            model.module.logits = good
            assert len((await engine.generate(request(1, 9)))[0].ids) == 9

    asyncio.run(main())


def test_weights_that_are_not_finite_are_named_as_the_cause() -> None:
    model = make_model()
    with torch.no_grad():
        model.module.model.norm.weight[0] = torch.nan
    engine = TorchEngine(model)
    try:
        with pytest.raises(PonderError, match="not finite"):
            engine.generate_many([request(1)])
    finally:
        engine.close_now()


def test_rows_leave_and_join_the_running_batch() -> None:
    """A short request that comes late ends before a long one that runs."""

    async def main() -> None:
        async with opened(slow(make_model(end=False))) as engine:
            long = asyncio.create_task(engine.generate(request(1, LONG)))
            await until(lambda: engine.running == 1)
            alone = await engine.generate(request(2, 4, n=3))
            assert not long.done()
            assert [len(c.ids) for c in alone] == [4, 4, 4]
            long.cancel()

    asyncio.run(main())


def test_the_cache_stays_within_its_memory_limit() -> None:
    per_token = 2 * CONFIG.num_hidden_layers * CONFIG.num_key_value_heads * CONFIG.head_dim * 4
    limit = 4 * 128 * per_token  # four rows of up to 128 tokens
    engine = TorchEngine(make_model(end=False), kv_memory=limit)
    try:
        seen = []
        step = engine._batch.step

        def watched() -> Any:
            use = engine.cache
            seen.append((use.slots + use.held + use.free, len(engine._batch)))
            return step()

        engine._batch.step = watched  # type: ignore[method-assign]
        results = engine.generate_many([Request((7,) * (1 + i % 60), SamplingParams(40 + i % 25)) for i in range(30)])
        assert len(results) == 30
        assert max(size for size, _ in seen) <= limit
        assert max(rows for _, rows in seen) >= 4
        with pytest.raises(UserError, match="kv_memory"):
            TorchEngine(make_model(), kv_memory=10 * per_token).generate_many([request(1, LONG)])
    finally:
        engine.close_now()


def test_unequal_lengths_change_no_token() -> None:
    """Slots are sorted and cut into blocks by length; each sample is still its own."""
    engine = TorchEngine(make_model(end=False), max_rows=48)
    try:
        requests = [Request((9,) * (150 if i % 9 == 0 else 3), SamplingParams(30 + i % 50, seed=i)) for i in range(60)]
        together = engine.generate_many(requests)
        for i in (0, 7, 9, 44, 59):
            assert engine.generate_many([requests[i]])[0][0].ids == together[i][0].ids
    finally:
        engine.close_now()


TEXTS = {
    "letters": lambda: only_letters(make_model()),
    "bytes and markers": lambda: make_model(scale=0.05),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("stop", [(), ("a", "ing"), ("xy", " ")])
def test_streamed_pieces_join_to_the_text_of_the_completion(kind: str, stop: tuple[str, ...]) -> None:
    async def main() -> None:
        async with opened(TEXTS[kind]()) as engine:
            params = SamplingParams(60, seed=3, stop=stop, thinking=Thinking(max_tokens=10))
            want = Request("tell", params, n=4, prefix="é so")
            deltas: list[list[Delta]] = [[] for _ in range(4)]
            async for delta in engine.stream(want):
                deltas[delta.sample].append(delta)
            for pieces, expected in zip(deltas, await engine.generate(want), strict=True):
                final = pieces[-1].completion
                assert final is not None
                assert all(d.completion is None for d in pieces[:-1])
                assert "".join(d.text for d in pieces) == final.text == expected.text
                assert tuple(i for d in pieces for i in d.ids) == final.ids == expected.ids
            if kind == "letters" and not stop:
                assert all(len(pieces) > 10 for pieces in deltas)

    asyncio.run(main())


def test_closing_a_stream_frees_its_rows() -> None:
    async def main() -> None:
        async with opened(slow(only_letters(make_model(end=False)))) as engine:
            stream = engine.stream(request(1, LONG, n=3))
            async for delta in stream:
                assert delta.text
                break
            await stream.aclose()
            await until(lambda: engine.running == 0)
            assert engine._batch._steps < LONG - 20

    asyncio.run(main())


def test_new_weights_change_the_version_and_what_is_sampled(tmp_path: Path) -> None:
    async def main() -> None:
        first, second = make_model(0), make_model(1)
        save(second, tmp_path / "second")
        expected: dict[int, Any] = {}
        for seed in (0, 1):
            async with opened(make_model(seed)) as other:
                expected[seed] = [c.ids for c in await other.generate(request(5, n=3))]
        assert expected[0] != expected[1]
        async with opened(first, version=3) as engine:
            [*before] = await engine.generate(request(5, n=3))
            assert {s.weights_version for c in before for s in c.segments} == {engine.weights_version} == {3}
            for version, source, want in [
                (4, second.module, 1),
                (5, make_model(0).module.state_dict(), 0),
                (7, tmp_path / "second", 1),
                (8, engine.model.module, 1),
            ]:
                delivery = await engine.load_weights(WeightsUpdate(source, version))
                assert delivery.version == version
                assert bool(delivery.digest) == (source is not engine.model.module)
                after = await engine.generate(request(5, n=3))
                assert [c.ids for c in after] == expected[want], version
                assert {c.weights_version for c in after} == {engine.weights_version} == {version}
            assert engine.model.module is first.module

    asyncio.run(main())


def test_weights_that_do_not_fit_are_refused_and_change_nothing() -> None:
    async def main() -> None:
        async with opened(make_model()) as engine:
            before = [c.ids for c in await engine.generate(request(5))]
            state = make_model(1).module.state_dict()
            name = "model.layers.0.mlp.up_proj.weight"
            for source, words in [
                ({**state, "extra": state[name]}, "extra"),
                ({k: v for k, v in state.items() if k != name}, "up_proj"),
                ({**state, name: state[name][:3]}, "shape"),
                (Path("no/such/folder/anywhere"), "no/such/folder"),
                ("a/folder", "str"),
                (make_model(1), "LoadedModel"),
            ]:
                with pytest.raises(UserError, match=words):
                    await engine.load_weights(WeightsUpdate(source, 1))  # type: ignore[arg-type]
            assert engine.weights_version == 0
            assert [c.ids for c in await engine.generate(request(5))] == before

    asyncio.run(main())


def test_weights_that_arrive_during_a_request_are_recorded_in_the_segments() -> None:
    async def main() -> None:
        async with opened(slow(make_model(end=False))) as engine:
            task = asyncio.create_task(engine.generate(request(1, LONG, n=2)))
            await until(lambda: engine._batch._steps > 5)
            await engine.load_weights(WeightsUpdate(make_model(3, end=False).module, 2))
            for c in await task:
                assert [s.weights_version for s in c.segments] == [0, 2]
                assert c.weights_version == 2
                assert sum(len(s.ids) for s in c.segments) == LONG

    asyncio.run(main())


def test_prompts_kept_for_waiting_samples_are_dropped_with_their_weights() -> None:
    async def main() -> None:
        model = make_model(end=False)
        async with opened(slow(model), max_rows=2) as engine:
            task = asyncio.create_task(engine.generate(request(4, 30, n=6)))
            await until(lambda: engine.running == 2)
            await engine.load_weights(WeightsUpdate(make_model(3, end=False).module, 1))
            late = (await task)[-1]
            assert [s.weights_version for s in late.segments] == [1]
            chosen = log_softmax_of(model, late)[torch.arange(30), torch.tensor(late.ids)]
            assert torch.allclose(chosen, torch.tensor(late.segments[0].logprobs), atol=1e-4)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Request((), SamplingParams(5)), "empty"),
        (Request((3, 480), SamplingParams(5)), "480"),
        (Request((3, -1), SamplingParams(5)), "-1"),
        (Request((3,) * 250, SamplingParams(7)), "250 .* 7.* 257.* 256"),
        (Request("x", SamplingParams(0)), "max_tokens"),
        (Request("x", SamplingParams(5), n=0), "n is 0"),
        (Request("x", SamplingParams(5, temperature=-1.0)), "temperature"),
        (Request("x", SamplingParams(5, temperature=float("nan"))), "temperature"),
        (Request("x", SamplingParams(5, top_p=0.0)), "top_p"),
        (Request("x", SamplingParams(5, top_k=-1)), "top_k"),
        (Request("x", SamplingParams(5, min_p=1.5)), "min_p"),
        (Request("x", SamplingParams(5, stop=("",))), "stop"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(bad: Request, words: str) -> None:
    engine = TorchEngine(make_model())
    try:
        with pytest.raises(UserError, match=words):
            engine.generate_many([request(1, LONG), bad])
        with pytest.raises(UserError, match=words):
            asyncio.run(engine.generate(bad))
        with pytest.raises(UserError, match=words):
            engine.stream(bad)
        assert engine.running == engine.waiting == 0
    finally:
        engine.close_now()


def test_options_that_make_no_sense_are_refused() -> None:
    for options in ({"max_rows": 0}, {"kv_memory": -1}):
        with pytest.raises(UserError, match=next(iter(options))):
            TorchEngine(make_model(), **options)


def test_count_tokens_is_what_a_request_costs() -> None:
    engine = TorchEngine(make_model())
    try:
        for prompt in ("some text", (Message("system", "be brief"), Message("user", "1 + 1?")), (3, 4, 5)):
            [[c]] = engine.generate_many([Request(prompt, SamplingParams(2))])
            assert engine.count_tokens(prompt) == c.spend.prompt_tokens + c.spend.cached_tokens == len(c.prompt_ids)
    finally:
        engine.close_now()


def test_a_module_without_the_cache_gives_the_same_samples() -> None:
    model, plain = make_model(), make_model()
    plain.supports_cache = False
    fast, general = TorchEngine(model), TorchEngine(plain, max_rows=5)
    try:
        assert (fast.path, general.path) == ("native", "transformers")
        requests = [
            request(0, 12, n=3),
            request(1, 9, temperature=0.0),
            Request("t", SamplingParams(14, seed=2, thinking=Thinking(max_tokens=3)), n=2, prefix="ab"),
        ]
        for a, b, r in zip(fast.generate_many(requests), general.generate_many(requests), requests, strict=True):
            assert [c.ids for c in a] == [c.ids for c in b]
            given = len(plain.tokenizer.encode(str(r.prefix), special=True))
            assert all(c.spend.prompt_tokens == len(c.prompt_ids) + given for c in b)  # nothing is shared
            for x, y in zip(a, b, strict=True):
                assert x.transcript.logprobs == pytest.approx(y.transcript.logprobs, abs=1e-4)
                assert y.spend.flops > x.spend.flops
    finally:
        fast.close_now()
        general.close_now()


def test_an_open_engine_changes_no_weight_and_no_file(tmp_path: Path) -> None:
    """It stores matrices column by column; reading, training and saving them see no difference."""
    model = make_model()
    names = dict(model.module.named_parameters())
    before = {name: p.detach().clone() for name, p in names.items()}
    save(model, tmp_path / "before")
    engine = TorchEngine(model)
    try:
        save(model, tmp_path / "after")
        for name, p in model.module.named_parameters():
            assert p is names[name]
            assert torch.equal(p, before[name])
        first, second = ((tmp_path / f / "model.safetensors").read_bytes() for f in ("before", "after"))
        assert first == second
        optimiser = torch.optim.AdamW(model.module.parameters(), lr=0.1)
        ids = torch.arange(20).view(1, -1)
        model.module.logits(model.module(ids)).sum().backward()
        optimiser.step()
        assert not torch.equal(names["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])
        engine.load_weights_now(WeightsUpdate({n: p.clone() for n, p in before.items()}, 1))
        assert all(torch.equal(p, before[n]) for n, p in names.items())
    finally:
        engine.close_now()


def test_python_exits_while_the_engine_works() -> None:
    """An interrupt in the main thread must neither hang at the end nor crash."""
    script = """
        import os, signal, threading
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have been told to ignore it
        from engine_fixture import make_model, request
        from ponder.engines.torch import TorchEngine
        engine = TorchEngine(make_model(end=False))
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        while True:
            engine.generate_many([request(i, 200) for i in range(64)])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "KeyboardInterrupt" in done.stderr
    assert done.returncode in (1, 130, -2)


def test_an_end_id_is_a_stop_and_the_budget_of_tokens_a_length() -> None:
    model = make_model()
    model.end_ids = tuple(range(CONFIG.vocab_size // 2))
    engine = TorchEngine(model)
    try:
        [results] = engine.generate_many([request(1, 4, n=40)])
    finally:
        engine.close_now()
    for c in results:
        stopped = c.ids[-1] in model.end_ids
        assert c.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        assert not any(i in model.end_ids for i in c.ids[:-1])
        assert c.text == model.tokenizer.decode(c.ids[:-1] if stopped else c.ids)
        assert tiny.PAD not in c.text


def test_a_prompt_that_is_counted_and_sampled_is_tokenised_once_and_never_mistaken_for_another(monkeypatch) -> None:
    async def main() -> None:
        model, asked = make_model(end=False), []
        prompt_ids = model.prompt_ids
        monkeypatch.setattr(model, "prompt_ids", lambda prompt: asked.append(prompt) or prompt_ids(prompt))
        async with opened(model) as engine:
            for prompt in ("one", "two", (5, 6, 7), "one"):
                want = prompt_ids(prompt)
                for seed in range(2):
                    assert engine.count_tokens(prompt) == len(want)
                    [completion] = await engine.generate(Request(prompt, SamplingParams(2, seed=seed)))
                    assert completion.prompt_ids == want
            assert asked == ["one", "two", (5, 6, 7), "one"]
            before = engine.count_tokens("one")
            model.take_plain_prompts()
            assert engine.count_tokens("one") == len(prompt_ids("one")) < before

    asyncio.run(main())
