"""From ids to text while a response grows: stop strings, and pieces that never break a character.

Two kinds of tokenizers need care. Byte-fallback ones (Llama 2, ponder-tiny) decode a run of byte tokens as a whole, and
as U+FFFD each if the run is not valid UTF-8: such a run is not decoded before it ends. Byte-level ones (GPT-2, SmolLM2)
show an unfinished character as a trailing U+FFFD.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ponder.models.tokenizer import Tokenizer

_BROKEN = "\ufffd"


class Vocabulary:
    """What single tokens look like; tables are made when first asked for."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size
        self.byte_ids = frozenset(i for i in (tokenizer.id_of(f"<0x{b:02X}>") for b in range(256)) if i is not None)
        self._pieces: list[str] | None = None
        self._enders: dict[str, np.ndarray] = {}

    def enders(self, stop: str) -> np.ndarray:
        """For each id, whether a text that ends with it can be the first that holds `stop`; bool of shape V."""
        last = stop[-1]
        if last not in self._enders:
            if self._pieces is None:
                self._pieces = [self.tokenizer.decode([i]) for i in range(self.size)]
            # A space may be stripped from a piece that is decoded alone, so its absence proves nothing.
            self._enders[last] = np.array([last == " " or not p or last in p or _BROKEN in p for p in self._pieces])
        return self._enders[last]

    def window(self, ids: Sequence[int], length: int) -> int:
        """Where to begin so that the last `length` ids at least decode as they do within the whole."""
        start = max(0, len(ids) - length)
        while start > 0 and (ids[start] in self.byte_ids or ids[start - 1] in self.byte_ids):
            start -= 1
        return start

    def stop_at(self, ids: Sequence[int], stops: Sequence[str]) -> int | None:
        """Where in the text of `ids` the first stop string begins that its last id completed; None if it did none."""
        near = ids[self.window(ids, 4 * max(map(len, stops)) + 16) :]
        if self._completed(near, stops) is None:
            return None
        return self._completed(ids, stops)

    def _completed(self, ids: Sequence[int], stops: Sequence[str]) -> int | None:
        text = self.tokenizer.decode(ids)
        before = len(self.tokenizer.decode(ids[:-1]).rstrip(_BROKEN))
        found = [at for s in stops if (at := text.find(s, max(0, before - len(s) + 1))) >= 0]
        return min(found, default=None)


class TextStream:
    """Turns the growing ids of one response into pieces of text; the pieces joined are the final text."""

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str]) -> None:
        self.vocabulary = vocabulary
        self.hold = max((len(s) for s in stops), default=1) - 1
        self.ids: list[int] = []
        self.given = ""
        self._pending = ""
        self._anchor = self._read = 0

    def push(self, ids: Sequence[int]) -> str:
        """Add ids; returns the text that can no longer change, often empty."""
        self.ids.extend(ids)
        end = len(self.ids)
        while end > self._read and self.ids[end - 1] in self.vocabulary.byte_ids:
            end -= 1
        if end > self._read:
            decode = self.vocabulary.tokenizer.decode
            text = decode(self.ids[self._anchor : end])
            if not text.endswith(_BROKEN):
                self._pending += text[len(decode(self.ids[self._anchor : self._read])) :]
                self._anchor, self._read = self._read, end
        certain = len(self._pending) - self.hold
        if certain <= 0:
            return ""
        piece, self._pending = self._pending[:certain], self._pending[certain:]
        self.given += piece
        return piece

    def finish(self, text: str) -> str:
        """The rest, given the whole text of the completion."""
        return text[len(self.given) :]
