"""Text that knows, for each of its characters, whether a chat template wrote it.

A template is rendered with `Traced` texts: its literals are its own, everything else is from outside. So a template
may cut, trim, replace or inspect a content as it does in transformers, and it is still known which marker is its own.
An operation that is not followed here gives a text from outside: what is lost is a marker, and none is gained.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

OUTSIDE, OWN, SAMPLED = b"\0", b"\1", b"\2"
"""Of one character: from outside, from the template, or of the place of a response that is given as ids."""
_CONVERSION = re.compile(r"(%(?:\(\w*\))?[#0\- +]*\d*(?:\.\d+)?[hlL]?[A-Za-z%])")


class Traced(str):
    """A text with the origin of each character; a plain `str` is from outside."""

    __slots__ = ("_origin",)
    _origin: bytes

    def __new__(cls, text: str = "", origin: bytes | None = None) -> Traced:
        """`origin` has a byte for each character: OUTSIDE, OWN or SAMPLED; None is all from outside."""
        made = super().__new__(cls, text)
        made._origin = OUTSIDE * len(text) if origin is None else origin
        assert len(made._origin) == len(made)
        return made

    def __str__(self) -> str:
        return self

    def __iter__(self) -> Iterator[str]:
        return (self[i : i + 1] for i in range(len(self)))

    def __getitem__(self, index: SupportsIndex | slice) -> Traced:
        if not isinstance(index, slice):
            place = index.__index__()
            return Traced(super().__getitem__(place), self._origin[place : place + 1 or None])
        return Traced(super().__getitem__(index), self._origin[index])

    def __add__(self, other: str) -> Traced:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return joined((self, other))

    def __radd__(self, other: str) -> Traced:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return joined((other, self))

    def __mul__(self, times: SupportsIndex) -> Traced:
        return Traced(super().__mul__(times), self._origin * times.__index__())

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> Traced:
        whole = super().__mod__(values)  # raises what is wrong with the values
        named = isinstance(values, Mapping)
        queue = list(values) if isinstance(values, tuple) else [values]
        made, at = [], 0
        for i, part in enumerate(_CONVERSION.split(plain(self))):
            piece = self[at : at + len(part)]
            at += len(part)
            if i % 2 and not part.endswith("%"):
                value = values if named else queue.pop(0) if queue else ""
                made_of = _of_key(part, values) if isinstance(values, Mapping) else value
                made.append(traced(str.__mod__(part, value if named else (value,)), made_of))
            else:
                made.append(piece[-1:] if i % 2 else piece)
        found = joined(made)
        return found if found == whole else Traced(whole)

    def __rmod__(self, pattern: str) -> Traced:
        return Traced(pattern) % self

    # Methods whose results are pieces of the text ------------------------------------------------------------------

    def strip(self, chars: str | None = None, /) -> Traced:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Traced:
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None, /) -> Traced:
        return self[: len(super().rstrip(chars))]

    def removeprefix(self, prefix: str, /) -> Traced:
        return self[len(self) - len(super().removeprefix(prefix)) :]

    def removesuffix(self, suffix: str, /) -> Traced:
        return self[: len(super().removesuffix(suffix))]

    def partition(self, sep: str, /) -> tuple[Traced, Traced, Traced]:
        return self._in_turn(super().partition(sep))

    def rpartition(self, sep: str, /) -> tuple[Traced, Traced, Traced]:
        return self._in_turn(super().rpartition(sep))

    def _in_turn(self, parts: tuple[str, str, str]) -> tuple[Traced, Traced, Traced]:
        first, second = len(parts[0]), len(parts[0]) + len(parts[1])
        return self[:first], self[first:second], self[second:]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Traced]:  # type: ignore[override]
        return self._cut(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Traced]:  # type: ignore[override]
        return self._cut(super().rsplit(sep, maxsplit), sep)

    def _cut(self, parts: list[str], sep: str | None) -> list[Traced]:
        """The parts where they stand. At whitespace no part begins with it but the rest after `maxsplit` does not."""
        found, at = [], 0
        for part in parts:
            if sep is None:
                at = str.index(self, part, at)
            found.append(self[at : at + len(part)])
            at += len(part) + len(sep or "")
        return found

    def splitlines(self, keepends: bool = False) -> list[Traced]:  # type: ignore[override]
        found, at = [], 0
        for whole, line in zip(super().splitlines(True), super().splitlines(keepends), strict=True):
            found.append(self[at : at + len(line)])
            at += len(whole)
        return found

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Traced:
        if not old:
            return Traced(super().replace(old, new, count))
        return traced(new).join(self.split(old, count))

    def join(self, parts: Iterable[str], /) -> Traced:
        made: list[str] = []
        for part in parts:
            if not isinstance(part, str):
                raise TypeError(f"sequence item {len(made)}: expected str instance, {type(part).__name__} found")
            made += (self, part) if made else (part,)
        return joined(made)


def _followed(name: str, *, same_length: bool) -> Callable[..., Traced]:
    """A method of `str` whose result is the template's own where all that goes into it is."""
    method = getattr(str, name)

    def call(self: Traced, *args: Any) -> Traced:
        text = method(self, *args)
        if same_length and len(text) == len(self):
            return Traced(text, self._origin)
        return traced(text, (self, *args))

    call.__name__ = name
    return call


for _name in ("lower", "upper", "title", "capitalize", "swapcase", "casefold"):
    setattr(Traced, _name, _followed(_name, same_length=True))
for _name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
    setattr(Traced, _name, _followed(_name, same_length=False))


def own(text: str, kind: bytes = OWN) -> Traced:
    """A text that the template wrote (or, as SAMPLED, the place of a response)."""
    return Traced(text, kind * len(text))


def plain(text: str) -> str:
    """The text as an ordinary `str`."""
    return str.__str__(text)


def origin(text: str) -> bytes:
    """Where each character is from."""
    return text._origin if isinstance(text, Traced) else OUTSIDE * len(text)


def traced(value: Any, made_of: Any = None) -> Traced:
    """A value as a template writes it. `made_of`: what it was made of, if that is not the value itself."""
    if isinstance(value, Traced):
        return value
    return Traced(str(value)) if not _is_own(value if made_of is None else made_of) else own(plain(str(value)))


def _is_own(value: Any) -> bool:
    """Whether nothing of a value is text from outside. Numbers are no text: templates count markers with them."""
    if isinstance(value, str):
        return isinstance(value, Traced) and value._origin == OWN * len(value)
    if isinstance(value, tuple | list):
        return all(map(_is_own, value))
    return value is None or isinstance(value, int | float)


def _of_key(part: str, values: Mapping[str, Any]) -> Any:
    return values.get(part[2 : part.index(")")]) if part.startswith("%(") else ""


def joined(parts: Iterable[Any]) -> Traced:
    """The parts end to end, each with its origin."""
    found = [part if isinstance(part, str) else traced(part) for part in parts]
    return Traced("".join(found), b"".join(map(origin, found)))
