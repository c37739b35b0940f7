"""The content of a report as data: sections of text, tables, pictures and samples. `report` renders it.

A section that the run has no data for is left out.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ponder import figures, numbers
from ponder.numbers import duration, quantity
from ponder.runs import examples, panels
from ponder.runs.headline import headline
from ponder.runs.plots import halves
from ponder.runs.results import TOKENS, Results, Row, is_number
from ponder.runs.run import KEPT
from ponder.runs.settings import settings
from ponder.runs.trees import Tree, prompt_text, tree
from ponder.show import visible

MOST_SAMPLES = 12
NUMBERS = ("curves.json", "evaluation.json", "metrics.jsonl", "rollouts.jsonl")
"""Files of a run that hold what its report shows."""
METHOD = "Wilson's score for one sample a problem, bootstrap over problems for several"
"""How intervals were made when `curves.json` did not name their method."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    lead: bool = False
    """The sentence that says the result."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of short cells; the first column is a name, the others are numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture by its file name in the run directory; `narrow` is another one for small screens."""

    name: str
    alt: str
    caption: str
    narrow: str = ""


@dataclass(frozen=True, slots=True)
class Commands:
    """Commands to run."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One problem and a model's responses to it; texts are untrusted and already `visible`."""

    problem: str
    prompt: str
    gold: str
    responses: tuple[tuple[str, str, str, str], ...]
    """Who (`before`, `after`, `response`, `step 3`), verdict, reason, text."""


Block = Text | Table | Picture | Commands | Sample | Tree


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


def title(results: Results) -> str:
    """The heading of the report."""
    given = results.summary.get("title")
    command = results.manifest.get("command") or ["ponder"]
    return visible(given or " ".join(str(w) for w in command[1:2]) or results.path.name, 200)


def sections(results: Results, pictures: Sequence[str]) -> list[Section]:
    """All sections that the run has data for, in reading order. `pictures` names those that were drawn."""
    curves = {("train", "test"): "Both curves", ("test",): "Test-time compute"}
    parts = (
        ("Settings", _settings(results)),
        ("Result", _result(results)),
        (curves.get(tuple(halves(results)), "Held-out accuracy"), _curves(results, pictures)),
        ("More samples", _more_samples(results, pictures)),
        ("Training", _training(results, pictures)),
        ("Searches", _searches(results)),
        ("Samples", _samples(results)),
        ("Samples of training", _trained_on(results)),
        ("What it cost", _cost(results)),
        ("What to try next", _next(results)),
        ("How it was made", _made(results)),
    )
    return [Section(name, tuple(blocks)) for name, blocks in parts if blocks]


def percent(value: Any) -> str:
    """`41.2 %`, or a dash for no number."""
    return numbers.percent(value) if is_number(value) else "–"


def with_interval(point: Row, key: str = "accuracy") -> str:
    """`41.2 % [37.0, 45.5]`."""
    if not (is_number(point.get("low")) and is_number(point.get("high"))):
        return percent(point.get(key))
    return numbers.with_interval(_Interval(point[key], point["low"], point["high"]))


class _Interval(NamedTuple):
    value: float
    low: float
    high: float


def _settings(results: Results) -> list[Block]:
    rows = settings(results)
    return [Table(("", ""), tuple(rows))] if rows else []


def _result(results: Results) -> list[Block]:
    given = results.summary.get("warnings")
    warnings = [w for w in given if isinstance(w, str)] if isinstance(given, list) else []
    blocks: list[Block] = [Text(f"Warning: {visible(w.removeprefix('warning: '), 500)}.") for w in warnings]
    said = headline(results, with_interval)
    blocks += [Text(said, lead=True)] if said else []
    facts = results.summary.get("facts")
    if not isinstance(facts, Mapping):
        facts = {k: v for k, v in results.summary.items() if k != "title" and isinstance(v, str | int | float)}
    said_above = {name for name, _ in settings(results)}
    rows = [(visible(k, 80), _cell(v)) for k, v in facts.items() if k not in said_above]
    if rows:
        blocks.append(Table(("", ""), tuple(rows)))
    verdicts = results.summary.get("verdicts")
    if isinstance(verdicts, Mapping) and verdicts:
        total = sum(v for v in verdicts.values() if is_number(v)) or 1
        shares = [(visible(k, 40), _cell(v), percent(v / total)) for k, v in verdicts.items() if is_number(v)]
        blocks.append(Table(("verdict", "responses", "share"), tuple(shares)))
    return blocks


def _caption(results: Results, points: Sequence[Row]) -> str:
    method = results.curves.get("interval") or results.summary.get("interval") or METHOD
    return f"Bars and bands: 95 % intervals ({visible(method, 120)}) over n = {_counts(points)} held-out problems."


def _counts(points: Sequence[Row]) -> str:
    counts = sorted({int(p["n"]) for p in points if is_number(p.get("n"))})
    if not counts:
        return "?"
    return f"{counts[0]:,}" if counts[0] == counts[-1] else f"{counts[0]:,} to {counts[-1]:,}"


CURVES = {
    ("train",): "Held-out accuracy against train compute.",
    ("test",): "Held-out accuracy against test-time compute.",
    ("train", "test"): "Held-out accuracy of base and trained against train compute and against test-time compute.",
}
"""What `curves.png` shows."""


def _curves(results: Results, pictures: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    ladders = [p for part in results.sequential.values() for p in part]
    if "curves.png" in pictures:
        alt = CURVES[tuple(halves(results))]
        blocks.append(Picture("curves.png", alt, _caption(results, [*results.train, *ladders]), "curves-narrow.png"))
    if results.train:
        rows = tuple(
            (
                _cell(p.get("step", "–")),
                figures.text("flops", p["flops"]),
                _cell(p.get("sampled_tokens", "–")),
                with_interval(p),
            )
            for p in results.train
        )
        blocks.append(
            Table(("step", figures.label("flops"), figures.label("sampled_tokens"), "accuracy [95\u00a0%]"), rows)
        )
    if ladders:
        blocks.append(_beside(results.sequential, "budget_tokens", "thought budget"))
    return blocks


def _beside(parts: Mapping[str, Sequence[Row]], key: str, label: str) -> Table:
    """Base and trained side by side: one row for each budget."""
    there = [who for who, points in parts.items() if points]
    keys = sorted({p[key] for who in there for p in parts[who] if is_number(p.get(key))})
    by_key = {who: {p.get(key): p for p in parts[who]} for who in there}
    columns: list[tuple[str, Callable[[Row], str]]] = [("accuracy [95\u00a0%]", with_interval)]
    for name, short in (("coverage", "coverage"), ("no_answer", "no answer")):
        if any(is_number(p.get(name)) for who in there for p in parts[who]):
            columns.append((short, partial(_share, name)))
    columns.append((figures.label(TOKENS), lambda p: quantity(p[TOKENS]) if is_number(p.get(TOKENS)) else "–"))
    head = (label, *(f"{who}: {name}" for name, _ in columns for who in there))
    rows = tuple(
        (_cell(k), *(show(by_key[who][k]) if k in by_key[who] else "–" for _, show in columns for who in there))
        for k in keys
    )
    return Table(head, rows)


def _share(name: str, point: Row) -> str:
    return percent(point.get(name))


def _more_samples(results: Results, pictures: Sequence[str]) -> list[Block]:
    points = [p for part in results.parallel.values() for p in part]
    if not points:
        return []
    blocks: list[Block] = []
    if "parallel.png" in pictures:
        alt = "Best-of-k accuracy and coverage of base and trained against the number of samples."
        blocks.append(Picture("parallel.png", alt, _caption(results, points), "parallel-narrow.png"))
    blocks.append(_beside(results.parallel, "samples", "samples"))
    blocks.append(
        Text(
            "Best of k is picked by the environment's checker, which sees no gold answer. Coverage is pass@k by the "
            "judge, which does: what a perfect picker could reach, not an accuracy."
        )
    )
    return blocks


def _training(results: Results, pictures: Sequence[str]) -> list[Block]:
    if "training.png" not in pictures:
        return []
    alt = f"Over the steps of training: {', '.join(p.title for p in panels.panels(results.metrics))}."
    picture = Picture("training.png", alt, panels.caption(results.metrics), "training-narrow.png")
    return [picture, *(Text(note) for note in results.notes)]


def _searches(results: Results) -> list[Block]:
    if not results.searches:
        return []
    golds = {s.get("problem_id"): s.get("gold") for s in results.samples}
    trees = [tree(row, golds.get(row.get("problem"))) for row in results.searches]
    shown = "All searches" if len(trees) == results.searched else f"{len(trees)} of {results.searched:,} searches"
    about = (
        f"{shown}, branch by branch; rollouts.jsonl holds them in full. Marked branches lead to the chosen response. "
        "The judge knows the gold answer, and no search sees its verdicts; checker, scores and votes were seen by the "
        "search. A branch's cost is that of its own call: prompt + response tokens."
    )
    torn = [Text(results.searches_torn)] if results.searches_torn else []
    return [Text(about), *torn, *trees]


def _samples(results: Results) -> list[Block]:
    if results.searches and not any("before" in s for s in results.samples):
        return []  # they are among the searches
    blocks: list[Block] = []
    if any("before" in s for s in results.samples):
        blocks.append(Text("Chosen, not drawn at random: problems that training learned come first."))
    for sample in results.samples[:MOST_SAMPLES]:
        responses = tuple(
            (who, visible(r.get("verdict", ""), 40), visible(r.get("reason", ""), 300), visible(r.get("text", "")))
            for who in ("before", "after", "response")
            if isinstance(r := sample.get(who), Mapping)
        )
        gold = "" if sample.get("gold") is None else visible(sample["gold"], 500)
        blocks.append(
            Sample(visible(sample.get("problem_id", ""), 100), prompt_text(sample.get("prompt", "")), gold, responses)
        )
    if len(results.samples) > MOST_SAMPLES:
        blocks.append(Text(f"{len(results.samples) - MOST_SAMPLES} more are in samples.json."))
    return blocks


def _trained_on(results: Results) -> list[Block]:
    found = examples.examples(results.groups)
    if not found:
        return []
    about = "A right and a wrong response of the first and of the last step, where they were written to rollouts.jsonl."
    return [Text(about), *(_example(example) for example in found)]


def _example(example: examples.Example) -> Sample:
    responses = []
    for sample in example.samples:
        verdict, rest = examples.said(sample)
        responses.append(
            (f"step {example.step}", visible(verdict, 40), visible(rest, 400), visible(sample.get("text", "")))
        )
    return Sample(visible(example.problem, 100), prompt_text(example.prompt), "", tuple(responses))


COST = (
    *("run_seconds", "prompt_tokens", "cached_tokens", "sampled_tokens", "forced_tokens", "trained_tokens"),
    *("verifier_calls", "flops", "dollars"),
)
"""Columns of what it cost."""


def _cost(results: Results) -> list[Block]:
    blocks: list[Block] = []
    given = results.summary.get("cost")
    phases = [p for p in given if isinstance(p, Mapping)] if isinstance(given, list) else []
    columns = [key for key in COST if any(is_number(p.get(key)) and p[key] for p in phases)]
    if columns:
        rows = [(visible(p.get("phase", ""), 60), *(_amount(k, p.get(k)) for k in columns)) for p in phases]
        if len(phases) > 1:
            sums = ((k, sum(p[k] for p in phases if is_number(p.get(k)))) for k in columns)
            rows.append(("together", *(_amount(k, total) for k, total in sums)))
        blocks.append(Table(("phase", *map(figures.label, columns)), tuple(rows)))
    memory = results.curves.get("peak_memory_bytes") or results.manifest.get("peak_memory_bytes")
    seconds = results.curves.get("run_seconds")
    said = [f"{duration(seconds)} from start to end" if is_number(seconds) else ""]
    said.append(f"{memory / 1e9:.2f} GB of memory at most" if is_number(memory) else "")
    if any(said):
        blocks.append(Text(", ".join(s for s in said if s) + "."))
    return blocks


def _amount(key: str, value: Any) -> str:
    return figures.text(key, value) if is_number(value) else "–"


def _next(results: Results) -> list[Block]:
    given = results.summary.get("next")
    lines = tuple(visible(line, 500) for line in given if isinstance(line, str)) if isinstance(given, list) else ()
    return [Commands(lines)] if lines else []


def _made(results: Results) -> list[Block]:
    manifest = results.manifest
    machine = manifest.get("hardware") or {}
    git = manifest.get("git")
    rows = [
        ("status", str(manifest.get("status", "unknown"))),
        ("seed", str(manifest.get("seed"))),
        ("start", str(manifest.get("start"))),
        ("end", str(manifest.get("end") or "–")),
        ("machine", f"{machine.get('cpu', '?')}, {machine.get('cores', '?')} cores, {_gigabytes(machine)} of memory"),
        ("versions", ", ".join(f"{k} {v}" for k, v in (manifest.get("versions") or {}).items())),
    ]
    if isinstance(git, Mapping):
        rows.append(("commit", f"{git.get('commit')}{'' if git.get('clean') else ' with uncommitted changes'}"))
    if manifest.get("resumed"):
        rows.append(("resumed", ", ".join(str(r.get("at")) for r in manifest["resumed"])))
    command = shlex.join(str(w) for w in manifest.get("command") or [])
    made: list[Block] = [Commands((visible(command, 2000),))] if command else []
    made.append(Table(("", ""), tuple((k, visible(v, 500)) for k, v in rows)))
    earlier = sorted(p.name for p in results.path.glob("*.toml") if KEPT.fullmatch(p.name))
    before = f" ({', '.join(earlier)}: before it was resumed)" if earlier else ""
    files = [name for name in NUMBERS if (results.path / name).exists()]
    said = f", every number above in {' and '.join([', '.join(files[:-1])] * (len(files) > 1) + files[-1:])}"
    made.append(Text(f"The complete configuration is in config.toml{before}{said if files else ''}."))
    return made


def _gigabytes(machine: Row) -> str:
    memory = machine.get("memory_bytes")
    return f"{memory / 1e9:.0f} GB" if is_number(memory) else "?"


def _cell(value: Any) -> str:
    return quantity(value) if is_number(value) else visible(value, 200)
