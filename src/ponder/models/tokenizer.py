"""Tokenizers of the `tokenizers` library (a `tokenizer.json`), without importing transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ponder.errors import MissingExtra, UserError

if TYPE_CHECKING:
    import tokenizers


class FastTokenizer:
    """Wraps `tokenizers.Tokenizer`; see `models.base.Tokenizer`."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder()
        self.markers = tuple(t.content for t in added.values())

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
        text = text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text
        self._tokenizer.encode_special_tokens = not special
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def save(self, path: str | Path) -> None:
        self._tokenizer.save(str(path))
