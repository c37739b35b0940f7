"""What the help of a command shows of a config: each field's docstring on one line, its type, its default once.

tyro makes the flags. It is given a copy of the dataclass whose fields say how they are to be shown, since by itself it
repeats a default that the docstring explains (`(default: None)`) and calls an optional text `{None}|STR`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

C = TypeVar("C")
_UNSAID = ("None", "", "''", "False", "()")
"""Defaults that say nothing: the docstring does."""
_NAMES = {str: "STR", int: "INT", float: "FLOAT"}


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, on one line; those of its bases too."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, SyntaxError, IndexError, TypeError):  # made at run time
            continue
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, below in pairwise(statements):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                found[field.target.id] = " ".join(below.value.value.split())
    return found


@functools.cache
def as_shown(cls: type) -> type:
    """A copy of a dataclass for tyro; `taken` turns its instances into those of the class, `given` the other way."""
    import tyro

    hints = typing.get_type_hints(cls, include_extras=True)
    docs = field_docs(cls)
    fields: list[Any] = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        hint, doc = hints[field.name], docs.get(field.name, "")
        if dataclasses.is_dataclass(hint):
            shown: Any = as_shown(typing.cast(type, hint))
        else:
            settings: dict[str, Any] = {"metavar": name} if (name := _metavar(hint)) else {}
            if _has_default(field):
                settings["help_behavior_hint"] = functools.partial(_default, doc)
            shown = Annotated[hint, tyro.conf.arg(help=doc, **settings)]
        fields.append((field.name, shown, _copied(field, hint)))
    made = dataclasses.make_dataclass(cls.__name__, fields, frozen=True)
    made.__doc__ = cls.__doc__
    return made


def given(made: type, config: Any) -> Any:
    """A config as an instance of its copy."""
    hints = typing.get_type_hints(made, include_extras=True)
    values = {}
    for field in dataclasses.fields(made):
        value = getattr(config, field.name)
        values[field.name] = given(hints[field.name], value) if dataclasses.is_dataclass(hints[field.name]) else value
    return made(**values)


def taken(cls: type[C], shown: Any) -> C:
    """An instance of the copy as a config. Raises what the config itself refuses."""
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(shown):
        value = getattr(shown, field.name)
        values[field.name] = taken(hints[field.name], value) if dataclasses.is_dataclass(value) else value
    return cls(**values)


def names(cls: type, prefix: str = "--") -> list[str]:
    """The long flags of a config, those of nested ones as `--part.field`."""
    found = []
    for field in dataclasses.fields(cls):
        hint = typing.get_type_hints(cls, include_extras=True)[field.name]
        if not field.init or "Positional" in str(hint):
            continue
        settings = getattr(hint, "__metadata__", ())
        renamed = next((s.name for s in settings if getattr(s, "name", None)), None)
        name = prefix + (renamed or field.name).replace("_", "-")
        if dataclasses.is_dataclass(hint):
            found += names(typing.cast(type, hint), f"{name}.")
            continue
        found.append(name)
        if hint is bool:
            found.append(f"{prefix}no-{name.removeprefix(prefix)}")
    return found


def choices(cls: type, prefix: str = "--") -> dict[str, tuple[str, ...]]:
    """The words that a flag takes, for each that takes only some."""
    found: dict[str, tuple[str, ...]] = {}
    for name, hint in typing.get_type_hints(cls).items():
        flag = prefix + name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            found |= choices(typing.cast(type, hint), f"{flag}.")
        for kind in (hint, *get_args(hint)):
            if get_origin(kind) is Literal:
                found[flag] = tuple(map(str, get_args(kind)))
    return found


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _copied(field: dataclasses.Field[Any], hint: Any) -> Any:
    if not _has_default(field):
        return dataclasses.field()
    if field.default is not dataclasses.MISSING:
        return dataclasses.field(default=field.default)
    factory = typing.cast(typing.Callable[[], Any], field.default_factory)
    if dataclasses.is_dataclass(hint):
        return dataclasses.field(default_factory=lambda: given(as_shown(typing.cast(type, hint)), factory()))
    return dataclasses.field(default_factory=factory)


def _default(doc: str, label: str) -> str:
    """The default as tyro writes it, unless the docstring has said it or there is nothing to say."""
    return "" if label in _UNSAID or "(default:" in doc else f"(default: {label})"


def _metavar(hint: Any) -> str | None:
    """`STR` for an optional text, `{a,b}` for an optional choice; None where tyro's own name is right."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) not in (Union, types.UnionType):
        return None
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if len(kinds) != 1 or len(kinds) == len(get_args(hint)):
        return None
    if get_origin(kinds[0]) is Literal:
        return "{" + ",".join(map(str, get_args(kinds[0]))) + "}"
    if get_origin(kinds[0]) is tuple and Ellipsis not in get_args(kinds[0]):
        return " ".join(_NAMES.get(kind, "STR") for kind in get_args(kinds[0]))
    return _NAMES.get(kinds[0])
