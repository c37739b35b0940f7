"""The tokenizer interface, and its implementation by the `tokenizers` library (a `tokenizer.json`).

A text whose markers are all meant goes through the tokenizer as it is, so its ids are Hugging Face's. One that holds a
marker which is not meant, or ids, goes through a copy in which the meant markers have other names (`marker_names.py`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ponder.errors import MissingExtra, UserError
from ponder.models.marker_names import MarkerNames, forged, free_letter, unknown_ids

if TYPE_CHECKING:
    import tokenizers

SURROGATE = re.compile("[\ud800-\udfff]")
LOOSE = re.compile(r"[<\[].+[>\]]")
"""Markers that are not flagged as special, such as Qwen's `<think>`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a prompt: text, or ids that stand there as they are."""

    text: str = ""
    own: bool = False
    """Whether markers in the text are meant; else they are spelled out like any other text."""
    ids: tuple[int, ...] = ()


class Tokenizer(Protocol):
    """Text to ids and back. Special tokens never come from a user's text, only from the template."""

    vocab_size: int
    markers: tuple[str, ...]
    """Marker tokens: roles, end of turn, thought."""

    def encode(self, text: str, *, special: bool = False, continues: bool = False) -> list[int]:
        """Ids of a text, without begin or end tokens. With `special`, markers such as `<think>` become one id;

        without it, they are spelled out like any other text. With `continues` the text goes on after other ids: it gets
        no space in front that only the beginning of a text has.
        """
        ...

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[int]:
        """Ids of pieces that follow each other in one text. A marker counts where it lies in `own` pieces alone."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, markers kept."""
        ...

    def id_of(self, token: str) -> int | None:
        """Id of one token by its spelling in the vocabulary."""
        ...


class FastTokenizer:
    """Wraps `tokenizers.Tokenizer`; see `Tokenizer`."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.encode_special_tokens = False
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self._added = tokenizer.get_added_tokens_decoder()
        self.markers = tuple(t.content for t in self._added.values())
        # Others are ordinary tokens that some tokenizers add, such as runs of spaces: any text may hold them.
        self._guarded = {i: t for i, t in self._added.items() if t.special or LOOSE.fullmatch(t.content)}
        self._unknown = unknown_ids(tokenizer)
        self._named: dict[str, MarkerNames] = {}

    @classmethod
    def from_file(cls, path: str | Path) -> FastTokenizer:
        """Raises `UserError` if the file is missing or not a tokenizer."""
        try:
            import tokenizers
        except ImportError:
            raise MissingExtra("a tokenizer", "torch") from None
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: not a tokenizer file: {error}") from None

    def encode(self, text: str, *, special: bool = False, continues: bool = False) -> list[int]:
        return self.encode_pieces([Piece()] * continues + [Piece(text, own=special)])

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[int]:
        # Lone surrogates have no UTF-8; they become U+FFFD rather than an exception.
        text = SURROGATE.sub("\ufffd", "".join(p.text for p in pieces))
        if all(p.text for p in pieces):
            found = self._tokenizer.encode(text, add_special_tokens=False)
            own = b"".join((b"\1" if p.own else b"\0") * len(p.text) for p in pieces)
            if not forged(found, text, own, self._guarded, self._unknown):
                return found.ids
        return self._with_names(pieces, free_letter(text))

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def to_json(self, *, pretty: bool = False) -> str:
        """The text of its `tokenizer.json`."""
        return self._tokenizer.to_str(pretty=pretty)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json(pretty=True), encoding="utf-8")

    def _with_names(self, pieces: Sequence[Piece], letter: str) -> list[int]:
        """Ids of pieces of which some are ids, or hold markers that are not meant."""
        names = self._named.get(letter) or MarkerNames(self._tokenizer, self._added, self._guarded.keys(), letter)
        self._named = {letter: names}
        text = ""
        for is_text, run in itertools.groupby(pieces, lambda p: bool(p.text)):
            if is_text:
                parts = [(SURROGATE.sub("\ufffd", p.text), p.own) for p in run]
                text += names.write("".join(t for t, _ in parts), "".join(t if o else "\0" * len(t) for t, o in parts))
            else:
                text += names.place * len(list(run))
        while True:
            found = names.tokenizer.encode(text, add_special_tokens=False)
            if (known := names.unnamed(text, found)) != text:
                text = known
                continue
            places = forged(found, text, bytes(len(text)), names.spelt, self._unknown)
            if not places:
                break
            # Some models know a marker's text without the library's help: neither half of it is one.
            for start, end in reversed(places):
                halves = (text[start], text[start + 1 : end]) if end - start > 1 else ("\ufffd", "")
                text = text[:start] + names.cut.join(halves) + text[end:]
        ids: list[int] = []
        given = iter([p.ids for p in pieces if not p.text])
        for i in found.ids:
            if i == names.place_id:
                ids += next(given)
            elif i != names.cut_id:
                ids.append(names.real.get(i, i))
        return ids
