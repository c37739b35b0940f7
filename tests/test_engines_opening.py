"""Engines are opened by name from anywhere: a command, a script, an event loop; what that costs stays in its budget."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from mocks import MockEngine

from ponder import registry
from ponder.budget.prices import PriceList, Prices
from ponder.engines.opening import (
    EngineOptions,
    OpeningBudget,
    open_engine,
    open_engine_async,
    open_others,
    open_others_async,
    part_of,
)
from ponder.errors import UserError
from ponder.protocols import Opens, OpensWithin
from ponder.types import Budget, Spend

FREE = PriceList({})


class Probed(MockEngine):
    """An engine that has found out which model it has."""

    model = ""

    @property
    def known(self) -> Mapping[str, Any]:
        return {"found": self.model}


@dataclass
class Probing:
    """Asks an endpoint what it can do, which costs ten tokens and half a second."""

    adapter: str = ""
    effort: int = 0
    opened: list[Any] = field(default_factory=list)
    made: list[MockEngine] = field(default_factory=list)

    def open(self, model: str) -> MockEngine:
        return self.open_within(model)

    def open_within(
        self, model: str, tokens: int | None = None, seconds: float | None = None, known: Any = None
    ) -> MockEngine:
        self.opened.append((model, self.adapter, self.effort, tokens, known))
        engine = Probed()
        engine.model = model
        if not known:
            engine.opening = Spend(prompt_tokens=10, seconds=0.5)
        self.made.append(engine)
        return engine


@pytest.fixture
def probing(monkeypatch: pytest.MonkeyPatch) -> Probing:
    """The options of all engines named `probing`."""
    whole = Probing()

    def build(room: str, spec: str, options: Any = None) -> Any:
        if spec != "probing":
            return real(room, spec, options)
        return Probing(**{**(options or {}), "opened": whole.opened, "made": whole.made})

    real = registry.build
    monkeypatch.setattr(registry, "build", build)
    return whole


@pytest.mark.parametrize("name", ["torch", "openai", "llamacpp", "replay", "simulated"])
def test_every_engine_is_a_part_of_one_kind_and_only_an_endpoint_costs_something_to_open(name: str) -> None:
    part = part_of(EngineOptions(engine=name))
    assert isinstance(part, Opens)
    assert isinstance(part, OpensWithin) == (name == "openai")


def test_an_engine_is_closed_when_its_block_ends(probing: Probing) -> None:
    with open_engine(EngineOptions(engine="probing")) as engine:
        assert engine is probing.made[0]
        assert not probing.made[0].closed
    assert probing.made[0].closed
    with pytest.raises(RuntimeError, match="inside"), open_engine(EngineOptions(engine="probing")):
        raise RuntimeError("inside")
    assert probing.made[1].closed


def test_others_run_as_the_model_does_but_without_its_adapter(probing: Probing) -> None:
    options = EngineOptions("small", "probing", {"adapter": "mine", "effort": 3}, {"big": "large", "odd": "other"})
    with open_engine(options), open_others(options) as others:
        assert list(others) == ["big", "odd"]
        assert [call[:3] for call in probing.opened] == [("small", "mine", 3), ("large", "", 3), ("other", "", 3)]
    assert all(engine.closed for engine in probing.made)


def test_what_opening_costs_is_taken_from_what_the_budget_has_left(probing: Probing) -> None:
    budget = OpeningBudget(Budget(tokens=100), FREE, before=Spend(sampled_tokens=40))
    options = EngineOptions("small", "probing", others={"big": "large"})
    with open_engine(options, budget), open_others(options, budget):
        assert [call[3] for call in probing.opened] == [60, 50]
    assert budget.spend == Spend(prompt_tokens=20, seconds=1.0)
    assert budget.known == {"small": {"found": "small"}, "large": {"found": "large"}}
    again = OpeningBudget(Budget(tokens=100), FREE, known=budget.known)
    with open_engine(options, again):
        assert probing.opened[-1][4] == {"found": "small"}
    assert again.spend == Spend()


def test_dollars_are_converted_to_tokens_at_the_highest_price_and_need_prices() -> None:
    prices = PriceList({"small": Prices(prompt=1.0, output=10.0)})
    assert OpeningBudget(Budget(dollars=0.001), prices).left("small") == (100, None)
    assert OpeningBudget(Budget(tokens=7, dollars=0.001), prices).left("small") == (7, None)
    with pytest.raises(UserError, match="prices of 'large'"):
        OpeningBudget(Budget(dollars=1.0), prices).left("large")
    with (
        pytest.raises(UserError, match="prices of 'small'"),
        open_engine(
            EngineOptions("small", "openai", {"base_url": "http://localhost:1/v1"}),
            OpeningBudget(Budget(dollars=1.0), FREE),
        ),
    ):
        pass


def test_asynchronous_code_opens_and_closes_on_its_own_loop(probing: Probing) -> None:
    async def main() -> None:
        options = EngineOptions("small", "probing", others={"big": "large"})
        budget = OpeningBudget(Budget(tokens=100), FREE)
        async with open_engine_async(options, budget) as engine, open_others_async(options, budget) as others:
            assert [engine, *others.values()] == probing.made
        assert all(e.closed for e in probing.made)
        assert budget.spend.tokens == 20

    asyncio.run(main())


def test_the_loop_keeps_running_while_an_engine_opens_and_a_cancelled_opening_leaves_none_open(
    probing: Probing, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    real = Probing.open

    def slow(self: Probing, model: str) -> MockEngine:
        begun.set()
        assert go_on.wait(10)
        return real(self, model)

    monkeypatch.setattr(Probing, "open", slow)

    async def opened() -> None:
        async with open_engine_async(EngineOptions(engine="probing")):
            raise AssertionError("it was cancelled before")

    async def main() -> None:
        task = asyncio.create_task(opened())
        until = time.monotonic() + 10
        while not begun.is_set() and time.monotonic() < until:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0.01)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [engine.closed for engine in probing.made] == [True]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (EngineOptions(engine="torhc"), "unknown engine 'torhc'; did you mean 'torch'?"),
        (EngineOptions(options={"exakt": True}), "torch: unknown key 'exakt'; did you mean 'exact'?"),
        (EngineOptions(options={"kv_memory": "-1"}), "kv_memory = '-1': give a size"),
        (EngineOptions(options={"prefill_chunk": 0}), "prefill_chunk = 0: give at least 1"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(options: EngineOptions, said: str) -> None:
    with pytest.raises(UserError) as caught, open_engine(options):
        pass
    assert said in str(caught.value)


def test_the_options_of_torch_reach_its_engine() -> None:
    pytest.importorskip("torch")
    options = {"max_rows": 3, "kv_memory": "64MiB", "exact": True, "raw_prompts": True}
    with open_engine(EngineOptions("ponder-tiny", options=options)) as engine:
        assert engine.kv_memory == 64 << 20  # type: ignore[attr-defined]
        assert engine.capabilities.exact
        assert not engine.info.chat
        plain = engine.count_tokens("17 + 25")
    with open_engine(EngineOptions("ponder-tiny")) as engine:
        assert engine.info.chat
        assert engine.count_tokens("17 + 25") > plain
