"""Whole steps of reinforcement learning compared with TRL's GRPO: the same weights, problems, lengths, batch and rate.

    python benchmarks/rl_step.py [--peer-python PY] [--rounds 6] [--only TEXT] [--trl-micro 64,128]
                                 [--micro-tokens N] [--json] [--quick]

Two tasks: a Llama of 1 million random parameters with 512 completions a step (32 prompts × 16) of 20 to 100 tokens, and
SmolLM2-135M with 64 completions (8 × 8) of 64 tokens. A file of problems says how long each completion is: ponder
sends one request a sample with that `max_tokens` and a model without end ids; in TRL a logits processor forbids the end
token before the length and forces it there. Float32, AdamW, one optimiser step a batch, no reference model, no
gradient checkpointing on either side unless `--checkpointing` asks for it on both.

Each side is a process that stays up and waits, blocked on a pipe, while the other takes its step; 2 steps of warm-up
are not timed. TRL's micro-batch is the faster of those in `--trl-micro`. Peak memory is resident memory from after
the load to the end, warm-up included. ponder's step itself compares its samples with the trainer's log-probabilities
(`mismatch_max`, before the update): above 1e-4 the row says so and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _compare import Printer, Row, alternate, compare, paired_ratio
from _limits import machine
from _prompts import PROMPT_TOKENS, prompts
from _workers import PeerMissing, Worker, WorkerFailed, peer_versions, settle

from ponder.models.base import LoadedModel
from ponder.models.load import load
from ponder.models.save import save
from ponder.models.tiny import new_model
from ponder.training.rl_config import RLConfig

TOLERANCE = 1e-4
WARM_UP = 2
PACKAGES = ("trl", "transformers", "torch")


@dataclass(frozen=True)
class Task:
    """One comparison."""

    name: str
    groups: int
    group_size: int
    shortest: int
    longest: int
    learning_rate: float
    micro: tuple[int, ...]
    """TRL's micro-batches to choose from, in completions; each divides the batch."""

    @property
    def batch(self) -> int:
        return self.groups * self.group_size


TASKS = {
    "tiny": Task("1M Llama, 512 × 20 to 100 tokens", 32, 16, 20, 100, 2e-4, (64, 128)),
    "smollm2": Task("SmolLM2-135M, 64 × 64 tokens", 8, 8, 64, 64, 1e-6, (8, 16)),
}
QUICK = {
    "tiny": Task("1M Llama, 16 × 4 to 8 tokens", 4, 4, 4, 8, 2e-4, (8,)),
    "smollm2": Task("SmolLM2-135M, 4 × 4 tokens", 2, 2, 4, 4, 1e-6, (2,)),
}


def problems(model: LoadedModel, task: Task, count: int, seed: int = 7) -> list[dict[str, Any]]:
    """Problems with the ids of their prompts and the length of each sample."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for ids in prompts(model.tokenizer, seed, count, PROMPT_TOKENS):
        text = model.tokenizer.decode(ids)
        # TRL takes text and makes ids of it again: both sides get what that gives.
        again = model.tokenizer.encode(text)
        lengths = [rng.randint(task.shortest, task.longest) for _ in range(task.group_size)]
        rows.append({"prompt": text, "ids": again, "lengths": lengths})
    return rows


class Benchmark:
    """One task's sides."""

    def __init__(self, options: argparse.Namespace, task: Task, model: LoadedModel, logs: Path) -> None:
        self.options, self.task, self.logs = options, task, logs
        self.rounds = 1 if options.quick else options.rounds
        self.folder = save(model, logs / f"model-{task.batch}")
        self.file = logs / f"problems-{task.batch}.json"
        steps = WARM_UP + self.rounds + 4
        self.file.write_text(json.dumps(problems(model, task, task.groups * steps)), encoding="utf-8")

    @property
    def common(self) -> dict[str, Any]:
        t = self.task
        return {
            "model": str(self.folder),
            "problems": str(self.file),
            "groups": t.groups,
            "group_size": t.group_size,
            "learning_rate": t.learning_rate,
        }

    def ours(self) -> Worker:
        worker = Worker("ponder", "ponder_rl.py", self.logs)
        options = {
            "micro_tokens": self.options.micro_tokens,
            "gradient_checkpointing": bool(self.options.checkpointing),
        }
        worker.call("open", **self.common, options=options)
        return worker

    def trl(self, micro: int) -> Worker:
        worker = Worker(f"trl {micro}", "trl_rl.py", self.logs, python=self.options.peer_python)
        longest = self.task.longest
        worker.call(
            "open", **self.common, micro=micro, longest=longest, gradient_checkpointing=self.options.checkpointing
        )
        return worker

    def faster_trl(self) -> tuple[Worker, dict[int, float]]:
        """TRL with the micro-batch whose second step is the fastest, and the seconds of each choice."""
        choices = self.options.trl_micro or self.task.micro
        seconds: dict[int, float] = {}
        for micro in choices:
            with self.trl(micro) as worker:
                worker.call("step")
                seconds[micro] = worker.call("step")["seconds"]
        return self.trl(min(seconds, key=lambda m: seconds[m])), seconds

    def rows(self) -> list[Row]:
        """Time and memory of whole steps, side by side."""
        versions = peer_versions(self.options.peer_python, "--peer-python", PACKAGES)
        theirs, choices = self.faster_trl()
        with contextlib.closing(theirs), self.ours() as ours:
            for worker in (ours, theirs):
                for _ in range(WARM_UP):
                    worker.call("step")
            answers: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}

            def run(name: str, worker: Worker) -> float:
                settle()
                answers[name].append(worker.call("step"))
                return answers[name][-1]["seconds"]

            found = alternate({"ours": lambda r: run("ours", ours), "trl": lambda r: run("trl", theirs)}, self.rounds)
        counts = {side: [a["tokens"] for a in given] for side, given in answers.items()}
        if counts["ours"] != counts["trl"]:
            raise WorkerFailed(f"the sides did not sample the same number of tokens: {counts}")
        micro = min(choices, key=lambda m: choices[m])
        checkpointing = ", checkpointing" if self.options.checkpointing else ""
        facts: dict[str, Any] = {
            "dtype": "float32",
            "mode": f"{self.options.micro_tokens} ids at a time; TRL {versions['trl']}, {micro} rows{checkpointing}",
            "parity": max(a["mismatch_max"] for a in answers["ours"]),
            "parity_limit": TOLERANCE,
        }
        phases = {
            name.removeprefix("seconds_"): statistics.median(a[name] for a in answers["ours"])
            for name in ("seconds_sample", "seconds_train", "seconds_publish")
        }
        generate = statistics.median(a["seconds_generate"] for a in answers["trl"])
        split = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in phases.items())
        time_row = compare(
            f"RL step, {self.task.name}, over TRL",
            "s/step",
            found["ours"],
            found["trl"],
            better="less",
            **facts,
            note=f"ponder: {split}; TRL: generate {generate:.2f} s; {counts['ours'][0]} tokens sampled in step 1",
            details={
                "ours_runs": found["ours"],
                "peer_runs": found["trl"],
                "tokens": counts["ours"],
                "ours_phases": phases,
                "peer_generate_seconds": generate,
                "peer_micro_batch_seconds": {str(m): s for m, s in choices.items()},
                "versions": versions,
            },
        )
        peaks = [max(a["peak_bytes"] for a in answers[side]) / 2**20 for side in ("ours", "trl")]
        ratio = paired_ratio([peaks[1]], [peaks[0]]).value
        memory_row = Row(
            f"peak memory, {self.task.name}, over TRL",
            "MiB",
            peaks[0],
            peaks[1],
            ratio,
            ratio,
            ratio,
            1,
            "one value",
            **facts,
        )
        return [time_row, dataclasses.replace(memory_row, parity=None, parity_limit=None)]

    def alone(self) -> Row:
        """ponder without a peer."""
        with self.ours() as ours:
            for _ in range(WARM_UP):
                ours.call("step")
            answers = [ours.call("step") for _ in range(self.rounds)]
        return Row(
            f"RL step, {self.task.name}",
            "s/step",
            statistics.median(a["seconds"] for a in answers),
            rounds=self.rounds,
            dtype="float32",
            mode="default",
            parity=max(a["mismatch_max"] for a in answers),
            parity_limit=TOLERANCE,
            note=f"peak memory {max(a['peak_bytes'] for a in answers) / 2**20:,.0f} MiB",
            details={"answers": answers},
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=os.environ.get("PEER_PYTHON"), help="a Python with trl")
    parser.add_argument("--rounds", type=int, default=6, help="alternating steps; 6 or more for a 95 %% interval")
    parser.add_argument("--only", choices=list(TASKS), help="only this task")
    parser.add_argument("--micro-tokens", type=int, default=RLConfig.micro_tokens, help="of ponder, in ids")
    parser.add_argument("--trl-micro", type=_numbers, help="TRL's micro-batches to choose from, such as 64,128")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing on both sides")
    parser.add_argument("--quick", action="store_true", help="one round of tiny sizes: does every row run?")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: give at least 1")
    printer = Printer(as_json=options.json, machine=machine())
    with tempfile.TemporaryDirectory(prefix="ponder-bench-") as temporary:
        for name, task in (QUICK if options.quick else TASKS).items():
            if options.only in (None, name):
                model = new_model(0) if name == "tiny" else load("smollm2-135m", device="cpu")
                benchmark = Benchmark(options, task, model, Path(temporary))
                del model
                try:
                    _show(benchmark, printer)
                except WorkerFailed as error:
                    print(f"{error.output}\n{error}", file=sys.stderr)
                    return 1
    return printer.end()


def _show(benchmark: Benchmark, printer: Printer) -> None:
    try:
        rows = benchmark.rows()
    except PeerMissing as missing:
        printer.show(Row(f"RL step, {benchmark.task.name}, over TRL", "s/step", skipped=str(missing)))
        rows = [benchmark.alone()]
    for row in rows:
        printer.show(row)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
