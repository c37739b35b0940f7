"""An evaluation on disk: one line of `rollouts.jsonl` for each search, and back, to compare or to resume.

A line is `search.record.to_row` with `index` and `sample` (which search it is), `verdict` (of what was chosen; an
abstention has one too), `seconds` (that the search took) and `at` (when it ended, since the evaluation began). A search
that was run again after a resume has a second line: the last one counts.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ponder import show
from ponder.budget.prices import Prices
from ponder.errors import UserError
from ponder.evaluation.results import Earlier, Judged, Searched
from ponder.runs.lines import searches
from ponder.search.record import to_row
from ponder.types import Node, Problem, Spend, StopReason, ThoughtFormat, Trace, Verdict, to_json

_log = logging.getLogger(__name__)


def to_line(searched: Searched, prices: Prices | None = None, thought: ThoughtFormat | None = None) -> dict[str, Any]:
    """The line of a search. With `prices`, branches whose engine does not say what they cost have their dollars.

    With `thought` a reader of the line as a pool (`ponder replay`) can separate thought and answer.
    """
    outcome, verdict = searched.outcome, searched.judged.verdict
    if prices is not None:
        nodes = tuple(_priced(n, prices) for n in outcome.trace.nodes)
        outcome = dataclasses.replace(outcome, trace=Trace(outcome.trace.problem_id, nodes))
    line = to_row(searched.problem, outcome, thought=thought)
    line |= {"index": searched.index, "sample": searched.sample, "verdict": _without_none(to_json(verdict))}
    if searched.judged.starved:
        line["starved"] = True
    line |= {"seconds": round(searched.judged.seconds, 6), "at": round(searched.at, 6)}
    chosen = next((n for n in outcome.trace.nodes if n.id == outcome.chosen), None)
    if searched.judged.text and (chosen is None or chosen.completion.text != searched.judged.text):
        line["text"] = searched.judged.text
    return line


def _priced(node: Node, prices: Prices) -> Node:
    spend = node.completion.spend
    if spend.dollars:
        return node
    spend = dataclasses.replace(spend, dollars=prices.dollars(spend))
    return dataclasses.replace(node, completion=dataclasses.replace(node.completion, spend=spend))


def _without_none(verdict: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in verdict.items() if v is not None or k == "reward"}


def earlier(path: Path, problems: Sequence[Problem], samples: int) -> Earlier:
    """What an evaluation of these problems has left in `rollouts.jsonl`.

    To be run again are searches that failed by infrastructure errors, that a budget refused, or that the budget of the
    whole evaluation cut short.

    Raises `UserError` if a line is of another evaluation or cannot be read.
    """
    found: dict[tuple[int, int], Judged] = {}
    lost, seconds = Spend(), 0.0
    # A torn line is said, and cut off, where the run is opened.
    for _, where, line in searches(path, torn=[]):
        try:
            place, judged = (int(line["index"]), int(line["sample"])), from_line(line)
            same = line["problem"] == problems[place[0]].id and line["prompt"] == to_json(problems[place[0]].prompt)
            seconds = max(seconds, float(line["at"]))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"{where} is no search of an evaluation ({error!r})") from None
        if not same or not 0 <= place[1] < samples:
            raise UserError(f"{where} is of another problem than the environment now has at that index")
        if place in found:
            lost += found.pop(place).spend
        if judged.again:
            lost += judged.spend
        else:
            found[place] = judged
    return Earlier(found, lost, seconds)


def lines(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number, place and object of each whole line, as `jsonl.objects` has them; a torn last one is a warning."""
    torn: list[str] = []
    yield from searches(path, torn)
    for sentence in torn:
        _log.warning("warning: %s: one search is missing", show.visible(sentence))


def from_line(line: dict[str, Any]) -> Judged:
    """The small result of a line. Raises `ValueError`, `KeyError` or `TypeError` for what is none."""
    verdict = msgspec.convert(line["verdict"], Verdict)
    chosen = next((s for s in line["samples"] if s["id"] == line["chosen"]), None)
    text = line.get("text", "" if chosen is None else chosen["text"])
    spend = msgspec.convert(line["spend"], Spend)
    seconds = float(line.get("seconds") or 0.0)
    return Judged(verdict, text, spend, StopReason(line["stop"]), bool(line.get("starved")), seconds)
