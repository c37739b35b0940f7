"""Draw the plots and the report of a run again from its directory."""

from __future__ import annotations

import argparse
import json

EPILOG = """\
example:
  ponder report runs/quickstart

Reads curves.json, metrics.jsonl, samples.json, summary.json and manifest.json of the run, whichever there are, and
writes the plots (PNG), report.md and report.html, which is one file that opens without a network.
"""


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ponder report",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="the run directory")
    parser.add_argument("--json", action="store_true", help="print the paths as JSON (default: one a line)")
    given = parser.parse_args(args)
    from ponder.runs.report import render

    markdown, page = render(given.run)
    if given.json:
        print(json.dumps({"markdown": str(markdown), "html": str(page)}))
    else:
        print(f"{markdown}\n{page}")
    return 0
