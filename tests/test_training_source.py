"""Where rollouts come from: the source in this process, and a trainer that needs none."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from mocks import MockEngine
from rl_environment import Even, Twice
from training_play import PARAMS, random_groups

from ponder import sync
from ponder.engines.torch.engine import TorchEngine
from ponder.errors import PonderError, Unsupported, UserError
from ponder.models.tiny import new_model
from ponder.protocols import Delivery, WeightsUpdate
from ponder.search.strategies.majority import Majority
from ponder.training import source as source_module
from ponder.training.losses.base import RESERVED, BaseLoss, LossInput, LossOutput
from ponder.training.rl import Step, Trainer
from ponder.training.rl_config import RLConfig
from ponder.training.rl_run import train
from ponder.training.source import Collected, EngineSource
from ponder.types import Problem, Response, Split, Verdict


def source(**changes) -> EngineSource:
    values = {
        "strategy": Majority(n=3, max_tokens=8),
        "environment": Even(),
        "engine": MockEngine(texts=lambda request, rng: "x" * rng.randint(1, 6)),
        "group_size": 3,
    }
    return EngineSource(**{**values, **changes})


# The engine source ------------------------------------------------------------------------------------------------


class TrainOnly(Even):
    """Opens no test problem."""

    def problem(self, split: Split, index: int) -> Problem:
        assert split == "train", f"a problem of the {split} split"
        return super().problem(split, index)


class Endless(TrainOnly):
    def size(self, split: Split) -> None:  # type: ignore[override]
        assert split == "train"
        return None


@pytest.mark.parametrize("environment", [TrainOnly(), Endless()])
def test_problems_come_from_the_training_split_alone(environment) -> None:
    collected = sync.run(source(environment=environment, resample=2).groups(30, 0))
    assert len(collected.groups) == 30
    assert all(g.problem.id.startswith("even-train-") for g in collected.all)


def test_a_run_trains_on_no_problem_that_it_evaluates_on(tmp_path) -> None:
    file = f"{Path(__file__).parent / 'rl_environment.py'}:Even"
    options = {"thought_tokens": 3, "answer_tokens": 2}
    train(
        RLConfig(
            out=str(tmp_path / "run"),
            environment=file,
            strategy_options=options,
            problems=8,
            group_size=2,
            steps=5,
            eval_problems=40,
            record_problems=-1,
        )
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    trained = {line["problem"] for line in lines}
    assert trained == {f"even-train-{i}" for i in range(40)}  # all of them, and no other
    assert not trained & {Even().problem("test", i).id for i in range(40)}


def test_the_same_number_draws_the_same_groups_and_the_next_continues() -> None:
    one = source()
    first, again, other = (sync.run(one.groups(4, n)) for n in (0, 0, 4))
    assert first == again
    assert (first.drawn, other.drawn) == (4, 8)
    ids = [[g.problem.id for g in c.groups] for c in (first, other)]
    assert not set(ids[0]) & set(ids[1])
    assert [s.transcript for s in first.groups[0].samples] != [s.transcript for s in first.groups[1].samples]


def test_what_was_replaced_is_reported_and_counts() -> None:
    collected = sync.run(source(group_size=2, strategy=Majority(n=2, max_tokens=8), resample=20).groups(6, 0))
    assert len(collected.groups) == 6
    assert collected.replaced
    assert collected.drawn == len(collected.all)
    assert collected.rounds > 1
    for group in collected.replaced:
        assert len({s.reward for s in group.samples}) == 1


def test_an_environment_of_several_turns_is_refused_for_a_strategy_of_one() -> None:
    one = source(environment=Twice())
    with pytest.raises(Unsupported, match="several turns, and Majority gives one response"):
        sync.run(one.groups(2, 0))
    assert one.engine.calls == 0


def test_a_strategy_that_draws_another_number_of_samples_is_refused_with_the_numbers() -> None:
    with pytest.raises(PonderError, match="the strategy drew 3 samples, not 4"):
        sync.run(source(group_size=4).groups(1, 0))


def test_a_search_that_raises_stops_the_other_searches_of_the_step(monkeypatch) -> None:
    engine, solve = MockEngine(delay=30.0), source_module.solve

    async def failing(strategy, problem, engine, **more):
        if problem.id == source(engine=engine).problem(1).id:
            await asyncio.sleep(0.05)
            raise UserError("the second search broke")
        return await solve(strategy, problem, engine, **more)

    monkeypatch.setattr(source_module, "solve", failing)
    with pytest.raises(UserError, match="the second search broke"):
        sync.run(source(engine=engine).groups(3, 0))
    assert engine.calls > 0
    assert engine.in_flight == 0


def test_a_custom_reward_may_lie_outside_of_0_and_1() -> None:
    def length(problem: Problem, response: Response, verdict: Verdict) -> float:
        return 3.0 * len(response.text) * (1 if verdict.correct else -1)

    collected = sync.run(source(reward=length).groups(4, 0))
    samples = [s for g in collected.groups for s in g.samples]
    assert {s.reward for s in samples} > {s.verdict.reward for s in samples} - {0.0, 1.0}
    for s in samples:
        assert s.reward == 3.0 * len(s.response.text) * (1 if s.verdict.correct else -1)
        assert s.verdict.reward in (0.0, 1.0)
    broken = sync.run(source(reward=length, environment=Even(broken=True)).groups(1, 0))
    assert all(s.reward is None for s in broken.groups[0].samples)


def test_new_weights_go_to_the_engine_under_their_version() -> None:
    engine = TorchEngine(new_model(0))
    try:
        one = source(engine=engine)
        delivery = sync.run(one.publish(WeightsUpdate(engine.model.module, 3)))
        assert delivery.version == engine.weights_version == 3
    finally:
        sync.run(engine.close())


# A trainer without an engine --------------------------------------------------------------------------------------


@dataclass
class Elsewhere:
    """A source that gives groups made somewhere else, and takes weights as bytes would be taken."""

    arrives: int = 0
    """Added to the version of what arrives."""
    asked: list[tuple[int, int]] = field(default_factory=list)
    published: list[dict[str, torch.Tensor]] = field(default_factory=list)

    async def groups(self, count: int, drawn: int) -> Collected:
        self.asked.append((count, drawn))
        return Collected(tuple(random_groups(16, 4, seed=drawn)), drawn=drawn + count)

    async def publish(self, update: WeightsUpdate) -> Delivery:
        self.published.append({k: v.clone() for k, v in update.source.state_dict().items()})
        return Delivery(update.version + self.arrives, "")


def trainer(where: Elsewhere, **changes) -> Trainer:
    values = {"problems": 4, "group_size": 4, "learning_rate": 1e-2, "warmup_steps": 0}
    return Trainer(RLConfig(**{**values, **changes}), new_model(3), where)


def test_a_step_needs_no_engine_and_is_collect_learn_publish() -> None:
    whole, parts = trainer(Elsewhere()), trainer(Elsewhere())

    async def by_parts() -> tuple[Step, Delivery]:
        learned = parts.learn(await parts.collect())
        return learned, await parts.publish()

    # Both on one thread: products on another may sum in another order.
    step, (learned, delivery) = sync.run(whole.step()), sync.run(by_parts())
    assert delivery.version == 1
    assert whole.source.asked == [(4, 0)]
    assert (whole.state.step, whole.state.drawn) == (parts.state.step, parts.state.drawn) == (1, 4)
    for a, b in zip(whole.source.published[0].values(), parts.source.published[0].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    numbers = {k: v for k, v in learned.row.items() if k in step.row and k != "peak_memory_bytes"}
    assert len(numbers) > 10
    for name, value in numbers.items():
        assert step.row[name] == (pytest.approx(value, rel=1e-3, abs=1e-6) if isinstance(value, float) else value), name
    assert step.row["weights_version"] == 1
    assert step.row["trained_tokens"] > 0


def test_a_failure_before_the_update_leaves_weights_and_state_as_they_were() -> None:
    one = trainer(Elsewhere())
    before = {k: v.clone() for k, v in one.model.module.state_dict().items()}
    good = sync.run(one.collect())
    cut = dataclasses.replace(PARAMS, top_p=0.5)
    cases = [
        ("top_p cuts", lambda i: cut),
        ("temperatures 0.5 to 1.5", lambda i: dataclasses.replace(PARAMS, temperature=0.5 + i % 2)),
    ]
    for reason, params in cases:
        groups = tuple(
            dataclasses.replace(
                g, samples=tuple(dataclasses.replace(s, params=(params(i),)) for i, s in enumerate(g.samples))
            )
            for g in good.groups
        )
        with pytest.raises(UserError, match=reason):
            one.learn(Collected(groups, drawn=4))
        assert (one.state.step, one.state.drawn) == (0, 0)
        assert all(torch.equal(before[k], v) for k, v in one.model.module.state_dict().items())


def test_weights_that_arrive_under_another_version_stop_the_run() -> None:
    with pytest.raises(PonderError, match="weights 1 were published and 2 arrived"):
        sync.run(trainer(Elsewhere(arrives=1)).step())


def test_several_updates_are_measured_against_the_policy_before_the_first() -> None:
    """The first update's ratio is 1; the second's is not, since its old policy is from before the first."""
    seen: list[LossInput] = []

    class Spy(BaseLoss):
        needs_old = True
        needs_reference = True

        def __call__(self, tokens: LossInput) -> LossOutput:
            seen.append(tokens)
            return LossOutput(-(tokens.logprobs_N * tokens.advantages_N).sum())

    one = trainer(Elsewhere(), updates=2, loss="grpo")
    one.loss = Spy()
    for _ in range(2):
        sync.run(one.step())
    first, second, third, _ = seen
    torch.testing.assert_close(first.old_logprobs_N, first.logprobs_N.detach(), rtol=0, atol=0)
    torch.testing.assert_close(first.reference_logprobs_N, first.old_logprobs_N)
    # In the first step the old policy is the one that the run began with, for both of its updates.
    torch.testing.assert_close(second.reference_logprobs_N, second.old_logprobs_N, rtol=0, atol=0)
    assert (second.old_logprobs_N - second.logprobs_N).abs().max() > 1e-3
    assert (third.reference_logprobs_N - third.old_logprobs_N).abs().max() > 1e-3
    assert first.staleness_N.unique().tolist() == [0]
    assert third.staleness_N.unique().tolist() == [1]  # these samples are of version 0, and the trainer is at 1


def test_the_log_says_how_stale_the_samples_are() -> None:
    one = trainer(Elsewhere())
    assert [sync.run(one.step()).row["staleness_max"] for _ in range(3)] == [0, 1, 2]


def test_measuring_counts_as_work() -> None:
    plain, measured = (sync.run(trainer(Elsewhere(), loss=loss).step()).row for loss in ("dapo", "grpo"))
    assert measured["computed_tokens"] == 2 * plain["computed_tokens"]  # a pass for the reference
    assert measured["flops"] == pytest.approx(plain["flops"] * 4 / 3)


@pytest.mark.parametrize(
    ("per", "metrics", "reason"),
    [
        *[("tokens", {n: 1.0}, f"{n} is a metric of the trainer") for n in ("entropy", "seconds", "weights_version")],
        ("token", {}, "divided by 'token': give tokens"),
        (0.0, {}, "divided by 0.0"),
    ],
)
def test_a_loss_that_returns_what_it_must_not_is_refused_before_anything_is_updated(per, metrics, reason) -> None:
    class Bad(BaseLoss):
        def __call__(self, tokens: LossInput) -> LossOutput:
            return LossOutput(-tokens.logprobs_N.sum(), per, metrics)

    one = trainer(Elsewhere())
    one.loss = Bad()
    before = {k: v.clone() for k, v in one.model.module.state_dict().items()}
    with pytest.raises(UserError, match=reason):
        sync.run(one.step())
    assert one.state.step == 0
    assert all(torch.equal(before[k], v) for k, v in one.model.module.state_dict().items())


def test_the_reserved_names_are_those_of_a_steps_row() -> None:
    class Plain(BaseLoss):
        def __call__(self, tokens: LossInput) -> LossOutput:
            return LossOutput(-tokens.logprobs_N.sum())

    one = trainer(Elsewhere())
    one.loss = Plain()
    assert set(sync.run(one.step()).row) == RESERVED


def test_a_step_whose_weights_did_not_arrive_is_recorded_all_the_same() -> None:
    steps: list[Step] = []
    one = trainer(Elsewhere(arrives=1))
    one.record = steps.append
    with pytest.raises(PonderError, match="and 2 arrived"):
        sync.run(one.step())
    assert [(s.row["step"], s.row["weights_version"]) for s in steps] == [(1, None)]
    assert one.settled


def test_a_step_that_broke_between_its_updates_is_not_settled() -> None:
    calls: list[int] = []

    class Second(BaseLoss):
        def __call__(self, tokens: LossInput) -> LossOutput:
            calls.append(1)
            return LossOutput(-tokens.logprobs_N.sum(), "tokens" if len(calls) == 1 else 0.0)

    one = trainer(Elsewhere(), updates=2, micro_tokens=10**6)
    one.loss = Second()
    with pytest.raises(UserError, match=r"divided by 0\.0"):
        sync.run(one.step())
    assert (one.state.step, one.settled) == (0, False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"importance_cap": 2.0}, "the loss 'dapo' takes no importance weights"),
        ({"advantage_options": {"x": 1}}, "x"),
        ({"loss": f"{__file__}:Undeclared"}, "does not declare needs_old"),
    ],
)
def test_parts_that_do_not_fit_the_config_are_refused_at_once(changes, reason) -> None:
    with pytest.raises(UserError, match=reason):
        trainer(Elsewhere(), **changes)


class Undeclared:
    def __call__(self, tokens: LossInput) -> LossOutput:
        return LossOutput(tokens.logprobs_N.sum())
