"""What a tap sees is what transformers shows, and the same on every path that computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_fixture import make_model, request
from test_models_other import make as make_other
from test_models_parity import SHAPES, make
from torch import Tensor, nn
from training_play import dense, random_batch

from ponder.engines.torch import TorchEngine
from ponder.engines.torch.forward import Native
from ponder.engines.torch.products import candidates
from ponder.errors import Unsupported, UserError
from ponder.models.as_written import AsWritten, hooked
from ponder.models.base import LoadedModel
from ponder.models.load import load
from ponder.models.save import save
from ponder.models.taps import Taps, Tokens, tapped
from ponder.training.forward import micro_batches, row_logprobs

LAYERS = 2


class Seen:
    """All that a tap was given, by (kind, layer, the text up to and with the token)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, Tensor, Tokens]] = []

    def taps(self, **layers: Any) -> Taps:
        def keep(kind: str) -> Any:
            return lambda layer, values, tokens: self.calls.append((kind, layer, values.detach(), tokens))

        return Taps(keep("hidden"), keep("attention"), **layers)

    def layers(self, kind: str) -> list[int]:
        return [layer for k, layer, *_ in self.calls if k == kind]

    def of(self, kind: str, layer: int) -> list[tuple[int, int, Tensor]]:
        """(id, position, values) of all tokens, in the order in which they were computed."""
        return [
            (int(i), int(p), row)
            for k, at, values, tokens in self.calls
            if (k, at) == (kind, layer)
            for i, p, row in zip(tokens.ids_N, tokens.positions_N, values, strict=True)
        ]


@torch.no_grad()
def whole_pass(model: LoadedModel, ids: list[int]) -> Seen:
    seen = Seen()
    with tapped(model.module, seen.taps()):
        model.module(torch.tensor([ids]))
    return seen


def assert_among(found: Seen, expected: list[Seen], within: float = 1e-4) -> int:
    """Every token that was seen is a token of one of the texts, with its numbers; returns how many there were."""
    count = 0
    for kind, layers in (("hidden", LAYERS + 1), ("attention", LAYERS)):
        for layer in range(layers):
            texts = [text.of(kind, layer) for text in expected]
            rows = found.of(kind, layer)
            count = len(rows)
            for token, place, values in rows:
                alike = [text[place] for text in texts if place < len(text) and text[place][0] == token]
                assert alike, "a token that is in none of the texts"
                gaps = []
                for _, _, other in alike:
                    width = min(values.shape[-1], other.shape[-1])
                    gap = (values[..., :width] - other[..., :width]).abs().max()
                    more = max(float(x[..., width:].abs().sum()) for x in (values, other))
                    gaps.append(max(float(gap), more))
                assert min(gaps) < within, (kind, layer, place)
    return count


@pytest.mark.parametrize("kind", SHAPES)
def test_hidden_states_and_attention_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = make(kind)
    save(model, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    ids = torch.randint(480, (3, 17), generator=torch.Generator().manual_seed(0))
    seen = Seen()
    with torch.no_grad():
        out = theirs(ids, output_hidden_states=True, output_attentions=True)
        plain = model.module(ids)
        with tapped(model.module, seen.taps()):
            assert torch.equal(model.module(ids), plain), "a tap changes nothing"
    assert seen.layers("hidden") == [0, 1, 2]
    assert seen.layers("attention") == [0, 1]
    for what, layer, values, tokens in seen.calls:
        assert torch.equal(tokens.ids_N.view(3, 17), ids)
        assert torch.equal(tokens.positions_N.view(3, 17), torch.arange(17).expand(3, 17))
        assert torch.equal(tokens.rows_N, torch.arange(3).repeat_interleave(17))
        if what == "hidden":
            torch.testing.assert_close(values.view(3, 17, -1), out.hidden_states[layer], rtol=1e-4, atol=1e-5)
            continue
        torch.testing.assert_close(values.sum(-1), torch.ones(51, 4))
        torch.testing.assert_close(values.view(3, 17, 4, 17).transpose(1, 2), out.attentions[layer])


@pytest.mark.parametrize("exact", [False, True], ids=["native", "exact"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_an_engine_shows_the_numbers_of_a_whole_pass(kind: str, exact: bool) -> None:
    """Prompts of unequal length, computed in chunks, then steps on shared prompts, while rows join and leave."""
    model = make(kind)
    model.end_ids = ()
    head = "a long beginning that all of them share, so that rows hang on it; "
    asked = [request(i, 4 + 3 * i, n=1 + i % 2) for i in range(5)]
    asked = [r if i < 2 else r.__class__(head + str(r.prompt), r.params, n=3) for i, r in enumerate(asked)]
    engine = TorchEngine(model, exact=exact, max_rows=6, prefill_chunk=24)
    seen = Seen()
    try:
        before = [c.ids for group in engine.generate_many(asked) for c in group]
        engine.drop_caches_now()
        with tapped(model.module, seen.taps()):
            found = [c for group in engine.generate_many(asked) for c in group]
    finally:
        engine.close_now()
    assert [c.ids for c in found] == before
    texts = [[*c.prompt_ids, *c.ids] for c in found]
    computed = assert_among(seen, [whole_pass(model, ids) for ids in texts])
    # Every sample steps from its prompt's last token on. What lies before is computed once for those who share it, but
    # for beginnings of less than a page that are on their way at the same time.
    prompts = {c.prompt_ids for c in found}
    begun = {p[: n + 1] for p in prompts for n in range(len(p) - 1)}
    assert len(begun) <= computed - sum(len(c.ids) for c in found) < sum(len(p) - 1 for p in prompts)
    for layer in range(LAYERS):
        for _, _, values in seen.of("attention", layer):
            torch.testing.assert_close(values.sum(-1), torch.ones(4))


def test_rows_of_a_pass_distinguish_texts() -> None:
    model = make("llama")
    engine = TorchEngine(model, exact=True)
    seen = Seen()
    try:
        with tapped(model.module, seen.taps(hidden_layers=[0], attention_layers=[])):
            engine.generate_many([request(i, 5) for i in range(3)])
    finally:
        engine.close_now()
    several = 0
    for *_, tokens in seen.calls:
        rows = tokens.rows_N.tolist()
        several = max(several, len(set(rows)))
        for row in set(rows):
            places = [int(p) for p, r in zip(tokens.positions_N, rows, strict=True) if r == row]
            assert places == list(range(places[0], places[0] + len(places)))
    assert several == 3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainings_packed_rows_show_the_numbers_of_a_whole_pass(checkpointing: bool) -> None:
    model, batch = make("qwen2"), random_batch(everything=True)
    rows, ids_BT = torch.arange(len(batch)), dense(batch).ids_BT
    texts = [whole_pass(model, ids_BT[i, : batch.lengths_B[i]].tolist()) for i in rows.tolist()]
    seen = Seen()
    with tapped(model.module, seen.taps()):
        for new in micro_batches(model, batch, rows, 1.0, tokens=60, gradient_checkpointing=checkpointing):
            (-new.logprobs_N.sum()).backward()
    count = assert_among(seen, texts)
    assert len(seen.of("attention", 0)) == count, "a layer that is computed again is not seen again"
    # Every prompt once for its group, and of the responses all but the last trained token.
    assert count < int(batch.lengths_B.sum())
    places = {p for _, p, _ in seen.of("hidden", 0)}
    assert places == set(range(max(places) + 1))


def test_hidden_states_of_training_are_in_its_graph() -> None:
    model, batch, kept = make("llama"), random_batch(everything=True), []
    with tapped(model.module, Taps(hidden=lambda _, x_ND, tokens: kept.append(x_ND), hidden_layers=[1])):
        row_logprobs(model, batch, torch.arange(4), 1.0).logprobs_N.sum().backward()
    assert kept
    assert all(x.requires_grad for x in kept)


def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = make("llama"), Seen()
    ids = torch.arange(9).unsqueeze(0)
    with tapped(model.module, seen.taps(hidden_layers=[2], attention_layers=[1])):
        model.module(ids)
    assert seen.layers("hidden") == [2]
    assert seen.layers("attention") == [1]

    def never(*_: Any) -> None:
        raise AssertionError("attention was not asked for")

    monkeypatch.setattr("ponder.models.cache.causal", never)
    with tapped(model.module, Taps(hidden=lambda *_: None)):
        model.module(ids)


def test_taps_nest_and_are_gone_afterwards_even_after_an_error() -> None:
    model, outer, inner = make("llama"), Seen(), Seen()
    ids = torch.arange(9).unsqueeze(0)

    def broken(*_: Any) -> None:
        raise RuntimeError("a fault of the reader")

    with tapped(model.module, outer.taps()):
        with tapped(model.module, inner.taps()):
            model.module(ids)
        with pytest.raises(RuntimeError, match="fault"), tapped(model.module, Taps(hidden=broken)):
            model.module(ids)
        model.module(ids)
    model.module(ids)
    assert inner.layers("hidden") == [0, 1, 2]
    assert outer.layers("hidden") == [0, 1, 2, 0, 0, 1, 2], "the broken reader ended its pass at the embeddings"
    assert model.module.taps == ()


def test_what_cannot_be_observed_is_one_sentence() -> None:
    model = make("llama")
    for taps, words in (
        (Taps(), "neither hidden nor attention"),
        (Taps(hidden=lambda *_: None, hidden_layers=[3]), "hidden_layers has 3, but this model's are 0 … 2"),
        (Taps(attention=lambda *_: None, attention_layers=[2]), "attention_layers has 2, but this model's are 0 … 1"),
    ):
        with pytest.raises(UserError, match=words), tapped(model.module, taps):
            pass
    with pytest.raises(Unsupported, match="a Linear takes no taps"), tapped(nn.Linear(2, 2), Taps(lambda *_: None)):
        pass


@pytest.mark.parametrize("kind", ["gpt2", "stablelm", "gemma2"])
def test_other_architectures_show_what_transformers_shows(tmp_path: Path, kind: str) -> None:
    theirs = make_other(tmp_path, kind)
    theirs.set_attn_implementation("eager")
    model, seen = load(str(tmp_path), device="cpu"), Seen()
    ids = torch.randint(480, (2, 9), generator=torch.Generator().manual_seed(0))
    kernel = model.module.whole[0].config._attn_implementation  # type: ignore[index]
    assert (kernel == "eager") == (kind == "gemma2")
    with torch.no_grad():
        out = theirs(ids, output_hidden_states=True, output_attentions=True)
        plain = model.module(ids)
        with tapped(model.module, seen.taps()):
            torch.testing.assert_close(model.module(ids), plain)
    assert model.module.whole[0].config._attn_implementation == kernel  # type: ignore[index]
    assert seen.layers("hidden") == [0, 1, 2]
    assert seen.layers("attention") == [0, 1]
    for what, layer, values, _ in seen.calls:
        if what == "hidden":
            torch.testing.assert_close(values.view(2, 9, -1), out.hidden_states[layer], rtol=1e-4, atol=1e-5)
        else:
            torch.testing.assert_close(values.view(2, 9, 4, 9).transpose(1, 2), out.attentions[layer])
    engine = TorchEngine(model)
    again = Seen()
    try:
        with tapped(model.module, again.taps()):
            engine.generate_many([request(0, 4)])
    finally:
        engine.close_now()
    assert again.layers("hidden") == 4 * [0, 1, 2]


def test_an_architecture_without_attention_says_so(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from ponder.models.other import TransformersLM

    config = transformers.MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4)
    module = TransformersLM(transformers.AutoModelForCausalLM.from_config(config).eval())
    ids, seen = torch.arange(6).unsqueeze(0), Seen()
    with tapped(module, Taps(hidden=seen.taps().hidden)):
        module(ids)
    assert seen.layers("hidden") == [0, 1, 2]
    with pytest.raises(Unsupported, match="gives attentions for 0 of 2 layers"), tapped(module, seen.taps()):
        module(ids)


# Hooks ----------------------------------------------------------------------------------------------------------------


def _forward(part: nn.Module) -> Any:
    return part.register_forward_hook(lambda *_: None)


def _pre(part: nn.Module) -> Any:
    return part.register_forward_pre_hook(lambda *_: None)


def _backward(part: nn.Module) -> Any:
    return part.register_full_backward_hook(lambda *_: None)


def _backward_pre(part: nn.Module) -> Any:
    return part.register_full_backward_pre_hook(lambda *_: None)


def _everywhere(part: nn.Module) -> Any:
    return nn.modules.module.register_module_forward_hook(lambda *_: None)


@pytest.mark.parametrize("hook", [_forward, _pre, _backward, _backward_pre, _everywhere])
def test_a_hook_on_any_part_is_noticed_and_so_is_its_end(hook: Any) -> None:
    model = make("qwen3", adapter=True)
    as_written = AsWritten(model.module)  # type: ignore[arg-type]
    assert as_written()
    for name, part in model.module.named_modules():
        handle = hook(part)
        assert (as_written(), hooked(part)) == (False, True), name
        handle.remove()
        assert (as_written(), hooked(part)) == (True, False), name


def test_another_forward_or_another_module_in_the_place_of_one_is_noticed() -> None:
    module: Any = make("llama").module
    as_written = AsWritten(module)
    structure = as_written.structure
    mlp = module.model.layers[1].mlp
    mlp.forward = lambda x: x
    assert not as_written()
    del mlp.forward
    assert as_written()
    assert as_written.structure == structure
    old, mlp.down_proj = mlp.down_proj, nn.Sequential(mlp.down_proj)
    assert not as_written()
    mlp.down_proj = old
    assert as_written()
    assert as_written.structure > structure
    nn.utils.parametrizations.orthogonal(mlp.up_proj)
    assert not as_written()


def test_an_adapter_or_a_block_that_was_put_in_later_is_used() -> None:
    """By the packed copy, which was made before."""
    model, other = make_model(end=False), make_model(7, end=False)
    native = Native(model, products=candidates("float32")[0].name)
    view: Any = _OneRow()
    ids = np.arange(6)
    with torch.inference_mode():
        native.network(ids, ids, 1, view)
        model.module.model.layers[0] = other.module.model.layers[0]  # type: ignore[union-attr,index,operator]
        found = native.network(ids, ids, 1, view)
        torch.testing.assert_close(found, model.module(torch.from_numpy(ids)[None])[0], rtol=1e-4, atol=1e-5)
    assert native.copy is not None


class _OneRow:
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
