"""Results as short HTML, for notebooks (`_repr_html_`). Model text is untrusted: everything is escaped.

Takes plain attributes and strings, so that any room can use it. Reports of runs are made by `runs.report`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

MOST_NODES = 50
"""Responses of a search that are listed."""
CHARACTERS = 600
"""Of one response."""
_CELL = 'style="text-align:left;vertical-align:top;white-space:pre-wrap"'


def short(text: Any, most: int = 60) -> str:
    """A text on one line, cut to a length."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def count(number: float) -> str:
    """`1,204`."""
    return f"{number:,.0f}"


def table(rows: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """An HTML table; cells are escaped, None is empty."""
    top = f"<tr>{''.join(f'<th {_CELL}>{_cell(c)}</th>' for c in head)}</tr>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td {_CELL}>{_cell(c)}</td>' for c in row)}</tr>" for row in rows)
    return f"<table>{top}{body}</table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else f"{value:.3g}" if isinstance(value, float) else str(value)
    # Control characters have no place in a page.
    kept = "".join(c if c in "\n\t" or ord(c) >= 0x20 else chr(0x2400 + ord(c)) for c in text)
    return html.escape(kept.encode("utf-8", "replace").decode())


def outcome(found: Any) -> str:
    """An `Outcome`: answer, why the search stopped, what it cost, and every response that it made."""
    facts = [
        ("answer", "none: the search abstains" if found.response.answer is None else found.response.answer.strip()),
        ("stopped", found.stop.value + (f": {found.reason}" if found.reason else "")),
        ("confidence", None if found.confidence is None else f"{found.confidence:.0%}"),
        ("spent", spend(found.spend)),
    ]
    nodes = found.trace.nodes
    rows = [_node(n, n.id == found.chosen) for n in nodes[:MOST_NODES]]
    more = f"<p>and {len(nodes) - MOST_NODES} more</p>" if len(nodes) > MOST_NODES else ""
    listed = table(rows, ("node", "parent", "text", "found out", "tokens"))
    label = f"{len(nodes)} response{'s' * (len(nodes) != 1)}"
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


def spend(found: Any) -> str:
    """`120 prompt + 64 response tokens, 3 checker calls, 0.8 s, $0.0021`."""
    parts = [
        f"{count(found.prompt_tokens + found.cached_tokens)} prompt + {count(found.response_tokens)} response tokens"
    ]
    if found.verifier_calls:
        parts.append(f"{count(found.verifier_calls)} checker or scorer call{'s' * (found.verifier_calls != 1)}")
    if found.seconds:
        parts.append(f"{found.seconds:.2g} s" if found.seconds < 10 else f"{found.seconds:.0f} s")
    if found.dollars:
        parts.append(f"${found.dollars:.2g}")
    return ", ".join(parts)


def estimate(found: Any, scale: float = 1.0, unit: str = "") -> str:
    """`42.0 % [35.4, 48.9], n 200` with `scale=100, unit=" %"`."""
    value, low, high = (
        f"{x * scale:.1f}" if scale != 1.0 else f"{x:.4g}" for x in (found.value, found.low, found.high)
    )
    return f"{value}{unit} [{low}, {high}], n {found.n:,}"
