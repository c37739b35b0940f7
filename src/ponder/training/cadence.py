"""When RL evaluates while it trains, and on how many problems: a curve of five points or more that costs little.

A run of known length is evaluated after each fifth of its steps, on `MOST_PROBLEMS`, or on as few problems as keep all
its evaluations within `SHARE` of the training. A run of `minutes` is evaluated as often as `SHARE` of its time allows,
by the seconds that its first evaluation took: once that part of the time is over, and then each time that as many steps
are done as until then (`pace`). What the config gives is taken as it is.
"""

from __future__ import annotations

SHARE = 0.15
"""Of the training: the most that its evaluations cost by default."""
PARTS = 5
"""Evaluations after the one before training."""
MOST_PROBLEMS = 500
FEWEST_PROBLEMS = 50
"""With fewer the intervals are too wide to show anything; a tiny run spends more than `SHARE` on them."""
TRAINED = 1.7
"""What a trained response costs, where one of an evaluation costs 1: an update takes about as long as its sampling, and
an evaluation of few problems fills the batch less well (docs/LOG.md)."""


def eval_every(steps: int) -> int:
    """Steps between evaluations: five points or more with the one before training, from four steps on."""
    return max(1, round(steps / PARTS))


def eval_problems(steps: int, responses: int, every: int | None = None) -> int:
    """Held-out problems of each evaluation, for training on `responses` a step; `every` is 0 for before and after."""
    every = eval_every(steps) if every is None else every
    evaluations = 1 + (-(-steps // every) if every else 1)
    affordable = int(SHARE * TRAINED * steps * responses / evaluations)
    return max(FEWEST_PROBLEMS, min(MOST_PROBLEMS, affordable))


def affordable(seconds: float, evaluation: float) -> int:
    """How many evaluations of so many seconds fit `SHARE` of the time; one at least, `PARTS` at most."""
    return next((times for times in range(PARTS, 1, -1) if times * evaluation <= SHARE * seconds), 1)
