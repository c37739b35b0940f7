"""How fast `ponder view` opens and filters a large evaluation, in a real Chromium.

    python benchmarks/viewer.py                # 5,000 problems, twice, side by side
    python benchmarks/viewer.py --problems 500 --samples 1 --keep runs/made-up

The evaluations are made up: prompts, thoughts and verdicts are drawn from a seed. "open" is from the request for the
page until its rows are on the screen, the server's reading of the files included. "filter" is from a choice in a menu,
or the last key of a search, until the list has been laid out anew and the next frame begins. On a busy machine the
wait for that frame is the larger part, so the processor time of the page's main thread is given too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import CHROMIUM, Browser, browser
from viewing_play import make

from ponder.viewing.catalog import Catalog
from ponder.viewing.server import Server

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
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
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


def used(page: Browser) -> float:
    """Seconds of processor time that the page's main thread has used."""
    metrics = page.send("Performance.getMetrics")["metrics"]
    return next(m["value"] for m in metrics if m["name"] == "TaskDuration")


def measure(runs: list[Path], repeats: int, folder: Path) -> None:
    """Print the times of one or two runs: each repeat has a server of its own that has read nothing yet."""
    opened, filtered, searched, busy = [], [], [], []
    with browser(folder / f"profile-{len(runs)}") as page:
        page.send("Performance.enable", timeDomain="threadTicks")
        for _ in range(repeats):
            server = Server(Catalog([str(r) for r in runs]))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            began = time.perf_counter()
            page.open(server.url)
            page.until("document.querySelectorAll('.row').length > 5")
            opened.append(time.perf_counter() - began)
            before, many = used(page), len(filtered)
            filtered += page.run(FILTER % ("{change: 'better:1'}" if len(runs) > 1 else "{verdict: 'right'}"))
            busy.append((used(page) - before) / (len(filtered) - many) * 1e3)
            searched += page.run(SEARCH)
            server.shutdown()
            server.server_close()
        assert not page.errors, page.errors
    median, worst = sorted(opened)[len(opened) // 2], max(opened)
    print(
        f"{len(runs)} run{'s' * (len(runs) > 1)}: open {median:.2f} s (at most {worst:.2f}), "
        f"filter {sorted(filtered)[len(filtered) // 2]:.0f} ms (at most {max(filtered):.0f}; "
        f"{sorted(busy)[len(busy) // 2]:.0f} ms of the page's processor time), "
        f"search {sorted(searched)[len(searched) // 2]:.0f} ms (at most {max(searched):.0f})"
    )


if __name__ == "__main__":
    main()
