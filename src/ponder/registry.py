"""Finding parts (environments, strategies, verifiers, advantages, losses) by name: a file, an entry point or a path.

A part is a class in its own file. Its name on the command line is the file's name, with `-` and `_` alike:

- `countdown` is `ponder/environments/countdown.py`, class `Countdown` (the file's name without underscores,
  whatever its capitals);
- `reasoning-gym:chain_sum` is `ponder/environments/reasoning_gym.py`; what follows the colon goes to the first field;
- `./mine.py:Mine` and `/path/mine.py:Mine` are a class in a file outside the repo;
- `FILE.jsonl` as an environment is the data of the environment `jsonl`;
- an installed package may offer parts under the entry point group `ponder.environments` and so on.

There is no list to update: adding a part adds a file.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from ponder import outside
from ponder.config import from_mapping
from ponder.errors import PartFailed, UserError, nearest
from ponder.protocols import Feedback

HELPERS = {"base", "selfcheck"}
"""Modules of a part folder that hold no part; names with a leading underscore are skipped too."""
ROOMS = (
    *("environments", "engines", "verifiers", "scorers"),
    *("search.strategies", "training.advantages", "training.losses", "training.corpus"),
)
"""Packages whose modules are parts."""


DATA = (".jsonl", ".jsonl.gz")
"""An environment of such a name is a file of problems."""


@dataclass(frozen=True, slots=True)
class PartInfo:
    """One line of `ponder list`."""

    name: str
    summary: str
    origin: str


def canonical(name: str) -> str:
    return name.replace("-", "_")


def _check_room(room: str) -> None:
    """Raises `UserError` for an unknown room, with the known ones, the closest spelling first."""
    if room in ROOMS:
        return

    def likeness(known: str) -> float:
        return max(difflib.SequenceMatcher(None, room, n).ratio() for n in (known, known.rpartition(".")[2]))

    raise UserError(f"unknown room {room!r}; known: {', '.join(sorted(ROOMS, key=likeness, reverse=True))}")


def _builtin(room: str) -> list[str]:
    package = importlib.import_module(f"ponder.{room}")
    return [
        m.name
        for m in pkgutil.iter_modules(package.__path__)
        if m.name not in HELPERS and not m.name.startswith("_") and _class_in(f"ponder.{room}.{m.name}") is not None
    ]


def _class_in(module_name: str) -> type | None:
    """The class that a module is named after; None if there is no such module or class."""
    if importlib.util.find_spec(module_name) is None:
        return None
    module = importlib.import_module(module_name)
    wanted = module_name.rpartition(".")[2].replace("_", "").lower()
    for name, value in vars(module).items():
        if inspect.isclass(value) and name.lower() == wanted and value.__module__ == module.__name__:
            return value
    return None


def _entry_points(room: str) -> dict[str, EntryPoint]:
    return {canonical(e.name): e for e in entry_points(group=f"ponder.{room}")}


def names(room: str) -> list[str]:
    """Names of all parts of a room, built in and installed. Raises `UserError` for an unknown room."""
    _check_room(room)
    return sorted(set(_builtin(room)) | set(_entry_points(room)))


def find(room: str, spec: str) -> tuple[type, str | None]:
    """The class that a spec names and the argument after the colon. Raises `UserError` if there is no such part."""
    _check_room(room)
    if room == "environments" and spec.endswith(DATA):
        return find(room, "jsonl")[0], spec
    head, colon, argument = spec.partition(":")
    if head.endswith(".py") or "/" in head:
        return _from_file(Path(head), argument, room), None
    name = canonical(head)
    builtin = name.isidentifier() and name not in HELPERS and not name.startswith("_")
    if builtin and (found := _class_in(f"ponder.{room}.{name}")) is not None:
        return found, argument if colon else None
    installed = _entry_points(room)
    if name in installed:
        try:
            return _loaded(installed[name]), argument if colon else None
        except PartFailed as error:
            raise UserError(f"{spec!r} ({installed[name].value}) cannot be loaded: {error}") from error
    last = room.rpartition(".")[2]
    what = {"strategies": "strategy", "losses": "loss", "corpus": "family"}.get(last, last.rstrip("s"))
    raise UserError(f"unknown {what} {spec!r}{nearest(name, names(room))}")


def _from_file(path: Path, class_name: str, room: str) -> type:
    if not path.is_file():
        given = "a file of your own is given as PATH.py:Class"
        data = f", problems as {' or '.join('FILE' + end for end in DATA)}" if room == "environments" else ""
        known = path.suffix == ".py" and class_name
        raise UserError(f"{path}: no such file" + ("" if known else f" ({given}{data})"))
    if not class_name:
        raise UserError(f"{path}: name the class too, as {path}:Class")
    spec = importlib.util.spec_from_file_location(f"ponder_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[spec.name]
        if outside.is_stop(error, waits=False):
            raise
        raise UserError(f"{path}: cannot be imported: {outside.sentence(error)}") from error
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        classes = [n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module.__name__]
        raise UserError(f"{path}: no class {class_name!r}{nearest(class_name, classes)}")
    outside.loaded(found)
    return found


def build(room: str, spec: str, options: Mapping[str, Any] | None = None) -> Any:
    """Build the part that a spec names with the given options (its dataclass fields).

    Raises `UserError` for an unknown name, an unknown option (with the nearest known one) or a wrong value.
    """
    cls, argument = find(room, spec)
    values = dict(options or {})
    if argument is not None:
        fields = [f.name for f in dataclasses.fields(cls) if not f.kw_only] if dataclasses.is_dataclass(cls) else []
        if not fields:
            raise UserError(f"{spec!r}: {spec.partition(':')[0]} takes nothing after the colon")
        if fields[0] in values:
            raise UserError(f"{spec}: {fields[0]} is given twice, in the name and as an option: give it once")
        values[fields[0]] = argument
    where = "jsonl" if spec.endswith(DATA) else spec
    _refuse_lacking(room, spec, cls, outside.lacking(cls))
    part = outside.call(f"{spec}: making {cls.__name__}", _made, cls, values, where)
    needed = _NEEDED.get(room, ())
    _refuse_lacking(room, spec, cls, [name for name in needed if inspect.getattr_static(part, name, None) is None])
    if room == "environments":
        feedback = outside.call(f"{spec}: feedback", getattr, part, "feedback")
        if not isinstance(feedback, Feedback):
            at = outside.defined(cls)
            raise UserError(f"{spec}: {cls.__name__}{at} gave a {type(feedback).__name__}, not a Feedback, as feedback")
    return part


def options_of(part: Any) -> dict[str, Any]:
    """The options that a part was built with, defaults filled in, as plain values; none if it is no dataclass."""
    if not dataclasses.is_dataclass(part):
        return {}
    return {f.name: _written(getattr(part, f.name)) for f in dataclasses.fields(part) if f.init and f.repr}


def _written(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_written(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _refuse_lacking(room: str, spec: str, cls: type, names: Sequence[str]) -> None:
    if names:
        raise UserError(f"{spec}: {cls.__name__} has no {', '.join(names)}{outside.defined(cls)}; {_BASES[room]}")


_NEEDED = {
    "environments": (
        *("name", "turns", "turn_rewards", "slow_judge"),
        *("feedback", "size", "problem", "gold", "judge", "gold_response", "episode"),
    ),
    "search.strategies": ("start",),
    "verifiers": ("__call__",),
    "training.advantages": ("__call__",),
    "training.losses": ("__call__",),
}
"""What a part must have to be used at all."""
_BASES = {
    "environments": "derive it from ponder.environments.base.SingleTurn, which has what most of them share",
    "search.strategies": "see protocols.Strategy",
    "verifiers": "it is called with the gold and the answer, and gives a Verdict",
    "training.advantages": "see training.advantages.base.Advantage",
    "training.losses": "see training.losses.base.BaseLoss",
    "scorers": "see scorers.base.BaseScorer",
}


def _made(cls: type, values: dict[str, Any], spec: str) -> Any:
    if dataclasses.is_dataclass(cls):
        return from_mapping(cls, values, where=spec)
    try:
        return cls(**{canonical(key): value for key, value in values.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f"{spec}: {error}") from error


def _loaded(entry: EntryPoint) -> Any:
    """What an entry point names. Raises `PartFailed` for whatever importing it raises."""
    try:
        found = entry.load()
        outside.loaded(found)
        return found
    except BaseException as error:
        if outside.is_stop(error, waits=False):
            raise
        raise PartFailed(outside.sentence(error)) from error


def listing(room: str) -> list[PartInfo]:
    """Name, first docstring line and origin of every part of a room. Raises `UserError` for an unknown room."""
    _check_room(room)
    rows = []
    for name in _builtin(room):
        cls, _ = find(room, name)
        rows.append(PartInfo(name, _summary(cls), "ponder"))
    for name, entry in _entry_points(room).items():
        try:
            rows.append(PartInfo(name, _summary(_loaded(entry)), entry.value))
        except PartFailed as error:
            rows.append(PartInfo(name, f"cannot be loaded: {error}", entry.value))
    return sorted(rows, key=lambda r: r.name)


def _summary(cls: type) -> str:
    lines = (inspect.getdoc(cls) or "").strip().splitlines()
    return lines[0] if lines else ""
