"""A response as it streams: thoughts dim on one stream, the answer alone on the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from ponder.show import WHOLE, visible
from ponder.types import Delta, Outcome, ThoughtFormat


class Splitter:
    """Splits streamed text into thought and answer at the model's markers, wherever the pieces break."""

    def __init__(self, thought: ThoughtFormat | None) -> None:
        self._thought = thought
        self._inside = thought is not None and thought.opened_by_template
        self._held = ""

    def feed(self, text: str) -> Iterator[tuple[bool, str]]:
        """`(is thought, text)` of what is certain by now; markers are left out."""
        self._held += text
        while (form := self._thought) is not None:
            # As `responses.split_response`: an end marker outside of a thought is the end of a line.
            markers = (form.close,) if self._inside else (form.open, form.close)
            places = [(at, m) for m in markers if (at := self._held.find(m)) >= 0]
            if not places:
                keep = max(_overlap(self._held, m) for m in markers)
                before, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
                if before:
                    yield self._inside, before
                return
            at, marker = min(places)
            if before := self._held[:at]:
                yield self._inside, before
            self._held = self._held[at + len(marker) :]
            if not self._inside and marker == form.close:
                yield False, "\n"
            else:
                self._inside = not self._inside
        if self._held:
            yield False, self._held
            self._held = ""

    def end(self) -> Iterator[tuple[bool, str]]:
        """What was held back as the possible beginning of a marker."""
        if self._held:
            yield self._inside, self._held
            self._held = ""


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins `marker`."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if marker.startswith(text[-n:])), 0)


class Screen:
    """Shows a response as it streams: thoughts on `log` (dim on a terminal), the answer on `out`.

    Where several responses are sampled, the leading ones stream to `log` and the chosen answer is printed at the end.
    """

    def __init__(self, thought: ThoughtFormat | None, single: bool, out: TextIO, log: TextIO) -> None:
        self._format, self._single, self._out, self._log = thought, single, out, log
        self._splitter = Splitter(thought)
        self._dim = log.isatty()
        self._answered = self._streamed = False
        self._inside = False
        """The last piece written was part of a thought."""
        self._last = ""

    async def follow(self, delta: Delta) -> None:
        """`show` as a coroutine, which a search calls."""
        self.show(delta)

    def show(self, delta: Delta) -> None:
        """Show a piece; an empty one means that the response so far was cut off."""
        if delta.sample != 0:
            return
        for inside, text in self._splitter.feed(delta.text):
            self._write(inside, text)
        cut = delta.completion is None and not delta.text and not delta.ids
        if cut or delta.completion is not None:
            for inside, text in self._splitter.end():
                self._write(inside, text)
            if not self._single:
                self._end_line()
            self._splitter = Splitter(self._format)

    def cut(self) -> None:
        """The response that streams was cut off."""
        self.show(Delta(0, ""))

    def _write(self, inside: bool, text: str) -> None:
        text = visible(text, WHOLE)
        if inside or not self._single:
            if self._inside and not inside:
                self._end_line()
                text = text.lstrip()
                if not text:
                    return
            self._inside = inside
            self._log.write(f"\x1b[2m{text}\x1b[0m" if self._dim else text)
            self._log.flush()
            self._streamed, self._last = True, text
            return
        if not self._answered:
            self._end_line()
            text = text.lstrip()
            if not text:
                return
        self._answered = True
        self._out.write(text)
        self._out.flush()

    def _end_line(self) -> None:
        """End the line of the thought, if it did not end by itself."""
        if self._streamed and not self._last.endswith("\n"):
            self._log.write("\n")
            self._log.flush()
        self._streamed = False

    def finish(self, outcome: Outcome) -> None:
        """Print the answer if it did not stream, and end its line."""
        self.cut()
        self._end_line()
        if not self._answered and outcome.response.answer is not None and outcome.response.answer.strip():
            self._answered = True
            self._out.write(visible(outcome.response.answer.strip(), WHOLE))
        if self._answered:
            self._out.write("\n")
            self._out.flush()
