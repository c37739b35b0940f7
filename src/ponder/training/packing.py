"""Packed rows, end to end without padding: where each token is, for layers over tokens and attention over rows.

Every layer but attention treats tokens one by one, so rows of unequal length need no padding there. Attention reads the
layout: neighbours of one length are read in place, in one call of its kernel, and so is the prompt that rows share,
once for all of them. Where calls are expensive (not on a CPU), rows of like length are padded to the longest of their
bucket instead.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.training.batch import TokenBatch

LIKE = 0.8
"""A bucket holds rows of at least this share of its longest: at most a fifth of it is padding, a tenth as a rule."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring rows of one length: `at` of the packed tokens, as a matrix of this shape."""

    at: slice
    rows: int
    length: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows of like length, padded to the longest: `at` of the padded tokens, as a matrix of this shape."""

    at: slice
    rows: int
    length: int


@dataclass(frozen=True, slots=True)
class Prefix:
    """What some neighbouring rows share: `tokens` of the packed rows continue `source` of the packed prefixes."""

    tokens: slice
    source: slice


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows in one sequence of N tokens."""

    ids_N: Tensor
    positions_N: Tensor
    """Position of each token in its own text."""
    runs: tuple[Run, ...]
    """Of all tokens, in order."""
    buckets: tuple[Bucket, ...]
    """Of all M padded tokens, in order."""
    index_M: Tensor
    """Which token each padded one is: the row's last one again where the row is padded."""
    place_N: Tensor
    """Which padded token each token is."""
    prefixes: tuple[Prefix, ...] = ()
    """Empty where the rows begin a text; else they cover all tokens in order."""

    def __len__(self) -> int:
        return len(self.ids_N)

    def to(self, device: torch.device) -> Packed:
        if device.type == "cpu":
            return self
        moved = {f: getattr(self, f).to(device) for f in ("ids_N", "positions_N", "index_M", "place_N")}
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True, slots=True)
class Responses:
    """The responses of some rows, and where the hidden state before each trained token comes from."""

    rows: Tensor
    """Numbers of the rows, siblings together."""
    packed: Packed
    """Response tokens up to the one before the last trained one."""
    source_K: Tensor
    """For each trained token: a prompt's number, where it is the first of a response, or the number of prompts plus the
    packed place of the token before it. In the order of rows and then of positions."""
    targets_K: Tensor
    """The trained ids."""


@dataclass(frozen=True, slots=True)
class Wave:
    """Groups whose prompts are computed together, and the micro-batches of their responses."""

    prompts: Packed
    last_P: Tensor
    """Packed place of each prompt's last token."""
    parts: tuple[Responses, ...]


def waves(batch: TokenBatch, rows_B: Tensor, tokens: int) -> Iterator[Wave]:
    """Split rows so that prompts and one micro-batch of responses together hold at most `tokens` ids.

    A longer one comes alone, and the responses to a long prompt have at least half of `tokens`. `rows_B` must have
    rows of one prompt together.
    """
    prompts, prompt_B = torch.unique_consecutive(batch.prompt_B[rows_B], return_inverse=True)
    assert len(prompts) == len(prompts.unique()), "siblings must be neighbours"
    sizes = torch.bincount(prompt_B).tolist()
    members = list(rows_B.split(sizes))
    lengths = [int(batch.prompt_lengths_B[m[0]]) for m in members]
    for first, last in _runs(lengths, max(1, tokens // 2)):
        rows, local_B = (
            torch.cat(members[first:last]),
            torch.arange(last - first).repeat_interleave(torch.tensor(sizes[first:last])),
        )
        yield wave(batch, rows, local_B, max(tokens - sum(lengths[first:last]), tokens // 2))


def wave(batch: TokenBatch, rows_B: Tensor, local_B: Tensor, tokens: int | None = None) -> Wave:
    """The wave of some rows whose prompts are numbered 0, 1, … by `local_B`; `tokens` bounds its micro-batches."""
    starts = torch.cat((torch.ones(1, dtype=torch.bool), local_B[1:] != local_B[:-1])).nonzero().squeeze(1)
    heads = rows_B[starts]
    lengths_P = batch.prompt_lengths_B[heads]
    prompts = pack(batch.ids_N, batch.offsets_B[heads], torch.zeros_like(lengths_P), lengths_P)
    at_M, row_M, column_M = batch.places(rows_B)
    trained_M = batch.mask_N[at_M]
    # A response is computed up to the token before its last trained one.
    last_B = torch.zeros_like(rows_B).scatter_reduce(0, row_M[trained_M], column_M[trained_M], "amax")
    lengths_B = (last_B - batch.prompt_lengths_B[rows_B]).clamp(min=0)
    runs = [(0, len(rows_B))] if tokens is None else _runs(lengths_B.tolist(), max(1, tokens))
    ends_P = lengths_P.cumsum(0)
    parts = tuple(_responses(batch, rows_B[a:b], local_B[a:b], lengths_B[a:b], ends_P) for a, b in runs)
    return Wave(prompts, ends_P - 1, parts)


def _runs(lengths: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Split a sequence into runs that each add up to at most `most`, or hold one item."""
    first, size = 0, 0
    for i, length in enumerate(lengths):
        if i > first and size + length > most:
            yield first, i
            first, size = i, 0
        size += length
    if lengths:
        yield first, len(lengths)


def _responses(batch: TokenBatch, rows_B: Tensor, local_B: Tensor, lengths_B: Tensor, ends_P: Tensor) -> Responses:
    prompt_B = batch.prompt_lengths_B[rows_B]
    ends_B = lengths_B.cumsum(0)
    numbers, counts = torch.unique_consecutive(local_B, return_counts=True)
    stops = ends_B[counts.cumsum(0) - 1].tolist()
    prefixes = tuple(
        Prefix(slice(start, stop), slice(int(ends_P[n - 1]) if n else 0, int(ends_P[n])))
        for start, stop, n in zip([0, *stops], stops, numbers.tolist(), strict=False)
        if stop > start
    )
    packed = pack(batch.ids_N, batch.offsets_B[rows_B] + prompt_B, prompt_B, lengths_B, prefixes)
    at_M, row_M, column_M = batch.places(rows_B)
    trained_M = batch.mask_N[at_M]
    at_K, row_K = at_M[trained_M], row_M[trained_M]
    behind_K = column_M[trained_M] - prompt_B[row_K]
    source_K = torch.where(behind_K == 0, local_B[row_K], len(ends_P) + (ends_B - lengths_B)[row_K] + behind_K - 1)
    return Responses(rows_B, packed, source_K, batch.ids_N[at_K])


def pack(
    ids_N: Tensor,
    starts_B: Tensor,
    first_B: Tensor,
    lengths_B: Tensor,
    prefixes: tuple[Prefix, ...] = (),
) -> Packed:
    """Pack `lengths_B` ids, from place `starts_B` of `ids_N` on; the first of each has position `first_B` in its text.

    Empty rows are allowed.
    """
    offsets_B = lengths_B.cumsum(0) - lengths_B
    row_N = torch.arange(len(lengths_B)).repeat_interleave(lengths_B)
    step_N = torch.arange(len(row_N)) - offsets_B[row_N]
    order = torch.argsort(lengths_B, descending=True, stable=True)
    lengths = lengths_B[order].tolist()
    buckets, index, size = [], [], 0
    place_N = torch.empty(len(row_N), dtype=torch.long)
    for a, b in _alike(lengths):
        rows, longest = order[a:b], lengths[a]
        steps = torch.arange(longest)
        real_M = (steps < lengths_B[rows].unsqueeze(1)).flatten()
        index_M = (offsets_B[rows].unsqueeze(1) + torch.minimum(steps, lengths_B[rows].unsqueeze(1) - 1)).flatten()
        place_N[index_M[real_M]] = size + real_M.nonzero().squeeze(1)
        buckets.append(Bucket(slice(size, size + len(index_M)), b - a, longest))
        index.append(index_M)
        size += len(index_M)
    none = torch.empty(0, dtype=torch.long)
    return Packed(
        ids_N[starts_B[row_N] + step_N],
        first_B[row_N] + step_N,
        tuple(_equal(lengths_B.tolist())),
        tuple(buckets),
        torch.cat([none, *index]),
        place_N,
        prefixes,
    )


def _equal(lengths: Sequence[int]) -> Iterator[Run]:
    start = 0
    for length, same in itertools.groupby(n for n in lengths if n):
        rows = len(list(same))
        yield Run(slice(start, start + rows * length), rows, length)
        start += rows * length


def _alike(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of like length in a descending sequence; empty rows at its end are left out."""
    first, count = 0, sum(n > 0 for n in lengths)
    for i in range(1, count + 1):
        if i == count or lengths[i] < LIKE * lengths[first]:
            yield first, i
            first = i
