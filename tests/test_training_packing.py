"""Packed rows: every token in its place, and attention and gradients as if each row were alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from training_play import dense

from ponder.training import packing
from ponder.training.attention import attend, plainly
from ponder.training.batch import TokenBatch
from ponder.training.packing import Packed, Prefix, pack

LENGTHS = st.lists(st.integers(0, 30), min_size=1, max_size=20).filter(any)


@given(LENGTHS, st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_packing_lays_rows_end_to_end_and_buckets_find_each_token_again(lengths: list[int], first: int) -> None:
    lengths_B = torch.tensor(lengths)
    ids = torch.arange(len(lengths) * 40).view(len(lengths), 40)
    packed = pack(ids.flatten(), torch.arange(len(lengths)) * 40 + first, torch.full_like(lengths_B, first), lengths_B)
    want = [int(ids[i, first + t]) for i, n in enumerate(lengths) for t in range(n)]
    assert packed.ids_N.tolist() == want
    assert packed.positions_N.tolist() == [first + t for n in lengths for t in range(n)]
    padded = packed.ids_N[packed.index_M]
    assert padded[packed.place_N].tolist() == want
    assert len(packed.place_N.unique()) == len(want) >= 0.8 * len(padded)
    assert [r.at.start for r in packed.runs] == [0, *(r.at.stop for r in packed.runs)][:-1]
    assert [r.length for r in packed.runs for _ in range(r.rows)] == [n for n in lengths if n]
    assert all(r.at.stop - r.at.start == r.rows * r.length for r in packed.runs)
    assert all(a.length != b.length for a, b in itertools.pairwise(packed.runs))
    assert [b.at.start for b in packed.buckets] == [0, *(b.at.stop for b in packed.buckets)][:-1]
    rows = [r for b in packed.buckets for r in padded[b.at].view(b.rows, b.length).tolist()]
    longest_first = sorted((n for n in lengths if n), reverse=True)
    assert [len(set(r)) for r in rows] == longest_first  # each row whole, its last id repeated


def batch_of(prompts: list[int], responses: list[list[int]], seed: int = 0) -> TokenBatch:
    """Groups with prompts and responses of these lengths; all of a response is trained, but for a forced id now and
    then."""
    g = torch.Generator().manual_seed(seed)
    lengths = [(p, r) for p, rs in zip(prompts, responses, strict=True) for r in rs]
    group = torch.tensor([i for i, rs in enumerate(responses) for _ in rs])
    p, n = torch.tensor([a for a, _ in lengths]), torch.tensor([a + b for a, b in lengths])
    ids = torch.randint(20, 400, (len(n), int(n.max())), generator=g)
    for i in range(1, len(n)):
        if group[i] == group[i - 1]:
            ids[i, : p[i]] = ids[i - 1, : p[i]]
    columns = torch.arange(ids.shape[1])
    inside = columns < n.unsqueeze(1)
    mask = (columns >= p.unsqueeze(1)) & inside
    mask &= (torch.rand(mask.shape, generator=g) > 0.1) | (columns == p.unsqueeze(1))
    zeros = torch.zeros(int(inside.sum()))
    return TokenBatch(ids[inside], mask[inside], zeros, zeros, zeros.long(), n, p, group)


@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.lists(st.integers(1, 25), min_size=1, max_size=6)), min_size=1, max_size=8
    ),
    st.integers(1, 120),
)
@settings(max_examples=80, deadline=None)
def test_waves_hold_every_trained_token_once_after_the_token_before_it(
    groups: list[tuple[int, list[int]]], limit: int
) -> None:
    r = batch_of([p for p, _ in groups], [rs for _, rs in groups])
    mask_BT, ids_BT = dense(r).mask_BT, dense(r).ids_BT
    rows, targets, before = [], [], []
    for wave in packing.waves(r, torch.arange(len(r)), limit):
        assert len(wave.prompts) <= limit // 2 or len(wave.last_P) == 1
        for part in wave.parts:
            assert len(wave.prompts) + len(part.packed) <= limit or len(part.rows) == 1 or len(wave.last_P) == 1
            rows += part.rows.tolist()
            targets += part.targets_K.tolist()
            ids = torch.cat((wave.prompts.ids_N[wave.last_P], part.packed.ids_N))
            before += ids[part.source_K].tolist()
            positions = torch.cat((wave.prompts.positions_N[wave.last_P], part.packed.positions_N))
            assert (positions[part.source_K] == mask_BT[part.rows].nonzero()[:, 1] - 1).all()
    assert rows == list(range(len(r)))
    row, column = mask_BT.nonzero(as_tuple=True)
    assert targets == ids_BT[row, column].tolist()
    assert before == ids_BT[row, column - 1].tolist()


def alone(query: Tensor, key: Tensor, value: Tensor, seen: int) -> Tensor:
    """Attention of one row by its definition; the first `seen` keys come before the row."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.einsum("thd,shd->hts", query, key) / query.shape[-1] ** 0.5
    hidden = torch.ones(len(query), len(key)).triu(1 + seen).bool()
    return torch.einsum("hts,shd->thd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value)


def case(heads: int, kv_heads: int, with_prefix: bool) -> tuple[Packed, list[Tensor], list[tuple[slice, slice]]]:
    g = torch.Generator().manual_seed(0)
    lengths = [5, 1, 9, 0, 3, 12, 8, 8]
    prefixes, rows, at = [], [], 0
    sources = [slice(0, 4), slice(4, 20), slice(20, 41)]
    owners = [0, 0, 0, 1, 1, 2, 2, 2]
    for n, owner in zip(lengths, owners, strict=True):
        rows.append((slice(at, at + n), sources[owner]))
        at += n
    for owner in range(3):
        tokens = [s for (s, _), o in zip(rows, owners, strict=True) if o == owner]
        prefixes.append(Prefix(slice(tokens[0].start, tokens[-1].stop), sources[owner]))
    lengths_B = torch.tensor(lengths)
    layout = pack(
        torch.zeros(at, dtype=torch.long),
        lengths_B.cumsum(0) - lengths_B,
        torch.zeros_like(lengths_B),
        lengths_B,
        tuple(prefixes) if with_prefix else (),
    )
    sizes = [(at, heads), (at, kv_heads), (at, kv_heads), (41, kv_heads), (41, kv_heads)]
    tensors = [torch.randn(n, h, 8, generator=g, dtype=torch.float64, requires_grad=True) for n, h in sizes]
    return layout, tensors if with_prefix else tensors[:3], rows


@pytest.mark.parametrize("function", [attend, plainly])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2)])
@pytest.mark.parametrize("with_prefix", [True, False])
def test_packed_attention_and_its_gradients_are_those_of_each_row_alone(
    function, heads: int, kv_heads: int, with_prefix: bool
) -> None:
    layout, tensors, rows = case(heads, kv_heads, with_prefix)
    query, key, value, *prefix = tensors
    parts = []
    for tokens, source in rows:
        k, v = key[tokens], value[tokens]
        if prefix:
            k, v = torch.cat((prefix[0][source], k)), torch.cat((prefix[1][source], v))
        parts.append(alone(query[tokens], k, v, len(k) - (tokens.stop - tokens.start)))
    want = torch.cat(parts)
    got = function(query, key, value, layout, *prefix)
    torch.testing.assert_close(got, want)
    weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), tensors),
        torch.autograd.grad((want * weights).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_scores_far_apart_are_merged_without_overflow() -> None:
    """One part's log-sum-exp may be hundreds above the other's."""
    layout, tensors, _ = case(3, 3, True)
    query, key, value, prefix_key, prefix_value = (t.detach().float() for t in tensors)
    for scale in ((400.0, 1.0), (1.0, 400.0)):
        got = attend(query, key * scale[0], value, layout, prefix_key * scale[1], prefix_value)
        want = plainly(query, key * scale[0], value, layout, prefix_key * scale[1], prefix_value)
        assert got.isfinite().all()
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
