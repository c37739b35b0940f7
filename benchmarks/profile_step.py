"""Where the time of a decoding step goes, by kind of work, compared with the matrix products alone.

    python benchmarks/profile_step.py [--only TEXT] [--steps 24] [--operators] [--quick] [--json]

Each case runs the same requests with and without torch's profiler, with 1 and with 1 + `steps` new tokens; the
difference is `steps` decoding steps without prefill. The parts are the operators' own times (without what they call)
in all threads that run Python; an operator on an array as wide as the vocabulary counts as sampling, except the
head's product. `bookkeeping` is the rest of the step without the profiler, mostly Python. Under the profiler small
operators take longer, so that bookkeeping is, if anything, underestimated.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from _compare import number
from _limits import Limits, Products, machine, measure, products_seconds
from _prompts import prompts

from ponder.engines.torch import TorchEngine
from ponder.engines.torch import products as ways
from ponder.models.base import LoadedModel
from ponder.models.load import load
from ponder.models.tiny import new_model
from ponder.types import Request, SamplingParams

KINDS = {
    "products": "mm addmm linear matmul mkldnn mkl onednn addmv mv",
    "attention": "scaled_dot_product bmm baddbmm softmax",
    "sampling": "cumsum searchsorted argmax exponential multinomial sort topk logsumexp exp log uniform rand max sum",
    "norm, rotary, activation": "rms_norm fused_rms_norm mul add sub div silu neg rsqrt mean pow square sqrt",
    "moving data": "index copy cat clone gather scatter contiguous to fill zero zeros ones full embedding constant_pad "
    "stack empty arange resize narrow slice select view as_strided expand transpose t unsqueeze squeeze reshape "
    "permute chunk split detach lift",
}
"""Operators by kind; each word also matches names that continue it after an underscore."""
REST = ("other operators", "bookkeeping")


def kind_of(operator: str, shapes: list[list[int]], vocabulary: int) -> str:
    """The kind of work of an operator that was called with arrays of these shapes."""
    name = operator.rpartition("::")[2].strip("_")
    kind = next(
        (k for k, words in KINDS.items() if any(f"{name}_".startswith(f"{w}_") for w in words.split())), REST[0]
    )
    # A sampler may look at the vocabulary in blocks: rows × blocks × width.
    wide = any(vocabulary in s or (len(s) == 3 and s[1] * s[2] == vocabulary) for s in shapes)
    return "sampling" if wide and kind != "products" else kind


@dataclass(frozen=True)
class Case:
    name: str
    model: LoadedModel
    rows: int


def run(engine: TorchEngine, case: Case, tokens: int) -> float:
    """Seconds of one call of the case."""
    ids = prompts(case.model.tokenizer, 5, case.rows)
    requests = [Request(tuple(p), SamplingParams(tokens, seed=i)) for i, p in enumerate(ids)]
    began = time.perf_counter()
    engine.generate_many(requests)
    return time.perf_counter() - began


def operators(work: Callable[[], Any], vocabulary: int) -> dict[tuple[str, str], float]:
    """Own seconds of (kind, operator) during `work`, in all threads."""
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity, profile

    everywhere = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, experimental_config=everywhere) as found:
        work()
    seconds: dict[tuple[str, str], float] = collections.defaultdict(float)
    for event in found.key_averages(group_by_input_shape=True):
        if event.key.startswith(("aten::", "mkl::", "mkldnn::")):
            kind = kind_of(event.key, [s for s in event.input_shapes if s], vocabulary)
            seconds[kind, event.key] += event.self_cpu_time_total / 1e6
    return seconds


def profiled(case: Case, steps: int, limits: Limits, repeats: int) -> dict[str, Any]:
    """Milliseconds of a decoding step by kind, and the step's limits."""
    engine = TorchEngine(dataclasses.replace(case.model, end_ids=()), max_rows=max(512, case.rows))
    try:
        run(engine, case, 2)
        differences = sorted(run(engine, case, 1 + steps) - run(engine, case, 1) for _ in range(repeats))
        step = differences[len(differences) // 2] / steps
        vocabulary = case.model.config["vocab_size"]
        short = operators(lambda: run(engine, case, 1), vocabulary)
        long = operators(lambda: run(engine, case, 1 + steps), vocabulary)
    finally:
        engine.close_now()
    each = {key: (seconds - short.get(key, 0.0)) / steps for key, seconds in long.items()}
    kinds = dict.fromkeys((*KINDS, *REST), 0.0)
    for (kind, _), seconds in each.items():
        kinds[kind] += seconds
    kinds["bookkeeping"] = max(0.0, step - sum(kinds.values()))
    products, name = Products.of(case.model.config), engine.products["products"].split("+")[-1]
    slowest = sorted(each, key=lambda key: -each[key])[:12]
    return {
        "name": case.name,
        "rows": case.rows,
        "step_ms": step * 1e3,
        "tokens_per_second": case.rows / step,
        "kinds_ms": {kind: seconds * 1e3 for kind, seconds in kinds.items()},
        "products_alone_ms": products_seconds(products, case.rows, ways.KINDS.get(name)) * 1e3,
        "bound_ms": limits.step_seconds(products, case.rows) * 1e3,
        "operators_ms": {f"{name} ({kind})": each[kind, name] * 1e3 for kind, name in slowest},
    }


def show(found: Mapping[str, Any], with_operators: bool) -> None:
    step = found["step_ms"]
    print(f"\n{found['name']}: {step:.1f} ms a step, {number(found['tokens_per_second'])} tokens/s")
    for kind, ms in found["kinds_ms"].items():
        print(f"  {kind:<26} {ms:8.2f} ms  {ms / step:6.1%}")
    print(
        f"  {'(its products alone)':<26} {found['products_alone_ms']:8.2f} ms  {found['products_alone_ms'] / step:6.1%}"
    )
    print(f"  {'(no machine limit below)':<26} {found['bound_ms']:8.2f} ms  {found['bound_ms'] / step:6.1%}")
    if with_operators:
        for name, ms in found["operators_ms"].items():
            print(f"    {name:<60} {ms:8.2f} ms")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only cases whose name contains this text")
    parser.add_argument("--steps", type=int, default=24, help="decoding steps to profile")
    parser.add_argument("--operators", action="store_true", help="list the slowest operators too")
    parser.add_argument("--quick", action="store_true", help="few rows and steps: does every case run?")
    parser.add_argument("--json", action="store_true", help="one JSON object a case")
    options = parser.parse_args()
    smollm2, tiny = "SmolLM2-135M", "1M-parameter Llama"
    cases = [(smollm2, 64), (smollm2, 1), (tiny, 512)]
    steps, repeats = options.steps, 3
    if options.quick:
        cases, steps, repeats = [(smollm2, 4), (smollm2, 1), (tiny, 8)], 3, 1
    limits, models = measure(), {}
    if not options.json:
        print(machine())
        print(f"memory read {limits.read_gbs:.1f} GB/s, large product {limits.gflops:.0f} GFLOP/s (float32)")
    for name, rows in cases:
        title = f"{name}, {rows} at a time"
        if options.only not in title:
            continue
        if name not in models:
            models[name] = load("smollm2-135m", device="cpu") if name == smollm2 else new_model(0)
        found = profiled(Case(title, models[name], rows), steps, limits, repeats)
        if options.json:
            print(json.dumps({**found, "machine": machine()}), flush=True)
        else:
            show(found, options.operators)
    return 0


if __name__ == "__main__":
    sys.exit(main())
