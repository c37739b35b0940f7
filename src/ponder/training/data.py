"""Token batches for supervised training: rows of ids with a mask of the tokens that are learned."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ponder import jsonl
from ponder.errors import UserError
from ponder.messages import read_prompt
from ponder.training.corpus.base import Mixture
from ponder.types import Message

if TYPE_CHECKING:
    from torch import Tensor

    from ponder.models.base import LoadedModel


@dataclass(frozen=True, slots=True)
class Row:
    """One document or transcript: ids and, for each, whether it is learned."""

    ids: tuple[int, ...]
    mask: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right to the longest."""

    ids_BT: Tensor
    mask_BT: Tensor
    """True where the id is a target; never in the first column."""

    @property
    def targets(self) -> int:
        return int(self.mask_BT[:, 1:].sum())


class RowSource(Protocol):
    """Rows by position, the same each time: what a resumed run needs is the position."""

    def rows(self, start: int) -> Iterator[tuple[int, Row]]:
        """Rows from a position on, each with the position after it."""
        ...


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """Pad rows to the longest of them."""
    import torch

    length = max(len(r.ids) for r in rows)
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=bool)
    for i, r in enumerate(rows):
        ids[i, : len(r.ids)] = r.ids
        mask[i, : len(r.ids)] = r.mask
    mask[:, 0] = False
    return Batch(torch.from_numpy(ids), torch.from_numpy(mask))


@dataclass(frozen=True)
class ProceduralText:
    """Plain documents of a mixture, packed end to end into rows of `length` ids; every id is learned."""

    mixture: Mixture
    model: LoadedModel
    length: int

    def rows(self, start: int) -> Iterator[tuple[int, Row]]:
        # Each row begins a new document, so that any row can be made alone.
        index = start
        per_row = max(1, self.length // 8)
        while True:
            ids: list[int] = []
            document = index * per_row
            while len(ids) < self.length:
                _, e = self.mixture.example(document)
                document += 1
                text = f"{e.prompt}\n{e.thought}\n{e.answer}"
                ids += [*self.model.tokenizer.encode(text), self.model.end_ids[0]]
            index += 1
            yield index, Row(tuple(ids[: self.length]), (True,) * self.length)


@dataclass(frozen=True)
class ProceduralChats:
    """Chats of a mixture: prompt given; thought, answer and end learned (the end of a cut thought is not)."""

    mixture: Mixture
    model: LoadedModel
    longest: int

    def rows(self, start: int) -> Iterator[tuple[int, Row]]:
        index = start
        while True:
            row = chat_row(self.model, self.mixture, index)
            index += 1
            if len(row.ids) <= self.longest:
                yield index, row


def chat_row(model: LoadedModel, mixture: Mixture, index: int) -> Row:
    """One example as the model's chat, thought between its markers."""
    _, e = mixture.example(index)
    prompt = model.prompt_ids((Message("user", e.prompt),))
    thought = model.thought
    assert thought is not None, "procedural chats need a model with a thought format"
    opening = [] if thought.opened_by_template else model.tokenizer.encode(thought.open, special=True, continues=True)
    close = model.tokenizer.encode(thought.close, special=True, continues=True)
    inner = model.tokenizer.encode(e.thought, continues=True)
    answer = [*model.tokenizer.encode(e.answer, continues=True), model.end_ids[0]]
    ids = (*prompt, *opening, *inner, *close, *answer)
    mask = (
        *(False,) * len(prompt),
        *(True,) * (len(opening) + len(inner)),
        *(not e.cut,) * len(close),
        *(True,) * len(answer),
    )
    return Row(ids, mask)


@dataclass(frozen=True)
class Transcripts:
    """Rows of a JSONL file, shuffled each epoch by the seed.

    A line holds either `ids` and `mask` (token-in, token-out, as `ponder` writes its own samples), or `prompt` (text or
    a list of messages) and `response` (text). Raises `UserError` that names the line.
    """

    items: tuple[Row, ...]
    seed: int

    @classmethod
    def read(cls, path: str | Path, model: LoadedModel, seed: int, longest: int) -> Transcripts:
        """The rows of a file that have at most `longest` ids. Raises `UserError` that names a bad line, or for none."""
        return cls.of(read_rows(path), model, seed, longest, str(path))

    @classmethod
    def of(
        cls, values: Sequence[tuple[str, dict[str, Any]]], model: LoadedModel, seed: int, longest: int, path: str
    ) -> Transcripts:
        """See `read`; the lines with where they are, as `read_rows` gives them."""
        rows = [_row(model, value, where) for where, value in values]
        kept = tuple(r for r in rows if len(r.ids) <= longest)
        if not kept:
            raise UserError(f"{path}: no row of at most {longest} tokens ({len(rows)} rows in all); raise longest")
        return cls(kept, seed)

    def rows(self, start: int) -> Iterator[tuple[int, Row]]:
        epoch, offset = divmod(start, len(self.items))
        while True:
            order = list(range(len(self.items)))
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            for k, i in enumerate(order[offset:], offset + 1):
                yield epoch * len(order) + k, self.items[i]
            epoch, offset = epoch + 1, 0


def read_rows(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines of a file of transcripts, each with where it is; all is checked that needs no model.

    Raises `UserError` that names the line.
    """
    found = []
    for _, where, value in jsonl.objects(path):
        if "ids" in value:
            ids, mask = value["ids"], value.get("mask", ())
            if not (isinstance(ids, list) and isinstance(mask, list) and len(ids) == len(mask) > 0):
                raise UserError(f"{where}: `ids` and `mask` must be lists of the same length")
            if not any(mask[1:]):
                raise UserError(f"{where}: `mask` marks no id to learn (the first one cannot be)")
        elif not isinstance(value.get("response"), str) or not value.get("prompt"):
            other = "; rows with an `answer` are for ponder train rl" if "answer" in value else ""
            raise UserError(f"{where}: needs `prompt` and `response` (text), or `ids` and `mask`{other}")
        else:
            read_prompt(value["prompt"], where)
        found.append((where, value))
    return found


def _row(model: LoadedModel, value: dict[str, Any], where: str) -> Row:
    if "ids" in value:
        ids, size = value["ids"], model.tokenizer.vocab_size
        if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < size for i in ids):
            raise UserError(f"{where}: `ids` must be whole numbers from 0 to below the vocabulary of {size:,}")
        return Row(tuple(ids), tuple(bool(m) for m in value["mask"]))
    prompt = model.prompt_ids(read_prompt(value["prompt"], where))
    response = [*model.tokenizer.encode(value["response"], special=True, continues=True), model.end_ids[0]]
    return Row((*prompt, *response), (False,) * len(prompt) + (True,) * len(response))


@dataclass(frozen=True, slots=True)
class Position:
    """Where a data stream stands: the first row of the pool in use, and how many of its batches are done."""

    pool: int = 0
    done: int = 0


@dataclass(frozen=True, slots=True)
class Epoch:
    """The rows that are one pass over a finite set, and those of all passes together; None without an end."""

    rows: int
    total: int | None = None

    def ends(self, position: int) -> bool:
        return position % self.rows == 0 or position == self.total


def batches(
    source: RowSource, start: Position, tokens: int, pad_id: int, pool: int = 8, *, epoch: Epoch | None = None
) -> Iterator[tuple[Position, Batch]]:
    """Batches of about `tokens` ids, rows of like length together; with each the position after it.

    Rows for `pool` batches, fewer at the end of an epoch, are sorted together by length and given out in a shuffled
    order that depends on the position alone, so that a stream continued from a position equals one that was never
    stopped.
    """
    skip = start.done
    for at, following, made in _pools(source, start.pool, tokens, pool, epoch):
        for i, part in enumerate(made[skip:], skip + 1):
            yield Position(following, 0) if i == len(made) else Position(at, i), collate(part, pad_id)
        skip = 0


def _pools(
    source: RowSource, at: int, tokens: int, pool: int, epoch: Epoch | None
) -> Iterator[tuple[int, int, list[list[Row]]]]:
    """The position before a pool, the one after it, and its batches."""
    rows = source.rows(at)
    while True:
        group: list[Row] = []
        size, following = 0, at
        while size < tokens * pool:
            following, row = next(rows)
            group.append(row)
            size += len(row.ids)
            if epoch is not None and epoch.ends(following):
                break
        group.sort(key=lambda r: len(r.ids))
        made: list[list[Row]] = [[]]
        for row in group:
            if made[-1] and len(row.ids) * (len(made[-1]) + 1) > tokens:
                made.append([])
            made[-1].append(row)
        random.Random(at).shuffle(made)
        yield at, following, made
        at = following


def steps_of(source: RowSource, tokens: int, epoch: Epoch, pool: int = 8) -> int:
    """How many batches the passes of `epoch`, which must have an end, are."""
    assert epoch.total is not None
    steps = 0
    for _, following, made in _pools(source, 0, tokens, pool, epoch):
        steps += len(made)
        if following >= epoch.total:
            break
    return steps
