"""Whether the quickstart uses its time and learns on a machine that is busy in the first minute.

    python benchmarks/quickstart_busy.py [--seeds 3] [--minutes 8] [--busy-seconds 60] [--out FOLDER] [--quick] [--json]

No peer. For each seed (0, 1, …) `ponder quickstart` runs once, in a process of its own, while a busy loop holds one
core for the first `--busy-seconds` seconds. A line a seed: the share of the time that the command used, from its start
to its end, the steps that it trained, and the points that training gained at 40 tokens of thought, paired, with their
95 % interval over problems.

The bars: each seed uses 90 % to 105 % of the time and gains 15 points. The exit code is 1 if one misses a bar, and the
line says which. They are meant for 8 minutes: one minute (`--quick`) shows that it runs, and misses them. Nothing else
should run on the machine; 3 seeds take 24 minutes. Runs are kept where `--out` says, else they are removed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ponder.cli.quickstart import COMPARED_AT, RUNGS
from ponder.evaluation import curves as files
from ponder.runs.files import read_json

LEAST_USED, MOST_USED = 0.90, 1.05
"""Share of the given time."""
LEAST_GAIN = 0.15
COMMAND = [sys.executable, "-c", "import sys; from ponder.cli.main import main; sys.exit(main(sys.argv[1:]))"]


@dataclass(frozen=True)
class Row:
    """What one quickstart did."""

    seed: int
    used: float
    """Share of the given time, from the start of the command to its end."""
    steps: int
    gain: float
    """Accuracy of the trained model less that of the base."""
    said: str
    """The gain with its interval, as the report has it."""

    @property
    def missed(self) -> list[str]:
        """The bars that it misses."""
        found = []
        if not LEAST_USED <= self.used <= MOST_USED:
            found.append(f"{self.used:.0%} of the time, not {LEAST_USED:.0%} to {MOST_USED:.0%}")
        if self.gain < LEAST_GAIN:
            found.append(f"less than {LEAST_GAIN * 100:.0f} points")
        return found


def spin(core: int | None) -> None:
    """Keep a core busy until this process is ended."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    while True:
        pass


def measure(seed: int, minutes: float, busy_seconds: float, out: Path) -> Row:
    """Run the quickstart beside a busy loop. Raises `SystemExit` if it fails."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    loop = multiprocessing.get_context("spawn").Process(target=spin, args=(cores[0] if cores else None,), daemon=True)
    loop.start()
    quiet = threading.Timer(busy_seconds, loop.terminate)
    quiet.start()
    began = time.monotonic()
    words = ["quickstart", "--seed", str(seed), "--minutes", str(minutes), "--out", str(out)]
    try:
        done = subprocess.run([*COMMAND, *words], stdout=subprocess.DEVNULL, check=False)
    finally:
        quiet.cancel()
        loop.terminate()
    used = (time.monotonic() - began) / (60 * minutes)
    if done.returncode:
        raise SystemExit(f"seed {seed}: the quickstart ended with exit code {done.returncode}")
    curves, summary = files.read(out / "curves.json"), read_json(out / "summary.json")
    at = RUNGS.index(COMPARED_AT)
    gain = curves.test.sequential[at].accuracy - curves.base.sequential[at].accuracy
    facts = summary["facts"]
    return Row(seed, used, facts["Training steps"], gain, facts["Gain by training (paired)"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--minutes", type=float, default=8.0, help="time of each quickstart")
    parser.add_argument("--busy-seconds", type=float, default=60.0, help="how long one core is kept busy")
    parser.add_argument("--out", metavar="FOLDER", help="keep the runs here, as seed-0, seed-1, …")
    parser.add_argument("--quick", action="store_true", help="one seed, one minute: does it run?")
    parser.add_argument("--json", action="store_true", help="one object a line")
    given = parser.parse_args()
    seeds, minutes = (1, 1.0) if given.quick else (given.seeds, given.minutes)
    if seeds < 1:
        parser.error("--seeds: give at least 1")
    missed = 0
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(seeds):
            row = measure(seed, minutes, given.busy_seconds, Path(given.out or temporary) / f"seed-{seed}")
            missed += bool(row.missed)
            if given.json:
                print(json.dumps({**asdict(row), "missed": row.missed}), flush=True)
                continue
            verdict = f"MISSED: {', '.join(row.missed)}" if row.missed else "met"
            print(f"seed {seed}: {row.used:.1%} of the time, {row.steps} steps, {row.said}; {verdict}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
