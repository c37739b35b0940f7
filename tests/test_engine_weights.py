"""New weights of the torch engine: versions that rise, and digests that prove what arrived."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from engine_fixture import make_model  # noqa: E402

from ponder.engines.torch import TorchEngine  # noqa: E402
from ponder.engines.torch.weights import digest, tensors_of  # noqa: E402
from ponder.errors import UserError  # noqa: E402
from ponder.models.save import save  # noqa: E402
from ponder.protocols import WeightsUpdate  # noqa: E402
from ponder.types import Request, SamplingParams  # noqa: E402


@pytest.fixture
def engine() -> Iterator[TorchEngine]:
    made = TorchEngine(make_model(0), version=3)
    yield made
    made.close_now()


def greedy(engine: TorchEngine) -> tuple[int, ...]:
    [[completion]] = engine.generate_many([Request((5, 6, 7), SamplingParams(8, temperature=0.0))])
    return completion.ids


@pytest.mark.parametrize("version", [2, 3])
def test_a_version_that_does_not_rise_is_refused_with_both_numbers(engine: TorchEngine, version: int) -> None:
    before = greedy(engine)
    with pytest.raises(UserError, match=f"version {version}, and the engine has version 3"):
        engine.load_weights_now(WeightsUpdate(make_model(1).module, version))
    assert engine.weights_version == 3
    assert greedy(engine) == before


def test_the_engines_own_module_may_be_announced_again_under_its_version_but_not_under_an_older_one(
    engine: TorchEngine,
) -> None:
    """So a trainer that restored a checkpoint into the module announces it."""
    module, other = engine.model.module, make_model(1)
    before = greedy(engine)
    module.load_state_dict(other.module.state_dict())
    delivery = engine.load_weights_now(WeightsUpdate(module, 3))
    assert (delivery.version, delivery.digest, engine.weights_version) == (3, "", 3)
    assert greedy(engine) != before
    with pytest.raises(UserError, match="version 2, and the engine has version 3"):
        engine.load_weights_now(WeightsUpdate(module, 2))
    with pytest.raises(UserError, match="nothing is sent"):
        engine.load_weights_now(WeightsUpdate(module, 4, digest="0" * 32))


def test_the_delivery_has_the_digest_of_what_was_sent_whichever_way_it_came(
    engine: TorchEngine, tmp_path: Path
) -> None:
    other = make_model(1)
    save(other, tmp_path / "other")
    expected = digest(tensors_of(other.module))
    for version, source in enumerate((other.module, other.module.state_dict(), tmp_path / "other"), 4):
        assert engine.load_weights_now(WeightsUpdate(source, version, expected)).digest == expected
    assert engine.weights_version == 6
    assert expected != digest(tensors_of(make_model(0).module))


def test_other_weights_than_the_digest_says_are_refused_and_the_old_ones_stay(engine: TorchEngine) -> None:
    before, own = greedy(engine), digest(tensors_of(engine.model.module))
    state = {name: t.clone() for name, t in make_model(1).module.state_dict().items()}
    said = digest(tensors_of(make_model(1).module))
    name = "model.layers.0.mlp.up_proj.weight"
    state[name].view(-1).view(torch.uint8)[0] ^= 1
    with pytest.raises(UserError, match=f"not {said}"):
        engine.load_weights_now(WeightsUpdate(state, 4, said))
    assert digest(tensors_of(engine.model.module)) == own
    assert engine.weights_version == 3
    assert greedy(engine) == before


def test_a_digest_is_of_the_tensors_in_the_engines_type(engine: TorchEngine) -> None:
    """A trainer in float64 sends what an engine in float32 samples with."""
    wide = {name: t.double() + 1e-12 for name, t in make_model(1).module.state_dict().items()}
    narrow = {name: wide[name].float() for name in tensors_of(engine.model.module)}
    assert engine.load_weights_now(WeightsUpdate(wide, 4, digest(narrow))).digest == digest(narrow)


def test_a_digest_sees_names_shapes_types_and_bits() -> None:
    tensor = torch.arange(6, dtype=torch.float32)
    variants = [
        {"a": tensor},
        {"b": tensor},
        {"a": tensor.view(2, 3)},
        {"a": tensor.view(torch.int32)},
        {"a": -tensor},
        {"a": tensor, "b": tensor},
    ]
    assert len({digest(v) for v in variants}) == len(variants)
    assert digest({"a": tensor, "b": -tensor}) == digest({"b": -tensor, "a": tensor})
    columns = torch.arange(6.0).view(3, 2).t()
    assert digest({"a": columns}) == digest({"a": columns.contiguous()})


def test_what_was_sampled_says_how_old_its_weights_are(engine: TorchEngine) -> None:
    [[completion]] = engine.generate_many([Request((5,), SamplingParams(4))])
    engine.load_weights_now(WeightsUpdate(make_model(1).module, 10))
    assert engine.weights_version - completion.weights_version == 7
    assert {s.weights_version for s in completion.segments} == {3}
    assert dataclasses.asdict(engine.load_weights_now(WeightsUpdate(engine.model.module, 11))) == {
        "version": 11,
        "digest": "",
    }
