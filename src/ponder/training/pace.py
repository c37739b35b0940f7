"""How fast an RL training with a time limit goes, and what still fits: when its rate begins to fall, and when it ends.

Nothing is planned from the first steps, which may be slower or quicker than the rest. While there is time the rate is
constant; in the last quarter of the time it falls, over as many steps as the quarter before took for as long; and no
step begins that would end too late (warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395). So a disturbance costs
the steps that it takes the time of, and no more. What the clock decides is a field of the config from then on: a run
with that config repeats this one without a clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from ponder.training import cadence
from ponder.training.rl_config import RLConfig

DECAY = 0.25
"""Share of the limit at its end in which the rate falls."""
RECENT = 5
"""Steps whose median says how long the next one will take: one slow step does not end a training."""


@dataclass
class Pace:
    """The clock of a training with a time limit.

    In its methods `step` is how many steps are done, and `kept` how many seconds of the limit are for what comes after
    the last one.
    """

    limit: float
    """Seconds of the whole loop."""
    spent: float = 0.0
    """Seconds of it that earlier processes took, of a run that is resumed."""
    clock: Callable[[], float] = time.monotonic
    _steps: list[float] = field(default_factory=list)
    """Seconds of this process's steps."""
    _ends: list[float] = field(default_factory=list)
    """Seconds of the loop when each of its rounds was over: a step, with the evaluation and checkpoint after it."""

    def __post_init__(self) -> None:
        self._began = self.clock() - self.spent
        self._ends.append(self.spent)

    @property
    def elapsed(self) -> float:
        return self.clock() - self._began

    def took(self, seconds: float) -> None:
        """A round is over; its step took so many seconds."""
        self._steps.append(seconds)
        self._ends.append(self.elapsed)

    def left(self, kept: float) -> float:
        """Seconds that are left for steps; below 0 where there are too few for what comes after."""
        return self.limit - kept - self.elapsed

    def next_fits(self, kept: float) -> bool:
        """Whether one more step fits."""
        left = self.left(kept)
        return left > 0 and left >= (median(self._steps[-RECENT:]) if self._steps else 0.0)

    def steps_left(self, config: RLConfig, step: int, kept: float) -> int:
        """How many more steps there will be, by the clock and by the config's number of steps."""
        rounds = self._rounds_left(kept)
        return max(0, rounds if config.steps is None else min(rounds, config.steps - step))

    def seconds_left(self, config: RLConfig, step: int, kept: float) -> float:
        """Seconds until the last step is done: the clock's, or those of the steps that are left if they are fewer."""
        left = max(0.0, self.left(kept))
        if config.steps is None:
            return left
        rounds, seconds = self._recent(left)
        return min(left, (config.steps - step) * seconds / rounds) if rounds else left

    def _rounds_left(self, kept: float) -> int:
        """How many more rounds fit; 0 before the first."""
        left = max(0.0, self.left(kept))
        rounds, seconds = self._recent(left)
        return int(left * rounds / seconds) if seconds > 0 else 0

    def _recent(self, left: float) -> tuple[int, float]:
        """The rounds of the last while, which is as long as what is left, and their seconds; none before the first."""
        recent = [end for end in self._ends if end >= self.elapsed - left]
        if len(recent) <= RECENT:
            recent = self._ends[-RECENT - 1 :]
        return len(recent) - 1, recent[-1] - recent[0]

    # What becomes of the config: its fields that change ------------------------------------------------------------

    def eval_every(self, config: RLConfig, step: int, look: float, kept: float) -> dict[str, int]:
        """The steps between held-out evaluations, once it is time for the first; one takes `look` seconds."""
        if config.eval_every is not None:
            return {}
        training = max(0.0, self.limit - kept)
        over = self.elapsed >= training / cadence.affordable(training, look)
        many = config.steps is not None and step >= cadence.eval_every(config.steps)
        return {"eval_every": step} if over or many else {}

    def decay(self, config: RLConfig, step: int, kept: float) -> dict[str, int]:
        """From which step on the rate falls, and over how many, once that is from now on."""
        if config.final_share == 1 or config.decay is not None:
            return {}
        few = config.steps is not None and config.steps - step <= DECAY * config.steps
        late = self.left(kept) <= DECAY * (self.limit - kept)
        return self._decay(config, step, kept) if few or late else {}

    def resolved(self, config: RLConfig, step: int) -> dict[str, int | None]:
        """What the limit came to, in its place, when the last step is done."""
        fields: dict[str, int | None] = {"steps": step, "minutes": None}
        if config.eval_every is None:
            fields["eval_every"] = step
        if config.decay_from is not None:  # a resumed run may have come less far than the one that said so
            fields["decay_from"] = min(config.decay_from, max(step, config.warmup_steps))
        elif config.final_share != 1:  # the time was up before it could fall
            fields |= self._decay(config, step, 0.0)
        return fields

    def _decay(self, config: RLConfig, step: int, kept: float) -> dict[str, int]:
        begin = max(step, config.warmup_steps)
        return {"decay_from": begin, "decay_steps": max(1, self.steps_left(config, step, kept))}
