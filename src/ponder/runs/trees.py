"""Searches as trees that a person can read, from the lines of `rollouts.jsonl` (`search.record.to_row`).

Texts are untrusted; everything here is already `visible`. Of a branch's text it shows what that adds to its parent's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ponder import figures
from ponder.numbers import clock, money, quantity
from ponder.show import visible

MOST_BRANCHES = 200
"""Of one search in a report."""
DEEPEST = 40
"""Levels of one search in a report."""
CHARACTERS = 2000
"""Of one branch's text."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Branch:
    """One node: what it says, what is known of it, and the branches below it."""

    name: str
    text: str
    judge: str
    """The judge's verdict, which no search saw; empty where it gave none."""
    check: str
    """The checker's."""
    facts: tuple[str, ...]
    """Score, vote, why it was abandoned, how it ended."""
    cost: str
    reasons: tuple[str, ...]
    """Of judge and checker, in words."""
    on_path: bool
    """It leads to the chosen response."""
    chosen: bool
    branches: tuple[Branch, ...] = ()
    left_out: int = 0
    """Nodes below that are not shown."""


@dataclass(frozen=True, slots=True)
class Tree:
    """One search."""

    problem: str
    prompt: str
    gold: str
    verdict: str
    """Of what was chosen, by the judge."""
    reason: str
    stopped: str
    """Why the search stopped."""
    totals: str
    branches: tuple[Branch, ...]
    left_out: int = 0


def tree(row: Row, gold: Any = None) -> Tree:
    """A line of `rollouts.jsonl` as a tree. What is missing is left out; a node without its parent is a root."""
    nodes = [n for n in row.get("samples") or () if isinstance(n, Mapping)]
    by_id = {n.get("id"): n for n in nodes}
    below: dict[Any, list[Row]] = {}
    for node in nodes:
        parent = node.get("parent")
        below.setdefault(parent if parent in by_id and parent != node.get("id") else None, []).append(node)
    path, at = set(), row.get("chosen")
    while at is not None and at in by_id and at not in path:
        path.add(at)
        at = by_id[at].get("parent")
    budget = [MOST_BRANCHES]
    branches = _grow(below, None, "", row.get("chosen"), path, budget, 1)
    verdict = row.get("verdict") or {}
    sample = f", sample {row['sample'] + 1}" if row.get("sample") else ""
    return Tree(
        visible(f"{row.get('problem', '')}{sample}", 200),
        prompt_text(row.get("prompt", "")),
        "" if gold is None else visible(gold, 500),
        visible(verdict.get("kind") or "", 40),
        visible(verdict.get("reason") or "", 300),
        _stopped(row),
        _totals(row, len(nodes)),
        branches,
        len(nodes) - _count(branches),
    )


def _grow(
    below: Mapping[Any, Sequence[Row]],
    parent: Any,
    before: str,
    chosen: Any,
    path: set[Any],
    budget: list[int],
    depth: int,
) -> tuple[Branch, ...]:
    """The branches below a node, within the limits; those that lead to the chosen response come first."""
    children = below.get(parent, ())
    taken = sorted(sorted(range(len(children)), key=lambda i: children[i].get("id") not in path)[: budget[0]])
    budget[0] -= len(taken)
    grown = []
    for i in taken:
        node = children[i]
        text = str(node.get("text") or "")
        # Nothing grows from a node without an id.
        here = node.get("id")
        many = 0 if here is None else len(below.get(here, ()))
        deeper = many > 0 and depth < DEEPEST
        inside = _grow(below, here, text, chosen, path, budget, depth + 1) if deeper else ()
        grown.append(_branch(node, text.removeprefix(before), chosen, path, inside, many))
    return tuple(grown)


def _branch(node: Row, added: str, chosen: Any, path: set[Any], inside: tuple[Branch, ...], children: int) -> Branch:
    judge, check = node.get("verdict") or {}, node.get("check") or {}
    facts = []
    if isinstance(node.get("score"), int | float):
        facts.append(f"score {quantity(node['score'])}")
    if node.get("vote"):
        facts.append(f"votes {visible(node['vote'], 60)}")
    if node.get("finish") not in (None, "stop") and not children:
        facts.append({"length": "cut off"}.get(str(node["finish"]), visible(node["finish"], 20)))
    facts += [visible(node[key], 200) for key in ("note", "error") if node.get(key)]
    reasons = [
        f"{who}: {visible(said['reason'], 300)}"
        for who, said in (("judge", judge), ("checker", check))
        if said.get("reason")
    ]
    here = node.get("id")
    return Branch(
        visible(here, 20),
        visible(added, CHARACTERS),
        visible(judge.get("kind") or "", 40),
        visible(check.get("kind") or "", 40),
        tuple(facts),
        cost(node.get("spend") or {}),
        tuple(reasons),
        here in path,
        here == chosen and chosen is not None,
        inside,
        children - len(inside),
    )


def _count(branches: Sequence[Branch]) -> int:
    return sum(1 + _count(b.branches) for b in branches)


def tokens(spend: Row) -> int:
    """Prompt and response tokens of a spend as it is written."""
    names = ("prompt_tokens", "cached_tokens", "sampled_tokens", "forced_tokens")
    return int(sum(spend.get(name) or 0 for name in names))


def cost(spend: Row) -> str:
    """`23 prompt + 41 response tokens, 12 ms, $0.0021`; what is not known is left out."""
    prompt = (spend.get("prompt_tokens") or 0) + (spend.get("cached_tokens") or 0)
    parts = [f"{quantity(prompt)} prompt + {quantity(tokens(spend) - prompt)} response tokens"]
    seconds, dollars = spend.get("seconds") or 0.0, spend.get("dollars") or 0.0
    parts += [clock(seconds)] if seconds else []
    parts += [money(dollars)] if dollars else []
    return ", ".join(parts)


def _stopped(row: Row) -> str:
    said = [visible(row.get("stop") or "", 40)]
    if row.get("reason"):
        said.append(visible(row["reason"], 300))
    text = ": ".join(s for s in said if s)
    share = figures.vote_share(row)
    return text if share is None else f"{text}; {figures.label('vote_share')} {figures.text('vote_share', share)}"


def _totals(row: Row, nodes: int) -> str:
    spend = row.get("spend") or {}
    parts = [f"{nodes} branch{'es' * (nodes != 1)}", cost({**spend, "seconds": row.get("seconds")})]
    if spend.get("verifier_calls"):
        parts.insert(1, figures.calls(spend["verifier_calls"]))
    return ", ".join(parts)


def prompt_text(prompt: Any) -> str:
    """A prompt as text: a string, or messages one after the other."""
    if isinstance(prompt, list):
        turns = (f"{m.get('role', '')}: {m.get('content', '')}" for m in prompt if isinstance(m, Mapping))
        return visible("\n".join(turns))
    return visible(prompt)


# As plain text --------------------------------------------------------------------------------------------------------

MOST_LINES = 40
"""Of one search as plain text."""


def sketch(found: Tree, most: int = MOST_LINES) -> str:
    """A compact tree, a line a branch; `*` marks the path to the chosen response."""
    lines = _lines(found.branches, "")
    cut = [f"… {len(lines) - most} more lines"] if len(lines) > most else []
    return "\n".join([*lines[:most], *cut])


def _lines(branches: Sequence[Branch], indent: str) -> list[str]:
    out = []
    for i, b in enumerate(branches):
        last = i == len(branches) - 1
        said = [f"judge {b.judge}" if b.judge else "", f"checker {b.check}" if b.check else "", *b.facts, b.cost]
        text = " ".join(b.text.split())
        shown = text if len(text) <= 48 else f"…{text[-47:]}"
        mark = "*" if b.on_path else " "
        out.append(f"{indent}{'└' if last else '├'}─{mark}{b.name}  {shown}  [{' · '.join(s for s in said if s)}]")
        out += _lines(b.branches, indent + ("   " if last else "│  "))
        if b.left_out:
            out.append(f"{indent}{'   ' if last else '│  '}… {b.left_out} more")
    return out
