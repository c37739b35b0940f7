"""One simulated response, and any truncation of it as a completion."""

from __future__ import annotations

import math
from random import Random

from ponder.engines.reasoner import END, Mind, key_of, logprob_of, raw, text_of, write
from ponder.types import Completion, Delta, FinishReason, Request, Segment, SegmentKind, Spend


class Sample:
    """One whole response, and any truncation of it as a completion."""

    def __init__(self, mind: Mind, request: Request, prompt: str, prefix: str, index: int, ids: bool) -> None:
        params = request.params
        self._params, self._prompt, self._index, self._with_ids = params, prompt, index, ids
        key = key_of(prompt)
        draw = f"{params.seed} {index}" if params.temperature > 0 else "greedy"
        rng = Random(f"{draw} {params.temperature} {key}\x1f{prompt}\x1f{prefix}")
        self._pieces, right = write(mind, key, prefix, params.thinking, params.max_tokens, rng)
        self._logprob = logprob_of(mind, right, rng)
        self._begun = len(prefix)
        tokens = "".join(piece for _, piece in self._pieces)[: params.max_tokens]
        self._finish, self._text_end = FinishReason.LENGTH, len(tokens)
        ends = [
            (at + len(stop), at)
            for stop in map(raw, params.stop)
            if stop and (at := tokens.find(stop, max(0, self._begun - len(stop) + 1))) >= 0
        ]
        if ends:
            end, self._text_end = min(ends)
            tokens, self._finish = tokens[:end], FinishReason.STOP
        elif tokens.endswith(END):
            self._finish = FinishReason.STOP
        self._stopped_by = text_of(tokens[self._text_end :]) if ends else None
        self._tokens = tokens
        self.new = len(tokens) - self._begun
        """Tokens after the prefix."""

    def completion(self, seconds: float, device_seconds: float, sampled: int | None = None) -> Completion:
        """The whole response, or what it was after `sampled` tokens of its call: then cancelled."""
        tokens, finish, text_end = self._tokens, self._finish, self._text_end
        if sampled is not None and sampled < self.new:
            tokens, finish = tokens[: self._begun + sampled], FinishReason.CANCELLED
            text_end = min(text_end, len(tokens))
        segments, forced = self._segments(len(tokens))
        before = len(self._prompt) + self._begun
        spend = Spend(
            prompt_tokens=0 if self._index else before,
            cached_tokens=before if self._index else 0,
            sampled_tokens=len(tokens) - self._begun - forced,
            forced_tokens=forced,
            seconds=seconds,
            device_seconds=device_seconds,
        )
        ids = tuple(map(ord, self._prompt)) if self._with_ids else ()
        stopped_by = self._stopped_by if finish is FinishReason.STOP else None
        return Completion(
            text_of(tokens[:text_end]),
            finish,
            spend,
            segments,
            ids,
            stopped_by=stopped_by,
            params=self._params,
        )

    def _segments(self, length: int) -> tuple[tuple[Segment, ...], int]:
        """Runs of one kind in the first `length` tokens, and how many tokens after the prefix are forced."""
        segments: list[Segment] = []
        at = forced = 0
        run, kind = "", SegmentKind.SAMPLED
        for next_kind, piece in [*self._pieces, (None, "")]:
            if next_kind is not kind and run:
                if self._with_ids:
                    segments.append(self._segment(kind, run))
                run = ""
            kind = next_kind or kind
            cut = piece[: length - at]
            forced += len(cut) if kind is SegmentKind.FORCED and at >= self._begun else 0
            run, at = run + cut, at + len(cut)
        return tuple(segments), forced

    def _segment(self, kind: SegmentKind, run: str) -> Segment:
        ids = tuple(map(ord, run))
        if kind is SegmentKind.FORCED:
            return Segment(kind, ids)
        best = (
            tuple(_best(i, self._logprob, self._params.top_logprobs) for i in ids)
            if self._params.top_logprobs
            else None
        )
        logprobs = (self._logprob,) * len(ids)
        return Segment(kind, ids, logprobs, logprobs_of=self._params.logprobs_of, top_logprobs=best)

    def piece(self, first: int, last: int) -> Delta | None:
        """What was sampled between two times, if anything; the prefix with the first piece."""
        if first >= self.new:
            return None
        begin, end = self._begun + first if first else 0, self._begun + min(last, self.new)
        text = text_of(self._tokens[begin : max(begin, min(end, self._text_end))])
        ids = tuple(map(ord, self._tokens[begin:end])) if self._with_ids else ()
        return Delta(self._index, text, ids) if text or ids else None


def _best(token: int, logprob: float, count: int) -> tuple[tuple[int, float], ...]:
    """The token and alternatives that share the remaining probability, halving each time."""
    rest = -math.expm1(logprob)
    others = [(ord("a") + i, math.log(max(rest, 1e-12)) - (i + 1) * math.log(2)) for i in range(count)]
    pairs = [(token, logprob), *((i, x) for i, x in others if i != token)]
    return tuple(sorted(pairs, key=lambda pair: -pair[1])[:count])
