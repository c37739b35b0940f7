"""List what is available: environments, strategies, models and more."""

from __future__ import annotations

import argparse
import importlib.util
import json

from ponder.cli._output import say
from ponder.errors import PonderError, nearest

ROOMS = {
    "environments": "environments",
    "strategies": "search.strategies",
    "engines": "engines",
    "verifiers": "verifiers",
    "scorers": "scorers",
    "advantages": "training.advantages",
    "losses": "training.losses",
}
KINDS = (*ROOMS, "models")
EPILOG = """\
examples:
  ponder list environments
  ponder list models --json

A custom part needs no entry here: give its file and class, as in --environment ./mine.py:Mine
"""


def rows(kind: str) -> list[dict[str, str]]:
    """`{"name", "summary", "origin"}` of every part of a kind. Raises `UserError` if the room has no parts."""
    if kind == "models":
        return models()
    from ponder import registry

    if importlib.util.find_spec(f"ponder.{ROOMS[kind]}") is None:
        return []
    return [
        {"name": r.name.replace("_", "-"), "summary": r.summary, "origin": r.origin}
        for r in registry.listing(ROOMS[kind])
    ]


def models() -> list[dict[str, str]]:
    """The names that `--model` knows and the other things that it takes."""
    from ponder.models.load import BUILTIN, resolve

    listed = []
    for name, summary in BUILTIN.items():
        try:
            resolve(name)
        except PonderError as error:
            summary = f"{summary} (missing: {error})"
        listed.append((name, summary, "built in"))
    listed += [
        ("FOLDER", "a Hugging Face folder (config.json, *.safetensors, tokenizer.json) or a run directory", "path"),
        ("FILE.gguf", "a GGUF file, dequantised to weights that can be trained", "path"),
        ("OWNER/NAME", "a hub id; the only one that uses the network", "hub"),
    ]
    return [{"name": n, "summary": s, "origin": o} for n, s, o in listed]


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ponder list",
        description="List the parts that are available, built in and installed, with a line about each.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"one of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON (default: a table)")
    given = parser.parse_args(args)
    if given.kind is not None and given.kind not in KINDS:
        parser.error(f"unknown kind {given.kind!r}{nearest(given.kind, KINDS)}")
    kinds = [given.kind] if given.kind else list(KINDS)
    found = {kind: rows(kind) for kind in kinds}
    if given.json:
        say(json.dumps(found[given.kind] if given.kind else found, indent=1))
        return 0
    if not any(found.values()):
        raise PonderError(f"there are no {kinds[0]} in this installation")
    for kind in kinds:
        if not found[kind]:
            continue
        if len(kinds) > 1:
            say(f"{kind}:")
        width = max(len(r["name"]) for r in found[kind])
        for row in found[kind]:
            origin = "" if row["origin"] in ("ponder", "built in", "path", "hub") else f"  [{row['origin']}]"
            say(f"{'  ' if len(kinds) > 1 else ''}{row['name']:<{width}}  {row['summary']}{origin}")
    return 0
