"""Accuracy of a base model on each family of procedural text that ponder-tiny was made from.

    python benchmarks/families.py [--model ponder-tiny] [-n 300] [--thought-tokens 320] [--temperature 1.0] [--quick]
        [--json]

Countdown and arithmetic are judged on their environments' test splits. The other families have no environment: new
draws (with another seed than in training) are compared with the family's own answer, and may repeat a training example
where a family has few. One sample a problem; 95 % intervals exact (Clopper-Pearson).
"""

from __future__ import annotations

import argparse
import json
import random

from ponder import registry
from ponder.engines.torch import TorchEngine
from ponder.evaluation.intervals import clopper_pearson
from ponder.models.load import load
from ponder.responses import split_response
from ponder.training.supervised import FAMILIES
from ponder.types import Estimate, Request, SamplingParams, Thinking

ENVIRONMENTS = ("countdown", "arithmetic")
SEED = 987_654_321


def accuracy(engine: TorchEngine, family: str, n: int, thought_tokens: int, temperature: float) -> Estimate:
    """Share of `n` problems of a family that are answered right."""
    if family in ENVIRONMENTS:
        environment = registry.build("environments", family)
        problems = [environment.problem("test", i) for i in range(n)]
        prompts = [p.prompt for p in problems]
    else:
        rng, part = random.Random(SEED), registry.build("training.corpus", family)
        examples = [part.example(rng) for _ in range(n)]
        prompts = [e.prompt for e in examples]
    params = [
        SamplingParams(thought_tokens + 32, temperature, seed=i, thinking=Thinking(thought_tokens)) for i in range(n)
    ]
    groups = engine.generate_many([Request(p, q) for p, q in zip(prompts, params, strict=True)])
    responses = [split_response(c.text, c.finish_reason, engine.info.thought) for (c,) in groups]
    if family in ENVIRONMENTS:
        right = sum(environment.judge(p, r).correct for p, r in zip(problems, responses, strict=True))
    else:
        right = sum(r.answer == e.answer for r, e in zip(responses, examples, strict=True))
    return clopper_pearson(right, n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ponder-tiny")
    parser.add_argument("-n", type=int, default=300)
    parser.add_argument("--thought-tokens", type=int, default=320)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true", help="few problems, short thoughts: does every family run?")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    n, thought_tokens = (8, 24) if options.quick else (options.n, options.thought_tokens)
    engine = TorchEngine(load(options.model))
    rows = {}
    for family in (f.partition("=")[0] for f in FAMILIES):
        e = accuracy(engine, family, n, thought_tokens, options.temperature)
        rows[family] = {"accuracy": e.value, "low": e.low, "high": e.high, "n": e.n}
        if not options.json:
            print(f"{family:<12} {e.value:6.1%}  ({e.low:.1%} to {e.high:.1%}, n {e.n})", flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))
    engine.close_now()


if __name__ == "__main__":
    main()
