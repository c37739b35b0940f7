"""Digests of what a fixed set of commands gives: the proof of a change that must not alter numbers.

Run before and after, on one machine with one installation:

    python tests/fingerprints.py --write before.json
    python tests/fingerprints.py --against before.json

Each case has two digests. `values` are numbers and model text: traces, token ids, log-probabilities, verdict kinds,
losses, weights, points of curves and pools. `words` are the sentences of ponder itself: reasons, notes, reports. Times,
memory and paths are in neither. Rows are read in the formats of this version and of the ones before it, so that a
change of format alone changes nothing here. It takes about three minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Found = tuple[list[Any], list[Any]]
"""Values and words."""
CLOCK = re.compile(r"(seconds|tokens_per_second|peak_memory|rate|^at$|hardware)")
TIMES = re.compile(r"\d[\d.,]*(e[-+]\d+)? (ms|s|min( \d+ s)?|h( \d+ min)?)\b")
TIMED = re.compile(r"(?mi)^\| (run time|time of a search|response tokens/s)\b.*\n")
"""Rows of a table that the clock decides, with their intervals."""
SPEND = ("prompt_tokens", "cached_tokens", "sampled_tokens", "forced_tokens", "verifier_calls", "dollars")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="FILE", help="write the digests to this file")
    parser.add_argument(
        "--against", metavar="FILE", help="compare with the digests in this file; exit code 1 if any differ"
    )
    parser.add_argument("--only", metavar="TEXT", default="", help="only cases whose name holds this")
    parser.add_argument("--pool", metavar="FILE", help="a recorded pool to replay too")
    given = parser.parse_args()
    before = json.loads(Path(given.against).read_text()) if given.against else {}
    found: dict[str, dict[str, str]] = {}
    worse = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases(given.pool):
            if given.only not in name:
                continue
            values, words = case(Path(folder))
            found[name] = {"values": digest(values), "words": digest(words)}
            said = ""
            if before:
                differ = [k for k, v in found[name].items() if before.get(name, {}).get(k) != v]
                worse += bool(differ)
                said = f"  differs: {', '.join(differ)}" if differ else "  the same"
            print(f"{name:<40} {found[name]['values']}  {found[name]['words']}{said}", flush=True)
    if given.write:
        Path(given.write).write_text(json.dumps(found, indent=1) + "\n")
    return 1 if worse else 0


def digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


WHOLE = {
    "direct": "max_tokens=96",
    "cot": "max_tokens=96",
    "majority": "n=4 max_tokens=96",
    "best_of_n": "n=4 max_tokens=96",
    "weighted": "n=4 max_tokens=96",
    "adaptive": "n=6 max_tokens=96",
    "budget_forcing": "thought_tokens=32",
    "refine": "max_tokens=96",
    "cascade": "",
    "beam": "step_tokens=12 depth=4",
    "mcts": "step_tokens=12 depth=4 simulations=8",
}
"""Strategies with their options on the built-in model."""
STEPWISE = ("beam", "mcts")
SIMULATED = ["--engine", "simulated", "--environment", "simulated", "--model", "simulated", "-n", "40"]
RL = ["rl", "--problems", "4", "--group-size", "4", "--steps", "3", "--eval-problems", "16", "--warmup-steps", "1"]
RL += ["--record-problems", "-1", "--record-tokens"]
FIT = ["--fit.batch-tokens", "1024", "--fit.max-tokens", "7500", "--fit.eval-every", "3", "--fit.warmup-steps", "2"]


def cases(pool: str | None) -> Iterator[tuple[str, Callable[[Path], Found]]]:
    for name, options in WHOLE.items():
        given = options.split()
        yield f"eval tiny {name}", evaluated(["--strategy", name, *optional(given), "-n", "6", "--exact"])
        kept = [] if name in STEPWISE else [word for word in given if not word.startswith("max_tokens")]
        words = [*SIMULATED, "--strategy", name, *optional(kept)]
        yield f"eval simulated {name}", evaluated(words)
        yield f"eval simulated {name}, budget", evaluated([*words, "--budget-tokens", "900"])
    words = ["--model", "smollm2-135m", "--environment", "arithmetic", "-n", "3", "--max-tokens", "16", "--exact"]
    yield "eval smollm2 direct", evaluated(words)
    words = ["--strategy", "majority", *optional(["n=8", "max_tokens=96"]), "-n", "16"]
    yield "eval tiny, default mode", evaluated(words)
    yield "record and replay", recorded
    if pool:
        yield "replay", lambda _: replayed(pool, ["--verifier", "math"])
    direct = ["--strategy", "direct", *optional(["max_tokens=48"])]
    yield "rl", trained(RL)
    yield "rl, several updates", trained([*RL, "--updates", "2", "--resample", "1", "--seed", "3"])
    yield "rl, truncated masked", trained([*RL, "--mask-truncated", *direct])
    small = ["--micro-tokens", "256", "--gradient-checkpointing"]
    yield "rl, shuffled, small micro-batches", trained([*RL, "--rewards", "shuffled", *small])
    yield "pretrain", trained(["pretrain", "--length", "64", *FIT])
    yield "sft", trained(["sft", *FIT])
    yield "solve", solved


def optional(options: list[str]) -> list[str]:
    return ["--strategy-options", *options] if options else []


# Running ------------------------------------------------------------------------------------------------------------


def ponder(*words: str) -> str:
    """Run a command; what it prints."""
    program = "import sys; from ponder.cli.main import main; sys.exit(main(sys.argv[1:]))"
    env = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=env, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"ponder {' '.join(words)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def evaluated(words: list[str]) -> Callable[[Path], Found]:
    def case(folder: Path) -> Found:
        out = fresh(folder)
        ponder("eval", *words, "--out", str(out))
        values, texts = searches(out / "rollouts.jsonl")
        result = json.loads((out / "evaluation.json").read_text())
        if "simulated" in words and isinstance(result["weights_version"], int):
            result["weights_version"] = "simulated"  # as it was called when it was a text
        return [values, timeless(result)], [texts, report(out)]

    return case


def recorded(folder: Path) -> Found:
    out, pool = fresh(folder), folder / "pool.jsonl"
    ponder(
        "eval", "-n", "24", "--samples", "8", "--max-tokens", "96", "--record", str(pool), "--out", str(out), "--exact"
    )
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    rows.sort(key=named)
    more = [
        "--environment",
        "countdown",
        "--strategies",
        "direct,majority,best_of_n:logprob,weighted:logprob,adaptive,live:best_of_n",
    ]
    values, words = replayed(str(pool), more)
    kept = [[named(row), [pooled(s) for s in row["samples"]]] for row in rows]
    return [kept, values], words


def replayed(pool: str, words: list[str]) -> Found:
    text = ponder("replay", pool, *words)
    values = json.loads(ponder("replay", pool, *words, "--json"))
    said = [d.pop("reason", None) for d in values.get("disagreements", ())]
    return [values], [said, text.replace(pool, "POOL")]


def trained(words: list[str]) -> Callable[[Path], Found]:
    def case(folder: Path) -> Found:
        out = fresh(folder)
        kind, *flags = words
        ponder("train", kind, *flags, "--out", str(out))
        metrics = [timeless(json.loads(line)) for line in (out / "metrics.jsonl").read_text().splitlines()]
        values, texts = [metrics], []
        rollouts = out / "rollouts.jsonl"
        if rollouts.exists():
            for line in rollouts.read_text().splitlines():
                value, text = rollout(json.loads(line))
                values.append(value)
                texts.append(text)
        for path in sorted(out.rglob("*.safetensors")):
            if "model" in path.parts:
                values.append(
                    [path.relative_to(out).as_posix(), hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()]
                )
        return values, [texts, report(out) if kind == "rl" else ""]

    return case


def solved(folder: Path) -> Found:
    values, words = [], []
    saved = folder / "search.json"
    limited = ["--strategy", "best_of_n", "--max-tokens", "96", "--budget-tokens", "600"]
    for flags, more in ((limited, ["--budget-tokens", "4000"]), (["--thought-tokens", "48"], [])):
        first = ["--environment", "countdown", "--problem", "test:1", *flags, "--exact", "--save", str(saved)]
        for command in (first, ["--continue", str(saved), *more]):
            found = json.loads(ponder("solve", *command, "--json") or "{}")
            words.append([found.pop("reason", None), (found.get("verdict") or {}).pop("reason", None)])
            values.append(timeless(found))
        saved.unlink()
    return values, words


def fresh(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder)) / "run"


# Reading ------------------------------------------------------------------------------------------------------------


def timeless(value: Any) -> Any:
    """Without what differs from run to run, and without fields that are empty."""
    if isinstance(value, dict):
        kept = {k: old_version(v) if k == "weights_version" else v for k, v in value.items()}
        return {k: timeless(v) for k, v in kept.items() if not CLOCK.search(k) and v not in (None, 0, 0.0, "", {}, [])}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def old_version(version: Any) -> Any:
    """A version of weights as it was written when it was a text: numbers since then, 0 before any training."""
    if not isinstance(version, int):
        return version
    return f"step-{version:06d}" if version else "0"


def searches(path: Path) -> Found:
    rows = sorted(map(json.loads, path.read_text().splitlines()), key=lambda r: (r["index"], r["sample"]))
    values, words = [], []
    for row in rows:
        nodes = [node(n) for n in row["samples"]]
        kind, reason = said(row["verdict"])
        values.append(
            [
                row["problem"],
                row["prompt"],
                row["chosen"],
                row.get("vote_share"),
                row["stop"],
                spent(row["spend"]),
                kind,
                [v for v, _ in nodes],
            ]
        )
        words.append([row["reason"], reason, [w for _, w in nodes]])
    return values, words


def node(n: dict[str, Any]) -> tuple[Any, Any]:
    judge, check = said(n.get("verdict")), said(n.get("check"))
    value = [n["id"], n["parent"], n["text"], n["answer"], n["finish"], n["score"], n.get("vote"), spent(n["spend"])]
    return [*value, judge[0], check[0]], [judge[1], check[1], n.get("note")]


def pooled(s: dict[str, Any]) -> list[Any]:
    """A sample of a pool."""
    finish = s.get("finish") or s.get("finish_reason")
    correct = s["correct"] if "correct" in s else s["verdict"]["kind"] == "correct"
    return [s["text"], s["tokens"], finish, s["mean_logprob"], correct]


def said(verdict: Any) -> tuple[Any, Any]:
    if not isinstance(verdict, dict):
        return None, None
    return [verdict["kind"], verdict["reward"], verdict.get("answer")], verdict["reason"]


def spent(spend: dict[str, Any]) -> list[Any]:
    return [spend.get(k) or 0 for k in SPEND]


def rollout(row: dict[str, Any]) -> tuple[Any, Any]:
    """A line of a training's rollouts: a search with rewards and advantages, or a flat group in the first format."""
    samples, words = [], []
    for s in row["samples"]:
        verdict = s["verdict"]
        kind, reason = (verdict["kind"], verdict["reason"]) if isinstance(verdict, dict) else (verdict, s["reason"])
        reward = verdict["reward"] if isinstance(verdict, dict) else s["reward"]
        advantage = s["advantage"]
        if isinstance(advantage, list):
            assert len(set(advantage)) <= 1, "the estimators of these cases give each token of a sample the same"
            advantage = advantage[0] if advantage else 0.0
        finish = s.get("finish") or s.get("finish_reason")
        samples.append([s["text"], finish, kind, reward, advantage, *tokens(s)])
        words.append(reason)
    return [row["step"], named(row), row["prompt"], samples], words


def named(row: dict[str, Any]) -> Any:
    """The id of a row's problem."""
    return row.get("problem") or row.get("problem_id")


def tokens(s: dict[str, Any]) -> list[Any]:
    """Ids, mask and log-probabilities of prompt and response."""
    if "ids" in s:
        return [s["ids"], s["mask"], s["logprobs"]]
    ids, mask, logprobs = [], [], []
    for segment in [{"kind": "given", "ids": s.get("prompt_ids") or []}, *s["segments"]]:
        ids += segment["ids"]
        mask += [segment["kind"] == "sampled"] * len(segment["ids"])
        logprobs += segment.get("logprobs") or [0.0] * len(segment["ids"])
    return [ids, mask, logprobs]


def report(out: Path) -> list[str]:
    """report.md without times, costs of machines, and how it was made."""
    path = out / "report.md"
    if not path.exists():
        return []
    parts = re.split(r"(?m)^## ", path.read_text())
    kept = [p for p in parts if not p.startswith(("What it cost", "How it was made", "What to try next"))]
    return [TIMES.sub("TIME", TIMED.sub("", p).replace(str(out), "RUN")) for p in kept]


if __name__ == "__main__":
    sys.exit(main())
