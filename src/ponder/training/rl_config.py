"""The config of `ponder train rl`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ponder.config import Options, size
from ponder.errors import Refusals, UserError
from ponder.training.start import StartOptions

PROBLEMS = 32
"""Of a step, where there are as many."""
STEPS = 100
"""Where neither steps nor minutes are given."""
UNDECAYED = 6
"""The fewest steps before the rate begins to fall, where nothing else is said."""
THOUGHT_TOKENS = 64
MAX_TOKENS = 256
"""Of a response of a model that marks no thoughts, as in TRL's GRPO."""


@dataclass(frozen=True)
class RLConfig(StartOptions):
    """Teach a model by reinforcement learning on answers that can be checked."""

    out: str = "runs/rl"
    """Run directory to make."""
    environment: str = ""
    """Where the problems come from (see `ponder list environments`), ./FILE.py:Class or FILE.jsonl (default: jsonl
    with `data`, else countdown)."""
    environment_options: Options = field(default_factory=dict)
    """Options of the environment."""
    data: str | None = None
    """Your own problems: a JSON Lines file with a prompt and an answer in each line. Short for the environment's option
    data."""
    raw_prompts: bool = False
    """Continue plain-text prompts as they are, without the chat template (for few-shot text)."""
    strategy: str = ""
    """How the rollouts are sampled (see `ponder list strategies`); it must draw `n` samples of its own (default:
    budget_forcing for a model with thought markers, else direct)."""
    strategy_options: Options = field(default_factory=dict)
    """Options of the strategy; without any, budget_forcing takes thought_tokens=64, and direct, where it is the
    default, max_tokens=256."""
    problems: int | None = None
    """Problems of a step (default: 32, or all training problems if there are fewer)."""
    group_size: int = 16
    """Samples of a problem."""
    steps: int | None = None
    """Training steps (default: 100, where no `minutes` are given)."""
    minutes: float | None = None
    """Most time for the whole loop; with `steps` too, the limit that comes first ends it. What it came to (steps,
    eval_every, decay_from, decay_steps) replaces it in the run's config, so that a repeated run does the same."""
    learning_rate: float | None = None
    """Learning rate of AdamW (default: by the model's size, 2e-4 for ponder-tiny; it is shown at the start)."""
    warmup_steps: int = 5
    """Steps of linear warm-up."""
    final_share: float = 1.0
    """The share of the learning rate that it falls to, linearly (1.0: it stays)."""
    decay_from: int | None = None
    """Steps before the rate begins to fall (default: the warm-up, 6 at least; with `minutes` the first three quarters
    of the time or of the steps)."""
    decay_steps: int | None = None
    """Steps in which it falls (default: all that are left)."""
    weight_decay: float = 0.0
    """AdamW's decay of matrices."""
    beta2: float = 0.95
    """AdamW's second beta."""
    max_grad_norm: float = 1.0
    """Largest gradient norm; 0 is no limit."""
    updates: int = 1
    """Optimiser steps per batch of rollouts; with more than one the later ones are off-policy and the clip matters."""
    advantage: str = "mean_only"
    """Advantage estimator (see `ponder list advantages`)."""
    advantage_options: Options = field(default_factory=dict)
    """Options of the advantage estimator."""
    loss: str = "dapo"
    """Policy loss (see `ponder list losses`)."""
    loss_options: Options = field(default_factory=dict)
    """Options of the loss, such as clip_low and clip_high."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """What the sampler's products with the matrices compute in; the trainer stays in float32. The others may be faster
    where the processor has units for them, and need a loss that corrects for the difference: dapo does, grpo does with
    `importance_cap`."""
    products: str = ""
    """How the sampler multiplies matrices (default: the fastest of the precision on this machine, measured once)."""
    importance_cap: float = 0.0
    """Importance weights: the trainer's probability of a token over the sampler's, bounded by this; 0 is without.
    For samplers whose numbers differ (another engine, less precision), with a loss that takes weights (grpo)."""
    importance: Literal["truncated", "masked", "sequence"] = "truncated"
    """How the weights are bounded: `truncated` at the cap, `masked` to 0 outside of 1/cap to cap, or one for each
    response, the product of its tokens' ratios, truncated."""
    mask_truncated: bool = False
    """Leave the tokens of truncated responses out of the loss (they are counted either way). Where the end of a
    thought is forced, this teaches thoughts that never end: nothing penalises them (docs/LOG.md)."""
    resample: int = 0
    """Dynamic sampling: most extra rounds that replace groups without signal by new problems."""
    rewards: Literal["judge", "shuffled"] = "judge"
    """`shuffled` permutes the rewards within each group: a control that cannot learn what is right."""
    eval_every: int | None = None
    """Steps between held-out evaluations; 0 is only before and after (default: a fifth of the steps; with `minutes` as
    many as are done in a fifth of the time, or in a larger part, so that evaluations take 15 % of it)."""
    eval_problems: int | None = None
    """Held-out problems, the same each time; 0 is no evaluation at all (default: 500, or as few, from 50 on, as keep
    the evaluations at about 15 % of the training; or all there are, if they are fewer)."""
    eval_strategy: str = ""
    """Strategy of the held-out evaluation; empty for the one of the rollouts."""
    eval_strategy_options: Options = field(default_factory=dict)
    """Options of the evaluation's strategy; empty for those of the rollouts, if it is the same strategy."""
    micro_tokens: int = 4096
    """Most ids of a micro-batch, prompts included; memory grows with it, the gradient does not change."""
    gradient_checkpointing: bool = False
    """Recompute each layer's activations in the backward pass instead of keeping them: less memory, more time."""
    max_rows: int = 512
    """Most samples that are decoded at once."""
    kv_memory: str = ""
    """Most memory for keys and values, such as 2GiB (default: a quarter of what is available, 1 GiB at most; half of a
    GPU's free memory)."""
    seed: int = 0
    """Seed of problems and samples."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept."""
    record_problems: int = 4
    """Problems of a step whose samples are written to rollouts.jsonl; -1 for all."""
    record_tokens: bool = False
    """Write ids, mask and log-probabilities with them."""
    track: str = ""
    """Trackers that get every row of metrics too: tensorboard, trackio, wandb or mlflow, several as tensorboard,wandb.
    They write to files of the run; nothing is sent anywhere unless the tool's own settings say so (WANDB_MODE=online,
    MLFLOW_TRACKING_URI)."""
    overwrite: bool = False
    """Replace the run that `out` holds."""
    resume: bool = False
    """Continue the run in `out` from its last checkpoint."""

    @property
    def rollout_options(self) -> Options:
        """Options of the strategy, the default filled in."""
        if self.strategy_options or self.strategy.replace("-", "_") != "budget_forcing":
            return self.strategy_options
        return {"thought_tokens": THOUGHT_TOKENS}

    @property
    def planned_steps(self) -> int | None:
        """The number of steps, the default filled in; None where the time alone limits them."""
        return STEPS if self.steps is None and self.minutes is None else self.steps

    @property
    def decay(self) -> tuple[int, int] | None:
        """After how many steps the rate begins to fall, and over how many; None while the clock has yet to say."""
        begin, length, steps = self.decay_from, self.decay_steps, self.planned_steps
        if begin is not None and length is not None:
            return begin, length
        if self.minutes is not None or steps is None:
            return None
        if length is not None:
            return steps - length, length
        begin = max(self.warmup_steps, UNDECAYED) if begin is None else begin
        return begin, max(1, steps - begin)

    @property
    def evaluation(self) -> tuple[str, Options]:
        """Name and options of the evaluation's strategy."""
        name = self.eval_strategy or self.strategy
        same = name == self.strategy and not self.eval_strategy_options
        return name, self.rollout_options if same else self.eval_strategy_options

    def __post_init__(self) -> None:
        refused = Refusals()
        with refused.collected():
            StartOptions.__post_init__(self)
        for least, names in LEAST.items():
            for name in names:
                value = getattr(self, name)
                if value is not None and value < least:
                    refused.add(f"{name} = {value}: give {f'at least {least}' if least else '0 or more'}")
        for name in ("learning_rate", "minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                refused.add(f"{name} = {value}: give more than 0")
        for name in ("weight_decay", "max_grad_norm", "final_share", "importance_cap"):
            if not 0 <= getattr(self, name) < math.inf:
                refused.add(f"{name} = {getattr(self, name)}: give 0 or more")
        if not 0 <= self.beta2 < 1:
            refused.add(f"beta2 = {self.beta2}: give a number from 0 to below 1")
        with refused.collected():
            size(self.kv_memory, "kv_memory")
        if self.record_problems < -1:
            refused.add(f"record_problems = {self.record_problems}: give -1 (all), 0 (none) or more")
        if self.resume and self.overwrite:
            refused.add("resume and overwrite contradict each other: give one of them")
        refused.raise_all()
        self._check_decay()

    def _check_decay(self) -> None:
        given = {n: v for n in ("decay_from", "decay_steps") if (v := getattr(self, n)) is not None}
        if not given:
            return
        name, value = next(iter(given.items()))
        if self.final_share == 1:
            raise UserError(f"{name} = {value}: with final_share = 1 the rate does not fall; give final_share too")
        if self.decay is None:
            raise UserError(f"{name} = {value}: with minutes give both decay_from and decay_steps, or neither")
        begin, steps = self.decay[0], self.planned_steps
        if begin < self.warmup_steps:
            raise UserError(f"{name} = {value}: the rate would fall in the warm-up, of {self.warmup_steps} steps")
        if steps is not None and begin > max(steps, self.warmup_steps):
            raise UserError(f"{name} = {value}: the rate would never fall in {steps} steps; give at most {steps}")


LEAST = {
    2: ("group_size",),
    1: (
        *("problems", "steps", "decay_steps", "updates", "keep_checkpoints", "micro_tokens", "max_rows"),
        "checkpoint_every",
    ),
    0: ("resample", "eval_every", "eval_problems", "warmup_steps", "seed"),
}
"""The smallest values of whole numbers."""
