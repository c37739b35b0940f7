"""One dataclass is the Python API, the TOML file and the command line.

`from_mapping` builds and checks it, `load_toml` and `to_toml` move it to and from disk, `parse` reads it from the
command line: `--config FILE.toml` first, flags win over the file. Unknown keys are refused with the nearest known one.
The flags come from `tyro`, the conversion of values from `msgspec`; each field's help is the docstring below it.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ponder import flags, reading
from ponder.errors import UserError, alike, nearest

C = TypeVar("C")


def parse_value(text: str) -> Any:
    """Read a TOML literal (`3`, `0.5`, `true`, `[1, 2]`); anything else is a string."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError):
        return text


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `KEY=VALUE` words. Raises `ValueError` for a word without `=`."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"{pair!r} is not KEY=VALUE")
        options[key.replace("-", "_")] = parse_value(value)
    return options


Options = dict[str, Any]
"""Options of a part that is chosen by name: a table in TOML, `KEY=VALUE ...` on the command line."""


def _options_rule(info: Any) -> Any:
    """Let tyro read `Options` fields as `KEY=VALUE` words."""
    import tomli_w
    from tyro.constructors import PrimitiveConstructorSpec

    if info.type != Options:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="KEY=VALUE",
        instance_from_str=parse_options,
        is_instance=lambda v: isinstance(v, dict),
        str_from_instance=lambda v: [f"{k}={tomli_w.dumps({'v': x})[4:].strip()}" for k, x in v.items()],
    )


def from_mapping(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    """Build a dataclass from plain values, checked and converted.

    `where` names the file or flag in errors. Raises `UserError` for unknown keys and wrong values.
    """
    complete = _complete(cls, values, where, "")
    try:
        return msgspec.convert(complete, cls, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {sentence(str(error))}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def sentence(message: str) -> str:
    """`Expected `int`, got `str` - at `$.x`` becomes `x: expected `int`, got `str``."""
    message = re.sub(r"Object missing required field (`\w+`)", r"Give \1, which has no default", message)
    text, at, path = message.partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    text = text[:1].lower() + text[1:]
    return f"{path}: {text}" if at and path else text


def _complete(cls: type, values: Mapping[str, Any], where: str, prefix: str) -> dict[str, Any]:
    """The values by name of the field (a dash is an underscore), nested tables filled up with their field's defaults.

    Raises `UserError` for an unknown key and one that is given twice.
    """
    known = {f.name: f for f in dataclasses.fields(cls)}
    complete: dict[str, Any] = {}
    for written, value in values.items():
        key = written if written in known else written.replace("-", "_")
        if key in complete:
            raise UserError(f"{where}: {prefix + key!r} is given twice, as {written!r} too: give it once")
        complete[key] = value
        if key not in known:
            raise UserError(f"{where}: unknown key {prefix + written!r}{nearest(key, known)}")
        factory = known[key].default_factory
        default = None if factory is dataclasses.MISSING else factory()
        if isinstance(value, Mapping) and dataclasses.is_dataclass(default):
            given = _complete(type(default), value, where, f"{prefix}{key}.")
            complete[key] = {**to_mapping(default), **given}
    return complete


def load_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file. Raises `UserError` that names the file and the line."""
    return reading.toml_table(Path(path))


OF_VERBS = {
    "eval": ("split", "samples", "strategy"),
    "train rl": ("advantage", "loss", "group_size"),
    "train sft": ("fit", "held_out", "longest"),
    "train pretrain": ("fit", "families", "length"),
    "quickstart": ("minutes", "problems", "samples"),
}
"""Keys that the complete config of a verb has, and no other verb's has all of."""


def verb_of(values: Mapping[str, Any]) -> str | None:
    """The verb whose complete config this is, as a run directory holds it; None if it is none."""
    return next((verb for verb, keys in OF_VERBS.items() if all(key in values for key in keys)), None)


def to_mapping(config: Any) -> dict[str, Any]:
    """A dataclass as plain values; fields that are None are left out (TOML has no null)."""
    return {k: v for k, v in _plain(config).items() if v is not None}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((f.name, _plain(getattr(value, f.name))) for f in dataclasses.fields(value))
        return {k: v for k, v in items if v is not None}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


def to_toml(config: Any) -> str:
    """A dataclass as a complete TOML document that `from_mapping` reads back."""
    import tomli_w

    return tomli_w.dumps(to_mapping(config))


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(|[KMGT](?:i?B)?|B)\s*", re.IGNORECASE)


def size(text: str, name: str) -> int | None:
    """Bytes from `2GiB`, `500MB`, `1.5G` or a plain number; None for an empty text. `K`, `M`, `G` alone are binary.

    Raises `UserError` that names the field.
    """
    if not text:
        return None
    found = _SIZE.fullmatch(text)
    unit = found[2].upper() if found else ""
    base = 1000 if unit.endswith("B") and not unit.endswith("IB") else 1024
    number = int(float(found[1]) * base ** " KMGT".index(unit[:1] if unit[:1] in "KMGT" else " ")) if found else 0
    if number < 1:
        raise UserError(f"{name} = {text!r}: give a size such as 2GiB, 500MB or a number of bytes")
    return number


def refuse_changed(config: C, path: str | Path, free: Sequence[str], command: str = "") -> C:
    """A resumed run must be the same run: compare with the config in its directory, and return that.

    Fields named in `free` (of a nested table as `table.field`) may differ; `command` resumes it. Raises `UserError`
    that names the first other field that does.
    """
    saved = from_mapping(type(config), load_toml(path), where=str(path))
    given = _flat(config)
    for name, theirs in _flat(saved).items():
        if name not in free and given[name] != theirs:
            command = command or f"--config {path} --resume"
            raise UserError(f"resume: {name} is {given[name]!r}, and the run has {theirs!r}; continue with {command}")
    return saved


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Fields by name, those of nested dataclasses as `table.field`."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value) and not isinstance(value, type)
        found |= _flat(value, f"{prefix}{field.name}.") if nested else {prefix + field.name: value}
    return found


def parse(
    cls: type[C], args: Sequence[str], *, prog: str, description: str | None = None, default: C | None = None
) -> C:
    """Read a config from the command line: the file of `--config` first (else `default`), then the flags.

    `--help` prints and exits 0; a wrong value prints the reason and exits 2 (`SystemExit`, by tyro). Raises `UserError`
    for an unknown flag.
    """
    import tyro
    from tyro.constructors import ConstructorRegistry

    arguments = list(args)
    _refuse_unknown(arguments, cls, prog)
    file = _take_config(arguments)
    base: dict[str, Any] = {} if default is None else {"default": default}
    if file is not None:
        values = load_toml(file)
        verb = verb_of(values)
        if verb is not None and verb != verb_of(dict.fromkeys(f.name for f in dataclasses.fields(cls))):  # type: ignore[arg-type]
            raise UserError(f"{file}: is the config of ponder {verb}, not of {prog}")
        base["default"] = from_mapping(cls, values, where=str(file))
    if base:
        # For a flag that is already on tyro knows only the negation.
        given = base["default"]
        on = {f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(given) if getattr(given, f.name) is True}
        arguments = [word for word in arguments if word.replace("_", "-") not in on]
    registry = ConstructorRegistry()
    registry.primitive_rule(_options_rule)
    shown = flags.as_shown(typing.cast(type, cls))
    if base:
        base["default"] = flags.given(shown, base["default"])
    with registry:
        read = tyro.cli(shown, prog=prog, description=description, args=arguments, **base)
    return flags.taken(cls, read)


def _refuse_unknown(arguments: Sequence[str], cls: type, prog: str) -> None:
    """Refuse a flag that there is none of. tyro would list every flag that shares a letter with it."""
    known = {*flags.names(cls), "--config", "--help"}
    for word in arguments:
        if word == "--":
            return
        name = word.partition("=")[0]
        if not name.startswith("--") or name.startswith("--tyro-") or name.replace("_", "-") in known:
            continue
        meant = [f"--{n}" for n in alike(name[2:].replace("_", "-"), [k[2:] for k in known])]
        said = f"; did you mean {' or '.join(meant)}?" if meant else f"; see {prog} --help"
        raise UserError(f"there is no option {name}{said}")


def _take_config(arguments: list[str]) -> str | None:
    for i, word in enumerate(arguments):
        if word == "--":
            return None
        if word == "--config":
            if i + 1 >= len(arguments):
                raise UserError("--config needs a file: --config FILE.toml")
            file = arguments[i + 1]
            del arguments[i : i + 2]
            return file
        if word.startswith("--config="):
            del arguments[i]
            return word.partition("=")[2]
    return None
