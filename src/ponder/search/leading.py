"""Which pieces of a search its reader gets: those of one response at a time."""

from __future__ import annotations

import dataclasses

from ponder.budget.streams import Reader
from ponder.types import Delta, Request


class Leader:
    """Passes on the first sample of one call at a time. A call that continues a response shows only what is new.

    An empty piece before the next one says that the response so far was cut off and another one begins.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._shown = ""
        self._text = ""
        self._prefix = ""
        self._whole = True
        self._cut = False
        """The reader does not know yet that a response was cut off."""
        self.busy = False

    def follow(self, request: Request) -> Reader | None:
        """Where the pieces of this call go; None if another call leads, or it continues a response not shown."""
        prefix = request.prefix
        if self.busy or not isinstance(prefix, str) or (prefix and not prefix.startswith(self._shown)):
            return None
        self.busy, self._whole = True, False
        self._text, self._prefix = "", prefix
        if not prefix:
            self._shown = ""
        return self._pass_on

    def leave(self) -> None:
        """The call has ended, successfully or not. The reader learns of a cut with the next piece."""
        self.busy, self._cut = False, self._cut or not self._whole

    async def _hand(self, delta: Delta) -> None:
        if self._cut:
            await self._reader(Delta(0, ""))
            self._cut = False
        await self._reader(delta)

    async def _pass_on(self, delta: Delta) -> None:
        if delta.sample != 0 or not (delta.text or delta.ids or delta.completion):
            return
        self._whole = delta.completion is not None
        self._text += delta.text
        if not self._prefix:
            self._shown += delta.text
            await self._hand(delta)
            return
        # Engines differ in whether the prefix is part of what they stream.
        if self._prefix.startswith(self._text) and delta.completion is None:
            return
        whole = self._text if self._text.startswith(self._prefix) else self._prefix + self._text
        new, self._shown = whole[len(self._shown) :], whole
        await self._hand(dataclasses.replace(delta, text=new))
