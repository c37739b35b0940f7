"""Reinforcement learning on answers that can be checked: sample groups, judge, advantage, loss, step, publish weights.

The loop reads from top to bottom in `Trainer.step`. It is synchronous: every batch is sampled with the weights that it
updates. Leaves out a KL term and a reference model (Dr. GRPO and DAPO do without), a value function, several devices,
and environments of several turns (refused with a sentence).
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ponder import registry
from ponder.environments.judging import judge
from ponder.errors import PonderError, Unsupported, UserError
from ponder.models.base import forward_flops
from ponder.protocols import WeightsUpdate
from ponder.runs.manifest import peak_memory_bytes
from ponder.search.runner import solve
from ponder.search.seeds import derive
from ponder.training import optim
from ponder.training.policy import UpdateStats, update
from ponder.training.rl_config import RLConfig
from ponder.training.rollouts import Rollouts, Sample, to_rollouts
from ponder.types import Problem, Response, Spend, Verdict, VerdictKind

if TYPE_CHECKING:
    from torch import Tensor

    from ponder.engines.torch.engine import TorchEngine
    from ponder.models.base import LoadedModel
    from ponder.protocols import Environment, Strategy

PROBE_STEPS = 6
"""Steps that are timed before `minutes` is turned into a number of steps; the first two are left out."""
JUDGE_ERRORS = 0.1
"""Share of a step's samples that may fail in our hands before the run stops."""


@dataclass
class RLState:
    """Where a run stands; with weights and optimiser all that a checkpoint needs."""

    step: int = 0
    drawn: int = 0
    """Training problems drawn so far."""
    spend: Spend = field(default_factory=Spend)
    """Of sampling and training; held-out evaluation is not training."""
    evaluation: Spend = field(default_factory=Spend)
    """Of the held-out evaluations along the way."""


@dataclass(frozen=True)
class Step:
    """What one step did."""

    groups: list[list[Sample]]
    advantages: list[list[float]]
    row: dict[str, Any]


@dataclass
class Trainer:
    """A model, its engine and its optimiser, and the state of the loop."""

    config: RLConfig
    model: LoadedModel
    environment: Environment
    engine: TorchEngine
    state: RLState = field(default_factory=RLState)

    def __post_init__(self) -> None:
        c = self.config
        if "n" in c.strategy_options:
            raise UserError("strategy_options: n is the group size; give it as group_size")
        options = {**c.rollout_options, "n": c.group_size}
        self.strategy: Strategy = registry.build("search.strategies", c.strategy, options)
        self.advantage = registry.build("training.advantages", c.advantage)
        self.loss = registry.build("training.losses", c.loss, c.loss_options)
        self.temperature = float(getattr(self.strategy, "temperature", 1.0))
        _refuse_truncated_sampling(self.strategy)
        self.optimiser = optim.adamw(
            self.model.module, learning_rate=c.learning_rate, weight_decay=c.weight_decay, betas=(0.9, c.beta2)
        )
        size = self.environment.size("train")
        if size is not None and size < c.problems:
            raise UserError(f"{c.environment}: {size} training problems are fewer than the {c.problems} of a step")

    async def step(self) -> Step:
        """One step. Raises `PonderError` if too many judgements failed in our hands, `TrainingDiverged`."""
        c, clock = self.config, time.perf_counter
        began = clock()
        groups, drawn, rounds = await self._groups()
        self._refuse_failed_judgements(drawn)
        sampled = clock()
        rollouts = to_rollouts(groups, self.model.pad_id, mask_truncated=c.mask_truncated)
        if c.rewards == "shuffled":
            rollouts = _shuffled(rollouts, derive(c.seed, "shuffle", self.state.step))
        advantages_BT = self.advantage(rollouts)
        optim.set_rate(self.optimiser, self._rate())
        stats = [self._update(rollouts.select(rows), advantages_BT[rows]) for rows in self._parts(rollouts)]
        trained = clock()
        self.state.step += 1
        await self.engine.load_weights(WeightsUpdate(self.model.module, self.state.step))
        published = clock()
        row = self._account(groups, drawn, rounds, rollouts, stats, published - began)
        row.update(
            seconds=published - began,
            seconds_sample=sampled - began,
            seconds_train=trained - sampled,
            seconds_publish=published - trained,
            sampled_tokens_per_second=row["sampled_tokens"] / max(1e-9, sampled - began),
            trained_tokens_per_second=row["trained_tokens"] / max(1e-9, trained - sampled),
        )
        at = iter(advantages_BT.abs().max(dim=1).values * advantages_BT.sum(dim=1).sign())
        return Step(groups, [[float(next(at)) for _ in g] for g in groups], row)

    def _refuse_failed_judgements(self, groups: list[list[Sample]]) -> None:
        failed = [s.verdict.reason for g in groups for s in g if s.verdict.kind is VerdictKind.JUDGE_ERROR]
        total = sum(len(g) for g in groups)
        if len(failed) > max(5, JUDGE_ERRORS * total):
            raise PonderError(f"step {self.state.step + 1}: {len(failed)} of {total} judgements failed: {failed[0]}")

    # Sampling and judging -----------------------------------------------------------------------------------------

    async def _groups(self) -> tuple[list[list[Sample]], list[list[Sample]], int]:
        """The groups to train on, all groups that were drawn (replaced ones too), and the rounds that it took."""
        c = self.config
        kept: list[list[Sample]] = []
        idle: list[list[Sample]] = []
        rounds = 0
        while rounds == 0 or (rounds <= c.resample and len(kept) < c.problems):
            rounds += 1
            for group in await self._sample(c.problems if rounds == 1 else c.problems - len(kept)):
                (kept if has_signal(group) or c.resample == 0 else idle).append(group)
        return kept + idle[: c.problems - len(kept)], kept + idle, rounds

    async def _sample(self, count: int) -> list[list[Sample]]:
        first = self.state.drawn
        problems = [self._next_problem() for _ in range(count)]
        # A seed for each draw: the same problem drawn twice must not give the same samples.
        seeds = [derive(self.config.seed, "rollouts", first + i) for i in range(count)]
        searches = (solve(self.strategy, p, self.engine, seed=s) for p, s in zip(problems, seeds, strict=True))
        outcomes = await asyncio.gather(*searches)
        groups = []
        for problem, outcome in zip(problems, outcomes, strict=True):
            if len(outcome.trace.nodes) != self.config.group_size:
                why = (
                    outcome.reason
                    or f"the strategy drew {len(outcome.trace.nodes)} samples, not {self.config.group_size}"
                )
                raise PonderError(f"{problem.id}: no group to train on: {why}")
            verdicts = await self._judge(problem, [n.response for n in outcome.trace.nodes])
            nodes = zip(outcome.trace.nodes, verdicts, strict=True)
            groups.append([Sample(problem, n.completion, n.response, v) for n, v in nodes])
        return groups

    async def _judge(self, problem: Problem, responses: Sequence[Response]) -> list[Verdict]:
        if not (await self.environment.turn(problem, responses[:1])).done:
            raise Unsupported(f"{self.environment.name} has several turns; RL trains on single-turn environments")
        return await asyncio.gather(*(judge(self.environment, problem, r) for r in responses))

    def _next_problem(self) -> Problem:
        """Training problems in order; a finite set is shuffled anew for each epoch."""
        index, size = self.state.drawn, self.environment.size("train")
        self.state.drawn += 1
        if size is None:
            return self.environment.problem("train", index + self.config.seed * 10_000_000)
        epoch, place = divmod(index, size)
        return self.environment.problem("train", _shuffle(size, derive(self.config.seed, "epoch", epoch))[place])

    # Updating -----------------------------------------------------------------------------------------------------

    def _rate(self) -> float:
        c, step = self.config, self.state.step
        if step < c.warmup_steps:
            return c.learning_rate * (step + 1) / c.warmup_steps
        # The decay begins after the steps that may have been timed before the number of steps was known.
        first = max(c.warmup_steps, PROBE_STEPS)
        share = max(0, step - first) / max(1, c.steps - first) if c.minutes is None else 0.0
        return c.learning_rate * (1 - (1 - c.final_share) * min(1.0, share))

    def _parts(self, rollouts: Rollouts) -> list[list[int]]:
        """Rows of each optimiser step: whole groups, dealt out in turn."""
        rows: list[list[int]] = [[] for _ in range(self.config.updates)]
        for row, group in enumerate(rollouts.group_B.tolist()):
            rows[group % self.config.updates].append(row)
        return [r for r in rows if r]

    def _update(self, rollouts: Rollouts, advantages_BT: Tensor) -> UpdateStats:
        return update(
            self.model,
            self.optimiser,
            self.loss,
            rollouts,
            advantages_BT,
            temperature=self.temperature,
            max_grad_norm=self.config.max_grad_norm,
            micro_tokens=self.config.micro_tokens,
            gradient_checkpointing=self.config.gradient_checkpointing,
        )

    # Counting -----------------------------------------------------------------------------------------------------

    def _account(
        self,
        groups: list[list[Sample]],
        drawn: list[list[Sample]],
        rounds: int,
        rollouts: Rollouts,
        stats: Sequence[UpdateStats],
        seconds: float,
    ) -> dict[str, Any]:
        samples = [s for g in drawn for s in g]
        spend = sum((s.completion.spend for s in samples), Spend())
        kinds = Counter(s.verdict.kind.value for s in samples)
        rewards = [s.verdict.reward for s in samples if s.verdict.reward is not None]
        trained = sum(u.tokens for u in stats)
        computed = sum(u.computed_tokens for u in stats)
        context = float(rollouts.lengths_B.float().mean()) / 2
        # Forward once, backward twice that (Kaplan et al. 2020, §2.1).
        flops = 3 * computed * flops_per_token(self.model, context)
        response_tokens = spend.response_tokens
        # Seconds of the step, not of its samples: those were drawn side by side.
        total = self.state.spend + spend + Spend(trained_tokens=trained, flops=flops)
        self.state.spend = dataclasses.replace(total, seconds=self.state.spend.seconds + seconds)

        def mean(name: str) -> float | None:
            return sum(getattr(u, name) * u.tokens for u in stats) / trained if trained else None

        return {
            "step": self.state.step,
            "reward": sum(rewards) / max(1, len(rewards)),
            "verdicts": {k.value: kinds[k.value] for k in VerdictKind if kinds[k.value]},
            "length": response_tokens / len(samples),
            "truncated": sum(s.truncated for s in samples) / len(samples),
            "groups": len(groups),
            "groups_without_signal": sum(not has_signal(g) for g in groups),
            "groups_replaced": len(drawn) - len(groups),
            "rounds": rounds,
            "entropy": mean("entropy"),
            "loss": mean("loss"),
            # Of the first update alone: the later ones differ from the sampler on purpose.
            "mismatch_mean": stats[0].mismatch_mean if stats[0].tokens else None,
            "mismatch_max": stats[0].mismatch_max if stats[0].tokens else None,
            "mismatch_k3": stats[0].mismatch_k3 if stats[0].tokens else None,
            "clipped": mean("clipped"),
            "gradient_norm": max((u.gradient_norm for u in stats if u.tokens), default=None),
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            "response_tokens": response_tokens,
            "sampled_tokens": spend.sampled_tokens,
            "trained_tokens": trained,
            "computed_tokens": computed,
            "flops": spend.flops + flops,
            "total_flops": self.state.spend.flops,
            "total_sampled_tokens": self.state.spend.sampled_tokens,
            "peak_memory_bytes": peak_memory_bytes(),
            "weights_version": self.engine.weights_version,
        }


def has_signal(group: Sequence[Sample]) -> bool:
    """True if the rewards of a group differ: else every advantage is 0 and there is nothing to learn from it."""
    return len({s.verdict.reward for s in group if s.verdict.reward is not None}) > 1


def flops_per_token(model: LoadedModel, context: float) -> float:
    """Forward FLOPs of a token at a mean context, attention included."""
    config = getattr(model.module, "config", None)
    layers, width = getattr(config, "num_hidden_layers", 0), getattr(config, "hidden_size", 0)
    return model.info.flops_per_token + forward_flops(width, layers, 0, 0, context)


def _shuffle(size: int, seed: int) -> list[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order


def _shuffled(rollouts: Rollouts, seed: int) -> Rollouts:
    """Deal out the rewards of each group at random."""
    rewards = rollouts.rewards_B.clone()
    rng = random.Random(seed)
    for group in range(int(rollouts.group_B.max()) + 1):
        rows = (rollouts.group_B == group).nonzero().squeeze(1).tolist()
        dealt = rng.sample(rows, len(rows))
        rewards[rows] = rollouts.rewards_B[dealt]
    return dataclasses.replace(rollouts, rewards_B=rewards)


def _refuse_truncated_sampling(strategy: Any) -> None:
    cut = [f for f, off in (("top_p", 1.0), ("top_k", 0), ("min_p", 0.0)) if getattr(strategy, f, off) != off]
    if cut:
        raise UserError(
            f"{cut[0]} cuts the distribution that is sampled from, so its log-probabilities are not the model's: "
            f"train without it (temperature is fine)"
        )
    temperature = getattr(strategy, "temperature", 1.0)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UserError(f"temperature = {temperature}: RL needs samples that differ; give more than 0")
