"""One sample as it grows token by token: thought limits, stop strings, and the completion that it comes to.

What `engines.torch.batch` does for all rows of a batch at once, here for one.
"""

from __future__ import annotations

import itertools
from collections import deque

import numpy as np

from ponder.engines._draw import draw
from ponder.engines.random_streams import again, stream_keys, uniforms
from ponder.engines.requests import Markers, Ready
from ponder.engines.text import Vocabulary
from ponder.types import Completion, FinishReason, SamplingParams, Segment, SegmentKind, Spend


class Growth:
    """The response of sample `index`, from its prefix on."""

    def __init__(
        self,
        params: SamplingParams,
        ready: Ready,
        markers: Markers,
        vocabulary: Vocabulary,
        ends: frozenset[int],
        index: int,
    ) -> None:
        """`ends` are the ids that end a response."""
        self.params, self.ready, self.index = params, ready, index
        self._markers, self._vocabulary, self._ends = markers, vocabulary, ends
        self._key = stream_keys(params.seed, np.array([index]))
        self.ids = list(ready.prefix)
        self._forced = [True] * len(self.ids)
        self._logprobs = [0.0] * len(self.ids)
        self._best: list[tuple[tuple[int, float], ...]] = [()] * len(self.ids)
        self._inside, self._thought, self._closing = ready.inside, ready.thought, False
        self._pending: deque[int] = deque()
        self._ended = False
        self._cut: int | None = None
        self.computed = 0
        """Ids that went through the model for this sample."""
        self.begun = False
        """The prompt is computed."""
        self._prompt = 0
        self.seconds = 0.0
        self._close_if_full()

    def found(self) -> None:
        """The logits for the next id are there: what went through the model besides the response was the prompt."""
        self.begun = True
        self._prompt = max(0, self.computed - (len(self.ids) - len(self.ready.prefix)))

    @property
    def is_forced(self) -> bool:
        """The next id is forced: it needs no logits."""
        return bool(self._pending)

    @property
    def over(self) -> bool:
        return self._ended or self._cut is not None or len(self.ids) >= self.params.max_tokens

    def force(self) -> None:
        """Append the next pending forced id."""
        self._add(self._pending.popleft(), forced=True)

    def draw(self, logits_V: np.ndarray) -> None:
        """Draw the next id, or begin to force what replaces it."""
        p, ready = self.params, self.ready
        u = float(uniforms(self._key, np.array([len(self.ids)]))[0])
        drawn = draw(logits_V, p, u)
        ends = drawn.id in self._ends
        least = 0 if p.thinking is None else p.thinking.min_tokens
        if self._inside and self._thought < least and (ends or (drawn.id,) == self._markers.close):
            self._key = again(self._key)
            self._pending.extend(ready.extend)
            self.force()
            return
        self._add(drawn.id, forced=False, logprob=drawn.logprob, best=drawn.best, ended=ends)

    def _add(
        self,
        token: int,
        *,
        forced: bool,
        logprob: float = 0.0,
        best: tuple[tuple[int, float], ...] = (),
        ended: bool = False,
    ) -> None:
        self.ids.append(token)
        self._forced.append(forced)
        self._logprobs.append(logprob)
        self._best.append(best)
        if not forced and self.params.stop:
            self._cut = self._vocabulary.stop_at(self.ids, self.params.stop)
        self._ended = ended
        if self.params.thinking is not None:
            self._follow_thought(token, forced)

    def _follow_thought(self, token: int, forced: bool) -> None:
        marks = self._markers
        if not forced and not marks.single and not self._closing:
            mark = marks.close_text if self._inside else marks.open_text
            if self._vocabulary.stop_at(self.ids, (mark,)) is not None:
                self._inside = not self._inside
                self._thought -= self._inside  # this token still belongs to the marker
        closed = self._closing and not self._pending
        opened = False
        if marks.single:
            closed = closed or (self._inside and token == marks.close[0])
            opened = not self._inside and token == marks.open[0]
        self._thought += self._inside and not closed and not self._closing
        if closed:
            self._closing = self._inside = False
        self._inside = self._inside or opened
        if not self._pending and not self._closing and not self._ended:
            self._close_if_full()

    def _close_if_full(self) -> None:
        thinking = self.params.thinking
        if thinking is None or thinking.max_tokens is None or not self._inside:
            return
        if self._thought >= thinking.max_tokens:
            self._pending.extend(self._markers.close)
            self._closing = True

    def spend(self, flops_per_token: float) -> Spend:
        """What was used so far. Prompt and prefix count as cached where they were not computed for this sample."""
        given = len(self.ready.prompt) + len(self.ready.prefix)
        prompt = min(given, self._prompt if self.begun else self.computed)
        forced = sum(self._forced) - len(self.ready.prefix)
        return Spend(
            prompt_tokens=prompt,
            cached_tokens=given - prompt if self.begun else 0,
            sampled_tokens=len(self.ids) - sum(self._forced),
            forced_tokens=forced,
            seconds=self.seconds,
            flops=flops_per_token * self.computed,
            device_seconds=self.seconds,
        )

    def completion(self, flops_per_token: float) -> Completion:
        """The response; cancelled if it is not over."""
        decode, stop = self._vocabulary.tokenizer.decode, self._ended or self._cut is not None
        text, stopped_by = decode(self.ids[:-1] if self._ended else self.ids), None
        if self._cut is not None:
            stopped_by = next(s for s in self.params.stop if text.startswith(s, self._cut))
            text = text[: self._cut]
        finish = FinishReason.STOP if stop else FinishReason.LENGTH if self.over else FinishReason.CANCELLED
        return Completion(
            text,
            finish,
            self.spend(flops_per_token),
            self._segments(),
            self.ready.prompt,
            stopped_by=stopped_by,
            params=self.params,
        )

    def _segments(self) -> tuple[Segment, ...]:
        segments, at = [], 0
        for forced, run in itertools.groupby(self._forced):
            end = at + len(list(run))
            ids = tuple(self.ids[at:end])
            if forced:
                segments.append(Segment(SegmentKind.FORCED, ids))
            else:
                best = tuple(self._best[at:end]) if self.params.top_logprobs else None
                kind, logprobs = self.params.logprobs_of, tuple(self._logprobs[at:end])
                segments.append(Segment(SegmentKind.SAMPLED, ids, logprobs, 0, kind, best))
            at = end
        return tuple(segments)
