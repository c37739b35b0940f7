"""Decoding from the packed copy of the matrices: the same numbers, never old ones, and only where it can be had."""

import math
from typing import Any

import psutil
import pytest
import torch
from engine_fixture import log_softmax_of, make_model, request
from test_models_parity import SHAPES, make

from ponder.engines.torch import TorchEngine
from ponder.engines.torch.packed import PackedDecoder, Product, can_pack
from ponder.engines.torch.products import KINDS, Packed
from ponder.errors import Unsupported
from ponder.models.base import LoadedModel
from ponder.models.taps import Taps, tapped
from ponder.protocols import WeightsUpdate
from ponder.types import Completion

HERE = [kind for kind in KINDS.values() if not kind.missing()]
WITHIN = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.03}
"""Of products of numbers around 1."""


def greedy(engine: TorchEngine) -> Completion:
    [[completion]] = engine.generate_many([request(1, 12, temperature=0.0, logprobs_of="raw")])
    return completion


def mismatch(model: LoadedModel, completion: Completion) -> float:
    """Largest difference of the log-probabilities from those of one whole pass."""
    ids, mine = torch.tensor(completion.ids), torch.tensor(completion.transcript.logprobs[-len(completion.ids) :])
    return float((log_softmax_of(model, completion)[torch.arange(len(ids)), ids] - mine).abs().max())


@pytest.mark.parametrize("kind", HERE, ids=[kind.name for kind in HERE])
@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 300])
def test_a_packed_product_is_the_product_for_any_number_of_rows(rows: int, kind: type[Packed]) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, n, bias=n != 32) for n in (16, 32, 8)]
    x = torch.randn(rows, 64)
    with torch.inference_mode():
        found = Product(layers, ((math.inf, kind),))(x)
        assert found.dtype == torch.float32
        assert torch.allclose(found, torch.cat([layer(x) for layer in layers], 1), atol=WITHIN[kind.precision])


def test_each_number_of_rows_has_its_own_products() -> None:
    layer, used = torch.nn.Linear(8, 8), []

    def kind(name: str) -> Any:
        return lambda weight, bias: lambda x: used.append(name) or x

    product = Product([layer], ((2.0, kind("few")), (math.inf, kind("many"))))
    for rows in (1, 2, 3, 500):
        product(torch.zeros(rows, 8))
    assert used == ["few", "few", "many", "many"]


@pytest.mark.parametrize("products", [kind.name for kind in HERE if kind.precision == "float32"])
@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "adapter"])
@pytest.mark.parametrize("kind", SHAPES)
def test_packed_and_plain_weights_give_the_same_log_probabilities(kind: str, adapter: bool, products: str) -> None:
    model = make(kind, adapter=adapter)
    found = []
    for chosen in (products, "plain"):
        engine = TorchEngine(model, products=chosen)
        try:
            results = engine.generate_many([request(i, n=2) for i in range(3)])
        finally:
            engine.close_now()
        found.append([c for group in results for c in group])
    for a, b in zip(*found, strict=True):
        assert a.ids == b.ids
        assert a.transcript.logprobs == pytest.approx(b.transcript.logprobs, abs=1e-5)


@pytest.mark.parametrize("announced", [False, True])
def test_it_is_packed_by_default_and_never_from_old_weights(announced: bool) -> None:
    """Unannounced, the version counters show it; announced, it is seen even if the counters did not change."""
    model, other = make_model(end=False), make_model(7, end=False)
    engine = TorchEngine(model)
    try:
        before = greedy(engine)
        assert isinstance(engine._batch.forward.copy, PackedDecoder)  # type: ignore[union-attr]
        for mine, theirs in zip(model.module.parameters(), other.module.parameters(), strict=True):
            (mine.data if announced else mine.detach()).copy_(theirs.data)
        if announced:
            engine.load_weights_now(WeightsUpdate(model.module, 1))
        else:
            engine.drop_caches_now()  # keys and values of the old weights
        after = greedy(engine)
    finally:
        engine.close_now()
    assert before.ids != after.ids
    assert mismatch(model, after) < 1e-4


def test_steps_of_an_adapter_need_no_new_copy_and_are_seen() -> None:
    model = make("llama", adapter=True)
    engine = TorchEngine(model)
    try:
        before = greedy(engine)
        copy = engine._batch.forward.copy  # type: ignore[union-attr]
        with torch.no_grad():
            for name, parameter in model.module.named_parameters():
                if name.endswith("adapter.B"):
                    parameter.mul_(-3.0)
        engine.drop_caches_now()
        after = greedy(engine)
        assert engine._batch.forward.copy is copy  # type: ignore[union-attr]
    finally:
        engine.close_now()
    assert before.ids != after.ids
    assert mismatch(model, after) < 1e-4


def calls_of_parts(engine: TorchEngine, model: LoadedModel, names: list[str]) -> tuple[Completion, dict[str, int]]:
    """What is sampled with a hook on each of these parts, and how often each was called."""
    calls = dict.fromkeys(names, 0)

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    handles = [model.module.get_submodule(name).register_forward_hook(count(name)) for name in names]
    try:
        engine.drop_caches_now()
        return greedy(engine), calls
    finally:
        for handle in handles:
            handle.remove()


PARTS = ["", "model", "model.embed_tokens", "model.norm"] + [
    f"model.layers.{layer}{part}"
    for layer in range(2)
    for part in ("", ".self_attn.q_proj", ".mlp", ".self_attn.q_norm")
]


def test_a_hook_inside_is_called_once_a_pass_and_then_the_copy_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(end=False)
    engine = TorchEngine(model)
    packed = []
    run = PackedDecoder.__call__
    monkeypatch.setattr(PackedDecoder, "__call__", lambda self, *x: packed.append(1) or run(self, *x))
    try:
        before, steps = greedy(engine), len(packed)
        hooked, calls = calls_of_parts(engine, model, PARTS)
        assert len(packed) == steps > 0, "the copy ran despite a hook"
        # One pass over the prompt, and a step for each token.
        assert calls == dict.fromkeys(PARTS, 1 + len(hooked.ids))
        after = greedy(engine)
        assert len(packed) == 2 * steps
    finally:
        engine.close_now()
    assert before.ids == hooked.ids == after.ids
    assert mismatch(model, hooked) < 1e-4


def test_a_hook_may_change_what_is_sampled() -> None:
    model = make_model(end=False)
    engine = TorchEngine(model)
    try:
        before = greedy(engine)
        handle = model.module.get_submodule("model.layers.0").register_forward_hook(lambda _, x, out: -out)
        engine.drop_caches_now()
        steered = greedy(engine)
        assert mismatch(model, steered) < 1e-4
        handle.remove()
        engine.drop_caches_now()
        assert greedy(engine).ids == before.ids != steered.ids
    finally:
        engine.close_now()


def test_with_a_tap_the_module_itself_samples_what_the_copy_samples() -> None:
    model, layers = make_model(end=False), []
    engine = TorchEngine(model)
    try:
        before = greedy(engine)
        engine.drop_caches_now()
        with tapped(model.module, Taps(hidden=lambda layer, *_: layers.append(layer))):
            seen = greedy(engine)
    finally:
        engine.close_now()
    assert layers == [0, 1, 2] * (1 + len(seen.ids))
    assert seen.ids == before.ids
    assert seen.transcript.logprobs == pytest.approx(before.transcript.logprobs, abs=1e-5)


def test_a_copy_that_would_take_too_much_memory_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(end=False)
    size = sum(p.numel() * 4 for p in model.module.parameters())
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=3 * size))
    engine = TorchEngine(model, kv_memory=1 << 20)
    try:
        assert mismatch(model, greedy(engine)) < 1e-4
        assert engine._batch.forward.copy is None  # type: ignore[union-attr]
    finally:
        engine.close_now()


def test_packing_is_refused_where_it_cannot_be() -> None:
    model = make_model()
    model.module.to(torch.bfloat16)
    assert not can_pack(model.module)
    with pytest.raises(Unsupported, match="that takes a native model in float32 on a CPU"):
        TorchEngine(model, products="onednn")
    with pytest.raises(Unsupported, match="no products in int8"):
        TorchEngine(model, precision="int8")
    engine = TorchEngine(model)
    try:
        assert len(greedy(engine).ids)
    finally:
        engine.close_now()
