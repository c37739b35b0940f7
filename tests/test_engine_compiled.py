"""Compiled decoding and fused attention: the eager engine's numbers, compiled twice at most, never from old weights.

Most tests run the pieces as they are, or traced by dynamo without a compiler. What only a GPU does (graphs, bf16 there,
fused kernels) is tested where there is one.
"""

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from engine_fixture import make_model, request
from hypothesis import given
from hypothesis import strategies as st
from test_engine_packed import PARTS, calls_of_parts, greedy, mismatch
from test_models_parity import ADAPTER, SHAPES, make
from torch._inductor.exc import InvalidCxxCompiler

from ponder.engines.torch import TorchEngine, forward
from ponder.engines.torch.attention import Step
from ponder.engines.torch.cache import CacheShape, KVCache
from ponder.engines.torch.compiled import CompiledDecoder, Pieces, padded
from ponder.errors import EngineClosed, Unsupported
from ponder.models.base import LoadedModel
from ponder.models.lora import new_adapter
from ponder.models.taps import Taps, tapped
from ponder.protocols import WeightsUpdate
from ponder.types import Completion

LENGTHS = (3, 9, 14, 14, 4, 20, 11, 2, 17)
"""Of responses, so that rows join and leave all the time."""
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def sampled(engine: TorchEngine) -> list[Completion]:
    groups = [request(i, length, n=1 + i % 2, logprobs_of="raw") for i, length in enumerate(LENGTHS)]
    return [c for group in engine.generate_many(groups) for c in group]


def traced(engine: TorchEngine, backend: str | Callable[..., Any] | None = None) -> CompiledDecoder:
    """Give an engine a decoder that dynamo traces for a backend, or whose pieces run as they are."""
    native = engine._batch.forward
    assert isinstance(native, forward.Native)
    native.compiled = decoder = CompiledDecoder(native.module, backend=backend or "eager")  # type: ignore[arg-type]
    if backend is None:
        config = decoder.module.config
        decoder.pieces = Pieces.of(config.head_dim, config.rms_norm_eps)
    return decoder


def assert_alike(found: list[Completion], expected: list[Completion], within: float = 1e-5) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert a.ids == b.ids
        assert a.transcript.logprobs == pytest.approx(b.transcript.logprobs, abs=within)


def eager(model: LoadedModel) -> list[Completion]:
    engine = TorchEngine(model, products="plain", max_rows=5)
    try:
        return sampled(engine)
    finally:
        engine.close_now()


class Graphs:
    """A backend of dynamo that compiles nothing and counts what it was given."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.count += 1
        return graph.forward


@given(st.integers(1, 5000))
def test_rows_are_padded_to_few_sizes_by_no_more_than_half(rows: int) -> None:
    size = padded(rows)
    assert rows <= size
    assert size - rows < max(size / 2, 1)
    assert padded(size) == size
    assert size <= padded(rows + 1)


def test_the_sizes_are_those_of_the_ladder() -> None:
    found = sorted({padded(rows) for rows in range(1, 513)})
    assert found == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]


@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "adapter"])
@pytest.mark.parametrize("kind", SHAPES)
def test_the_pieces_sample_what_the_module_samples_while_rows_join_and_leave(kind: str, adapter: bool) -> None:
    model = make(kind, adapter=adapter)
    engine = TorchEngine(model, products="plain", max_rows=5)
    try:
        decoder = traced(engine)
        found = sampled(engine)
    finally:
        engine.close_now()
    assert set(decoder.mixed) == {1, 2, 4, 8}, "every step went through the pieces, at every size"
    assert_alike(found, eager(model))


def test_all_layers_and_sizes_share_two_graphs_of_each_piece() -> None:
    """One for a single row and one for more: dynamo makes a special case of 1."""
    model, graphs = make("qwen3", adapter=True), Graphs()
    engine = TorchEngine(model, products="plain", max_rows=5)
    try:
        traced(engine, graphs).warm_up()
        assert graphs.count == 6
        found = sampled(engine)
    finally:
        engine.close_now()
    assert graphs.count == 6
    assert_alike(found, eager(model))


def test_a_hook_inside_is_called_once_a_pass_and_then_the_pieces_are_back() -> None:
    model = make_model(end=False)
    engine = TorchEngine(model, products="plain")
    try:
        decoder, steps = traced(engine), []
        last = decoder.pieces.last
        decoder.pieces = decoder.pieces._replace(last=lambda *x: steps.append(1) or last(*x))
        before = greedy(engine)
        compiled = len(steps)
        hooked, calls = calls_of_parts(engine, model, PARTS)
        assert len(steps) == compiled > 0, "the pieces ran despite a hook"
        assert calls == dict.fromkeys(PARTS, 1 + len(hooked.ids))
        with tapped(model.module, Taps(hidden=lambda *_: None)):
            tapped_too = greedy(engine)
        assert len(steps) == compiled
        after = greedy(engine)
        assert len(steps) == 2 * compiled
    finally:
        engine.close_now()
    assert before.ids == hooked.ids == tapped_too.ids == after.ids


@torch.no_grad()
def test_a_block_in_the_place_of_another_is_used() -> None:
    model, other = make_model(end=False), make_model(7, end=False)
    engine = TorchEngine(model, products="plain")
    try:
        traced(engine)
        before = greedy(engine)
        layers = model.module.get_submodule("model.layers")
        layers[0] = other.module.get_submodule("model.layers.0")  # type: ignore[operator]
        engine.drop_caches_now()
        after = greedy(engine)
    finally:
        engine.close_now()
    assert before.ids != after.ids
    assert mismatch(model, after) < 1e-4


@torch.no_grad()
def test_new_weights_are_seen_without_a_new_graph() -> None:
    """Published from outside, changed in place by an optimiser, and put elsewhere under the same parameter."""
    model, graphs = make_model(end=False), Graphs()
    engine = TorchEngine(model, products="plain")
    try:
        traced(engine, graphs)
        seen = [greedy(engine)]
        engine.load_weights_now(WeightsUpdate(make_model(7).module, 1))
        seen.append(greedy(engine))
        for parameter in model.module.parameters():
            parameter.mul_(1.5)
        engine.load_weights_now(WeightsUpdate(model.module, 2))
        seen.append(greedy(engine))
        assert mismatch(model, seen[-1]) < 1e-4
        for parameter in model.module.parameters():
            parameter.data = parameter.data * 0.5
        engine.drop_caches_now()  # not announced: only keys and values of the old weights must go
        seen.append(greedy(engine))
        assert mismatch(model, seen[-1]) < 1e-4
    finally:
        engine.close_now()
    assert len({c.ids for c in seen}) == 4
    assert graphs.count == 3


@torch.no_grad()
def test_a_parameter_or_an_adapter_in_place_of_another_is_found() -> None:
    model = make_model(end=False)
    engine = TorchEngine(model, products="plain")
    try:
        traced(engine)
        seen = [greedy(engine)]
        attention: Any = model.module.model.layers[0].self_attn  # type: ignore[union-attr, index]
        attention.o_proj.weight = torch.nn.Parameter(attention.o_proj.weight * -1.0)
        engine.drop_caches_now()
        seen.append(greedy(engine))
        assert mismatch(model, seen[-1]) < 1e-4
        new_adapter(model, ADAPTER, seed=2)
        attention.q_proj.adapter.B.fill_(0.7)
        engine.drop_caches_now()
        seen.append(greedy(engine))
        assert mismatch(model, seen[-1]) < 1e-4
    finally:
        engine.close_now()
    assert len({c.ids for c in seen}) == 3


def test_an_overridden_forward_is_not_bypassed() -> None:
    model = make_model(end=False)
    engine = TorchEngine(model, products="plain")
    try:
        traced(engine)
        before = greedy(engine)
        own = model.module.forward
        model.module.forward = lambda *args: -own(*args)  # type: ignore[method-assign]
        engine.drop_caches_now()
        assert greedy(engine).ids != before.ids
    finally:
        engine.close_now()


# Where it cannot be done ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"exact": True}, "exact mode computes in its own tiles"),
        ({"products": "onednn"}, "leave out products and precision, or compile"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported, match=rf"cannot be compiled: .*{reason}"):
        TorchEngine(make_model(), compile=True, **options)  # type: ignore[arg-type]


def test_a_model_that_runs_through_transformers_is_refused() -> None:
    with pytest.raises(Unsupported, match="cannot be compiled: it runs through transformers' forward"):
        TorchEngine(dataclasses.replace(make_model(), supports_cache=False), compile=True)


def compiler_that_fails(output: str) -> Exception:
    from torch._inductor.exc import CppCompileError

    error = CppCompileError(["g++", "-O3"], output)
    error.__cause__ = subprocess.CalledProcessError(1, ["g++", "-O3"])
    return error


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (lambda: InvalidCxxCompiler(), r"no C\+\+ compiler is found \(install g\+\+ or name one in CXX\)"),
        (lambda: compiler_that_fails("g++: fatal error: killed\nmore"), r"CppCompileError: g\+\+: fatal error: killed"),
        (lambda: RuntimeError("no space left\nand more"), "RuntimeError: no space left"),
    ],
    ids=["none", "fails", "other"],
)
def test_a_compiler_that_does_not_work_is_reported_when_the_engine_opens(
    failure: Callable[[], Exception], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise failure()

    monkeypatch.setattr(forward, "CompiledDecoder", lambda module: CompiledDecoder(module, backend=broken))
    with pytest.raises(Unsupported, match=f"decoding cannot be compiled here: .*{reason}: leave out compile$") as error:
        TorchEngine(make_model(), compile=True)
    assert "\n" not in str(error.value)


def test_too_many_recompilations_end_with_the_reason() -> None:
    """One row and more rows are two compilations of each piece, one more than allowed here."""
    model = make("llama")
    decoder = CompiledDecoder(model.module, backend=Graphs())  # type: ignore[arg-type]
    with (
        torch._dynamo.config.patch(cache_size_limit=1),
        pytest.raises(Unsupported, match=r"more often than torch\._dynamo\.config\.cache_size_limit = 1"),
    ):
        decoder.warm_up()


def test_an_engine_that_cannot_compile_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = []

    def broken(self: forward.Native) -> None:
        raise Unsupported("not here")

    def noted(*args: Any, **options: Any) -> Any:
        workers.append(worker(*args, **options))
        return workers[-1]

    from ponder.engines.torch import engine as module

    worker = module.Worker
    monkeypatch.setattr(module, "Worker", noted)
    monkeypatch.setattr(forward.Native, "compile", broken)
    with pytest.raises(Unsupported, match="not here"):
        TorchEngine(make_model(), compile=True)
    workers[0].ended.result(timeout=30)
    with pytest.raises(EngineClosed):
        workers[0].post(lambda: None)


# Fused attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [2, 6], ids=["plain", "grouped"])
def test_fused_attention_is_the_attention(heads: int) -> None:
    torch.manual_seed(0)
    lengths = np.array([0, 3, 40, 16, 200, 1])
    kv = torch.randn(2, len(lengths), 2, int(lengths.max()), 8)
    query, key, value = torch.randn(6, heads, 1, 8), torch.randn(6, 2, 1, 8), torch.randn(6, 2, 1, 8)
    found = []
    for by_column in (False, True):
        cache = KVCache(CacheShape(1, 2, 8, torch.float32, torch.device("cpu")), by_column)
        cache.resize(8, 256, 0, 0)
        cache.keys[0][:6, :, :, :200] = kv[0].transpose(2, 3)
        cache.values[0][:6, :, :200] = kv[1]
        with torch.inference_mode():
            found.append(Step(cache, lengths, np.zeros_like(lengths), []).attend(0, query, key, value))
    assert torch.allclose(*found, atol=1e-6)
    # Not only alike: the softmax over what a row has. Row 0 has its own key alone.
    assert torch.allclose(found[1][0], value[0].repeat_interleave(heads // 2, 0), atol=1e-6)


def test_an_engine_on_the_fused_layout_gives_the_same_samples() -> None:
    """With prefixes that are shared, copied into slots, moved and left in the tree."""
    model = make("qwen3")
    engine = TorchEngine(model, products="plain", max_rows=5)
    try:
        native: Any = engine._batch.forward
        native.slots.by_column = True
        found = sampled(engine) + sampled(engine)
    finally:
        engine.close_now()
    expected = eager(model)
    assert_alike(found, [*expected, *expected])


@pytest.mark.parametrize(("device", "inner"), [("cpu", 1024), ("meta", 1)])
def test_off_the_cpu_keys_are_contiguous(device: str, inner: int) -> None:
    cache = KVCache(CacheShape(1, 2, 8, torch.float32, torch.device(device)))
    cache.resize(4, 1024, 0, 0)
    assert cache.keys[0].shape == (4, 2, 8, 1024)
    assert cache.keys[0].stride(2) == inner


# With a compiler ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize(("kind", "adapter"), [("llama", False), ("qwen3", True)])
def test_compiled_by_inductor_it_samples_the_same(kind: str, adapter: bool) -> None:
    """pytest -m slow tests/test_engine_compiled.py (a minute or more: a C++ compiler runs)"""
    model = make(kind, adapter=adapter)
    engine = TorchEngine(model, compile=True, max_rows=5)
    try:
        found = sampled(engine)
        engine.load_weights_now(WeightsUpdate(make(kind, adapter=adapter).module, 1))
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.mul_(1.1)
        engine.drop_caches_now()
        assert mismatch(model, greedy(engine)) < 1e-4
    finally:
        engine.close_now()
    assert_alike(found, eager(make(kind, adapter=adapter)))


# With a GPU -----------------------------------------------------------------------------------------------------------


def on_cuda(kind: str, dtype: torch.dtype) -> LoadedModel:
    model = make(kind)
    model.module.to("cuda", dtype)
    return model


@on_gpu
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_graphs_sample_what_the_module_samples_on_a_gpu(kind: str) -> None:
    """Twice: the first time they are recorded, the second replayed; then with new weights in place."""
    model = on_cuda(kind, torch.float32)
    expected = eager(model)
    engine = TorchEngine(model, compile=True, max_rows=5)
    try:
        for _ in range(3):
            assert_alike(sampled(engine), expected, within=1e-4)
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.mul_(1.1)
        engine.load_weights_now(WeightsUpdate(model.module, 1))
        assert_alike(sampled(engine), eager(model), within=1e-4)
    finally:
        engine.close_now()


@on_gpu
def test_in_bf16_the_log_probabilities_are_near_those_of_a_whole_pass() -> None:
    """Rounding of bf16 is about 4e-3 of a logit: the same sort of difference as between two eager passes."""
    model = on_cuda("llama", torch.bfloat16)
    engine = TorchEngine(model, compile=True)
    try:
        completion = greedy(engine)
    finally:
        engine.close_now()
    model.module.float()
    model.module.cpu()
    assert mismatch(model, completion) < 0.25


@on_gpu
def test_two_compiled_engines_take_turns_on_a_gpu() -> None:
    models = [on_cuda("llama", torch.float32), on_cuda("qwen3", torch.float32)]
    expected = [eager(m) for m in models]
    engines = [TorchEngine(m, compile=True, max_rows=5) for m in models]
    from concurrent.futures import ThreadPoolExecutor

    try:
        with ThreadPoolExecutor(2) as pool:
            for _ in range(2):
                for found, wanted in zip(pool.map(sampled, engines), expected, strict=True):
                    assert_alike(found, wanted, within=1e-4)
    finally:
        for engine in engines:
            engine.close_now()
