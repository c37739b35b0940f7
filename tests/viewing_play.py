"""Made-up runs for the tests and the benchmark of the viewer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from ponder.evaluation.intervals import mean_of_problems
from ponder.runs.run import Run
from ponder.types import to_json

WORDS = ("so", "we", "have", "then", "add", "the", "product", "of both", "sides", "take away", "which gives", "again")


def make(path: Path, problems: int, samples: int, seed: int, right: float = 0.6) -> Path:
    """Write a made-up evaluation: `right` is the share of problems solved."""
    rng, shares = random.Random(seed), []
    with Run.create(path, f'environment = "made-up"\nn = {problems}\nseed = {seed}\n', seed, ["ponder", "eval"]) as run:
        with (path / "rollouts.jsonl").open("w") as file:
            for index in range(problems):
                a, b = 17 + index * 7 % 983, 3 + index * 13 % 89
                hard, correct = random.Random(index).random(), 0
                for sample in range(samples):
                    kind = (
                        "correct"
                        if rng.random() < right * (1.5 - hard)
                        else rng.choice(["wrong", "wrong", "no_answer"])
                    )
                    correct += kind == "correct"
                    file.write(json.dumps(line(rng, index, sample, a, b, kind)) + "\n")
                shares.append(correct / samples)
        estimate = to_json(mean_of_problems(shares))
        run.write_json("evaluation.json", {"accuracy": estimate, "samples": samples, "rows": []})
    return path


def line(rng: random.Random, index: int, sample: int, a: int, b: int, kind: str) -> dict[str, Any]:
    thought = " ".join(rng.choices(WORDS, k=rng.randint(80, 400)))
    answer = None if kind == "no_answer" else str(a * b + (kind == "wrong") * rng.randint(1, 40))
    text = thought if answer is None else f"{thought}</think>{answer}"
    tokens = len(text) // 4
    verdict = {
        "kind": kind,
        "reward": float(kind == "correct"),
        "reason": f"{answer} against {a * b}",
        "answer": answer,
    }
    spend = {"prompt_tokens": 31, "sampled_tokens": tokens, "seconds": tokens / 900}
    return {
        "problem": f"made-up-test-{index}",
        "prompt": f"A box holds {a} parcels and each parcel holds {b} bolts. How many bolts are there in the box?",
        "metadata": {},
        "thought": {"open": "<think>", "close": "</think>", "opened_by_template": True},
        "chosen": 0,
        "vote_share": None,
        "stop": "budget" if answer is None and rng.random() < 0.3 else "finished",
        "reason": "",
        "spend": spend,
        "samples": [
            {
                "id": 0,
                "parent": None,
                "text": text,
                "answer": answer,
                "finish": "length" if answer is None else "stop",
                "tokens": tokens,
                "mean_logprob": -0.2,
                "score": None,
                "verdict": verdict,
                "check": None,
                "spend": spend,
                "weights_version": 0,
            }
        ],
        "index": index,
        "sample": sample,
        "verdict": verdict,
        "seconds": tokens / 900,
        "at": index / 10,
    }


def rollout(step: int, problem: int, rewards: tuple[float, ...]) -> dict[str, Any]:
    """A line of a training: a group of samples."""
    found = line(random.Random(problem), problem, 0, 6, 7, "wrong")
    samples = []
    for i, reward in enumerate(rewards):
        kind = "correct" if reward == 1 else "wrong"
        verdict = {"kind": kind, "reward": reward, "reason": ""}
        trained = {"verdict": verdict, "reward": reward, "advantage": reward - 0.5}
        samples.append({**found["samples"][0], "id": i, **trained})
    for name in ("index", "sample", "verdict", "seconds", "at"):
        del found[name]
    return {"step": step, **found, "samples": samples}
