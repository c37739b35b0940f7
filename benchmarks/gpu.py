"""Decoding and RL on one GPU, beside transformers' `generate` and beside what its memory bandwidth allows.

    python benchmarks/gpu.py [--peer-python PY] [--model smollm2-135m] [--rounds 6] [--only TEXT] [--quick] [--json]

Without a GPU it says so in one line and ends. It has not been run on one yet: RESULTS.md has no row of it.

Decoding is the time of a call with 1 + N new tokens less that of the same call with 1, in bf16, of 1, 64 and 256
prompts of 43 tokens: ponder's engine eager and with `compile`, and `generate` with its defaults. The limit is that of a
step that reads every weight and the keys and values of its rows once, at the rate of a large copy on this GPU. Parity
is with the trainer's float32 weights: reported in bf16, held to 1e-4 in a row in float32. RL steps are those of
`rl_step.py`, sampled eager and compiled, without a peer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rl_step
import torch
from _compare import Printer, Row, alternate, compare, median_interval, number
from _limits import Products, best_seconds, machine
from _prompts import PROMPT_TOKENS, prompts
from _workers import PeerMissing, Worker, WorkerFailed, peer_versions, settle

from ponder.models.load import load
from ponder.models.save import save
from ponder.models.tiny import new_model

TOLERANCE = 1e-4
ROWS = (1, 64, 256)
PARITY_TOKENS = 8_192
COPY_BYTES = 1 << 30
OURS = {"eager": {"dtype": "bfloat16"}, "compiled": {"dtype": "bfloat16", "compile": True}}


def copy_rate(device: str) -> float:
    """Bytes read and written a second by a large copy in the device's memory."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if device != "cpu":
            torch.cuda.synchronize()

    return 2 * COPY_BYTES / best_seconds(copy, 10)


def limit(config: Mapping[str, Any], rows: int, context: float, rate: float) -> float:
    """Tokens/s if a step only read its bf16 weights and its rows' keys and values at `rate` bytes/s."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    cache = rows * context * config["num_hidden_layers"] * 2 * config["num_key_value_heads"] * head * 2
    return rows * rate / (Products.of(config).bytes(2) + cache)


class Benchmark:
    """The sides and where rows go."""

    def __init__(self, options: argparse.Namespace, device: str, logs: Path, printer: Printer) -> None:
        self.options, self.device, self.logs, self.printer = options, device, logs, printer
        self.rounds, self.new = (1, 4) if options.quick else (options.rounds, 128)
        self.rows = (1, 2) if options.quick else ROWS
        model = load(options.model, device="cpu")
        self.folder, self.tokenizer = save(model, logs / "model"), model.tokenizer
        self.config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        self.rate = copy_rate(device)
        self.printer.show(Row("memory copied, read and written", "GB/s", self.rate / 1e9, dtype="uint8"))

    def worker(self, name: str, script: str, python: str | None = None, **arguments: Any) -> Worker:
        worker = Worker(name, script, self.logs, python=python)
        worker.call("open", **arguments, device=self.device)
        return worker

    def ours(self, name: str, **options: Any) -> Worker:
        return self.worker(name, "ponder_engine.py", model=str(self.folder), options=options)

    def decoded(self, worker: Worker, rows: int, seed: int) -> float:
        """Tokens/s of decoding alone."""
        settle()
        ids = prompts(self.tokenizer, seed, rows)
        short, long = (
            worker.call("generate", prompts=ids, max_tokens=n, seed=seed)["seconds"] for n in (1, 1 + self.new)
        )
        return rows * self.new / (long - short)

    def decoding(self) -> None:
        python, name = self.options.peer_python, "decoding over transformers"
        with contextlib.ExitStack() as stack:
            workers = {n: stack.enter_context(self.ours(n, **options)) for n, options in OURS.items()}
            try:
                version = peer_versions(python, "--peer-python", ("transformers", "torch"))["transformers"]
            except PeerMissing as missing:
                self.printer.show(Row(name, "tokens/s", skipped=str(missing)))
            else:
                arguments = {"model": str(self.folder), "dtype": "bfloat16"}
                peer = self.worker("transformers", "transformers_engine.py", python, **arguments)
                workers[f"transformers {version}"] = stack.enter_context(peer)
            for rows in self.rows:
                sides = {
                    n: lambda r, w=w, rows=rows: self.decoded(w, rows, 1000 * rows + r) for n, w in workers.items()
                }
                alternate(sides, 1)  # kernels are chosen, compiled and recorded
                self.show(
                    rows,
                    alternate({n: lambda r, run=run: run(r + 1) for n, run in sides.items()}, self.rounds),
                    workers,
                )

    def show(self, rows: int, found: Mapping[str, list[float]], workers: Mapping[str, Worker]) -> None:
        most = limit(self.config, rows, PROMPT_TOKENS + self.new / 2, self.rate)
        peer = next((n for n in found if n not in OURS), None)
        for name in OURS:
            rate = statistics.median(found[name])
            facts: dict[str, Any] = {
                "dtype": "bfloat16",
                "parity": workers[name].call("parity", most_tokens=PARITY_TOKENS)["max"],
                "note": f"{rate / most:.1%} of the {number(most)} tokens/s that the memory allows",
                "details": {"limit": most, "ours_runs": found[name], "peer_runs": found.get(peer or "", [])},
            }
            title = f"decoding, {rows} at a time, {name}"
            if peer is None:
                self.printer.show(Row(title, "tokens/s", rate, rounds=len(found[name]), mode=name, **facts))
            else:
                facts["mode"] = f"{name}; {peer}"
                self.printer.show(
                    compare(f"{title}, over transformers", "tokens/s", found[name], found[peer], better="more", **facts)
                )

    def in_float32(self) -> None:
        """The compiled engine must agree with the trainer."""
        rows = self.rows[-2]
        with self.ours("float32", compile=True) as worker:
            rate = self.decoded(worker, rows, 1)
            parity = worker.call("parity", most_tokens=PARITY_TOKENS)["max"]
        facts = {"dtype": "float32", "mode": "compiled", "parity": parity, "parity_limit": TOLERANCE}
        self.printer.show(Row(f"decoding, {rows} at a time, float32", "tokens/s", rate, rounds=1, **facts))

    def rl(self, name: str, task: rl_step.Task, compiled: bool) -> None:
        model = new_model(0) if name == "tiny" else load(self.options.model, device="cpu")
        folder = save(model, self.logs / f"rl-{name}-{compiled}")
        file = folder / "problems.json"
        count = task.groups * (rl_step.WARM_UP + self.rounds)
        file.write_text(json.dumps(rl_step.problems(model, task, count)), encoding="utf-8")
        arguments = {"model": str(folder), "problems": str(file), "groups": task.groups, "group_size": task.group_size}
        arguments |= {"learning_rate": task.learning_rate, "options": {}, "compile": compiled}
        with self.worker(f"rl {name} {compiled}", "ponder_rl.py", **arguments) as worker:
            answers = [worker.call("step") for _ in range(rl_step.WARM_UP + self.rounds)][rl_step.WARM_UP :]
        rates, mode = median_interval([1 / a["seconds"] for a in answers]), "compiled" if compiled else "eager"
        facts = {"dtype": "float32", "parity": max(a["mismatch_max"] for a in answers), "parity_limit": TOLERANCE}
        note = f"{rates.low:.3g} to {rates.high:.3g} steps/s ({rates.method})"
        title = f"RL steps, {task.name}, {mode}"
        self.printer.show(Row(title, "steps/s", rates.value, rounds=rates.n, mode=mode, note=note, **facts))

    def run(self) -> None:
        if self.options.only != "RL":
            self.decoding()
            self.in_float32()
        if self.options.only != "decoding":
            for name, task in (rl_step.QUICK if self.options.quick else rl_step.TASKS).items():
                for compiled in (False, True):
                    self.rl(name, task, compiled)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=os.environ.get("PEER_PYTHON"), help="a Python with transformers")
    parser.add_argument("--model", default="smollm2-135m", help="what both sides load")
    parser.add_argument("--rounds", type=int, default=6, help="alternating runs; 6 or more for a 95 %% interval")
    parser.add_argument("--only", choices=("", "decoding", "RL"), default="", help="only these rows")
    parser.add_argument("--quick", action="store_true", help="one round of tiny sizes: does every row run?")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: give at least 1")
    if not torch.cuda.is_available():
        Printer(as_json=options.json, machine=machine()).show(
            Row("decoding and RL on a GPU", "tokens/s", skipped="torch finds no CUDA device here")
        )
        return 0
    printer = Printer(as_json=options.json, machine=f"{torch.cuda.get_device_name()}, {machine()}")
    with tempfile.TemporaryDirectory(prefix="ponder-bench-") as temporary:
        try:
            Benchmark(options, "cuda", Path(temporary), printer).run()
        except WorkerFailed as error:
            print(f"{error.output}\n{error}", file=sys.stderr)
            return 1
    return printer.end()


if __name__ == "__main__":
    sys.exit(main())
