"""Measure how many problems of an environment a model solves, with an interval and what it cost."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder import figures, numbers, registry
from ponder.cli._budget import budgets_of, check_opening, check_prices, prices_of
from ponder.cli._common import (
    build_strategy,
    check_target,
    engine_options,
    engines_for,
    value_of,
)
from ponder.cli._eval_config import FREE, EvalConfig
from ponder.cli._feedback import feedback_of
from ponder.cli._output import note, say
from ponder.config import parse, refuse_changed
from ponder.environments.loading import first_problems, gold_of, name_of, size_of, with_data
from ponder.errors import PonderError, UserError
from ponder.evaluation.greedy import greedy_by_default
from ponder.show import visible

if TYPE_CHECKING:
    from ponder.cli._evaluation import Job
    from ponder.engines.opening import EngineOptions
    from ponder.evaluation.results import Evaluation
    from ponder.protocols import Environment
    from ponder.runs.run import Run
    from ponder.types import Problem

DESCRIPTION = """Measure how many problems of an environment a model solves: accuracy with its 95 % interval, verdicts
by kind, tokens, seconds, and what a correct answer costs (docs/figures.md says what each figure counts).

examples:
  ponder eval --model ponder-tiny --environment countdown -n 200
  ponder eval --model FILE.gguf --environment gsm8k --data gsm8k-test.jsonl -n 200
  ponder eval --strategy best_of_n --strategy-options n=8 max_tokens=128 --budget-tokens 600 --out runs/best-of-8
  ponder eval --resume --out runs/best-of-8

Every search is written when it ends. An evaluation that is stopped prints what it has, with its interval, and is
resumed with --resume: searches that are missing or ended in an infrastructure error are run, the others are read.
Without --out they are written to runs/eval-DATE-TIME, which is removed once the evaluation has finished. --config
FILE.toml reads the options from a file, such as a run's config.toml; flags win over it.
"""


def check(config: EvalConfig) -> None:
    """Raises `UserError` that names the flag whose value is invalid."""
    for name, least in (("n", 1), ("samples", 1), ("show", 0), ("concurrency", 1), ("max_tokens", 1)):
        value = getattr(config, name)
        if value is not None and value < least:
            flag = "-n" if name == "n" else f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {value}: give at least {least}")
    if config.record is not None:
        check_target("--record", config.record)
    if config.overwrite and (config.resume or config.out is None):
        raise UserError("--overwrite replaces the run in --out: give --out, and not --resume")


def read_config(args: list[str]) -> EvalConfig:
    """The config of the command line; with --resume, flags are added to the run's own."""
    if "--resume" in args:
        out = value_of(args, "--out")
        if out is None:
            raise UserError("--resume needs --out, the run directory of the evaluation to resume")
        from ponder.runs.kinds import refuse_other

        refuse_other(Path(out), "eval")
        file = str(Path(out) / "config.toml")
        config = parse(
            EvalConfig,
            args if value_of(args, "--config") else ["--config", file, *args],
            prog="ponder eval",
            description=DESCRIPTION,
        )
        refuse_changed(config, file, FREE, f"ponder eval --resume --out {config.out}")
        return config
    return parse(EvalConfig, args, prog="ponder eval", description=DESCRIPTION)


def main(args: list[str]) -> int:
    config = read_config(args)
    config = dataclasses.replace(
        config, environment=name_of(config.environment, config.environment_options, config.data)
    )
    check(config)
    asked = engine_options(config)
    budget, total = budgets_of(config)
    check_opening(config, asked, budget, total)
    environment: Environment = registry.build(
        "environments",
        config.environment,
        with_data(config.environment, config.environment_options, config.data),
    )
    config = as_measured(config, environment)
    strategy = build_strategy(config.strategy, config.strategy_options, sampling(config))
    feedback = feedback_of(config, environment)
    from ponder.search.runner import check_turns

    problems = choose(environment, config)
    check_turns(strategy, feedback, problems[0])
    if config.out is not None and not config.resume:
        from ponder.runs.run import refuse_existing

        refuse_existing(config.out, config.overwrite)
    from ponder.cli._evaluation import Job

    job = Job(config, strategy, environment, problems, budget, total, prices_of(config), feedback)
    if config.out is None:
        from ponder.cli._scratch import scratch

        with scratch() as place:
            job = dataclasses.replace(job, config=dataclasses.replace(config, out=str(place.path)), scratch=place)
            result = _evaluated(job, asked)
            place.keep = bool(result.starved)
    else:
        result = _evaluated(job, asked)
    shown = samples(environment, problems, result, config.show)
    if config.json:
        say(json.dumps(summary(job, result), indent=1))
    else:
        say(text(job, result, shown))
    if config.out is not None:
        from ponder.runs.report import render

        _, page = render(config.out)
        note(f"report: {page}")
    return 0


def _evaluated(job: Job, asked: EngineOptions) -> Evaluation:
    """Open the engines and run the evaluation in its directory, which is made after all checks."""
    from ponder.cli._evaluation import open_run
    from ponder.search.runner import begin

    before = job.before()
    opening = job.opening(before)
    with engines_for(asked, opening) as (engine, others):
        check_prices(job.config, (engine, *others.values()))
        before = job.priced(before, (engine, *others.values()))
        before = dataclasses.replace(before, opening=before.opening + opening.spend)
        begin(job.strategy, job.problems[0], engine, job.feedback, job.config.seed, others)
        recording = job.recording(engine)
        try:
            with open_run(job.config) as run:
                result = job.run_in(run, engine, others, before, opening.known, recording)
                _write(run, job, result)
        except PonderError:
            _say_partial(job)
            raise
    return result


def _say_partial(job: Job) -> None:
    """What a stopped evaluation has found so far; nothing if no search has ended."""
    result = job.so_far()
    if result is None:
        return
    config, ended, total = job.config, sum(map(len, (r.kinds for r in result.rows))), len(job.problems)
    total *= config.samples
    if config.json:
        say(json.dumps({"partial": {"ended": ended, "of": total}, **summary(job, result)}, indent=1))
        return
    say(
        f"partial: {ended:,} of {total:,} searches have ended; short ones end first, so the others may come out "
        f"differently\n{text(job, result, [])}"
    )


def sampling(config: EvalConfig) -> dict[str, Any]:
    """The flags that are short for an option of the strategy; None was not given."""
    return {"temperature": config.temperature, "max_tokens": config.max_tokens}


def as_measured(config: EvalConfig, environment: Environment) -> EvalConfig:
    """The config with temperature 0, where the field measures the environment so and nothing else is asked for.

    It is written into the run's config, so a resumed run keeps what it was started with.
    """
    if config.resume or config.temperature is not None:
        return config
    greedy = greedy_by_default(environment, config.strategy, config.strategy_options, config.samples)
    return dataclasses.replace(config, temperature=0.0) if greedy else config


def choose(environment: Environment, config: EvalConfig) -> list[Problem]:
    """The first `n` problems of the split; all of them, with a note on stderr, if there are fewer."""
    size = size_of(environment, config.split)
    if size is not None and 0 < size < config.n:
        has, used = numbers.counted(size, f"{config.split} problem"), "it is" if size == 1 else "all are"
        note(f"note: {config.environment} has {has}, fewer than -n {config.n}: {used} used{_all_rows(environment)}")
    return first_problems(environment, config.split, config.n)


def _all_rows(environment: Environment) -> str:
    """How a user's file is tested on as a whole, where a tenth of it is held out because nothing else was said."""
    if not getattr(environment, "by_default_share", False):
        return ""
    return " (a tenth of the rows; all of them with --environment-options test_share=1)"


def summary(job: Job, result: Evaluation) -> dict[str, Any]:
    """The result without its rows, as plain values."""
    config, values = job.config, result.to_json()
    del values["rows"]
    asked = {"model": config.model, "environment": config.environment, "split": config.split}
    return {**asked, "strategy": config.strategy, "ranking": job.ranking, **values}


def text(job: Job, result: Evaluation, shown: list[dict[str, Any]]) -> str:
    """What is printed: a few responses, then the numbers."""
    config, lines = job.config, []
    for sample in shown:
        response = sample["response"]
        said = visible(response["text"], 1500).strip().replace("\n", "\n  ")
        lines += [f"{sample['problem_id']}: {visible(sample['prompt'], 500)}", f"  {said}"]
        lines += [f"  -> {response['verdict']}: {visible(response['reason'], 300)}", ""]
    asked = f"{config.model} on {config.environment} ({config.split})"
    facts = [*_sampled(config), *result.facts()]
    if result.starved:
        facts.append((figures.label("starved"), _starved(config, result)))
    wide = max(len(name) for name, _ in facts)
    lines.append(f"{asked}, {job.name}, seed {config.seed}")
    return "\n".join([*lines, *(f"{name:<{wide}}  {said}" for name, said in facts)])


def _sampled(config: EvalConfig) -> list[tuple[str, str]]:
    """How responses were sampled, where it is not the strategy's own way."""
    parts = []
    if config.temperature is not None:
        parts.append("greedy (temperature 0)" if config.temperature == 0 else f"temperature {config.temperature:g}")
    if config.max_tokens is not None:
        parts.append(f"at most {config.max_tokens:,} tokens per response")
    return [("sampling", ", ".join(parts))] if parts else []


def _starved(config: EvalConfig, result: Evaluation) -> str:
    """How many searches the total budget stopped or refused, and the command that runs them."""
    flags = [f for f in ("total_tokens", "total_seconds", "total_dollars") if getattr(config, f) is not None]
    more = " ".join(f"--{f.replace('_', '-')} MORE" for f in flags)
    said = f"{result.starved:,} searches, by the total budget"
    return f"{said}; continue with: ponder eval --resume --out {shlex.quote(config.out or '')} {more}"


def samples(
    environment: Environment, problems: Sequence[Problem], result: Evaluation, count: int
) -> list[dict[str, Any]]:
    """The first `count` problems with their first response, as `samples.json` has them."""
    from ponder.types import to_json

    return [
        {
            "problem_id": row.id,
            "prompt": to_json(problem.prompt),
            "gold": to_json(gold_of(environment, problem).answer),
            "response": {"text": row.texts[0], "verdict": row.kinds[0].value, "reason": row.reasons[0]},
        }
        for problem, row in list(zip(problems, result.rows, strict=True))[:count]
    ]


def _write(run: Run, job: Job, result: Evaluation) -> None:
    """The numbers, and what the report shows besides the searches."""
    from ponder.cli._evaluation import less
    from ponder.evaluation.results import cost

    config = job.config
    run.write_json("evaluation.json", summary(job, result))
    run.write_json("samples.json", samples(job.environment, job.problems, result, max(config.show, 8)))
    facts = {
        "model": config.model,
        "engine": config.engine,
        "environment": f"{config.environment} ({config.split})",
        "strategy": job.name,
        **{name: said for name, said in result.facts() if name != "verdicts"},
    }
    rest = result.run_seconds - result.opening.seconds
    phases = [cost("evaluation", less(result.spend, result.opening), rest)]
    if result.opening.tokens:
        phases.insert(0, cost("opening: finding out what the model can do", result.opening, result.opening.seconds))
    if result.lost.tokens:
        phases.append(cost("searches that failed or were stopped", result.lost, 0.0))
    title = f"{config.model} on {config.environment}"
    run.write_json("summary.json", {"title": title, "facts": facts, "verdicts": result.kinds, "cost": phases})
