"""The tokenizer interface, and its implementation by the `tokenizers` library (a `tokenizer.json`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ponder.errors import MissingExtra, UserError

if TYPE_CHECKING:
    import tokenizers

SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer(Protocol):
    """Text to ids and back. Special tokens never come from a user's text, only from the template."""

    vocab_size: int
    markers: tuple[str, ...]
    """Marker tokens: roles, end of turn, thought."""

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text, without begin or end tokens. With `special`, markers such as `<think>` become one id;

        without it, they are spelled out like any other text.
        """
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
        # Two copies, since the switch is a field of the tokenizer and several threads encode.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._with_markers: tokenizers.Tokenizer | None = None
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder().values()
        self.markers = tuple(t.content for t in added)
        # Tokenizers spell out only markers flagged as special; Qwen's `<think>` is not.
        loose = [t.content for t in added if not t.special and re.fullmatch(r"[<\[].+[>\]]", t.content)]
        self._loose = re.compile("|".join(map(re.escape, sorted(loose, key=len, reverse=True)))) if loose else None

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

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        # Lone surrogates have no UTF-8; they become U+FFFD rather than an exception.
        text = text if text.isascii() else SURROGATE.sub("\ufffd", text)
        if special:
            if self._with_markers is None:
                import tokenizers

                self._with_markers = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
            return self._with_markers.encode(text, add_special_tokens=False).ids
        ids: list[int] = []
        at = 0
        for found in self._loose.finditer(text) if self._loose else ():
            # Cut inside the marker: neither half is one.
            cut = found.start() + 1
            ids += self._tokenizer.encode(text[at:cut], add_special_tokens=False).ids
            at = cut
        return ids + self._tokenizer.encode(text[at:], add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")
