"""Turn an evaluation's correct responses into rows for `ponder train sft --data` (rejection sampling).

    ponder eval ... --split train --samples 8 --out runs/pool
    python recipes/correct_samples.py runs/pool own.jsonl

A control for RL with equal compute: supervised training on the model's own correct samples (STaR, Zelikman et al. 2022,
arXiv:2203.14465, one round). The texts are tokenised again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ponder.runs.files import read_lines


def main(run: str, out: str) -> int:
    """Write the rows; returns the exit code."""
    path = Path(run) / "rollouts.jsonl"
    if not path.is_file():
        print(f"{path}: no such file; give a run directory that `ponder eval --out` wrote", file=sys.stderr)
        return 2
    rows = [
        {"prompt": row["prompt"], "response": sample["text"]}
        for row in read_lines(path).rows
        for sample in row["samples"]
        if sample["verdict"] == "correct"
    ]
    if not rows:
        print(f"{path}: no correct response among its samples", file=sys.stderr)
        return 1
    Path(out).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} correct responses: {out}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2]))
