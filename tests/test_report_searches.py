"""The searches of a run as trees: every branch with what was found out about it, and nothing that breaks the page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import runs_fixture as fixture
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.cli.main import main
from ponder.errors import UserError
from ponder.runs import results
from ponder.runs.report import render
from ponder.runs.trees import DEEPEST, MOST_BRANCHES, Branch, sketch, tree
from ponder.search.record import to_row
from ponder.types import (
    Completion,
    FinishReason,
    Node,
    Outcome,
    Problem,
    Response,
    Spend,
    StopReason,
    Trace,
    Verdict,
    VerdictKind,
)

RIGHT, WRONG = Verdict(VerdictKind.CORRECT, 1.0, "is 24"), Verdict(VerdictKind.WRONG, 0.0, "is not 24")


def node(number: int, parent: int | None, text: str, **facts: Any) -> Node:
    spend = Spend(prompt_tokens=20, sampled_tokens=len(text), seconds=0.0123, dollars=0.0021)
    finish = facts.pop("finish", FinishReason.STOP)
    return Node(number, parent, Completion(text, finish, spend), Response(text), **facts)


NODES = (
    node(0, None, "first step", score=0.4),
    node(1, None, "another step", score=0.9, note="given up: the beam is full"),
    node(2, 0, "first step, second step", score=0.7),
    node(3, 2, "first step, second step, 24", check=RIGHT, verdict=RIGHT, vote="24", score=1.0),
    node(4, 2, "first step, second step, 25", check=WRONG, verdict=WRONG, finish=FinishReason.LENGTH),
)


def row(nodes: tuple[Node, ...] = NODES, **facts: Any) -> dict[str, Any]:
    """A line of an evaluation's `rollouts.jsonl`."""
    spend = Spend(prompt_tokens=100, sampled_tokens=90, verifier_calls=2, dollars=0.0105)
    trace = Trace("p", nodes)
    outcome = Outcome(Response("24"), 0.75, trace, spend, StopReason.ACCEPTED, 3, "chosen by the checker")
    found = to_row(Problem("p", "Make 24."), outcome) | {"index": 0, "sample": 0, "seconds": 1.5}
    return found | {"verdict": {"kind": "correct", "reward": 1.0, "reason": "is 24"}} | facts


def walk(branches: tuple[Branch, ...]) -> list[Branch]:
    return [b for branch in branches for b in (branch, *walk(branch.branches))]


def test_the_tree_has_every_branch_with_what_is_known_of_it() -> None:
    found = tree(row())
    assert [b.name for b in walk(found.branches)] == ["0", "2", "3", "4", "1"]
    by_name = {b.name: b for b in walk(found.branches)}
    assert [n for n, b in by_name.items() if b.on_path] == ["0", "2", "3"]
    assert [n for n, b in by_name.items() if b.chosen] == ["3"]
    assert by_name["3"].text == ", 24", "a branch shows what it adds"
    assert (by_name["3"].judge, by_name["3"].check) == ("correct", "correct")
    assert by_name["3"].facts == ("score 1", "votes 24")
    assert by_name["1"].facts == ("score 0.900", "given up: the beam is full")
    assert by_name["4"].facts == ("cut off",)
    assert by_name["4"].reasons == ("judge: is not 24", "checker: is not 24")
    assert by_name["0"].cost == "20 prompt + 10 response tokens, 12 ms, $0.0021"
    assert found.stopped == "accepted: chosen by the checker; share of the votes 75.0 %"
    assert found.totals == "5 branches, 2 checker or scorer calls, 100 prompt + 90 response tokens, 1.5 s, $0.011"


def test_the_sketch_is_a_line_a_branch() -> None:
    lines = sketch(tree(row())).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("├─*0  first step")
    assert lines[1].startswith("│  └─*2  , second step")
    assert lines[2].startswith("│     ├─*3  , 24  [judge correct · checker correct · score 1 · votes 24 · 20 prompt + ")
    assert lines[4].startswith("└─ 1  another step")


def test_a_huge_search_is_cut_and_says_so_and_keeps_what_was_chosen() -> None:
    wide = tuple(node(i, None, "x") for i in range(MOST_BRANCHES + 50))
    found = tree(row(wide) | {"chosen": MOST_BRANCHES + 40})
    assert len(found.branches) == MOST_BRANCHES
    assert found.left_out == 50
    assert any(b.chosen for b in found.branches)
    deep = tuple(node(i, i - 1 if i else None, "x" * i) for i in range(DEEPEST + 20))
    found = tree(row(deep) | {"chosen": 5})
    assert len(walk(found.branches)) == DEEPEST
    assert walk(found.branches)[-1].left_out == 1
    assert "more" in sketch(found)


FACTS = st.sampled_from(["id", "parent", "text", "verdict", "check", "score", "spend", "finish"])


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), FACTS), max_size=8), st.data())
def test_a_line_that_lacks_anything_is_still_a_tree(missing: list[tuple[int, str]], data: st.DataObject) -> None:
    found = row()
    for at, name in missing:
        if at < len(found["samples"]):
            found["samples"][at].pop(name, None)
        else:
            found.pop(data.draw(st.sampled_from(sorted(found))))
            found.setdefault("samples", [])
    shown = tree(found)
    assert (len(walk(shown.branches)), shown.left_out) == (len(found["samples"]), 0)
    assert len(sketch(shown)) >= len(found["samples"])


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open = 0
        self.depth = 0
        self.seen = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "details":
            self.open += ("open", None) in attrs or ("open", "") in attrs

    def handle_data(self, data: str) -> None:
        self.seen += data


def run_of(path: Path, rows: list[dict[str, Any]]) -> Path:
    fixture.make(path, parts=())
    (path / "rollouts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_the_page_shows_branches_that_open_and_close_without_a_script(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [row()])
    render(run)
    page = Page((run / "report.html").read_text())
    assert page.tags.count("details") == 5
    assert page.open == 3, "the way to what was chosen is open"
    assert "script" not in page.tags
    for said in (
        "given up: the beam is full", "votes 24", "judge: correct", "checker: wrong", "chosen", "12 ms", "$0.0021",
        "Stopped: accepted: chosen by the checker; share of the votes 75.0 %",
    ):  # fmt: skip
        assert said in page.seen
    markdown = (run / "report.md").read_text()
    assert "├─*0  first step" in markdown


def test_model_text_cannot_break_out_of_its_branch(tmp_path: Path) -> None:
    nasty = tuple(
        node(
            i, None, fixture.NASTY, note=fixture.NASTY, vote=fixture.NASTY, check=Verdict(VerdictKind.WRONG, 0.0, "<b>")
        )
        for i in range(2)
    )
    run = run_of(tmp_path / "run", [row(nasty, problem=fixture.NASTY, reason=fixture.NASTY)])
    render(run)
    html = (run / "report.html").read_text()
    page = Page(html)
    assert {"script", "b", "think"}.isdisjoint(page.tags)
    assert "<script>alert(1)</script>" in page.seen
    for text in (html, (run / "report.md").read_text()):
        assert "\x00" not in text
        assert "\u202e" not in text
    outside = re.sub(r"(?ms)^(`{3,})text\n.*?\n\1$", "", (run / "report.md").read_text())
    assert "<script>" not in outside


def test_the_first_problems_are_shown_and_others_printed_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(index=i, problem=f"p{i}") for i in range(40)]
    run = run_of(tmp_path / "run", [*reversed(rows), row(index=3, problem="p3", stop="budget")])
    found = results.read(run)
    assert [r["problem"] for r in found.searches] == [f"p{i}" for i in range(results.MOST_SEARCHES)]
    assert found.searches[3]["stop"] == "budget", "a search that was run again counts once"
    assert found.searched == 40
    assert main(["report", str(run), "--problem", "p33"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("p33: ")
    assert "└─" in shown
    assert "judge" in shown
    assert not (run / "report.html").exists(), "nothing is written"
    assert main(["report", str(run), "--problem", "p33", "--json"]) == 0
    assert [s["problem"] for s in json.loads(capsys.readouterr().out)] == ["p33"]
    with pytest.raises(UserError, match="no search of it"):
        results.read(run, ["p40"])


def test_a_torn_last_line_is_skipped_and_reported(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [row()])
    with open(run / "rollouts.jsonl", "a") as file:
        file.write('{"problem": "p1", "sto')
    render(run)
    assert "line 2 is torn" in (run / "report.md").read_text()


def test_the_rollouts_of_a_training_are_no_searches(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [{"step": 1, "problem_id": "p", "prompt": "x", "samples": [{"text": "y"}]}])
    render(run)
    assert "## Searches" not in (run / "report.md").read_text()
