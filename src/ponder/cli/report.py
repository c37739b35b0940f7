"""Draw the plots and the report of a run again from its directory, or compare two evaluations."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ponder.evaluation.compare import Comparison

EPILOG = """\
examples:
  ponder report runs/quickstart
  ponder report runs/eval-before runs/eval-after

Of one run it reads curves.json, metrics.jsonl, samples.json, summary.json and manifest.json, whichever there are, and
writes the plots (PNG), report.md and report.html, which is one file that opens without a network.

Two runs of `ponder eval --out` on the same problems are compared pair by pair: both accuracies, their difference with
a bootstrap interval over problems, McNemar's exact test, and which verdicts changed into which. Nothing is written.
"""


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ponder report",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="the run directory")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="an evaluation to compare with the first")
    parser.add_argument("--json", action="store_true", help="print JSON: the paths, or the comparison (default: text)")
    given = parser.parse_args(args)
    if given.other is not None:
        from ponder.evaluation.compare import compare
        from ponder.types import to_json

        result = compare(given.run, given.other)
        print(json.dumps(to_json(result), indent=1) if given.json else text(given.run, given.other, result))
        return 0
    from ponder.runs.report import render

    markdown, page = render(given.run)
    if given.json:
        print(json.dumps({"markdown": str(markdown), "html": str(page)}))
    else:
        print(f"{markdown}\n{page}")
    return 0


def text(a: str, b: str, result: Comparison) -> str:
    """The comparison for people."""
    d = result.difference
    lines = [
        f"A  {result.a.value:6.1%} ({result.a.low:.1%} to {result.a.high:.1%}, n {result.a.n})  {a}",
        f"B  {result.b.value:6.1%} ({result.b.low:.1%} to {result.b.high:.1%}, n {result.b.n})  {b}",
        f"B - A, paired: {d.value * 100:+.1f} points ({d.low * 100:+.1f} to {d.high * 100:+.1f})",
    ]
    if result.p is not None:
        lines.append(f"McNemar's exact test: p = {result.p:.2g}")
    lines += [f"{count:>6}  {move}" for move, count in result.moves.items()]
    return "\n".join(lines)
