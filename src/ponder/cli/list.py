"""List what is available: environments, strategies, models and more."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import inspect
import json
import textwrap
from typing import Any

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
  ponder list environments jsonl          the options of one part, with their defaults
  ponder list strategies best-of-n --json
  ponder list environments ./mine.py:Mine

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


FLAGS = {
    "environments": ("ponder eval", "--environment", "--environment-options"),
    "strategies": ("ponder eval", "--strategy", "--strategy-options"),
    "engines": ("ponder eval", "--engine", "--engine-options"),
    "verifiers": ("ponder eval --environment jsonl --environment-options data=FILE.jsonl", "verifier", ""),
    "scorers": ("ponder eval --strategy best_of_n", "--scorer", "--scorer-options"),
    "advantages": ("ponder train rl", "--advantage", "--advantage-options"),
    "losses": ("ponder train rl", "--loss", "--loss-options"),
}
"""How a part of each kind is named on the command line, and where its options go."""


def part(kind: str, name: str) -> dict[str, Any]:
    """One part with its options. Raises `UserError` if there is none of that name."""
    from ponder import registry
    from ponder.flags import field_docs

    cls, _ = registry.find(ROOMS[kind], name)
    docs = field_docs(cls)
    options = [
        {"name": f.name, "default": _default(f), "summary": docs.get(f.name, "")}
        for f in (dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ())
        if f.init
    ]
    words = inspect.getdoc(cls) or ""
    return {
        "name": name,
        "summary": " ".join(words.partition("\n\n")[0].split()),
        "about": words,
        "options": options,
        "example": _example(kind, name, options),
    }


def _default(field: dataclasses.Field[Any]) -> str | None:
    """As it is written after `KEY=`; None for an option that must be given."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def _example(kind: str, name: str, options: list[dict[str, Any]]) -> str:
    verb, flag, more = FLAGS[kind]
    first = options[0] if options else None
    if kind == "verifiers":
        return f"{verb} verifier={name}"
    if first is None:
        return f"{verb} {flag} {name}"
    value = first["default"] if first["default"] not in (None, "", "none", "{}") else first["name"].upper()
    return f"{verb} {flag} {name} {more} {first['name']}={value}"


def _show(found: dict[str, Any]) -> None:
    say(found["about"])
    if found["options"]:
        say("\noptions:")
    for option in found["options"]:
        default = "required" if option["default"] is None else f"default: {option['default'] or 'empty'}"
        say(f"  {option['name']} ({default})")
        if option["summary"]:
            say(textwrap.fill(option["summary"], 96, initial_indent="      ", subsequent_indent="      "))
    say(f"\nexample:\n  {found['example']}")


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="ponder list",
        description="List the parts that are available, built in and installed, with a line about each.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"one of {', '.join(KINDS)} (default: all)")
    parser.add_argument("part", nargs="?", metavar="NAME", help="a part of that kind, by name or PATH.py:Class")
    parser.add_argument("--json", action="store_true", help="print JSON (default: a table)")
    return parser


def main(args: list[str]) -> int:
    flags = parser()
    given = flags.parse_args(args)
    if given.kind is not None and given.kind not in KINDS:
        flags.error(f"unknown kind {given.kind!r}{nearest(given.kind, KINDS)}")
    if given.part is not None:
        if given.kind == "models":
            flags.error("models have no options to list; try: ponder doctor --model NAME")
        one = part(given.kind, given.part)
        if given.json:
            say(json.dumps(one, indent=1))
        else:
            _show(one)
        return 0
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
