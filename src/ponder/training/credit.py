"""What an advantage estimator gives for a sample: a value for each id, and which ids are trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ponder.training.rollouts import Group, Sample
from ponder.types import Transcript


@dataclass(frozen=True, slots=True)
class Credit:
    """Advantages over the ids of a sample's transcript.

    Which ids are trained on is separate from the values: an advantage of 0 in the middle of a group still counts (its
    tokens are in the divisor, and have a gradient where the loss has a KL term), and one that differs from 0 only by
    rounding does not.
    """

    values: tuple[float, ...]
    trained: tuple[bool, ...]
    """True at most where the id was sampled."""

    @classmethod
    def none(cls, sample: Sample) -> Credit:
        """Nothing of it is trained on."""
        count = len(sample.transcript.ids)
        return cls((0.0,) * count, (False,) * count)

    @classmethod
    def of_sample(cls, sample: Sample, value: float) -> Credit:
        """One value for all that was sampled."""
        return cls.of_segments(sample, [value] * len(sample.transcript.segments))

    @classmethod
    def of_segments(cls, sample: Sample, values: Sequence[float | None]) -> Credit:
        """One value for each segment of the transcript; None leaves a segment out of training."""
        segments = sample.transcript.segments
        return cls.of_tokens(sample, [v for s, v in zip(segments, values, strict=True) for _ in s.ids])

    @classmethod
    def of_nodes(cls, group: Group, sample: Sample, values: Sequence[float | None]) -> Credit:
        """One value for each node of the tree on the path to the sample's leaf: for the ids that its call added."""
        path = group.trace.path(sample.leaf)
        ends = [len(group.trace.transcript(n.id).ids) for n in path]
        each: list[float | None] = []
        for end, value in zip(ends, values, strict=True):
            each += [value] * (end - len(each))
        return cls.of_tokens(sample, each)

    @classmethod
    def of_tokens(cls, sample: Sample, values: Sequence[float | None]) -> Credit:
        """One value for each id of the transcript; None leaves an id out of training, and so does the loss mask.

        Nothing is trained on of a sample that is not `trainable`.

        Raises `ValueError` for a wrong number of values, or one that is not finite.
        """
        mask = sample.transcript.loss_mask
        if len(values) != len(mask):
            raise ValueError(f"{len(values)} values for a transcript of {len(mask)} ids")
        if not all(v is None or math.isfinite(v) for v in values):
            raise ValueError(f"a credit is not finite: {next(v for v in values if v and not math.isfinite(v))}")
        trained = tuple(sample.trainable and m and v is not None for m, v in zip(mask, values, strict=True))
        return cls(tuple(v if t and v is not None else 0.0 for v, t in zip(values, trained, strict=True)), trained)

    def shown(self, transcript: Transcript) -> Any:
        """For records: the value of all trained ids (0.0 if there are none) where they share one; else a list with, for

        each segment, its value, None (not trained on), or the values of its ids.
        """
        found = {v for v, t in zip(self.values, self.trained, strict=True) if t}
        if len(found) < 2:
            return found.pop() if found else 0.0
        parts: list[Any] = []
        at = 0
        for segment in transcript.segments:
            own = slice(at, at + len(segment.ids))
            values = [v if t else None for v, t in zip(self.values[own], self.trained[own], strict=True)]
            parts.append(values[0] if len(set(values)) == 1 else values)
            at = own.stop
        return parts
