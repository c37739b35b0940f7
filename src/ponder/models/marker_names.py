"""A copy of a tokenizer whose markers have names that occur in no text, so that each marker in a text is meant or not.

The copy shares the model, so it costs little. White space that a marker takes (`lstrip`, `rstrip`), and the space that
some tokenizers put before a text but not after a marker, stay the library's work.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Collection, Mapping, Sequence, Set
from typing import TYPE_CHECKING

from ponder.errors import UserError

if TYPE_CHECKING:
    import tokenizers

_PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Private-use characters."""


def free_letter(text: str) -> str:
    """A character that is not in the text and that means nothing in any. Raises `UserError` if it holds them all."""
    used = set(text)
    for part in _PRIVATE:
        for code in part:
            if chr(code) not in used:
                return chr(code)
    raise UserError("a text with all of Unicode's private-use characters cannot be encoded")


class MarkerNames:
    """The copy whose names begin and end with `letter`."""

    def __init__(
        self,
        original: tokenizers.Tokenizer,
        added: Mapping[int, tokenizers.AddedToken],
        markers: Set[int],
        letter: str,
    ) -> None:
        """`added` are the added tokens by id, and `markers` the ids of those that get names."""
        import tokenizers

        self.tokenizer = tokenizers.Tokenizer(original.model)
        if original.normalizer is not None:
            self.tokenizer.normalizer = original.normalizer
        if original.pre_tokenizer is not None:
            self.tokenizer.pre_tokenizer = original.pre_tokenizer
        self.real: dict[int, int] = {}
        """Ids of the copy that are other ids in the original."""
        self.spelt = {i: added[i] for i in markers if original.model.id_to_token(i) is not None}
        """Markers that the model itself may make of a text."""
        self._letter = letter
        found = [added[i] for i in markers]
        # Two more: for the place of ids, and for a cut.
        plain = tokenizers.AddedToken("", normalized=False)
        *names, self.place, self.cut = self._add([*found, plain, plain])
        self.place_id, self.cut_id = self._id(self.place), self._id(self.cut)
        self.real.update((self._id(name), i) for name, i in zip(names, markers, strict=True))
        others = added.keys() - markers
        self.tokenizer.add_tokens([added[i] for i in others])
        self.real.update((self._id(added[i].content), i) for i in others)
        self._names = {token.content: name for token, name in zip(found, names, strict=True)}
        self._alone = {token.content for token in found if token.single_word}
        longest = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest)) or r"(?!)")

    def write(self, text: str, meant: str) -> str:
        """The text with names for its markers. `meant` is the text with NUL for each character that is in no marker."""
        parts: list[str] = []
        at = 0
        for found in self._pattern.finditer(meant):
            beside = text[max(0, found.start() - 1) : found.start()] + text[found.end() : found.end() + 1]
            if found[0] in self._alone and re.search(r"\w", beside):
                continue
            parts += (text[at : found.start()], self._names[found[0]])
            at = found.end()
        return "".join((*parts, text[at:]))

    def unnamed(self, text: str, found: tokenizers.Encoding) -> str:
        """The text with the markers' own texts for names that the library did not find in it.

        It does not find a marker that it looks for in the normalised text and that the normaliser changes, as Llama 2's
        does within a text.
        """
        ids = {*self.real, self.place_id, self.cut_id}
        places = [place for i, place in zip(found.ids, found.offsets, strict=True) if i in ids]
        markers = {name: marker for marker, name in self._names.items()}

        def write(name: re.Match[str]) -> str:
            at = bisect.bisect_right(places, name.start(), key=lambda place: place[0]) - 1
            known = at >= 0 and name.end() <= places[at][1]
            return name[0] if known else markers.get(name[0], name[0])

        return re.sub(rf"{self._letter}\d+{self._letter}", write, text)

    def _add(self, like: Sequence[tokenizers.AddedToken]) -> list[str]:
        """Add a name for each of these tokens, which takes white space as they do."""
        import tokenizers

        normalizer, count = self.tokenizer.normalizer, itertools.count()
        names = [""] * len(like)
        while missing := [at for at, name in enumerate(names) if not name]:
            tokens = []
            for at in missing:
                name = f"{self._letter}{next(count)}{self._letter}"
                normalized = like[at].normalized and normalizer is not None and name in normalizer.normalize_str(name)
                lstrip, rstrip = like[at].lstrip, like[at].rstrip
                tokens.append(tokenizers.AddedToken(name, lstrip=lstrip, rstrip=rstrip, normalized=normalized))
            # At once: each call sorts all of them anew.
            self.tokenizer.add_tokens(tokens)
            for at, token in zip(missing, tokens, strict=True):
                # The library numbers from the size of the vocabulary, where a model may have ids above that.
                if self.tokenizer.model.id_to_token(self._id(token.content)) is None:
                    names[at] = token.content
        return names

    def _id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        assert found is not None
        return found


def unknown_ids(tokenizer: tokenizers.Tokenizer) -> frozenset[int]:
    """The ids that stand for what the vocabulary cannot spell."""
    try:
        return frozenset(token.id for token in tokenizer.model.tokenize("\U0010fffd"))
    except Exception:  # the library raises bare Exception, here for a model without such an id
        return frozenset()


def forged(
    found: tokenizers.Encoding,
    text: str,
    own: bytes,
    markers: Mapping[int, tokenizers.AddedToken],
    unknown: Collection[int],
) -> list[Sequence[int]]:
    """Begin and end of each text that became a marker and is not wholly `own` (1 for each character that is)."""
    places: list[Sequence[int]] = []
    for i, (start, end) in zip(found.ids, found.offsets, strict=True):
        if i not in markers:
            continue
        # A marker's place includes the white space that it takes, which may be from outside.
        start, end = end - len(text[start:end].lstrip()), start + len(text[start:end].rstrip())
        if 0 in own[start:end] and (i not in unknown or text[start:end] == markers[i].content):
            places.append((start, end))
    return places
