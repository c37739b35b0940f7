"""Text from outside made safe to show, and results as short HTML for notebooks (`_repr_html_`), all of it escaped.

Takes plain attributes and strings, so that any room can use it. Reports of runs are made by `runs.report`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ponder import figures

MOST_NODES = 50
"""Responses of a search that are listed."""
CHARACTERS = 600
"""Of one response."""
_CELL = 'style="text-align:left;vertical-align:top;white-space:pre-wrap"'
MOST_CHARACTERS = 4000
"""Of one model response in a report; the run directory has the whole."""
WHOLE = 1 << 40
"""Characters: no text is cut."""
_MARKS = (0x061C, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF)
"""Signs of direction, line ends that are none for a program, and a byte order mark."""


def visible(text: Any, most: int = MOST_CHARACTERS) -> str:
    """Text from outside, safe to show: what a terminal, a page or an editor would act on is made visible.

    For every such text that reaches the terminal: a model's, an exception's, an endpoint's, the name of a file.

    Control characters become their pictures, lone surrogates and direction overrides their escapes; long texts are cut.
    """
    text = text if isinstance(text, str) else str(text)
    cut = f"… ({len(text) - most:,} more characters)" if len(text) > most else ""
    kept = text[:most]
    return (kept if kept.isascii() and kept.isprintable() else "".join(map(_visible, kept))) + cut


def _visible(c: str) -> str:
    code = ord(c)
    if c in "\n\t" or 0x20 <= code < 0x7F:
        return c
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if code < 0xA0:
        return f"\\x{code:02x}"
    if 0xD800 <= code <= 0xDFFF or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069 or code in _MARKS:
        return f"\\u{code:04x}"
    return c


def short(text: Any, most: int = 60) -> str:
    """A text on one line, cut to a length."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def table(rows: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """An HTML table; cells are escaped, None is empty."""
    top = f"<tr>{''.join(f'<th {_CELL}>{_cell(c)}</th>' for c in head)}</tr>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td {_CELL}>{_cell(c)}</td>' for c in row)}</tr>" for row in rows)
    return f"<table>{top}{body}</table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else f"{value:.3g}" if isinstance(value, float) else str(value)
    return html.escape(visible(text, WHOLE))


def outcome(found: Any) -> str:
    """An `Outcome`: answer, why the search stopped, what it cost, and every response that it made."""
    facts = [
        ("answer", "none: the search abstains" if found.response.answer is None else found.response.answer.strip()),
        ("stopped", found.stop.value + (f": {found.reason}" if found.reason else "")),
        (
            figures.label("vote_share"),
            None if found.vote_share is None else figures.text("vote_share", found.vote_share),
        ),
        (figures.label("spend"), figures.spend(found.spend)),
        figures.line("seconds", found.seconds),
    ]
    nodes = found.trace.nodes
    rows = [_node(n, n.id == found.chosen) for n in nodes[:MOST_NODES]]
    more = f"<p>and {len(nodes) - MOST_NODES} more</p>" if len(nodes) > MOST_NODES else ""
    listed = table(rows, ("node", "parent", "text", "found out", "tokens"))
    label = f"{len(nodes)} branch{'es' * (len(nodes) != 1)}"
    return f"{table(f for f in facts if f[1] is not None)}<details><summary>{label}</summary>{listed}{more}</details>"


def _node(n: Any, chosen: bool) -> tuple[Any, ...]:
    said = ["chosen"] if chosen else []
    said += [f"{who}: {v.kind.value}" for who, v in (("judge", n.verdict), ("checker", n.check)) if v is not None]
    said += [f"score {n.score:.3g}"] if n.score is not None else []
    said += [f"votes {short(n.vote, 30)}"] if n.vote else []
    said += [n.note] if n.note else []
    text = n.completion.text
    shown = text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}…"
    return n.id, n.parent, shown, "\n".join(said), n.completion.spend.tokens


def estimate(found: Any, scale: float = 1.0, unit: str = "") -> str:
    """`42.0 % [35.4, 48.9], n 200, clopper-pearson` with `scale=100, unit=" %"`."""
    value, low, high = (
        f"{x * scale:.1f}" if scale != 1.0 else f"{x:.4g}" for x in (found.value, found.low, found.high)
    )
    said = [f"{value}{unit}" if math.isnan(found.low) else f"{value}{unit} [{low}, {high}]", f"n {found.n:,}"]
    said += [found.method] if found.method else []
    said += [chosen(found.chosen_of)] if found.chosen_of > 1 else []
    return ", ".join(said)


def chosen(of: int) -> str:
    """What is said of a number that was chosen as the best of several on the same data."""
    return f"chosen as the highest of {of} on the same problems: optimistic, its interval allows for {of} (Bonferroni)"
