"""The tokens of an optimiser step, packed straight from the transcripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ponder.training.credit import Credit
from ponder.training.rollouts import Group
from ponder.types import SegmentKind, Transcript

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """B rows of unequal length as N tokens; what networks and losses read."""

    ids_N: Tensor
    mask_N: Tensor
    """True where an id is trained on. Never in a row's prompt."""
    logprobs_N: Tensor
    """The sampler's log-probability of each sampled id; 0 elsewhere."""
    credit_N: Tensor
    """Advantage of each trained id; 0 elsewhere."""
    version_N: Tensor
    """Version of the weights that each id was sampled with; 0 where it was not."""
    lengths_B: Tensor
    """Ids of each row."""
    prompt_lengths_B: Tensor
    """Ids of the given beginning of each row, at least 1."""
    prompt_B: Tensor
    """Number of that beginning: rows that share one are computed after one copy of it."""

    def __len__(self) -> int:
        return len(self.lengths_B)

    @property
    def offsets_B(self) -> Tensor:
        """Place of each row's first token."""
        return self.lengths_B.cumsum(0) - self.lengths_B

    def places(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens of some rows, row by row: place in the batch, number within `rows`, and place in the row."""
        import torch

        lengths = self.lengths_B[rows]
        row_M = torch.arange(len(rows)).repeat_interleave(lengths)
        column_M = torch.arange(len(row_M)) - (lengths.cumsum(0) - lengths)[row_M]
        return self.offsets_B[rows][row_M] + column_M, row_M, column_M

    def trained(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The trained tokens of some rows, in their order: place in the batch, and number of the row."""
        at_M, row_M, _ = self.places(rows)
        chosen_M = self.mask_N[at_M]
        return at_M[chosen_M], rows[row_M[chosen_M]]

    @property
    def trained_B(self) -> Tensor:
        """Number of trained tokens of each row."""
        import torch

        row_N = torch.arange(len(self)).repeat_interleave(self.lengths_B)
        return torch.zeros(len(self), dtype=torch.long).index_add(0, row_N, self.mask_N.long())


def token_batch(groups: Sequence[Group], credits: Sequence[Sequence[Credit]]) -> TokenBatch:
    """Pack the samples of some groups, in their order, with their credit.

    Siblings whose transcripts begin with the same given ids share that prompt; siblings that were given different ids
    have separate prompts. Raises `ValueError` for a credit that does not fit its transcript.
    """
    import torch

    transcripts = [s.transcript for g in groups for s in g.samples]
    each = [c for own in credits for c in own]
    if [len(g.samples) for g in groups] != [len(own) for own in credits]:
        raise ValueError("the estimator must give one credit for each sample of each group")
    masked = [not s.trainable for g in groups for s in g.samples]
    if any(m and any(c.trained) for m, c in zip(masked, each, strict=True)):
        raise ValueError("a credit trains on a sample that is not trainable")
    for transcript, credit in zip(transcripts, each, strict=True):
        if len(credit.values) != len(transcript.ids) or any(
            t and not m for t, m in zip(credit.trained, transcript.loss_mask, strict=True)
        ):
            raise ValueError("a credit must have one value for each id, and train on sampled ids alone")
    numbers: dict[tuple[int, tuple[int, ...]], int] = {}
    prompts = [given(s.transcript) for g in groups for s in g.samples]
    owners = [i for i, g in enumerate(groups) for _ in g.samples]
    prompt = [numbers.setdefault((i, p), len(numbers)) for i, p in zip(owners, prompts, strict=True)]
    return TokenBatch(
        ids_N=_flat([t.ids for t in transcripts], np.int64),
        mask_N=_flat([c.trained for c in each], np.bool_),
        logprobs_N=_flat([t.logprobs for t in transcripts], np.float32),
        credit_N=_flat([c.values for c in each], np.float32),
        version_N=_flat([_versions(t) for t in transcripts], np.int64),
        lengths_B=torch.tensor([len(t.ids) for t in transcripts], dtype=torch.long),
        prompt_lengths_B=torch.tensor([len(p) for p in prompts], dtype=torch.long),
        prompt_B=torch.tensor(prompt, dtype=torch.long),
    )


def given(transcript: Transcript) -> tuple[int, ...]:
    """The ids before the first one that was not given. Raises `ValueError` if there is none: nothing could predict the

    first sampled id.
    """
    ids: list[int] = []
    for segment in transcript.segments:
        if segment.kind is not SegmentKind.GIVEN:
            break
        ids += segment.ids
    if not ids:
        raise ValueError("a transcript must begin with given ids")
    return tuple(ids)


def _versions(transcript: Transcript) -> list[int]:
    sampled = SegmentKind.SAMPLED
    return [s.weights_version if s.kind is sampled else 0 for s in transcript.segments for _ in s.ids]


def _flat(rows: Sequence[Sequence[float]], kind: type[np.generic]) -> Tensor:
    import torch

    return torch.from_numpy(np.concatenate([np.asarray(r, dtype=kind) for r in rows]))
