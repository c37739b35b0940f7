"""Lists, sets, tuples, intervals and unions in formulas, compared part by part.

`read` divides a formula that `notation.formula` has spelt; `matches` compares two of them and asks an equality for the
parts that have no structure. Only what is written the same way counts as the same kind: `(1,4)` and `[1,4]` differ,
`1,4` and `\\\\{4,1\\\\}` do not, and `1 < x \\\\le 4` is `(1,4]`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["scalar", "list", "set", "sequence", "tuple", "union"]
_MOST = 200
"""Parts of a list that are compared."""
_DEPTH = 8

_STEP = re.compile(
    r"\\cup(?![A-Za-z])|\\ldots(?![A-Za-z])|\\begin\{[a-z]+\*?\}|\\end\{[a-z]+\*?\}|\\[{}|]|\\[A-Za-z]+|\\.|\.{3}"
    r"|[<>!]=|==|[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|(?<=[\s})\]0-9])(?:and|or)(?=[\s\\(\[{0-9-])|.",
    re.DOTALL,
)
_OPENS = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}
_CLOSES = frozenset(_OPENS.values())
_RELATION = re.compile(r"(\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<=|>=|<|>|\\ne(?![A-Za-z])|!=)")
_VARIABLE = re.compile(r"\s*(?:[A-Za-z](?:_\{?\w\}?)?|\\[a-z]+)\s*")
_MEMBER = re.compile(r"\s*(?:[A-Za-z]|\\[a-z]+)\s*(?:\\in(?![A-Za-z])|∈)\s*(?=.)", re.DOTALL)
_NAMED_TUPLE = re.compile(
    r"(?:\(\s*[A-Za-z](?:_\{?\w\}?)?(?:\s*,\s*[A-Za-z](?:_\{?\w\}?)?)+\s*\)|[A-Z](?:_\{?\w\}?)?'?)\s*=\s*(?=\(|\\\{)"
)
"""`(x, y) =` or `P =` before a tuple or a set."""
_MAGNITUDE = re.compile(r"\s*(?:\||\\lvert ?)\s*[A-Za-z]\s*(?:\||\\rvert)\s*")
_HOLE = re.compile(r"\\mathbb\{R\}\s*(?:\\setminus|\\backslash|-)\s*\\\{([^,{}]+)\\\}")
_INFINITE = re.compile(r"[\s+]*-?\s*\\infty\s*")


@dataclass(frozen=True, slots=True)
class Node:
    """A formula, or the parts of one."""

    kind: Kind
    text: str = ""
    """Of a scalar."""
    parts: tuple[Node, ...] = ()
    brackets: str = ""
    """Of a tuple, which with two parts may be an interval: `(]`."""


def read(text: str, depth: int = 0) -> Node:
    """A formula divided into its parts. Never raises; what has no structure is a scalar."""
    text = _trimmed(text)
    member = _MEMBER.match(text)
    if member is not None:
        text = text[member.end() :]
    named = _NAMED_TUPLE.match(text)
    if named is not None and ("(" in named[0] or _has_parts(text[named.end() :])):
        text = text[named.end() :]
    if depth >= _DEPTH:
        return Node("scalar", text)
    union = split(text, ("\\cup",))
    if len(union) > 1:
        return Node("union", parts=tuple(read(t, depth + 1) for t in union))
    if text.strip() == "\\mathbb{R}":
        return _interval("(", "-\\infty", "\\infty", ")")
    items = split(text, (",", ";", "and", "or"))
    if len(items) > 1:
        return _listed(items, depth, len(split(text, ("or",))) == len(items))
    hole = _HOLE.fullmatch(text)
    if hole is not None:
        return _around(hole[1])
    inside = _unwrapped(text)
    if inside is not None:
        brackets, content = inside
        parts = split(content, (",", ";"))
        if brackets == "\\{\\}":
            return Node("set", parts=tuple(read(t, depth + 1) for t in parts if t.strip()))
        if len(parts) > 1:
            return Node("tuple", parts=tuple(read(t, depth + 1) for t in parts), brackets=brackets)
        if brackets in ("()", "{}"):
            return read(content, depth + 1)
    return _inequality(text) or _signs(text) or Node("scalar", text)


def _has_parts(text: str) -> bool:
    inside = _unwrapped(text)
    return inside is not None and (inside[0] == "\\{\\}" or len(split(inside[1], (",", ";"))) > 1)


def matches(gold: Node, other: Node, equal: Callable[[str, str], bool]) -> bool:
    """Whether two formulas have the same parts; `equal` compares those without structure."""
    if gold.kind == other.kind == "scalar":
        return equal(gold.text, other.text)
    if {gold.kind, other.kind} <= {"list", "set"} or gold.kind == other.kind == "union":
        return _same_parts(gold.parts, other.parts, equal)
    if gold.kind != other.kind or len(gold.parts) != len(other.parts):
        return False
    if gold.kind == "tuple" and _brackets(gold) != _brackets(other):
        return False
    return all(matches(a, b, equal) for a, b in zip(gold.parts, other.parts, strict=True))


def _same_parts(golds: Sequence[Node], others: Sequence[Node], equal: Callable[[str, str], bool]) -> bool:
    if len(golds) != len(others) or len(golds) > _MOST:
        return False
    left = list(others)
    for gold in golds:
        found = next((i for i, other in enumerate(left) if matches(gold, other, equal)), None)
        if found is None:
            return False
        del left[found]
    return True


def _brackets(node: Node) -> str:
    """The brackets of a tuple; at an infinite end of an interval they make no difference."""
    if len(node.parts) != 2:
        return node.brackets
    first, last = node.parts
    opens = "(" if _INFINITE.fullmatch(first.text) else node.brackets[0]
    return opens + (")" if _INFINITE.fullmatch(last.text) else node.brackets[1])


def _trimmed(text: str) -> str:
    """Without the marks around a formula, spaces and a full stop at its end."""
    while True:
        before = text
        text = text.strip().strip("$").strip()
        for opens, closes in (("\\(", "\\)"), ("\\[", "\\]")):
            if text.startswith(opens) and text.endswith(closes):
                text = text[2:-2]
        text = text.removesuffix(".") if not text.endswith("..") else text
        if text == before:
            return text


def split(text: str, separators: tuple[str, ...]) -> list[str]:
    """A text at separators that no bracket encloses; one piece where brackets do not fit."""
    pieces, start, depth, environments = [], 0, 0, 0
    for step in _STEP.finditer(text):
        word = step[0]
        if word.startswith("\\begin"):
            environments += 1
        elif word.startswith("\\end"):
            environments -= 1
        elif word in _OPENS:
            depth += 1
        elif word in _CLOSES:
            depth -= 1
            if depth < 0:
                return [text]
        elif depth == 0 and environments == 0 and word in separators:
            if not (word == "," and not text[start : step.start()].strip()):
                pieces.append(text[start : step.start()])
            start = step.end()
    if depth:
        return [text]
    pieces.append(text[start:])
    kept = [p for p in pieces if p.strip()]
    return kept or [text]


def _listed(items: list[str], depth: int, alternatives: bool) -> Node:
    parts = tuple(read(t, depth + 1) for t in items)
    if any("\\ldots" in t or "..." in t for t in items):
        return Node("sequence", parts=parts)
    if alternatives and all(p.kind == "tuple" and len(p.parts) == 2 for p in parts):
        return Node("union", parts=parts)  # x < 2 or x > 3
    flat: list[Node] = []
    for part in parts:
        flat += part.parts if part.kind == "list" else (part,)
    return Node("list", parts=tuple(flat))


def _unwrapped(text: str) -> tuple[str, str] | None:
    """The brackets around all of a text and what they hold."""
    opens = "\\{" if text.startswith("\\{") else text[:1]
    if opens not in _OPENS:
        return None
    depth = 0
    for step in _STEP.finditer(text):
        if step[0] in _OPENS:
            depth += 1
        elif step[0] in _CLOSES:
            depth -= 1
            if depth == 0:
                if step.end() != len(text) or (opens in ("{", "\\{") and step[0] != _OPENS[opens]):
                    return None
                return opens + step[0], text[len(opens) : step.start()]
    return None


def _interval(opens: str, low: str, high: str, closes: str) -> Node:
    return Node("tuple", parts=(Node("scalar", low.strip()), Node("scalar", high.strip())), brackets=opens + closes)


def _around(point: str) -> Node:
    """All numbers but one."""
    return Node("union", parts=(_interval("(", "-\\infty", point, ")"), _interval("(", point, "\\infty", ")")))


def _inequality(text: str) -> Node | None:
    """`1 < x \\\\le 4` and `x > 3` as intervals; None for anything else."""
    pieces = _RELATION.split(text)
    if len(pieces) not in (3, 5) or any("=" in p for p in pieces[::2]):
        return None
    signs = [{"\\le": "<=", "\\ge": ">=", "\\ne": "!="}.get(s, s) for s in pieces[1::2]]
    if len(pieces) == 3:
        left, right = pieces[0], pieces[2]
        if _VARIABLE.fullmatch(right) and not _VARIABLE.fullmatch(left):
            left, right, signs = right, left, [{"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(signs[0], signs[0])]
        if signs[0][0] == "<" and _MAGNITUDE.fullmatch(left) and right.strip():
            ends = "[]" if "=" in signs[0] else "()"
            return _interval(ends[0], f"-({right.strip()})", right, ends[1])
        if not _VARIABLE.fullmatch(left) or not right.strip():
            return None
        if signs[0] == "!=":
            return _around(right)
        if signs[0][0] == "<":
            return _interval("(", "-\\infty", right, "]" if "=" in signs[0] else ")")
        return _interval("[" if "=" in signs[0] else "(", right, "\\infty", ")")
    low, middle, high = pieces[0], pieces[2], pieces[4]
    if not _VARIABLE.fullmatch(middle) or {s[0] for s in signs} not in ({"<"}, {">"}):
        return None
    if signs[0][0] == ">":
        low, high, signs = high, low, signs[::-1]
    return _interval("[" if "=" in signs[0] else "(", low, high, "]" if "=" in signs[1] else ")")


def _signs(text: str) -> Node | None:
    """`3 \\\\pm \\\\sqrt{2}` as the list of its two values."""
    if not re.search(r"\\(?:pm|mp)(?![A-Za-z])", text):
        return None
    first = re.sub(r"\\pm(?![A-Za-z])", "+", re.sub(r"\\mp(?![A-Za-z])", "-", text))
    second = re.sub(r"\\pm(?![A-Za-z])", "-", re.sub(r"\\mp(?![A-Za-z])", "+", text))
    return Node("list", parts=(Node("scalar", first.strip().removeprefix("+")), Node("scalar", second.strip())))
