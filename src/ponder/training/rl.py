"""Reinforcement learning on answers that can be checked: collect groups, learn from them, publish the weights.

The loop reads from top to bottom in `Trainer.step`. It is synchronous: every batch is sampled with the weights that it
updates. Where rollouts come from is up to the source (`source.RolloutSource`). The trainer's log-probabilities are
compared with the sampler's at every step (`mismatch_*`); `staleness_max` is the most versions that a sampled token is
behind. Leaves out a value function and several devices.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ponder import outside, registry
from ponder.errors import PartFailed, PonderError, UserError
from ponder.models.base import forward_flops
from ponder.protocols import WeightsUpdate
from ponder.runs.manifest import peak_memory_bytes
from ponder.search.seeds import derive
from ponder.training import optim, rates
from ponder.training.batch import TokenBatch, token_batch
from ponder.training.policy import Known, UpdateStats, measure, update
from ponder.training.reference import Reference
from ponder.training.rl_config import PROBLEMS, RLConfig
from ponder.training.rollouts import Group, has_signal, temperature_of, without_truncated
from ponder.types import Spend, VerdictKind

if TYPE_CHECKING:
    from torch import Tensor

    from ponder.models.base import LoadedModel
    from ponder.protocols import Delivery
    from ponder.training.advantages.base import Advantage
    from ponder.training.credit import Credit
    from ponder.training.losses.base import PolicyLoss
    from ponder.training.source import Collected, RolloutSource

JUDGE_ERRORS = 0.1
"""Share of a step's samples that may fail to be judged, by infrastructure errors, before the run stops."""


@dataclass
class RLState:
    """State of a run: with weights and optimiser all that a checkpoint needs."""

    step: int = 0
    drawn: int = 0
    """Training problems drawn so far."""
    spend: Spend = field(default_factory=Spend)
    """Of sampling and training; held-out evaluation is not training."""
    evaluation: Spend = field(default_factory=Spend)
    """Of the held-out evaluations during training."""


@dataclass(frozen=True)
class Step:
    """What one step did."""

    groups: tuple[Group, ...]
    """That were trained on, with the rewards that they were trained with."""
    credits: tuple[tuple[Credit, ...], ...]
    """Of each sample of each group, as it was trained with."""
    row: dict[str, Any]
    """Its metrics."""


@dataclass
class Trainer:
    """A model and its optimiser, where its rollouts come from, and the state of the loop."""

    config: RLConfig
    """Its learning rate is filled in."""
    model: LoadedModel
    source: RolloutSource
    state: RLState = field(default_factory=RLState)
    record: Callable[[Step], None] | None = None
    """Called with each step that updated the weights, also where these could not be published."""
    settled: bool = True
    """False from a step's first update until it is recorded: weights and state then belong to no step."""

    def __post_init__(self) -> None:
        """Raises `UserError` for an estimator or a loss that does not exist, or does not fit the config."""
        self.advantage, self.loss = parts_of(self.config)
        adapted = self.model.adapter is not None
        self.rate = rates.rate(self.config.learning_rate, "rl", self.model.info.parameters, adapted)
        self.config = c = dataclasses.replace(self.config, learning_rate=self.rate.value)
        self.optimiser = optim.adamw(
            self.model.module, learning_rate=self.rate.value, weight_decay=c.weight_decay, betas=(0.9, c.beta2)
        )
        self.reference = Reference(self.model.module) if self.loss.needs_reference else None

    async def step(self) -> Step:
        """One step. Raises `PonderError` if too many judgements failed (nothing is updated then), `TrainingDiverged`.

        Each part may be called by itself: `collect`, then `learn`, then `publish`.
        """
        clock = time.perf_counter
        began = clock()
        collected = await self.collect()
        sampled = clock()
        step = self.learn(collected)
        trained = clock()
        version: int | None = None
        try:
            version = (await self.publish()).version
        finally:
            published = clock()
            # Seconds of the step, not of its samples: those were drawn concurrently.
            seconds = self.state.spend.seconds + published - began
            self.state.spend = dataclasses.replace(self.state.spend, seconds=seconds)
            step.row.update(
                weights_version=version,
                seconds=published - began,
                seconds_sample=sampled - began,
                seconds_train=trained - sampled,
                seconds_publish=published - trained,
                sampled_tokens_per_second=step.row["sampled_tokens"] / max(1e-9, sampled - began),
                trained_tokens_per_second=step.row["trained_tokens"] / max(1e-9, trained - sampled),
            )
            # The weights are of the next step whether they arrived or not, so its row must not be lost.
            if self.record is not None:
                self.record(step)
            self.settled = True
        return step

    async def collect(self) -> Collected:
        """Groups to learn from. The state does not change: what fails before an update can be repeated."""
        return await self.source.groups(self.config.problems or PROBLEMS, self.state.drawn)

    def learn(self, collected: Collected) -> Step:
        """Update the weights from groups; the state advances by one step.

        Raises, before anything is updated, `PonderError` if too many judgements failed and `UserError` for samples
        that cannot be trained on (`rollouts.temperature_of`); `TrainingDiverged`.
        """
        c = self.config
        self._refuse_failed_judgements(collected.all)
        temperature = temperature_of(collected.groups)
        groups = list(collected.groups)
        if c.rewards == "shuffled":
            groups = shuffled(groups, derive(c.seed, "shuffle", self.state.step))
        if c.mask_truncated:
            groups = [without_truncated(g) for g in groups]
        credits = self._credits(groups)
        # Whole groups, dealt out in turn: one batch for each optimiser step.
        deals = [range(i, len(groups), c.updates) for i in range(min(c.updates, len(groups)))]
        batches = [token_batch([groups[i] for i in deal], [credits[i] for i in deal]) for deal in deals]
        known, measured = self._known(batches, temperature)
        optim.set_rate(self.optimiser, self._rate())
        self.settled = False
        stats = [self._update(batch, what, temperature) for batch, what in zip(batches, known, strict=True)]
        staleness = max((s for b in batches for s in self._staleness(b)), default=0)
        self.state.step += 1
        self.state.drawn = collected.drawn
        row = {**self._account(collected, stats, measured), "staleness_max": staleness}
        return Step(tuple(groups), tuple(tuple(own) for own in credits), row)

    def _credits(self, groups: Sequence[Group]) -> list[list[Credit]]:
        """What the advantage estimator gives. Raises `PartFailed` for what is no credit for each id of each sample."""
        who = f"the advantage {self.config.advantage}"
        given = outside.call(who, self.advantage, groups)
        wanted = [[len(s.transcript.ids) for s in group.samples] for group in groups]
        try:
            sizes = [[len(credit.values) for credit in own] for own in given]
        except (TypeError, AttributeError):
            sizes = []
        if sizes != wanted:
            at = outside.defined(type(self.advantage).__call__)
            raise PartFailed(f"{who} must give a list of Credit for each group, one for each sample, of its ids{at}")
        return given

    async def publish(self) -> Delivery:
        """Hand the weights to the source under the number of the step.

        Raises `PonderError` if another version arrived.
        """
        delivery = await self.source.publish(WeightsUpdate(self.model.module, self.state.step))
        if delivery.version != self.state.step:
            raise PonderError(f"weights {self.state.step} were published and {delivery.version} arrived")
        return delivery

    def _refuse_failed_judgements(self, groups: Sequence[Group]) -> None:
        verdicts = [s.verdict for g in groups for s in g.samples]
        failed = [v.reason for v in verdicts if v.kind is VerdictKind.JUDGE_ERROR]
        if len(failed) > max(5, JUDGE_ERRORS * len(verdicts)) or 0 < len(failed) == len(verdicts):
            step, total = self.state.step + 1, len(verdicts)
            raise PonderError(f"step {step}: {len(failed)} of {total} judgements failed: {failed[0]}")

    # Updating -----------------------------------------------------------------------------------------------------

    def _rate(self) -> float:
        c, step = self.config, self.state.step
        if step < c.warmup_steps:
            return self.rate.value * (step + 1) / c.warmup_steps
        begin, steps = c.decay or (step, 1)
        share = max(0, step - begin) / steps
        return self.rate.value * (1 - (1 - c.final_share) * min(1.0, share))

    def _known(self, batches: Sequence[TokenBatch], temperature: float) -> tuple[list[Known], int]:
        """What the loss needs of each batch, measured before the first update; and how many ids that took."""
        c, computed = self.config, 0
        known = [Known(importance_cap=c.importance_cap, importance=c.importance, version=self.state.step)] * len(
            batches
        )

        def measured(batch: TokenBatch) -> Tensor:
            nonlocal computed
            logprobs_N, ids = measure(self.model, batch, temperature=temperature, micro_tokens=c.micro_tokens)
            computed += ids
            return logprobs_N

        if self.loss.needs_old or c.importance_cap:
            # Of the first batch the update's own forward pass gives them.
            first, *more = zip(known, batches, strict=True)
            known = [first[0], *(dataclasses.replace(k, old_N=measured(b)) for k, b in more)]
        if self.reference is not None:
            with self.reference.in_place():
                known = [dataclasses.replace(k, reference_N=measured(b)) for k, b in zip(known, batches, strict=True)]
        return known, computed

    def _update(self, batch: TokenBatch, known: Known, temperature: float) -> UpdateStats:
        return update(
            self.model,
            self.optimiser,
            self.loss,
            batch,
            temperature=temperature,
            max_grad_norm=self.config.max_grad_norm,
            micro_tokens=self.config.micro_tokens,
            gradient_checkpointing=self.config.gradient_checkpointing,
            known=known,
        )

    def _staleness(self, batch: TokenBatch) -> list[int]:
        return [self.state.step - v for v in batch.version_N[batch.mask_N].unique().tolist()]

    # Counting -----------------------------------------------------------------------------------------------------

    def _account(self, collected: Collected, stats: Sequence[UpdateStats], measured: int) -> dict[str, Any]:
        """Metrics of the step, but for its times; adds to the state's spend. `measured` ids were computed forward."""
        samples = [s for g in collected.all for s in g.samples]
        spend = sum((g.spend for g in collected.all), Spend())
        kinds = Counter(s.verdict.kind.value for s in samples)
        rewards = [s.reward for s in samples if s.reward is not None]
        trained = sum(u.tokens for u in stats)
        computed = sum(u.computed_tokens for u in stats)
        lengths = [len(s.transcript.ids) for g in collected.groups for s in g.samples]
        context = sum(lengths) / len(lengths) / 2
        # Forward once, backward twice that (Kaplan et al. 2020, §2.1): half for the activations, half for the weights,
        # which frozen ones do not need.
        passes = 3 if self.model.adapter is None else 2
        flops = (passes * computed + measured) * flops_per_token(self.model, context)
        response_tokens = spend.response_tokens
        total = self.state.spend + spend + Spend(trained_tokens=trained, flops=flops)
        self.state.spend = dataclasses.replace(total, seconds=self.state.spend.seconds)

        def mean(name: str) -> float | None:
            return sum(getattr(u, name) * u.tokens for u in stats) / trained if trained else None

        names = dict.fromkeys(name for u in stats for name in u.metrics)
        metrics = {n: sum(u.metrics.get(n, 0.0) * u.tokens for u in stats) / trained for n in names}
        return {
            "step": self.state.step,
            "reward": sum(rewards) / max(1, len(rewards)),
            "verdicts": {k.value: kinds[k.value] for k in VerdictKind if kinds[k.value]},
            "length": response_tokens / len(samples),
            "truncated": sum(s.truncated for s in samples) / len(samples),
            "groups": len(collected.groups),
            "groups_without_signal": sum(not has_signal(g) for g in collected.groups),
            "groups_replaced": len(collected.replaced),
            "signal": sum(has_signal(g) for g in collected.all) / len(collected.all),
            "rounds": collected.rounds,
            "entropy": mean("entropy"),
            "loss": mean("loss"),
            # Of the first update alone: the later ones differ from the sampler on purpose.
            "mismatch_mean": stats[0].mismatch_mean if stats[0].tokens else None,
            "mismatch_max": stats[0].mismatch_max if stats[0].tokens else None,
            "effective_samples": stats[0].effective_samples if stats[0].tokens else None,
            "mismatch_k3": stats[0].mismatch_k3 if stats[0].tokens else None,
            "gradient_norm": max((u.gradient_norm for u in stats if u.tokens), default=None),
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            "response_tokens": response_tokens,
            "sampled_tokens": spend.sampled_tokens,
            "trained_tokens": trained,
            "computed_tokens": computed + measured,
            "flops": spend.flops + flops,
            "total_flops": self.state.spend.flops,
            "total_sampled_tokens": self.state.spend.sampled_tokens,
            "peak_memory_bytes": peak_memory_bytes(),
            **metrics,
        }


def parts_of(config: RLConfig) -> tuple[Advantage, PolicyLoss]:
    """The advantage estimator and the loss of a config.

    Raises `UserError` for one that does not exist, or does not fit the config.
    """
    advantage: Advantage = registry.build("training.advantages", config.advantage, config.advantage_options)
    loss: PolicyLoss = registry.build("training.losses", config.loss, config.loss_options)
    for name in ("needs_old", "needs_reference", "takes_weights"):
        if not isinstance(getattr(loss, name, None), bool):
            raise UserError(f"loss {config.loss!r} does not declare {name}: derive it from losses.base.BaseLoss")
    if config.importance_cap and not loss.takes_weights:
        raise UserError(
            f"importance_cap = {config.importance_cap:g}: the loss {config.loss!r} takes no importance weights"
        )
    if config.precision != "float32" and loss.needs_old and not config.importance_cap:
        cap = "give importance_cap (2.0), or " if loss.takes_weights else "give "
        raise UserError(
            f"precision = {config.precision!r}: the sampler's probabilities differ from the trainer's then, and the "
            f"loss {config.loss!r} does not correct for it: {cap}loss = 'dapo', whose ratio is against the sampler"
        )
    return advantage, loss


def flops_per_token(model: LoadedModel, context: float) -> float:
    """Forward FLOPs of a token at a mean context, attention included."""
    config = getattr(model.module, "config", None)
    layers, width = getattr(config, "num_hidden_layers", 0), getattr(config, "hidden_size", 0)
    return model.info.flops_per_token + forward_flops(width, layers, 0, 0, context)


def shuffled(groups: Sequence[Group], seed: int) -> list[Group]:
    """The groups with the rewards of each shuffled among its judged samples."""
    rng = random.Random(seed)
    dealt = []
    for group in groups:
        judged = [i for i, s in enumerate(group.samples) if s.reward is not None]
        rewards = {i: group.samples[j].reward for i, j in zip(judged, rng.sample(judged, len(judged)), strict=True)}
        samples = (dataclasses.replace(s, reward=rewards.get(i)) for i, s in enumerate(group.samples))
        dealt.append(dataclasses.replace(group, samples=tuple(samples)))
    return dealt
