"""The run of `ponder train rl`: run directory, held-out evaluation, checkpoints, resume, progress."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder import config as configs
from ponder import registry, sync
from ponder.engines.torch.engine import TorchEngine
from ponder.errors import PonderError, TrainingDiverged, UserError
from ponder.evaluation.compare import moves
from ponder.evaluation.evaluate import Evaluation, Plan, evaluate
from ponder.evaluation.intervals import paired_difference
from ponder.models.host import release_threads, reuse_freed_memory
from ponder.models.load import load
from ponder.models.save import save
from ponder.protocols import WeightsUpdate
from ponder.runs.progress import Progress
from ponder.runs.run import Run, refuse_existing
from ponder.training import checkpoint
from ponder.training.interrupt import Interrupt, Interrupted
from ponder.training.rl import PROBE_STEPS, RLState, Step, Trainer
from ponder.training.rl_config import RLConfig
from ponder.training.rollouts import Sample
from ponder.types import VerdictKind, to_json

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel
    from ponder.protocols import Environment, Strategy
    from ponder.types import Problem


@dataclass
class RLRun:
    """A trainer in its run directory. `prepare`, then `start`, then `train`; close it after."""

    config: RLConfig
    trainer: Trainer
    eval_strategy: Strategy
    held_out: tuple[Problem, ...]
    _run: Run | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Points of the train-compute curve so far."""
    results: dict[int, Evaluation] = field(default_factory=dict)
    """Held-out evaluations of this process, by step."""
    before: tuple[str, ...] = ()
    """Verdicts of the first evaluation, by problem."""
    config_name: str = "config.toml"
    command: str = ""
    """What continues an interrupted run; empty for `ponder train rl` with the run's config."""

    @classmethod
    def prepare(cls, config: RLConfig) -> RLRun:
        """Build everything that can fail before a run directory is touched. Raises `UserError`."""
        reuse_freed_memory()
        if config.resume:
            configs.refuse_changed(config, _config_path(config.out), FREE)
        environment: Environment = registry.build("environments", config.environment, config.environment_options)
        model = load(config.model)
        if config.raw_prompts:
            model.take_plain_prompts()
        engine = TorchEngine(model, max_rows=config.max_rows, kv_memory=configs.size(config.kv_memory, "kv_memory"))
        trainer = Trainer(config, model, environment, engine)
        eval_strategy: Strategy = registry.build("search.strategies", *config.evaluation)
        size = environment.size("test")
        if size is not None and size < config.eval_problems:
            raise UserError(f"eval_problems = {config.eval_problems}: {config.environment} has {size} test problems")
        held_out = tuple(environment.problem("test", i) for i in range(config.eval_problems))
        _check_context(model, (trainer.strategy, eval_strategy), held_out)
        return cls(config, trainer, eval_strategy, held_out)

    def start(self, run: Run | None = None) -> None:
        """Make or reopen the run directory; within another command's `run` the config is written as `rl.toml`.

        Raises `UserError` if the directory holds a run already, or none to continue.
        """
        if run is not None:
            self.config_name = "rl.toml"
        if self.config.resume:
            saved = checkpoint.last(Path(self.config.out) / "checkpoints")
            self.config_name = _config_path(self.config.out).name
            self._run = run or Run.open(self.config.out)
            self._restore(saved)
            return
        self._run = run or Run.create(self.config.out, configs.to_toml(self.config), self.config.seed)
        self._run.note(model=self.trainer.model.facts())

    @property
    def run(self) -> Run:
        assert self._run is not None, "start() comes first"
        return self._run

    def _restore(self, saved: checkpoint.Checkpoint) -> None:
        trainer = self.trainer
        trainer.model.module.load_state_dict(load(str(saved.model)).module.state_dict())
        saved.restore_optimiser(trainer.optimiser)
        trainer.state = configs.from_mapping(RLState, saved.state["loop"], where=str(saved.path))
        self.evaluations = list(saved.state["evaluations"])
        self.before = tuple(saved.state["before"])
        sync.run(trainer.engine.load_weights(WeightsUpdate(trainer.model.module, trainer.state.step)))
        self.run.truncate_after(trainer.state.step)

    def limit(self, *, minutes: float | None = None, steps: int | None = None) -> None:
        """Give the loop a time limit, or a number of steps, before it begins."""
        steps = self.config.steps if steps is None else steps
        self.config = self.trainer.config = dataclasses.replace(self.config, minutes=minutes, steps=steps)

    # The loop -----------------------------------------------------------------------------------------------------

    def train(self) -> Path:
        """Train to the end; returns the folder of the finished model.

        Raises `Interrupted` after a checkpoint on Ctrl-C, with the command to continue; `TrainingDiverged` with the
        step and the last good checkpoint.
        """
        state = self.trainer.state
        began, seconds = time.monotonic() - state.spend.seconds, []
        self._write_config()
        with Interrupt() as interrupt, Progress("rl", self._total(), unit="steps") as progress:
            if not self.evaluations:
                progress.note(f"before training: held-out accuracy {show(self.evaluate())}")
                self.checkpoint()
            while (state.step < self.config.steps or self.config.minutes is not None) and not interrupt.requested:
                step = self._step()
                self._record(step)
                seconds.append(step.row["seconds"])
                if self.config.minutes is not None and len(seconds) >= PROBE_STEPS:
                    self._resolve(sorted(seconds[2:])[len(seconds[2:]) // 2], time.monotonic() - began)
                    progress.note(f"{self.config.steps} steps fit the time")
                if self._due(self.config.eval_every):
                    progress.note(f"step {state.step}: held-out accuracy {show(self.evaluate())}")
                if self._due(self.config.checkpoint_every) or interrupt.requested:
                    self.checkpoint()
                self._show(progress, step)
            if interrupt.requested:
                self.run.finish("interrupted")
                raise Interrupted(f"stopped at step {state.step}; continue with: {self._command()}")
        final = self.run.path / "model"
        save(self.trainer.model, final, replace=True)
        release_threads()
        return final

    def _step(self) -> Step:
        """One step; on an error what there is can be continued."""
        state = self.trainer.state
        drawn = state.drawn
        try:
            return sync.run(self.trainer.step())
        except TrainingDiverged as error:
            where = checkpoint.last_name(self.run.checkpoints)
            raise TrainingDiverged(f"step {state.step + 1}: {error}; {where}") from None
        except PonderError as error:
            state.drawn = drawn  # nothing was updated: the step can be taken again
            with contextlib.suppress(PonderError):
                self.checkpoint()
            raise type(error)(f"{error}; when that is mended, continue with: {self._command()}") from None

    def _command(self) -> str:
        return self.command or f"ponder train rl --config {shlex.quote(str(self.run.path / self.config_name))} --resume"

    def _total(self) -> float | None:
        return None if self.config.minutes is not None else self.config.steps

    def _due(self, every: int) -> bool:
        step = self.trainer.state.step
        last = self.config.minutes is None and step == self.config.steps
        return last or (every > 0 and step % every == 0)

    def _resolve(self, step_seconds: float, elapsed: float) -> None:
        """Turn the minutes that are left into steps, the evaluations along the way and at the end set aside."""
        assert self.config.minutes is not None
        looks = [e.seconds for e in self.results.values()]
        look = sum(looks) / max(1, len(looks))
        left = self.config.minutes * 60 - elapsed - look
        step_seconds += look / self.config.eval_every if self.config.eval_every else 0.0
        steps = self.trainer.state.step + max(0, int(left / step_seconds))
        self.config = self.trainer.config = dataclasses.replace(self.config, steps=steps, minutes=None)
        self._write_config()

    def _write_config(self) -> None:
        self.run.write_text(self.config_name, configs.to_toml(dataclasses.replace(self.config, resume=False)))

    def evaluate(self) -> Evaluation:
        """Evaluate on the held-out problems, the same seeds each time, and add a point to the train-compute curve."""
        trainer, state = self.trainer, self.trainer.state
        result = sync.run(
            evaluate(
                self.eval_strategy, trainer.environment, trainer.engine, self.held_out, Plan(seed=self.config.seed)
            )
        )
        self.evaluations.append(
            {
                "step": state.step,
                "flops": state.spend.flops,
                "sampled_tokens": state.spend.sampled_tokens,
                "accuracy": result.accuracy.value,
                "low": result.accuracy.low,
                "high": result.accuracy.high,
                "n": result.accuracy.n,
            }
        )
        # A resumed run would lack what the evaluation left in the cache, and differ in the last bits.
        sync.run(trainer.engine.drop_caches())
        self.results[state.step] = result
        total = state.evaluation + result.spend
        state.evaluation = dataclasses.replace(total, seconds=state.evaluation.seconds + result.seconds)
        self.run.write_json("curves.json", {"train": self.evaluations, "seed": self.config.seed})
        self.before = self.before or tuple(r.kinds[0].value for r in result.rows)
        return result

    def checkpoint(self) -> checkpoint.Checkpoint:
        state = self.trainer.state
        saved = checkpoint.write(
            self.run.checkpoints,
            self.trainer.model,
            self.trainer.optimiser,
            {
                "step": state.step,
                "loop": dataclasses.asdict(state),
                "evaluations": self.evaluations,
                "before": self.before,
            },
            keep=self.config.keep_checkpoints,
        )
        release_threads()
        return saved

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


def _config_path(out: str) -> Path:
    """The config that a run's training was started with."""
    folder = Path(out)
    return folder / "rl.toml" if (folder / "rl.toml").exists() else folder / "config.toml"


FREE = ("resume", "out", "steps", "minutes", "checkpoint_every", "keep_checkpoints", "record_problems", "record_tokens")
"""Fields that may differ when a run is continued."""


def _check_context(model: LoadedModel, strategies: Sequence[Strategy], held_out: Sequence[Problem]) -> None:
    """Refuse responses that cannot fit the context before anything is made."""
    prompt = max(len(model.prompt_ids(p.prompt)) for p in held_out)
    for strategy in strategies:
        response = sum(int(getattr(strategy, f, 0)) for f in ("thought_tokens", "answer_tokens", "max_tokens"))
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
    after = loop.results.get(state.step)
    if after is not None:  # not so where a finished run was continued
        kinds = [r.kinds[0].value for r in after.rows]
        right, was_right = ([float(k == VerdictKind.CORRECT) for k in side] for side in (kinds, loop.before))
        gain = paired_difference(right, was_right, loop.config.seed)
        facts["Gain (paired)"] = f"{gain.value * 100:+.1f} points ({gain.low * 100:+.1f} to {gain.high * 100:+.1f})"
        facts.update(moves(loop.before, kinds))
    return {
        "title": f"RL: {loop.config.model} on {loop.config.environment}",
        "facts": {**facts, "Steps": state.step},
        "cost": cost(loop),
    }


def cost(loop: RLRun) -> list[dict[str, Any]]:
    """What training and the evaluations along the way took, as the report shows it."""
    state = loop.trainer.state
    return [
        {"phase": "training", **to_json(state.spend)},
        {"phase": "evaluation along the way", **to_json(state.evaluation)},
    ]


def train(config: RLConfig) -> Path:
    """Run `ponder train rl`; returns the folder of the finished model."""
    if not config.resume:
        refuse_existing(config.out)
    loop = RLRun.prepare(config)
    try:
        loop.start()
        with loop.run:
            final = loop.train()
            loop.run.write_json("summary.json", summary(loop))
    finally:
        loop.close()
    return final
