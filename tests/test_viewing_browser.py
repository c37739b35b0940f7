"""The viewer's page in a real Chromium; skipped where there is none."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs_fixture
from browser import CHROMIUM, Browser, browser
from viewing_play import line, make, rollout

from ponder import figures, numbers
from ponder.runs.files import append_line
from ponder.runs.run import Run
from ponder.viewing.catalog import Catalog
from ponder.viewing.server import Server
from ponder.viewing.static import write

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

TICKS = """[
  [0, 1], [0.26, 0.41], [-3, 8], [2.29e12, 3.51e12], [1e-7, 4e-7], [2.43e-6, 2.57e-6], [-1, 0],
].map(([low, high]) => {
  const {values, apart} = ticks(low, high);
  return values.map((x) => tickLabel(x, apart));
})"""
BAD = (
    "</script><script>window.hit=1</script><img src=x onerror='window.hit=2'>"
    "<style>*{display:none}</style>&amp;\u202e\x07"
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Browser]:
    """The page at 1280 × 800, light; a test fails if its console has an error."""
    chromium.resize(1280, 800)
    chromium.dark(False)
    chromium.errors.clear()
    chromium.requests.clear()
    yield chromium
    assert not chromium.errors


@pytest.fixture
def view(tab: Browser) -> Iterator[object]:
    """Open runs in the page."""
    servers = []

    def opened(*runs: Path) -> Browser:
        server = Server(Catalog([str(r) for r in runs]))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        tab.open(server.url)
        return tab

    yield opened
    tab.send("Page.navigate", url="about:blank")
    for server in servers:
        server.shutdown()
        server.server_close()


def rows(tab: Browser) -> list[str]:
    return tab.run("[...document.querySelectorAll('.row .id')].map(e => e.textContent)")


def counted(tab: Browser) -> str:
    return tab.run("$('count').firstChild.textContent")


def test_all_problems_are_listed_and_only_those_in_sight_are_elements(tmp_path, view):
    tab = view(make(tmp_path / "run", 900, 1, seed=0))
    assert counted(tab) == "900 problems"
    assert len(rows(tab)) < 40
    tab.press("G")
    tab.until("document.querySelector('#current .id').textContent === 'made-up-test-899'")
    tab.until("document.querySelector('#detail h1').textContent === 'made-up-test-899'")


def test_filters_orders_and_keys_choose_the_problems(tmp_path, view):
    a, b = make(tmp_path / "a", 60, 1, seed=1, right=0.4), make(tmp_path / "b", 60, 1, seed=2, right=0.8)
    kinds = [
        [json.loads(text)["verdict"]["kind"] for text in (run / "rollouts.jsonl").read_text().splitlines()]
        for run in (a, b)
    ]
    tab = view(a, b)

    def expect(wanted: list[bool]) -> None:
        assert counted(tab) == f"{sum(wanted)} of 60 problems"
        assert rows(tab) == [f"made-up-test-{i}" for i, w in enumerate(wanted) if w][: len(rows(tab))]

    tab.run("filter({verdict: 'wrong', in: '0'})")
    expect([x == "wrong" for x in kinds[0]])
    tab.run("clearFilters()")
    assert counted(tab) == "60 problems"
    tab.run("filter({verdict: 'no_answer', in: '1'})")
    expect([y == "no_answer" for y in kinds[1]])
    tab.run("clearFilters()")
    tab.press("c")
    expect([(x == "correct") != (y == "correct") for x, y in zip(*kinds, strict=True)])
    tab.run("filter({change: 'better:1'})")
    expect([x != "correct" and y == "correct" for x, y in zip(*kinds, strict=True)])
    tab.run("filter({change: '', sort: 'most tokens'})")
    tokens = tab.run("state.seen.map(g => Math.max(...g.per.map(s => s.tokens)))")
    assert tokens == sorted(tokens, reverse=True)
    assert len(tokens) == 60


def test_keys_move_open_close_and_search(tmp_path, view):
    tab = view(make(tmp_path / "run", 30, 1, seed=0))
    tab.press("j")
    tab.press("j")
    tab.press("k")
    tab.until("document.querySelector('#detail h1').textContent === 'made-up-test-1'")
    tab.press("/")
    for key in "test-17":
        tab.press(key)
    tab.until("$('count').firstChild.textContent === '1 of 30 problems'")
    tab.press("Enter")
    tab.until("document.querySelector('#detail h1').textContent === 'made-up-test-17'")
    tab.press("Escape")
    tab.press("/")
    tab.press("Escape")
    tab.until("$('count').firstChild.textContent === '30 problems'")
    tab.press("?")
    assert tab.run("$('help').open")
    tab.press("Escape")
    tab.until("!$('help').open")


def test_the_address_keeps_what_is_looked_at(tmp_path, view):
    tab = view(make(tmp_path / "run", 30, 1, seed=0))
    tab.run("filter({verdict: 'wrong'}); go(2)")
    tab.until("location.hash.includes('at=')")
    place, key = tab.run("location.href"), tab.run("state.at")
    before = counted(tab)
    tab.open(place)
    assert (counted(tab), tab.run("state.at")) == (before, key)


def nasty(path: Path) -> Path:
    """A run whose every text tries to become part of the page."""
    found = line(random.Random(0), 0, 0, 2, 3, "wrong")
    verdict = {"kind": BAD, "reward": 0.0, "reason": BAD, "answer": BAD}
    found |= {"problem": BAD, "prompt": [{"role": BAD, "content": BAD}], "stop": BAD, "reason": BAD, "verdict": verdict}
    found["thought"] = {"open": BAD, "close": BAD, "opened_by_template": True}
    sample = {**found["samples"][0], "text": f"{BAD}{BAD}", "answer": BAD, "vote": BAD, "note": BAD, "verdict": verdict}
    found["samples"] = [sample, {**sample, "id": 1, "check": verdict, "error": BAD}]
    with Run.create(path, f"# {BAD}\n", 0, ["ponder", BAD]) as run:
        run.note(model={BAD.replace("\x07", ""): BAD})
        run.log_rollout(found)
        run.log({"step": 1, BAD: 1.0})
        run.log({"step": 2, BAD: 2.0})
    return path


LOOK = """(async () => {
  for (const [tab] of TABS) {
    openTab(tab);
    await new Promise((done) => setTimeout(done, 60));
    document.querySelectorAll('details').forEach((d) => { d.open = true; });
    await new Promise((done) => setTimeout(done, 60));
  }
  openTab('problems');
  await search('window');
  await showDetail();
  await new Promise((done) => setTimeout(done, 60));
  return [window.hit, document.querySelectorAll('img, script:not([src]):not([type])').length,
    document.querySelector('#detail .response').textContent, document.querySelectorAll('#detail mark').length];
})()"""


@pytest.mark.parametrize("how", ["served", "file"])
def test_no_text_of_a_run_becomes_part_of_the_page(tmp_path, view, tab, how):
    run = nasty(tmp_path / "run")
    if how == "served":
        view(run)
    else:
        write(Catalog([str(run)]), tmp_path / "run.html")
        tab.open((tmp_path / "run.html").as_uri())
    scripts = 0 if how == "served" else 8
    hit, parts, text, marks = tab.run(LOOK)
    assert hit is None
    assert parts == scripts
    assert "<img src=x onerror='window.hit=2'>" in text
    assert "\\u202e" in text
    assert "\u2407" in text
    assert marks > 0
    assert not any(url.endswith("/x") for url in tab.requests)


def test_new_rows_and_metrics_appear_while_a_run_is_written(tmp_path, view):
    with Run.create(tmp_path / "run", "", 0, ["ponder", "train", "rl"]) as run:
        run.log_rollout(rollout(1, 1, (0.0, 1.0)))
        run.log({"step": 1, "reward": 0.5})
        tab = view(run.path)
        assert counted(tab) == "1 rollout"
        assert tab.run("$('live').textContent") == "live"
        run.log_rollout(rollout(2, 2, (1.0, 1.0)))
        run.log({"step": 2, "reward": 1.0})
        tab.until("$('count').firstChild.textContent === '2 rollouts'")
        assert rows(tab)[0] == "step 2 · made-up-test-2"
        tab.run("openTab('training')")
        assert tab.run("document.querySelector('#page-training figcaption').textContent") == "reward1 step 2"


def test_runs_of_a_folder_are_listed_and_ticked_to_be_compared(tmp_path, view):
    make(tmp_path / "a", 20, 1, seed=1, right=0.3)
    make(tmp_path / "b", 20, 1, seed=2, right=0.9)
    tab = view(tmp_path)
    assert tab.run("[...document.querySelectorAll('.runs tbody tr')].map(r => r.cells[3].textContent).every(Boolean)")
    for number in (1, 2):
        tab.run(f"document.querySelectorAll('.runs input')[{number - 1}].click()")
        tab.until(f"document.querySelectorAll('.runs tr.picked').length === {number}")
    tab.run("document.querySelector('button.primary').click()")
    tab.until("document.querySelector('.card.pair .big')")
    assert counted(tab) == "20 problems"


def test_a_training_without_rollouts_opens_on_its_metrics_with_round_ticks(tmp_path, view):
    tab = view(runs_fixture.make(tmp_path / "run"))
    assert tab.run("state.tab") == "training"
    titles = tab.run("[...document.querySelectorAll('figcaption b')].map(b => b.textContent)")
    assert titles == [
        "held-out accuracy",
        *map(figures.label, ("reward", "loss", "length", "entropy", "truncated", "gradient_norm", "clipped")),
        *map(figures.label, ("mismatch_mean", "learning_rate", "signal")),
    ]
    assert tab.run(TICKS) == [
        ["0", "0.5", "1"],
        ["0.3", "0.35", "0.4"],
        ["0", "5"],
        ["2.5e12", "3e12", "3.5e12"],
        ["1e-7", "2e-7", "3e-7", "4e-7"],
        ["2.45e-6", "2.5e-6", "2.55e-6"],
        ["-1", "-0.5", "0"],
    ]


def test_a_run_that_is_deleted_leaves_its_rows_and_a_sentence(tmp_path, view):
    run = make(tmp_path / "run", 12, 1, seed=0)
    tab = view(run)
    tab.run("state.runs[0].status = 'running'")
    shutil.rmtree(run)
    tab.run("update(state.runs[0]).then(() => show(true))")
    assert "was deleted while it was viewed" in tab.run("$('banners').textContent")
    assert counted(tab) == "12 problems"
    tab.press("j")
    tab.until("$('detail').textContent.includes('was deleted')")
    # The answer to the question for its texts, which the browser reports too.
    assert {"400" in error for error in tab.errors} == {True}
    tab.errors.clear()


def test_one_file_shows_filters_searches_and_compares_without_a_server(tmp_path, tab):
    a, b = make(tmp_path / "a", 40, 2, seed=1, right=0.3), make(tmp_path / "b", 40, 2, seed=2, right=0.9)
    write(Catalog([str(a), str(b)]), tmp_path / "both.html")
    tab.open((tmp_path / "both.html").as_uri())
    assert counted(tab) == "40 problems"
    tab.until("document.querySelector('.card.pair .big.gain')")
    tab.until("document.querySelectorAll('#detail .side .response').length === 2")
    tab.run("search('MADE-UP-TEST-31')")
    tab.until("$('count').firstChild.textContent === '1 of 40 problems'")
    assert all(url.startswith(("file:", "about:")) for url in tab.requests)


WIDE = """[...document.querySelectorAll('header *, #detail *, .plots *, .about *')]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.tail, svg, .name'))
  .map(e => e.className)"""


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_nothing_is_wider_than_the_screen(tmp_path, view, width, dark):
    odd = line(random.Random(0), 5, 0, 2, 3, "wrong")
    odd["samples"][0]["text"] = "x" * 3000
    odd["verdict"]["reason"] = "r" * 500
    run = make(tmp_path / ("a-long-name-of-a-run" * 4), 5, 1, seed=0)
    append_line(run / "rollouts.jsonl", odd)
    append_line(run / "metrics.jsonl", {"step": 1, "reward": 0.5})
    tab = view(run, make(tmp_path / "b", 5, 1, seed=1))
    tab.resize(width, 800, mobile=width < 500)
    tab.dark(dark)
    tab.press("G")
    tab.press("Enter")
    tab.until("document.querySelector('#detail .response')")
    if width < 500:
        tab.run("history.back()")
        tab.until("$('detail').offsetParent === null && $('listing').offsetParent !== null")
        tab.press("Enter")
        tab.until("$('detail').offsetParent !== null && $('listing').offsetParent === null")
    background = tab.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is not dark
    for page in ("runs", "problems", "training", "about"):
        tab.run(f"openTab('{page}')")
        assert tab.run(WIDE) == [], page
        assert tab.run("document.documentElement.scrollWidth") <= width


def test_numbers_are_written_as_by_ponder_numbers_and_labels_are_its_own(tmp_path, view):
    make(tmp_path / "run", 4, 1, seed=0)
    tab = view(tmp_path / "run")
    seconds = [0.0003, 0.012, 0.0996, 0.571, 0.9999, 3.44, 9.94, 9.96, 59.4, 59.6, 185.2, 7812]
    assert tab.run(f"{seconds}.map(duration)") == [numbers.clock(x) for x in seconds]
    dollars = [12.3, 1234.5, 0.0041, 0.25]
    assert tab.run(f"{dollars}.map(money)") == [numbers.money(x) for x in dollars]
    shares = [0.0, 0.425, 1.0]
    assert tab.run(f"{shares}.map(percent)") == [numbers.percent(x) for x in shares]
    assert tab.run("label('mean_tokens_per_search')") == figures.label("mean_tokens_per_search")
