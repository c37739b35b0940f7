"""A synthetic run directory with every part, for the tests of runs, plots and reports. The numbers are made up."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from ponder.runs.run import Run

N = 512
NASTY = "<script>alert(1)</script> ``` </pre> \x00 \ud800 \u202e | 3 + 5 = 8\n</think> <b>8</b>"
"""Model text that tries to break a page: markup, a code fence, NUL, a lone surrogate, a direction override."""


def point(accuracy: float, **rest: Any) -> dict[str, Any]:
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / N)
    return {**rest, "accuracy": accuracy, "low": accuracy - half, "high": accuracy + half, "n": N}


def ladder(low: float, high: float) -> dict[str, list[dict[str, Any]]]:
    budgets = (16, 32, 64, 128, 256)
    sequential = [
        point(
            low + (high - low) * i / 4,
            budget_tokens=b,
            mean_response_tokens_per_search=b * (0.95 - 0.1 * i),
            no_answer=0.02 * (4 - i),
        )
        for i, b in enumerate(budgets)
    ]
    parallel = []
    for i in range(7):
        accuracy = 1 - (1 - high * 0.6) ** (1 + 0.7 * i)
        parallel.append(
            {
                **point(accuracy, samples=2**i, mean_response_tokens_per_search=60.0 * 2**i),
                "coverage": accuracy + 0.01 * i / 6,
            }
        )
    return {"sequential": sequential, "parallel": parallel}


def curves() -> dict[str, Any]:
    train = [
        point(0.38 + 0.3 * (1 - math.exp(-s / 40)), step=s, flops=s * 8.1e10, sampled_tokens=s * 30_000)
        for s in range(0, 121, 20)
    ]
    return {
        "train": train,
        "test": ladder(0.41, 0.74),
        "base": ladder(0.1, 0.47),
        "base_accuracy": 0.38,
        "trained_accuracy": 0.66,
        "run_seconds": 431.5,
        "peak_memory_bytes": 1_431_000_000,
        "seed": 0,
        "interval": "Wilson score",
    }


def metrics(steps: int = 120) -> list[dict[str, Any]]:
    rng = random.Random(0)
    return [
        {
            "step": s,
            "reward": 0.38 + 0.3 * (1 - math.exp(-s / 40)) + rng.gauss(0, 0.03),
            "loss": rng.gauss(0, 0.01),
            "gradient_norm": 0.1 + abs(rng.gauss(0, 0.02)),
            "clipped": abs(rng.gauss(0, 0.001)),
            "truncated": 0.0,
            "signal": 0.8 + 0.1 * math.sin(s),
            "learning_rate": 2e-4,
            "length": 52 - s * 0.1 + rng.gauss(0, 1),
            "entropy": 0.9 * math.exp(-s / 90) + rng.gauss(0, 0.01),
            "mismatch_mean": abs(rng.gauss(2e-6, 5e-7)),
        }
        for s in range(1, steps + 1)
    ]


def samples() -> list[dict[str, Any]]:
    return [
        {
            "problem_id": "countdown/test/17",
            "prompt": "Make 24 from 3 5 7 2.",
            "gold": "(5+7)*2",
            "before": {"text": NASTY, "verdict": "wrong", "reason": "uses <i>9</i> | which is not given"},
            "after": {"text": "5+7=12 12*2=24</think>(5+7)*2", "verdict": "correct", "reason": "equals 24"},
        }
    ]


def summary() -> dict[str, Any]:
    return {
        "title": "ponder-tiny on countdown",
        "facts": {"model": "ponder-tiny", "environment": "countdown", "held-out problems": N},
        "cost": [
            {
                "phase": "training",
                "run_seconds": 290.2,
                "sampled_tokens": 3_600_000,
                "trained_tokens": 3_400_000,
                "flops": 9.7e12,
            },
            {
                "phase": "evaluation",
                "run_seconds": 141.3,
                "sampled_tokens": 2_900_000,
                "trained_tokens": 0,
                "flops": 5.2e12,
            },
        ],
        "gain": {"value": 0.28, "low": 0.234, "high": 0.332, "n": N, "method": "paired, Gaffke", "chosen_of": 1},
        "verdicts": {"correct": 338, "wrong": 170, "no_answer": 4},
        "next": ["ponder quickstart --minutes 20", "ponder solve 'Make 24 from 3 5 7 2.' --model runs/quickstart"],
    }


def rl_config() -> str:
    return """model = "ponder-tiny"
environment = "countdown"
strategy = "budget_forcing"
problems = 32
group_size = 16
steps = 120
learning_rate = 2e-4
warmup_steps = 5
final_share = 0.5
weight_decay = 0.0
beta2 = 0.95
max_grad_norm = 1.0
updates = 4
advantage = "mean_only"
loss = "dapo"
eval_every = 20
eval_problems = 512
seed = 0
"""


def group(step: int, *samples: tuple[str, float | None, str], problem: str = "") -> dict[str, Any]:
    """A line of a training's `rollouts.jsonl`; samples are verdict, reward and text."""
    return {
        "step": step,
        "problem": problem or f"countdown-train-{step}",
        "prompt": "Make 24 from 3 5 7 2.",
        "stop": "finished",
        "samples": [
            {"id": i, "text": text, "verdict": {"kind": kind, "reason": f"it is {kind}"}, "reward": reward}
            for i, (kind, reward, text) in enumerate(samples)
        ],
    }


def make(path: Path, *, parts: tuple[str, ...] = ("curves", "metrics", "samples", "summary")) -> Path:
    """Write a run directory with these parts and finish it."""
    with Run.create(path, 'model = "ponder-tiny"\nseed = 0\n', 0, ["ponder", "quickstart"]) as run:
        if "metrics" in parts:
            run.write_text("rl.toml", rl_config())
            for row in metrics():
                run.log(row)
        for name, value in (("curves", curves), ("samples", samples), ("summary", summary)):
            if name in parts:
                run.write_json(f"{name}.json", value())
    return path
