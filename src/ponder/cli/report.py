"""Draw the plots and the report of a run again from its directory, or compare two evaluations."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ponder.cli._output import say

if TYPE_CHECKING:
    from ponder.evaluation.compare import Comparison

EPILOG = """\
examples:
  ponder report runs/quickstart
  ponder report runs/eval --problem countdown-test-17
  ponder report runs/eval-before runs/eval-after
  ponder report runs/eval --to inspect

Of one run it reads curves.json, metrics.jsonl, rollouts.jsonl, samples.json, summary.json and manifest.json, as far as
they exist, and writes the plots (PNG), report.md and report.html, which is one file that opens without a network. For
an evaluation it shows the first searches as trees: every branch with its scores, its verdicts and its cost. With
--problem the trees of that problem's searches are printed instead, and nothing is written.

Two runs of `ponder eval --out` on the same problems are compared problem by problem: both accuracies, their
difference with its interval over problems, McNemar's exact test, and which verdicts changed into which. Nothing
is written.

--to inspect writes an evaluation as a log of inspect_ai to RUN/inspect/, for its viewer:
inspect view start --log-dir RUN/inspect. `ponder view` needs no other package.
"""


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="ponder report",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="the run directory")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="an evaluation to compare with the first")
    parser.add_argument(
        "--problem",
        metavar="ID",
        action="append",
        default=[],
        help="print the searches of this problem as trees; may be repeated",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON: the paths, the searches or the comparison (default: text)"
    )
    parser.add_argument("--to", choices=("inspect",), help="write an evaluation in the format of another tool instead")
    return parser


def main(args: list[str]) -> int:
    flags = parser()
    given = flags.parse_args(args)
    if given.to is not None:
        if given.other is not None or given.problem:
            flags.error("--to goes with one run, and without --problem")
        from ponder.viewing.inspect_log import write

        path = write(given.run)
        say(json.dumps({given.to: str(path)}) if given.json else str(path))
        return 0
    if given.other is not None:
        if given.problem:
            flags.error("--problem goes with one run")
        from ponder.evaluation.compare import compare

        result = compare(given.run, given.other)
        say(json.dumps(result.to_json(), indent=1) if given.json else text(given.run, given.other, result))
        return 0
    if given.problem:
        from ponder.runs.results import read

        searches = read(given.run, given.problem).searches
        say(json.dumps(searches, indent=1) if given.json else "\n\n".join(map(trees, searches)))
        return 0
    from ponder.runs.report import render

    markdown, page = render(given.run)
    if given.json:
        say(json.dumps({"markdown": str(markdown), "html": str(page)}))
    else:
        say(f"{markdown}\n{page}")
    return 0


def trees(search: Mapping[str, Any]) -> str:
    """A search as text: what was asked, every branch, what was chosen and why it stopped."""
    from ponder.runs.trees import sketch, tree

    found = tree(search)
    verdict = f"judge: {found.verdict}" + (f", {found.reason}" if found.reason else "") if found.verdict else ""
    more = f"{found.left_out} more branches" if found.left_out else ""
    lines = [f"{found.problem}: {found.prompt}", sketch(found, sys.maxsize), more, verdict, found.stopped, found.totals]
    return "\n".join(filter(None, lines))


def text(a: str, b: str, result: Comparison) -> str:
    """The comparison as text."""
    facts = [("A", a), ("B", b), *result.facts()]
    wide = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{wide}}  {said}" for name, said in facts)
