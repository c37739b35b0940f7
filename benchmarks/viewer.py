"""How fast `ponder view` opens and filters a large evaluation, in a real Chromium.

    python benchmarks/viewer.py                # 5,000 problems, twice, side by side
    python benchmarks/viewer.py --problems 500 --samples 1 --keep runs/made-up

The evaluations are made up: prompts, thoughts and verdicts are drawn from a seed. "open" is from the request for the
page until its rows are on the screen, the server's reading of the files included. "filter" is from a choice in a menu,
or the last key of a search, until the list has been laid out anew (`requestAnimationFrame`, then a forced layout).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import CHROMIUM, browser

from ponder.evaluation.intervals import mean_of_problems
from ponder.runs.run import Run
from ponder.types import to_json
from ponder.viewing.catalog import Catalog
from ponder.viewing.server import Server

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


def line(rng: random.Random, index: int, sample: int, a: int, b: int, kind: str) -> dict[str, object]:
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
        "confidence": None,
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


FILTER = """(async () => {
  const times = [];
  const choices = [{verdict: 'wrong'}, {verdict: 'no_answer', stop: 'budget'}, {verdict: '', stop: ''}];
  for (const given of [...choices, {sort: 'most tokens'}, %s]) {
    const began = performance.now();
    filter(given);
    $('rows').getBoundingClientRect();
    await new Promise(requestAnimationFrame);
    times.push(performance.now() - began);
  }
  clearFilters();
  return times;
})()"""
SEARCH = """(async () => {
  const times = [];
  for (const q of ['parcels and each parcel holds 29 bolts', 'the', 'no such words anywhere']) {
    const began = performance.now();
    await search(q);
    $('rows').getBoundingClientRect();
    await new Promise(requestAnimationFrame);
    times.push(performance.now() - began);
  }
  clearFilters();
  return times;
})()"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=5000)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="keep the made-up runs in this folder")
    parser.add_argument("--quick", action="store_true", help="few problems: only shows that it works")
    given = parser.parse_args()
    if given.quick:
        given.problems, given.repeats = 200, 1
    with tempfile.TemporaryDirectory() as folder:
        place = given.keep or Path(folder)
        runs = [
            make(place / name, given.problems, given.samples, seed, r)
            for name, seed, r in (("a", 1, 0.5), ("b", 2, 0.6))
        ]
        size = (runs[0] / "rollouts.jsonl").stat().st_size
        print(f"{given.problems:,} problems × {given.samples} samples, {size / 1e6:.1f} MB a run")
        if CHROMIUM is None:
            print("skipped: there is no Chromium")
            return
        for shown in (runs[:1], runs):
            measure(shown, given.repeats, Path(folder))


def measure(runs: list[Path], repeats: int, folder: Path) -> None:
    """Print the times of one or two runs: each repeat has a server of its own that has read nothing yet."""
    opened, filtered, searched = [], [], []
    with browser(folder / f"profile-{len(runs)}") as page:
        for _ in range(repeats):
            server = Server(Catalog([str(r) for r in runs]))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            began = time.perf_counter()
            page.open(server.url)
            page.until("document.querySelectorAll('.row').length > 5")
            opened.append(time.perf_counter() - began)
            filtered += page.run(FILTER % ("{change: 'better:1'}" if len(runs) > 1 else "{verdict: 'right'}"))
            searched += page.run(SEARCH)
            server.shutdown()
            server.server_close()
        assert not page.errors, page.errors
    median, worst = sorted(opened)[len(opened) // 2], max(opened)
    print(
        f"{len(runs)} run{'s' * (len(runs) > 1)}: open {median:.2f} s (at most {worst:.2f}), "
        f"filter {sorted(filtered)[len(filtered) // 2]:.0f} ms (at most {max(filtered):.0f}), "
        f"search {sorted(searched)[len(searched) // 2]:.0f} ms (at most {max(searched):.0f})"
    )


if __name__ == "__main__":
    main()
