"""Learning rates that suit a model, and a warning where one is far off."""

from __future__ import annotations

import pytest

from ponder.training.rates import BY_SIZE, LORA_MOST, rate, usual

TINY, SMOL, HALF, EIGHT = 854_272, 134_515_008, 494_032_768, 8_030_261_248


def test_the_built_in_model_and_the_recorded_recipe_keep_their_rates() -> None:
    assert (usual("sft", TINY, False), usual("rl", TINY, False)) == (2e-3, 2e-4)
    assert (usual("sft", SMOL, False), usual("rl", SMOL, False)) == (2e-5, 2e-5)


def test_a_larger_model_never_gets_a_larger_rate() -> None:
    for kind in ("sft", "rl"):
        rates = [usual(kind, n, lora) for lora in (False,) for n in (TINY, 20_000_000, SMOL, HALF, EIGHT)]
        assert rates == sorted(rates, reverse=True)
    assert [size for size, _, _ in BY_SIZE] == sorted(size for size, _, _ in BY_SIZE)


@pytest.mark.parametrize("kind", ["sft", "rl"])
@pytest.mark.parametrize("size", [TINY, SMOL, HALF, EIGHT])
def test_an_adapter_takes_ten_times_the_rate_within_what_was_ever_best(kind, size) -> None:
    full, lora = usual(kind, size, False), usual(kind, size, True)
    assert full <= lora <= max(full, LORA_MOST)
    assert lora == pytest.approx(min(10 * full, max(full, LORA_MOST)))


@pytest.mark.parametrize(
    ("given", "size", "says"),
    [
        (2e-3, SMOL, "warning: learning rate 0.002 is 100 times the usual 2e-05 for 135 million parameters"),
        (2e-4, SMOL, "10 times the usual"),
        (1e-8, SMOL, "1/2000 of the usual 2e-05"),
        (None, EIGHT, "learning rate 1e-05 (the default for 8.0 billion parameters)"),
        (5e-5, SMOL, "learning rate 5e-05 (the default for 135 million parameters is 2e-05)"),
        (2e-3, TINY, "learning rate 0.002"),
    ],
)
def test_the_rate_is_shown_and_one_that_is_far_off_is_a_warning(given, size, says) -> None:
    found = rate(given, "sft", size, False)
    assert says in found.said
    assert found.far == found.said.startswith("warning: ") == ("usual" in says)
    assert found.value == (given or usual("sft", size, False))
