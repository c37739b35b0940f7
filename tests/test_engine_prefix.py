"""Shared prefixes: what is stored once, what is found again, what is freed, and what leases promise."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from engine_fixture import CONFIG, log_softmax_of, make_model, opened
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.engines.torch import pool as pool_module
from ponder.engines.torch import prefix
from ponder.engines.torch.prefix import PAGE, Node, PrefixTree, aligned, common_length, spans
from ponder.errors import Unsupported, UserError
from ponder.models.base import LoadedModel
from ponder.protocols import WeightsUpdate
from ponder.types import Completion, Request, SamplingParams

PER_TOKEN = 2 * CONFIG.num_hidden_layers * CONFIG.num_key_value_heads * CONFIG.head_dim * 4


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(20, 470, length).tolist())


def check_logprobs(model: LoadedModel, completion: Completion) -> None:
    chosen = log_softmax_of(model, completion)[torch.arange(len(completion.ids)), torch.tensor(completion.ids)]
    got = torch.tensor(completion.transcript.logprobs[-len(completion.ids) :])
    assert torch.allclose(chosen, got, atol=1e-4)


@pytest.fixture
def everything_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share storage wherever it is possible, however little it saves."""
    monkeypatch.setattr(pool_module, "HANG_WORTH", -1)


# The tree ------------------------------------------------------------------------------------------------------------


def kv_of(ids: np.ndarray, start: int) -> torch.Tensor:
    """Keys and values that say which id at which position they belong to."""
    numbers = torch.from_numpy(ids[start:].astype(np.float32) * 1000 + np.arange(start, len(ids)))
    return numbers.view(1, 1, 1, -1, 1).repeat(2, 2, 1, 1, 1)


STORIES = st.lists(
    st.tuples(st.sampled_from(["add", "add", "add", "hold", "release", "evict", "drop"]), st.integers(0, 10**6)),
    max_size=30,
)


@given(STORIES)
@settings(max_examples=150, deadline=None)
def test_the_tree_finds_what_was_stored_and_counts_what_it_stores(story: list[tuple[str, int]]) -> None:
    tree = PrefixTree()
    held: list[tuple[Node, np.ndarray]] = []
    for action, seed in story:
        random = np.random.default_rng(seed)
        if action == "add":
            # Few ids, so that prompts meet and part at many places.
            ids = np.repeat(random.integers(0, 2, 12), random.integers(1, 20, 12))[: random.integers(1, 150)]
            start = aligned(tree.match(ids)[1])
            tree.add(ids, start, kv_of(ids, start))
            node, length = tree.match(ids)
            assert length == len(ids)
            if random.integers(2):
                tree.hold(node)
                held.append((node, ids))
        elif action == "release" and held:
            tree.release(held.pop(int(random.integers(len(held))))[0])
        elif action == "evict":
            wanted, before = int(random.integers(200)), tree.tokens
            freed = tree.evict(wanted)
            assert tree.tokens == before - freed
            assert freed >= min(wanted, before - tree.held_tokens)
        elif action == "drop":
            tree.drop()
            assert list(tree.nodes()) == []
        for node, ids in held:
            parts = [n.kv[0, 0, 0, a:b, 0] for n, a, b in spans(node, 0, len(ids))]
            assert torch.equal(torch.cat(parts), kv_of(ids, 0)[0, 0, 0, :, 0])
        nodes = list(tree.nodes())
        alive = {id(n): n for n in nodes}
        for node, _ in held:
            while node.parent is not None:
                alive[id(node)], node = node, node.parent
        assert tree.tokens == sum(len(n.ids) for n in alive.values())
        assert tree.held_tokens == sum(len(n.ids) for n in alive.values() if n.held)
        assert all(n.start % PAGE == 0 and n.kv.shape[3] == len(n.ids) for n in alive.values())
        assert all(len(n.ids) % PAGE == 0 for n in nodes if n.children)
    for node, _ in held:
        tree.release(node)
    tree.drop()
    assert tree.tokens == tree.held_tokens == 0


# The engine ----------------------------------------------------------------------------------------------------------


def test_a_prompt_of_many_samples_is_computed_once_and_stored_once(everything_hangs: None) -> None:
    async def main() -> None:
        model = make_model(end=False)
        # Room for the prompt once and a short slot each; 24 copies of the prompt would need ten times as much.
        room = 200 + 24 * 64 + 64
        async with opened(model, kv_memory=room * PER_TOKEN) as engine:
            sizes = []
            step = engine._batch.step
            engine._batch.step = lambda: (sizes.append((len(engine._batch), engine.cache)), step())[1]  # type: ignore
            results = await engine.generate(Request(prompt(0, 200), SamplingParams(20), n=24))
            assert max(rows for rows, _ in sizes) == 24
            assert all(use.held >= 199 * PER_TOKEN for rows, use in sizes if rows == 24)
            assert all(use.held < 260 * PER_TOKEN for _, use in sizes)
            assert sum(c.spend.prompt_tokens for c in results) == 200
            assert sum(c.spend.cached_tokens for c in results) == 200 * 23
            for c in results[::5]:
                check_logprobs(model, c)

    asyncio.run(main())


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("hang", [-1, 1 << 60])
def test_sharing_changes_no_token(hang: int, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that begin alike, branch at odd places, and go on from each other's responses."""
    monkeypatch.setattr(pool_module, "HANG_WORTH", hang)
    model = make_model(end=False)

    async def main() -> None:
        async with opened(model, prefill_chunk=24, exact=exact) as engine, opened(model, exact=exact) as fresh:
            whole = prompt(1, 120)
            ask = [whole[:n] + prompt(n, 9) for n in (1, 30, 31, 32, 33, 63, 64, 90, 120)]
            ask += [whole, whole[:64], whole[:65], whole[:1], prompt(9, 70)]
            requests = [Request(ids, SamplingParams(30, seed=i), n=1 + i % 3) for i, ids in enumerate(ask)]
            first = await asyncio.gather(*(engine.generate(r) for r in requests))
            again = await asyncio.gather(*(engine.generate(r) for r in requests))
            [longer] = await engine.generate(Request((*first[0][0].transcript.ids, 40), SamplingParams(9)))
            for r, a, b in zip(requests, first, again, strict=True):
                await fresh.drop_caches()
                alone = await fresh.generate(r)
                for x, y, z in zip(a, b, alone, strict=True):
                    assert x.ids == y.ids == z.ids
                    check_logprobs(model, x)
                    if exact:
                        assert x.transcript.logprobs == y.transcript.logprobs == z.transcript.logprobs
                    assert y.spend.prompt_tokens == 0
                    assert y.spend.cached_tokens == len(x.prompt_ids) == x.spend.prompt_tokens + x.spend.cached_tokens
            check_logprobs(model, longer)
            computed = sum(c.spend.prompt_tokens for r in first for c in r)
            assert computed < 120 + 70 + 9 * (9 + PAGE)

    asyncio.run(main())


def test_the_next_turn_finds_the_last_response() -> None:
    async def main() -> None:
        async with opened() as engine:
            [said] = await engine.generate(Request(prompt(2, 50), SamplingParams(100)))
            [answer] = await engine.generate(Request(said.transcript.ids + prompt(3, 10), SamplingParams(5)))
            # The last id of a response is never computed.
            assert answer.spend.cached_tokens == 149
            assert answer.spend.prompt_tokens == 11
            check_logprobs(engine.model, answer)

    asyncio.run(main())


def test_new_weights_and_drop_caches_leave_nothing_behind() -> None:
    async def main() -> None:
        async with opened() as engine:
            ask = Request(prompt(4, 80), SamplingParams(70), n=3)
            for forget in (engine.drop_caches, lambda: engine.load_weights(WeightsUpdate(engine.model.module, 1))):
                await engine.generate(ask)
                assert engine.cache.free > 80 * PER_TOKEN
                await forget()
                assert engine.cache.free == engine.cache.held == 0
                assert (await engine.generate(ask))[0].spend.prompt_tokens == 80
                await engine.drop_caches()

    asyncio.run(main())


def test_cached_prefixes_make_room_for_work_oldest_first() -> None:
    async def main() -> None:
        async with opened(kv_memory=500 * PER_TOKEN) as engine:
            for seed in range(5):
                await engine.generate(Request(prompt(seed, 100), SamplingParams(4)))
                use = engine.cache
                assert use.slots + use.held + use.free <= use.limit
            [newest] = await engine.generate(Request(prompt(4, 100), SamplingParams(4)))
            assert newest.spend.prompt_tokens == 0
            [oldest] = await engine.generate(Request(prompt(0, 100), SamplingParams(4)))
            assert oldest.spend.prompt_tokens == 100

    asyncio.run(main())


def test_a_lease_keeps_a_prefix_and_branching_anywhere_computes_nothing() -> None:
    async def main() -> None:
        async with opened(kv_memory=900 * PER_TOKEN) as engine:
            ids = prompt(5, 150)
            async with engine.hold(ids):
                assert engine.cache.held == 150 * PER_TOKEN
                for seed in range(10, 16):  # enough to evict whatever is not held
                    await engine.generate(Request(prompt(seed, 150), SamplingParams(50)))
                for cut in (1, 31, 32, 77, 149):
                    [c] = await engine.generate(Request(ids[:cut], SamplingParams(3)))
                    assert (c.spend.prompt_tokens, c.spend.cached_tokens) == (0, cut)
                    [c] = await engine.generate(Request((*ids[:cut], 25, 26), SamplingParams(3)))
                    assert c.spend.prompt_tokens <= 2
                    check_logprobs(engine.model, c)
            await engine.drop_caches()
            assert engine.cache.held == engine.cache.free == 0

    asyncio.run(main())


def test_a_lease_is_charged_and_refused_with_the_numbers() -> None:
    async def main() -> None:
        async with opened(kv_memory=400 * PER_TOKEN, max_rows=4) as engine:
            with pytest.raises(UserError, match=r"the prefix to hold has 401 tokens, but .* has a context of 256$"):
                async with engine.hold(prompt(1, 401)):
                    pass
            async with engine.hold(prompt(1, 200)):
                with pytest.raises(UserError, match=rf"{200 * PER_TOKEN}.*{400 * PER_TOKEN}"):
                    async with engine.hold(prompt(2, 220)):
                        pass
                with pytest.raises(UserError, match=rf"{200 * PER_TOKEN}.*{400 * PER_TOKEN}"):
                    await engine.generate(Request(prompt(3, 200), SamplingParams(20)))
                assert len((await engine.generate(Request(prompt(3, 20), SamplingParams(20))))[0].ids) == 20
            assert len((await engine.generate(Request(prompt(3, 200), SamplingParams(20))))[0].ids) == 20
            with pytest.raises(UserError, match="empty"):
                async with engine.hold(()):
                    pass

    asyncio.run(main())


def test_a_lease_is_recomputed_with_new_weights() -> None:
    async def main() -> None:
        model = make_model(end=False)
        async with opened(model) as engine:
            ids = prompt(6, 100)
            async with engine.hold(ids):
                await engine.load_weights(WeightsUpdate(make_model(7, end=False).module, 1))
                [c] = await engine.generate(Request(ids, SamplingParams(6)))
                assert c.spend.cached_tokens == 100
                check_logprobs(model, c)
                assert engine.cache.held == 100 * PER_TOKEN

    asyncio.run(main())


def test_leases_are_refused_where_nothing_is_kept() -> None:
    async def main() -> None:
        model = make_model()
        model.supports_cache = False
        async with opened(model) as engine:
            assert not engine.capabilities.leases
            with pytest.raises(Unsupported, match="transformers"):
                async with engine.hold((3, 4)):
                    pass

    asyncio.run(main())


def test_a_long_prompt_does_not_hold_up_a_running_stream() -> None:
    """At most a chunk of the prompt is computed between two tokens of others."""

    async def main() -> None:
        async with opened(prefill_chunk=16) as engine:
            events: list[str] = []
            prompts, step = engine._batch.pool.native.prompts, engine._batch.step  # type: ignore[union-attr]

            def watched_prompts(stretches: Any, ids: Any) -> None:
                events.append(f"p{sum(map(len, ids))}")
                prompts(stretches, ids)

            def watched_step() -> Any:
                events.append("s")
                return step()

            engine._batch.pool.native.prompts = watched_prompts  # type: ignore[union-attr, method-assign]
            engine._batch.step = watched_step  # type: ignore[method-assign]
            running = asyncio.create_task(engine.generate(Request(prompt(1, 5), SamplingParams(200))))
            while "s" not in events:
                await asyncio.sleep(0.001)
            late = await engine.generate(Request(prompt(2, 200), SamplingParams(3)))
            await running
            chunks = [i for i, e in enumerate(events) if e.startswith("p")][1:]
            assert [events[i] for i in chunks] == ["p16"] * 12 + ["p7"]
            assert all(events[i + 1] == "s" for i in chunks)
            check_logprobs(engine.model, late[0])

    asyncio.run(main())


def rows_of_ids():
    """Ids of a few kinds, so that many begin alike, below and beyond a page."""
    return st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=PAGE + 8), min_size=1, max_size=12)


@given(rows_of_ids(), st.lists(st.integers(0, 2), min_size=1, max_size=PAGE + 8))
def test_the_longest_stored_prefix_is_found_among_siblings(rows, wanted) -> None:
    tree = PrefixTree()
    for row in rows:
        ids = np.array(row)
        # What is stored begins where a whole page of it is there already.
        start = aligned(tree.match(ids)[1])
        tree.add(ids, start, torch.zeros(1, 2, 1, len(ids) - start, 1))
    ids = np.array(wanted)
    node, length = tree.match(ids)
    assert length == max(common_length(np.array(row), ids) for row in rows)
    assert np.array_equal(path_of(node)[:length], ids[:length])
    for held in tree.nodes():
        keys = [n.ids[:PAGE].tolist() for n in held.children]
        assert keys == sorted(keys)


def path_of(node) -> np.ndarray:
    parts = []
    while node.parent is not None:
        parts.append(node.ids)
        node = node.parent
    return np.concatenate(parts[::-1]) if parts else np.zeros(0, dtype=np.int64)


def test_finding_a_prefix_does_not_take_longer_with_more_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, tree = np.random.default_rng(0), PrefixTree()
    rows = rng.integers(0, 50, (2_000, 40))
    rows[:, 0] = 7
    for row in rows:
        tree.add(row, aligned(tree.match(row)[1]), torch.zeros(1, 2, 1, 40, 1))
    compared = []
    monkeypatch.setattr(prefix, "common_length", lambda a, b: (compared.append(1), common_length(a, b))[1])
    assert all(tree.match(row)[1] == 40 for row in rows)
    assert len(compared) <= 2 * len(rows)
