"""The run of `ponder train rl`: run directory, held-out evaluation, checkpoints, resume, progress."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder import config as configs
from ponder import figures, numbers, registry, sync
from ponder.engines.torch.engine import TorchEngine
from ponder.environments.loading import problem_at
from ponder.errors import PonderError, TrainingDiverged
from ponder.evaluation import results
from ponder.evaluation.compare import moves
from ponder.evaluation.evaluate import Evaluation, Plan, evaluate
from ponder.evaluation.intervals import OF_PROBLEMS, paired_difference
from ponder.models.host import release_threads, reuse_freed_memory
from ponder.models.load import load_weights
from ponder.models.save import save
from ponder.runs.progress import Progress
from ponder.runs.run import Run
from ponder.search.record import to_row
from ponder.training import cadence, checkpoint
from ponder.training.interrupt import Interrupt, Interrupted
from ponder.training.pace import Pace
from ponder.training.rl import RLState, Step, Trainer
from ponder.training.rl_checks import checked, first_requests, source_of, with_strategy
from ponder.training.rl_config import RLConfig
from ponder.training.rl_resume import config_path, continued
from ponder.training.rollouts import refuse_untrainable
from ponder.training.signal import RECENT, rewards, signal, warning
from ponder.training.source import EngineSource
from ponder.training.start import trained
from ponder.types import Estimate, VerdictKind, to_json

if TYPE_CHECKING:
    from ponder.protocols import Strategy
    from ponder.types import Problem

VERB = "train rl"


@dataclass
class RLRun:
    """A trainer in its run directory. `prepare`, then `start`, then `train`; close it after."""

    config: RLConfig
    trainer: Trainer
    source: EngineSource
    eval_strategy: Strategy
    held_out: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    """What was filled in, for the console."""
    _run: Run | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Points of the train-compute curve so far."""
    results: dict[int, Evaluation] = field(default_factory=dict)
    """Held-out evaluations of this process, by step."""
    before: tuple[str, ...] = ()
    """Verdicts of the first evaluation, by problem."""
    after: tuple[str, ...] = ()
    """Verdicts of the newest evaluation, by problem."""
    config_name: str = "config.toml"
    command: str = ""
    """What continues an interrupted run; empty for `ponder train rl` with the run's config."""
    recent: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=RECENT))
    """Metrics of this process's newest steps."""
    warned: bool = False
    reserve: Callable[[], float] = lambda: 0.0
    """Seconds of the time limit that are kept for what the caller does after training; asked again at each step."""
    clock: Callable[[], float] = time.monotonic
    pace: Pace | None = None
    """Of a run with a time limit, once `train` is called."""

    @classmethod
    def prepare(cls, config: RLConfig, *, within: bool = False) -> RLRun:
        """Build everything that can fail before a run directory is touched; `within` another command's run or not.

        Raises `UserError`; what needs no model is checked first, all of it, since loading one takes long.
        """
        if config.resume:
            config = continued(config)
        config = dataclasses.replace(config, steps=config.planned_steps)
        known = checked(config, new=not (config.resume or within))
        environment, held_out = known.environment, known.held_out
        reuse_freed_memory()
        model = config.load(config.seed)
        if config.raw_prompts:
            model.take_plain_prompts()
        config = with_strategy(known.config, model.thought is not None)
        notes = known.notes
        if config.strategy == "direct" and not known.config.strategy:
            said = " ".join(f"{k}={v}" for k, v in config.strategy_options.items())
            notes = (*notes, f"strategy: direct with {said}, since the model marks no thoughts that could be bounded")
        engine = TorchEngine(
            model,
            max_rows=config.max_rows,
            kv_memory=configs.size(config.kv_memory, "kv_memory"),
            precision=config.precision,
            products=config.products or None,
        )
        source = source_of(config, environment, engine)
        trainer = Trainer(config, model, source)
        eval_strategy: Strategy = registry.build("search.strategies", *config.evaluation)
        seen = held_out or (problem_at(environment, "train", 0),)
        for request in first_requests(source.strategy, engine, seen, source.feedback):
            refuse_untrainable(request.params)
        first_requests(eval_strategy, engine, seen, environment.feedback)
        return cls(trainer.config, trainer, source, eval_strategy, held_out, notes)

    def start(self, run: Run | None = None) -> None:
        """Make or reopen the run directory; within another command's `run` the config is written as `rl.toml`.

        A run that was killed before its first checkpoint is continued from its beginning. Raises `UserError` if the
        directory holds a run already, or none to continue.
        """
        if run is not None:
            self.config_name = "rl.toml"
        if self.config.resume:
            self.config_name = config_path(self.config.out).name
            self._run = run or Run.open(self.config.out)
            saved = checkpoint.last(self._run.checkpoints)
            if saved is not None:
                self._restore(saved)
            else:  # killed before its first checkpoint
                self._run.truncate_after(0)
                self._run.note(**self._facts())
            return
        overwrite = self.config.overwrite
        self.config = dataclasses.replace(self.config, overwrite=False)
        text = configs.to_toml(self.config)
        self._run = run or Run.create(self.config.out, text, self.config.seed, overwrite=overwrite)
        self._run.note(**self._facts())

    def _facts(self) -> dict[str, Any]:
        """For the manifest: the model, and the parts with the options that the config leaves to them."""
        c, trainer = self.config, self.trainer
        parts = {
            "strategy": (c.strategy, self.source.strategy),
            "eval_strategy": (c.evaluation[0], self.eval_strategy),
            "advantage": (c.advantage, trainer.advantage),
            "loss": (c.loss, trainer.loss),
        }
        named = {kind: {"name": name, "options": registry.options_of(part)} for kind, (name, part) in parts.items()}
        return {"model": trainer.model.facts(), "sampler": getattr(self.source.engine, "products", {}), **named}

    @property
    def run(self) -> Run:
        assert self._run is not None, "start() comes first"
        return self._run

    def _restore(self, saved: checkpoint.Checkpoint) -> None:
        trainer = self.trainer
        load_weights(trainer.model, saved.model)
        saved.restore_optimiser(trainer.optimiser)
        trainer.state = configs.from_mapping(RLState, saved.state["loop"], where=str(saved.path))
        self.evaluations = list(saved.state["evaluations"])
        self.before, self.after = (tuple(saved.state.get(k, ())) for k in ("before", "after"))
        sync.run(trainer.publish())
        self.run.truncate_after(trainer.state.step)

    def limit(self, *, minutes: float | None = None, steps: int | None = None) -> None:
        """Give the loop a time limit, a number of steps, or both, before it begins."""
        self._change(minutes=minutes, steps=steps)

    def _change(self, **fields: Any) -> None:
        self.config = self.trainer.config = dataclasses.replace(self.config, **fields)

    # The loop -----------------------------------------------------------------------------------------------------

    def train(self) -> Path:
        """Train to the end; returns the folder of the finished model.

        Raises `Interrupted` after a checkpoint on Ctrl-C, with the command to continue; `TrainingDiverged` with the
        step and the last good checkpoint.
        """
        state = self.trainer.state
        if self.config.minutes is not None:
            self.pace = Pace(self.config.minutes * 60, state.spend.seconds + state.evaluation.seconds, self.clock)
        elif self.config.eval_every is None and self.config.steps is not None:
            self._change(eval_every=cadence.eval_every(self.config.steps))
        self.trainer.record = self._record
        self._write_config()
        settings = configs.to_mapping(self.config)
        self.run.track(self.config.track, settings, lambda t: print(t, file=sys.stderr), resumed=self.config.resume)
        with Interrupt() as interrupt, Progress(VERB, self._total(), unit="steps") as progress:
            began_at = checkpoint.resumed_at(state.step, self.config.steps) if self.config.resume else ()
            for line in (*began_at, *self.notes, *trained(self.trainer.model), self.trainer.rate.said):
                progress.note(line)
            if not state.step and not self.evaluations:
                if self.held_out:
                    progress.note(f"before training: held-out accuracy {show(self.evaluate())}")
                self.checkpoint()
            while self._goes_on() and not interrupt.requested:
                began = self.clock()
                step = self._step()
                seconds = self.clock() - began
                if self._evaluates_now():
                    progress.note(f"step {state.step}: held-out accuracy {show(self.evaluate())}")
                if state.step % self.config.checkpoint_every == 0 or interrupt.requested:
                    self.checkpoint()
                if self.pace is not None:
                    self.pace.took(seconds)
                    if self._resolve(self.pace.decay(self.config, state.step, self._kept())):
                        progress.note(f"the learning rate falls from step {self.config.decay_from} on")
                self._show(progress, step)
                self._warn(progress)
            if interrupt.requested:
                self.run.finish("interrupted")
                raise Interrupted(f"stopped at step {state.step}; continue with: {self._command()}")
            self._last(progress)
        final = self.run.path / "model"
        save(self.trainer.model, final, replace=True)
        release_threads()
        return final

    def _goes_on(self) -> bool:
        """Whether there is another step: at least one, then as long as steps and time are left."""
        step = self.trainer.state.step
        if self.config.steps is not None and step >= self.config.steps:
            return False
        return not step or self.pace is None or self.pace.next_fits(self._kept())

    def _kept(self) -> float:
        """Seconds to keep for the evaluation of the last step and for what comes after training."""
        return self.reserve() + self._look()

    def _look(self) -> float:
        """Seconds of the newest held-out evaluation of this process; 0 without one."""
        return next((e.run_seconds for e in reversed(self.results.values())), 0.0)

    def _evaluates_now(self) -> bool:
        """Whether a held-out evaluation is due."""
        step = self.trainer.state.step
        if self.pace is not None:
            self._resolve(self.pace.eval_every(self.config, step, self._look(), self._kept()))
        every = self.config.eval_every
        return bool(self.held_out) and bool(every) and step % (every or 1) == 0

    def _resolve(self, fields: Mapping[str, int | None]) -> bool:
        """Put what the clock decided into the config, at once, so that a resumed run keeps to it."""
        if fields:
            self._change(**fields)
            self._write_config()
        return bool(fields)

    def _last(self, progress: Progress) -> None:
        """What follows the last step: the numbers of the run, its evaluation, a checkpoint."""
        step = self.trainer.state.step
        if self.pace is not None:
            if self.config.steps is None or step < self.config.steps:
                progress.note(f"{step} steps fitted the time")
            self._resolve(self.pace.resolved(self.config, step))
        stale = bool(self.held_out) and self.evaluations[-1]["step"] != step
        if stale:
            progress.note(f"step {step}: held-out accuracy {show(self.evaluate())}")
        if stale or checkpoint.last_step(self.run.checkpoints) != step:
            self.checkpoint()
        self._warn(progress, last=True)

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
        """Steps of the run, as far as that is known."""
        step = self.trainer.state.step
        if self.pace is None:
            return self.config.steps
        return step + self.pace.steps_left(self.config, step, self._kept()) if step else None

    def _write_config(self) -> None:
        self.run.write_config(self.config_name, configs.to_toml(dataclasses.replace(self.config, resume=False)))

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
        state.evaluation = dataclasses.replace(total, seconds=state.evaluation.seconds + result.run_seconds)
        self.run.write_json(
            "curves.json", {"train": self.evaluations, "seed": self.config.seed, "interval": OF_PROBLEMS}
        )
        self.after = tuple(r.kinds[0].value for r in result.rows)
        self.before = self.before or self.after
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
                "after": self.after,
            },
            keep=self.config.keep_checkpoints,
        )
        release_threads()
        return saved

    # Writing and showing ------------------------------------------------------------------------------------------

    def _record(self, step: Step) -> None:
        self.run.log(step.row)
        self.recent.append(step.row)
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
            left=None if self.pace is None else self.pace.seconds_left(self.config, row["step"], self.reserve()),
            reward=f"{row['reward']:.3f}",
            length=f"{row['length']:.1f}",
            truncated=numbers.percent(row["truncated"]) if row["truncated"] else None,
            signal=numbers.percent(row["signal"]),
            failures=row["verdicts"].get(VerdictKind.JUDGE_ERROR.value),
            entropy=None if row["entropy"] is None else f"{row['entropy']:.2f}",
            response_tokens_per_s=row["response_tokens"] / row["seconds"],
        )

    def _warn(self, progress: Progress, *, last: bool = False) -> None:
        """Say once that there is hardly anything to learn."""
        if self.warned or not (last or len(self.recent) == RECENT):
            return
        if said := warning(signal(self.recent)):
            progress.note(f"warning: {said}")
            self.warned = True

    def close(self) -> None:
        sync.run(self.source.engine.close())


def show(result: Evaluation) -> str:
    """`42.0 % [38.0, 46.0], n = 500`, and what could not be judged."""
    failed = f"; {result.failures}" if result.failures else ""
    return f"{figures.text('accuracy', result.accuracy)}, n = {result.accuracy.n:,}{failed}"


def summary(loop: RLRun) -> dict[str, Any]:
    """What the report says of a finished run."""
    facts: dict[str, Any] = {}
    gain: Estimate | None = None
    if loop.evaluations:
        first, last = loop.evaluations[0], loop.evaluations[-1]
        facts |= {"Held-out accuracy before": _cell(first), "Held-out accuracy after": _cell(last)}
    both = zip(loop.before, loop.after, strict=False) if len(loop.before) == len(loop.after) else ()
    judged = [pair for pair in both if VerdictKind.JUDGE_ERROR not in pair]
    if judged:
        was_right, right = ([float(k == VerdictKind.CORRECT) for k in side] for side in zip(*judged, strict=True))
        gain = paired_difference(right, was_right)
        facts["Gain (paired)"] = numbers.difference(gain)
        facts |= moves(*zip(*judged, strict=True))
    rows = loop.run.metrics().rows
    found = signal(rows)
    facts["Steps"] = loop.trainer.state.step
    if found.groups:
        facts["Groups with a signal"] = f"{numbers.percent(found.share)} ({found.with_signal:,} of {found.groups:,})"
        facts |= rewards([row["reward"] for row in rows])
    if failed := found.verdicts.get(VerdictKind.JUDGE_ERROR.value):
        facts["Failed judgements"] = f"{failed:,} of {found.samples:,} in training (rollouts.jsonl says why)"
    few = warning(found) or warning(signal(rows[-RECENT:]))
    return {
        "title": f"RL: {loop.config.model} on {loop.config.environment}",
        "facts": facts,
        **({} if gain is None else {"gain": to_json(gain)}),
        "warnings": [w for w in (few, loop.trainer.rate.said if loop.trainer.rate.far else "") if w],
        "cost": cost(loop),
    }


def _cell(point: dict[str, Any]) -> str:
    accuracy = Estimate(point["accuracy"], point["low"], point["high"], point["n"])
    return f"{figures.text('accuracy', accuracy)}, n = {accuracy.n:,}"


def cost(loop: RLRun) -> list[dict[str, Any]]:
    """What training and the evaluations during it took, as the report shows it."""
    state = loop.trainer.state
    phases = {"training": state.spend}
    if loop.held_out:
        phases["evaluation during training"] = state.evaluation
    # A phase's seconds are wall-clock time here, not those of its calls.
    return [results.cost(phase, spend, spend.seconds) for phase, spend in phases.items()]


def train(config: RLConfig) -> Path:
    """Run `ponder train rl`; returns the folder of the finished model."""
    loop = RLRun.prepare(config)
    try:
        loop.start()
        with loop.run:
            final = loop.train()
            loop.run.write_json("summary.json", summary(loop))
    finally:
        loop.close()
    return final
