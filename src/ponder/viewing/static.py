"""The viewer as one file that opens without a server and without a network: page, runs and texts inline."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

from ponder.runs.files import plain, write_text
from ponder.viewing.catalog import Catalog
from ponder.viewing.server import PAGE

SCRIPT = re.compile(r'<script defer src="([\w.]+)"></script>\n')
ICON = re.compile(r'<link rel="icon"[^>]*>\n')
MOST_RUNS = 8
"""Runs that are compared with each other in a file."""


def write(catalog: Catalog, path: Path) -> None:
    """Write all runs of the catalog to an HTML file. Raises `UserError` if a run or the file cannot be used."""
    write_text(path, page(embedded(catalog)))


def embedded(catalog: Catalog) -> dict[str, Any]:
    """All that the page would ask a server for."""
    runs = []
    listed = catalog.listed()
    for run in catalog.runs:
        state = run.state()
        lines = run.lines(run.generation, range(len(run.rows))) if run.rows else []
        runs.append({"state": state, "about": run.about(), "lines": lines})
    pairs = {}
    if len(runs) <= MOST_RUNS:
        pairs = {f"{a},{b}": catalog.compare(a, b) for a, b in combinations(range(len(runs)), 2)}
    return {"listed": listed, "runs": runs, "compared": pairs}


def page(data: Any) -> str:
    """The page with its styles, scripts and data inline; the policy allows these scripts alone, and no requests."""
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def inline(tag: str, name: str) -> str:
        content = (PAGE / name).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[tag].append(f"'sha256-{digest}'")
        return f"<{tag}>{content}</{tag}>"

    text = re.sub(r'<link rel="stylesheet" href="([\w.]+)">', lambda m: inline("style", m[1]), text)
    names = SCRIPT.findall(text)
    scripts = [inline("script", name) for name in names]
    text = ICON.sub("", SCRIPT.sub("", text))
    policy = f"default-src 'none'; script-src {' '.join(hashes['script'])}; style-src {' '.join(hashes['style'])}"
    meta = f"<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}; base-uri 'none'; form-action 'none'\">"
    # No `<` is left in the data, so that no text in it can end its element.
    held = json.dumps(plain(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    block = f'<script type="application/json" id="data">{held}</script>'
    text = text.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{meta}', 1)
    return text.replace("</body>", f"{block}\n{''.join(scripts)}\n</body>", 1)
