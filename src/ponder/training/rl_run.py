"""The run of `ponder train rl`: run directory, held-out evaluation, checkpoints, resume, progress."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder import config as configs
from ponder import registry, sync
from ponder.engines.torch.engine import TorchEngine
from ponder.environments.loading import first_problems, size_of
from ponder.errors import PonderError, TrainingDiverged, UserError
from ponder.evaluation.compare import moves
from ponder.evaluation.evaluate import Evaluation, Plan, evaluate
from ponder.evaluation.intervals import OF_PROBLEMS, paired_difference
from ponder.models.host import release_threads, reuse_freed_memory
from ponder.models.load import load
from ponder.models.save import save
from ponder.protocols import Feedback, Generate, SearchContext
from ponder.runs import trackers
from ponder.runs.progress import Progress
from ponder.runs.run import Run, refuse_existing
from ponder.search.record import to_row
from ponder.search.runner import check_turns
from ponder.training import checkpoint
from ponder.training.interrupt import Interrupt, Interrupted
from ponder.training.rl import PROBE_STEPS, RLState, Step, Trainer
from ponder.training.rl_config import RLConfig
from ponder.training.rollouts import refuse_untrainable
from ponder.training.source import EngineSource
from ponder.types import VerdictKind, to_json

if TYPE_CHECKING:
    from ponder.protocols import Engine, Environment, Strategy
    from ponder.types import Problem, Request


@dataclass
class RLRun:
    """A trainer in its run directory. `prepare`, then `start`, then `train`; close it after."""

    config: RLConfig
    trainer: Trainer
    source: EngineSource
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
        trackers.names(config.track)
        reuse_freed_memory()
        if config.resume:
            configs.refuse_changed(config, _config_path(config.out), FREE)
        environment: Environment = registry.build("environments", config.environment, config.environment_options)
        model = load(config.model)
        if config.raw_prompts:
            model.take_plain_prompts()
        engine = TorchEngine(model, max_rows=config.max_rows, kv_memory=configs.size(config.kv_memory, "kv_memory"))
        source = source_of(config, environment, engine)
        trainer = Trainer(config, model, source)
        eval_strategy: Strategy = registry.build("search.strategies", *config.evaluation)
        size = size_of(environment, "test")
        if size is not None and size < config.eval_problems:
            raise UserError(f"eval_problems = {config.eval_problems}: {config.environment} has {size} test problems")
        held_out = tuple(first_problems(environment, "test", config.eval_problems))
        for request in _first_requests(source.strategy, engine, held_out, source.feedback):
            refuse_untrainable(request.params)
        _first_requests(eval_strategy, engine, held_out, environment.feedback)
        return cls(config, trainer, source, eval_strategy, held_out)

    def start(self, run: Run | None = None) -> None:
        """Make or reopen the run directory; within another command's `run` the config is written as `rl.toml`.

        A run that was killed before its first checkpoint is continued from its beginning. Raises `UserError` if the
        directory holds a run already, or none to continue.
        """
        if run is not None:
            self.config_name = "rl.toml"
        if self.config.resume:
            self.config_name = _config_path(self.config.out).name
            self._run = run or Run.open(self.config.out)
            saved = checkpoint.last(self._run.checkpoints)
            if saved is not None:
                self._restore(saved)
            else:  # killed before its first checkpoint
                self._run.truncate_after(0)
                self._run.note(model=self.trainer.model.facts())
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
        sync.run(trainer.publish())
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
        self.trainer.record = self._record
        self._write_config()
        settings = configs.to_mapping(self.config)
        self.run.track(self.config.track, settings, lambda t: print(t, file=sys.stderr), resumed=self.config.resume)
        with Interrupt() as interrupt, Progress("rl", self._total(), unit="steps") as progress:
            if not self.evaluations:
                progress.note(f"before training: held-out accuracy {show(self.evaluate())}")
                self.checkpoint()
            while (state.step < self.config.steps or self.config.minutes is not None) and not interrupt.requested:
                step = self._step()
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
        """One step; on an error the run can be resumed."""
        state = self.trainer.state
        try:
            return sync.run(self.trainer.step())
        except TrainingDiverged as error:
            where = checkpoint.last_name(self.run.checkpoints)
            raise TrainingDiverged(f"step {state.step + 1}: {error}; {where}") from None
        except PonderError as error:
            # In the middle of a step the weights belong to no step: the run goes on from the checkpoint before it.
            if self.trainer.settled:
                with contextlib.suppress(PonderError):
                    self.checkpoint()
            # The same error with more to say: an error's class may take other arguments than a message.
            error.args = (f"{error}; once that is fixed, continue with: {self._command()}",)
            raise

    def _command(self) -> str:
        return self.command or f"ponder train rl --config {shlex.quote(str(self.run.path / self.config_name))} --resume"

    def _total(self) -> float | None:
        return None if self.config.minutes is not None else self.config.steps

    def _due(self, every: int) -> bool:
        step = self.trainer.state.step
        last = self.config.minutes is None and step == self.config.steps
        return last or (every > 0 and step % every == 0)

    def _resolve(self, step_seconds: float, elapsed: float) -> None:
        """Turn the minutes that are left into steps, less the time of the evaluations during and after training."""
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
        source, state = self.source, self.trainer.state
        result = sync.run(
            evaluate(self.eval_strategy, source.environment, source.engine, self.held_out, Plan(seed=self.config.seed))
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
        sync.run(source.engine.drop_caches())
        self.results[state.step] = result
        total = state.evaluation + result.spend
        state.evaluation = dataclasses.replace(total, seconds=state.evaluation.seconds + result.seconds)
        self.run.write_json(
            "curves.json", {"train": self.evaluations, "seed": self.config.seed, "interval": OF_PROBLEMS}
        )
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
        for group, credits in list(zip(step.groups, step.credits, strict=True))[: None if count < 0 else count]:
            extra = {
                s.leaf: {"reward": s.reward, "advantage": c.shown(s.transcript)}
                for s, c in zip(group.samples, credits, strict=True)
            }
            row = to_row(group.problem, group.outcome, extra=extra, logprobs=self.config.record_tokens)
            self.run.log_rollout({"step": step.row["step"], **row})

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
        sync.run(self.source.engine.close())


def _config_path(out: str) -> Path:
    """The config that a run's training was started with."""
    folder = Path(out)
    return folder / "rl.toml" if (folder / "rl.toml").exists() else folder / "config.toml"


FREE = (
    "resume",
    "out",
    "steps",
    "minutes",
    "checkpoint_every",
    "keep_checkpoints",
    "record_problems",
    "record_tokens",
    "track",
)
"""Fields that may differ when a run is continued."""


def source_of(config: RLConfig, environment: Environment, engine: Engine) -> EngineSource:
    """The rollouts of a run. Raises `UserError` if the strategy cannot make them, or there are too few problems."""
    if "n" in config.strategy_options:
        raise UserError("strategy_options: n is the group size; give it as group_size")
    options = {**config.rollout_options, "n": config.group_size}
    strategy: Strategy = registry.build("search.strategies", config.strategy, options)
    size = size_of(environment, "train")
    if size is not None and size < config.problems:
        raise UserError(
            f"{config.environment}: {size} training problems are fewer than the {config.problems} of a step"
        )
    return EngineSource(strategy, environment, engine, config.group_size, config.resample, config.seed)


def _first_requests(
    strategy: Strategy, engine: Engine, held_out: Sequence[Problem], feedback: Feedback
) -> list[Request]:
    """What a search would request first for the longest problem; nothing is sent to the engine.

    Raises `UserError` if its responses do not fit the context.
    """
    longest = max(held_out, key=lambda p: engine.count_tokens(p.prompt))
    check_turns(strategy, feedback, longest)
    search = strategy.start(
        longest,
        SearchContext(
            engine.info,
            engine.capabilities,
            0,
            bool(feedback.checker),
            bool(feedback.scorer),
            turns=feedback.episode is not None,
        ),
    )
    requests = [ask.work.request for ask in search.ask() if isinstance(ask.work, Generate)]
    for request in requests:
        prompt, response = engine.count_tokens(request.prompt), request.params.max_tokens
        if prompt + response > engine.info.context:
            raise UserError(
                f"strategy_options: prompts of {prompt} tokens and responses of {response} do not fit the context of "
                f"{engine.info.context} tokens of {engine.info.name}"
            )
    return requests


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
        gain = paired_difference(right, was_right)
        facts["Gain (paired)"] = f"{gain.value * 100:+.1f} points ({gain.low * 100:+.1f} to {gain.high * 100:+.1f})"
        facts.update(moves(loop.before, kinds))
    return {
        "title": f"RL: {loop.config.model} on {loop.config.environment}",
        "facts": {**facts, "Steps": state.step},
        "cost": cost(loop),
    }


def cost(loop: RLRun) -> list[dict[str, Any]]:
    """What training and the evaluations during it took, as the report shows it."""
    state = loop.trainer.state
    return [
        {"phase": "training", **to_json(state.spend)},
        {"phase": "evaluation during training", **to_json(state.evaluation)},
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
