"""The run of `ponder train rl`: run directory, held-out evaluation, checkpoints, resume, progress."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder import config as configs
from ponder import registry, sync
from ponder.engines.torch.engine import TorchEngine
from ponder.errors import TrainingDiverged, UserError
from ponder.evaluation.evaluate import Evaluation, evaluate
from ponder.evaluation.intervals import paired_difference
from ponder.models.host import release_threads, reuse_freed_memory
from ponder.models.load import load
from ponder.models.save import save
from ponder.runs.progress import Progress
from ponder.runs.run import Run
from ponder.training import checkpoint
from ponder.training.interrupt import Interrupt, Interrupted
from ponder.training.rl import RLState, Step, Trainer
from ponder.training.rl_config import RLConfig
from ponder.training.rollouts import Sample
from ponder.types import VerdictKind, to_json

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel
    from ponder.protocols import Environment, Strategy
    from ponder.types import Problem

PROBE_STEPS = 6
"""Steps that are timed before `minutes` is turned into a number of steps; the first two are left out."""


@dataclass
class RLRun:
    """A trainer in its run directory. `RLRun.begin` starts or resumes; `train` runs to the end; close it after."""

    config: RLConfig
    run: Run
    trainer: Trainer
    eval_strategy: Strategy
    held_out: tuple[Problem, ...]
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Points of the train-compute curve so far."""
    results: dict[int, Evaluation] = field(default_factory=dict)
    """Held-out evaluations of this process, by step."""
    config_name: str = "config.toml"

    @classmethod
    def begin(cls, config: RLConfig, *, run: Run | None = None) -> RLRun:
        """Build everything that can fail before the run directory is made. Raises `UserError`.

        Within another command's `run` the config is written as `rl.toml`.
        """
        reuse_freed_memory()
        environment: Environment = registry.build("environments", config.environment, config.environment_options)
        model = load(config.model)
        if config.raw_prompts:
            model.take_plain_prompts()
        engine = TorchEngine(model, max_rows=config.max_rows)
        trainer = Trainer(config, model, environment, engine)
        name = config.eval_strategy or config.strategy
        options = config.eval_strategy_options or config.strategy_options
        eval_strategy = registry.build("search.strategies", name, options)
        size = environment.size("test")
        if size is not None and size < config.eval_problems:
            raise UserError(f"eval_problems = {config.eval_problems}: {config.environment} has {size} test problems")
        held_out = tuple(environment.problem("test", i) for i in range(config.eval_problems))
        _check_context(trainer, model, held_out)
        if config.resume:
            run = Run.open(config.out)
            self = cls(config, run, trainer, eval_strategy, held_out)
            self._restore(checkpoint.last(run.checkpoints))
            return self
        text = configs.to_toml(dataclasses.replace(config, resume=False))
        if run is not None:
            return cls(config, run, trainer, eval_strategy, held_out, config_name="rl.toml")
        return cls(config, Run.create(config.out, text, config.seed), trainer, eval_strategy, held_out)

    def _restore(self, saved: checkpoint.Checkpoint) -> None:
        trainer = self.trainer
        trainer.model.module.load_state_dict(load(str(saved.model)).module.state_dict())
        saved.restore_optimiser(trainer.optimiser)
        trainer.state = configs.from_mapping(RLState, saved.state["loop"], where=str(saved.path))
        self.evaluations = list(saved.state["evaluations"])
        if trainer.config.minutes is not None and saved.state["steps"] is None:
            raise UserError(f"{saved.path}: stopped before `minutes` was turned into steps; give --steps instead")
        if saved.state["steps"] is not None:
            self._fix_steps(int(saved.state["steps"]))
        sync.run(trainer.engine.load_weights(trainer.model.module, f"step-{trainer.state.step:06d}"))
        self.run.truncate_after(trainer.state.step)

    def _fix_steps(self, steps: int) -> None:
        self.config = self.trainer.config = dataclasses.replace(self.config, steps=steps, minutes=None)

    def limit(self, *, minutes: float | None = None, steps: int | None = None) -> None:
        """Give the loop a time limit, or a number of steps, before it begins."""
        steps = self.config.steps if steps is None else steps
        self.config = self.trainer.config = dataclasses.replace(self.config, minutes=minutes, steps=steps)

    # The loop -----------------------------------------------------------------------------------------------------

    def train(self, *, on_evaluation: Callable[[int, Evaluation], None] = lambda step, result: None) -> Path:
        """Train to the end; returns the folder of the finished model.

        Raises `Interrupted` after a checkpoint on Ctrl-C, with the command to continue; `TrainingDiverged` with the
        step and the last good checkpoint.
        """
        state = self.trainer.state
        began, seconds = time.monotonic(), []
        self._write_config()
        if state.step == 0:
            self.evaluate(on_evaluation)
        with Interrupt() as interrupt, Progress("rl", self._total(), unit="steps") as progress:
            while state.step < self.config.steps or self.config.minutes is not None:
                try:
                    step = sync.run(self.trainer.step())
                except TrainingDiverged as error:
                    raise TrainingDiverged(f"step {state.step + 1}: {error}; {self._last_good()}") from None
                self._record(step)
                seconds.append(step.row["seconds"])
                if self.config.minutes is not None and len(seconds) >= PROBE_STEPS:
                    self._resolve(sorted(seconds[2:])[len(seconds[2:]) // 2], time.monotonic() - began)
                    progress.note(f"{self.config.steps} steps fit the time")
                if self.config.minutes is None and self._due(self.config.eval_every):
                    result = self.evaluate(on_evaluation)
                    progress.note(f"step {state.step}: held-out accuracy {show(result)}")
                if self._due(self.config.checkpoint_every) or interrupt.requested:
                    self.checkpoint()
                if interrupt.requested:
                    self.run.finish("interrupted")
                    raise Interrupted(
                        f"stopped at step {state.step}; continue with: "
                        f"ponder train rl --config {self.run.path / self.config_name} --resume"
                    )
                self._show(progress, step)
        self.checkpoint()
        final = self.run.path / "model"
        save(self.trainer.model, final, replace=True)
        release_threads()
        return final

    def _total(self) -> float | None:
        return None if self.config.minutes is not None else self.config.steps

    def _due(self, every: int) -> bool:
        step = self.trainer.state.step
        return step == self.config.steps or (every > 0 and step % every == 0)

    def _resolve(self, step_seconds: float, elapsed: float) -> None:
        assert self.config.minutes is not None
        left = self.config.minutes * 60 - elapsed
        steps = max(self.trainer.state.step, self.trainer.state.step + int(left / step_seconds))
        self._fix_steps(steps)
        self._write_config()

    def _write_config(self) -> None:
        self.run.write_text(self.config_name, configs.to_toml(dataclasses.replace(self.config, resume=False)))

    def evaluate(self, on_evaluation: Callable[[int, Evaluation], None] = lambda step, result: None) -> Evaluation:
        """Evaluate on the held-out problems, the same seeds each time, and add a point to the train-compute curve."""
        trainer, state = self.trainer, self.trainer.state
        result = sync.run(
            evaluate(self.eval_strategy, trainer.environment, trainer.engine, self.held_out, seed=self.config.seed)
        )
        self.evaluations.append(
            {
                "step": state.step,
                "flops": state.flops,
                "sampled_tokens": state.sampled_tokens,
                "accuracy": result.accuracy.value,
                "low": result.accuracy.low,
                "high": result.accuracy.high,
                "n": result.accuracy.n,
            }
        )
        self.results[state.step] = result
        self.run.write_json("curves.json", {"train": self.evaluations, "seed": self.config.seed})
        on_evaluation(state.step, result)
        return result

    def checkpoint(self) -> checkpoint.Checkpoint:
        state = self.trainer.state
        steps = None if self.config.minutes is not None else self.config.steps
        saved = checkpoint.write(
            self.run.checkpoints,
            self.trainer.model,
            self.trainer.optimiser,
            {
                "step": state.step,
                "steps": steps,
                "loop": dataclasses.asdict(state),
                "evaluations": self.evaluations,
            },
            keep=self.config.keep_checkpoints,
        )
        release_threads()
        return saved

    def _last_good(self) -> str:
        whole = sorted(self.run.checkpoints.glob("step-*"))
        return f"the last good checkpoint is {whole[-1]}" if whole else "no checkpoint was written before it"

    # Writing and showing ------------------------------------------------------------------------------------------

    def _record(self, step: Step) -> None:
        self.run.log(step.row)
        count = self.config.record_problems
        for samples, advantages in list(zip(step.groups, step.advantages, strict=True))[: None if count < 0 else count]:
            self.run.log_rollout(
                {
                    "step": step.row["step"],
                    "problem_id": samples[0].problem.id,
                    "prompt": to_json(samples[0].problem.prompt),
                    "samples": [
                        _sample_row(s, a, self.config.record_tokens) for s, a in zip(samples, advantages, strict=True)
                    ],
                }
            )

    def _show(self, progress: Progress, step: Step) -> None:
        row = step.row
        progress.update(
            row["step"],
            total=self._total(),
            reward=f"{row['reward']:.3f}",
            length=f"{row['length']:.1f}",
            truncated=f"{row['truncated']:.0%}" if row["truncated"] else None,
            entropy=None if row["entropy"] is None else f"{row['entropy']:.2f}",
            tokens_per_s=row["response_tokens"] / row["seconds"],
        )

    def close(self) -> None:
        sync.run(self.trainer.engine.close())


def _sample_row(sample: Sample, advantage: float, tokens: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "text": sample.completion.text,
        "finish_reason": sample.completion.finish_reason.value,
        "verdict": sample.verdict.kind.value,
        "reason": sample.verdict.reason,
        "reward": sample.verdict.reward,
        "advantage": advantage,
        "tokens": sample.completion.spend.response_tokens,
    }
    if tokens:
        transcript = sample.completion.transcript
        row.update(ids=list(transcript.ids), mask=list(transcript.loss_mask), logprobs=list(transcript.logprobs))
    return row


def _check_context(trainer: Trainer, model: LoadedModel, held_out: Sequence[Problem]) -> None:
    """Refuse a thought budget that cannot fit the context before anything is made."""
    response = sum(int(getattr(trainer.strategy, f, 0)) for f in ("thought_tokens", "answer_tokens", "max_tokens"))
    prompt = max(len(model.prompt_ids(p.prompt)) for p in held_out[:50])
    if prompt + response > model.info.context:
        raise UserError(
            f"strategy_options: prompts of {prompt} tokens and responses of {response} do not fit the context of "
            f"{model.info.context} tokens of {model.info.name}"
        )


def show(result: Evaluation) -> str:
    """`42.0 % (38 to 46, n 500)`."""
    a = result.accuracy
    return f"{a.value:.1%} ({a.low:.1%} to {a.high:.1%}, n {a.n})"


def summary(loop: RLRun) -> dict[str, Any]:
    """What the report says of a finished run."""
    first, last, state = loop.evaluations[0], loop.evaluations[-1], loop.trainer.state

    def cell(point: dict[str, Any]) -> str:
        return f"{point['accuracy']:.1%} ({point['low']:.1%} to {point['high']:.1%}, n {point['n']})"

    facts: dict[str, Any] = {"Held-out accuracy before": cell(first), "Held-out accuracy after": cell(last)}
    before, after = loop.results.get(0), loop.results.get(state.step)
    if before is not None and after is not None:  # not so in a resumed run
        gain = paired_difference(after.correct_P, before.correct_P, loop.config.seed)
        facts["Gain (paired)"] = f"{gain.value * 100:+.1f} points ({gain.low * 100:+.1f} to {gain.high * 100:+.1f})"
        facts.update(moves(before, after))
    return {
        "title": f"RL: {loop.config.model} on {loop.config.environment}",
        "facts": {**facts, "Steps": state.step},
        "cost": [
            {
                "phase": "training",
                "seconds": state.seconds,
                "sampled_tokens": state.sampled_tokens,
                "trained_tokens": state.trained_tokens,
                "flops": state.flops,
            }
        ],
    }


def moves(before: Evaluation, after: Evaluation) -> dict[str, int]:
    """How many problems went from which verdict to which, where rightness changed: the gain split by its origin."""
    found: Counter[str] = Counter()
    for a, b in zip(before.rows, after.rows, strict=True):
        if (a.kinds[0] is VerdictKind.CORRECT) != (b.kinds[0] is VerdictKind.CORRECT):
            found[f"{a.kinds[0].value} to {b.kinds[0].value}"] += 1
    return dict(sorted(found.items()))


def train(config: RLConfig) -> Path:
    """Run `ponder train rl`; returns the folder of the finished model."""
    loop = RLRun.begin(config)
    try:
        with loop.run:
            final = loop.train()
            loop.run.write_json("summary.json", summary(loop))
    finally:
        loop.close()
    return final
