"""A mock engine that gives log-probabilities of other ids too: sure of responses that begin with `sure`."""

import dataclasses
import math

from mocks import MockEngine

from ponder.types import SegmentKind

SURE, UNSURE = 0.999, 0.4
"""Probability of each sampled token."""


class SureEngine(MockEngine):
    def complete(self, request, sample):
        completion = super().complete(request, sample)
        p = SURE if completion.text.startswith("sure") else UNSURE
        segments = []
        for segment in completion.segments:
            if segment.kind is SegmentKind.SAMPLED:
                tops = None
                if request.params.top_logprobs:
                    tops = tuple(((i, math.log(p)), (1, math.log(1 - p))) for i in segment.ids)
                segment = dataclasses.replace(
                    segment, logprobs=(math.log(p),) * len(segment.ids), top_logprobs=tops, logprobs_of="raw"
                )
            segments.append(segment)
        return dataclasses.replace(completion, segments=tuple(segments))
