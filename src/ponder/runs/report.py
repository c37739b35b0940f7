"""`report.md` and `report.html` of a run, from the files of its directory alone.

The HTML is one file without scripts and without network: styles inline, pictures embedded, model text escaped.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ponder.errors import MissingExtra
from ponder.runs import plots, results
from ponder.runs.files import write_text
from ponder.runs.sections import Commands, Picture, Sample, Section, Table, Text, sections, title
from ponder.runs.trees import Tree, sketch

if TYPE_CHECKING:
    import jinja2

MOST_SKETCHES = 4
"""Searches in the Markdown report; the page has more."""
TEMPLATES = Path(__file__).parent / "templates"


def render(run_dir: str | Path) -> tuple[Path, Path]:
    """Draw the plots and write `report.md` and `report.html`; returns their paths.

    Without matplotlib the report has its tables and says which pictures are missing. Raises `UserError` if the
    directory is no run or a file of it cannot be read.
    """
    found = results.read(run_dir)
    missing = ""
    pictures: Mapping[str, bytes] = {}
    try:
        pictures = plots.draw(found)
    except MissingExtra as error:
        missing = f"Without plots: {error}"
    parts = sections(found, list(pictures))
    markdown, page = found.path / "report.md", found.path / "report.html"
    write_text(markdown, to_markdown(title(found), parts, missing))
    write_text(page, to_html(title(found), parts, pictures, missing))
    return markdown, page


def to_html(heading: str, parts: Sequence[Section], pictures: Mapping[str, bytes], missing: str = "") -> str:
    """The page as text. Everything goes through the template's escaping."""
    embedded = {n: f"data:image/png;base64,{base64.b64encode(data).decode()}" for n, data in pictures.items()}
    return _template().render(heading=heading, sections=parts, pictures=embedded, missing=missing)


@functools.cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["of"] = lambda block, name: type(block).__name__ == name
    return environment.get_template("report.html.j2")


def to_markdown(heading: str, parts: Sequence[Section], missing: str = "") -> str:
    """The same content as Markdown; pictures are links to the files beside it."""
    out = [f"# {_inline(heading)}"]
    if missing:
        out.append(_inline(missing))
    for part in parts:
        out.append(f"## {part.title}")
        sketched = 0
        for block in part.blocks:
            sketched += isinstance(block, Tree)
            if not isinstance(block, Tree) or sketched <= MOST_SKETCHES:
                out += _markdown(block)
    return "\n\n".join(out) + "\n"


def _markdown(block: object) -> list[str]:
    match block:
        case Text(text):
            return [_inline(text)]
        case Table(head, rows):
            aligned = "|".join([":--", *["--:"] * (len(head) - 1)])
            lines = [_row(head), f"|{aligned}|", *(_row(r) for r in rows)]
            return ["\n".join(lines)]
        case Picture(name, alt, caption):
            return [f"![{_inline(alt)}]({name})", f"*{_inline(caption)}*"]
        case Commands(lines):
            return [_fence("\n".join(lines))]
        case Sample(problem, prompt, gold, responses):
            out = [f"### {_inline(problem)}", _fence(prompt)]
            if gold:
                out += ["Gold answer:", _fence(gold)]
            for who, verdict, reason, text in responses:
                out += [f"**{who}**: {_inline(verdict)}, {_inline(reason)}", _fence(text)]
            return out
        case Tree(problem=problem, prompt=prompt, gold=gold, verdict=verdict, reason=reason):
            out = [f"### {_inline(problem)}: {_inline(verdict)}", _fence(prompt)]
            out.append(_inline(f"{reason}{f' (gold answer: {gold})' if gold else ''}"))
            out.append(_inline(f"stopped: {block.stopped}; {block.totals}"))
            return [*out, _fence(sketch(block))]
    raise AssertionError(block)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_inline(c) for c in cells) + " |"


def _inline(text: str) -> str:
    """Text on one line, with Markdown's signs and HTML's brackets escaped."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~!])", r"\\\1", text)


def _fence(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
