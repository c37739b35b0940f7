"""Taps: hidden states and attention probabilities of every forward pass, whichever part runs it.

    from ponder.models.taps import Taps, tapped

    kept = {}
    with tapped(model.module, Taps(hidden=lambda layer, x_ND, tokens: kept.update({layer: x_ND}))):
        model.module(torch.tensor([model.prompt_ids("2 + 2 = ")]))
    # kept[0] … kept[L]: shape N D, a row for each token of the prompt

Layers are numbered as Hugging Face's `output_hidden_states` and `output_attentions` number them. Hidden states: 0 is
the embeddings, 1 … L-1 the residual stream after so many blocks, and L the stream after the last block and the last
norm, which is what the head reads. (For the stream before that norm, hook the output of
`module.model.layers[-1]`.) Attention: 0 … L-1, layer i reads the hidden states i. Only what is asked for is computed.

Taps work for whole rows, for an engine's prompts and steps (the exact mode too) and for training's packed rows. While
there is a tap or a hook, the module itself computes instead of an engine's packed copy or compiled pieces
(`models.as_written`). Through transformers' own forward (`models.other`), attention comes from its eager kernel, and an
engine computes whole rows at each step, padded on the right: a tap sees all of that. Taps take effect at the next pass:
set them before the request is sent. A prompt in an engine's cache is not computed again, so a tap does not see it;
`drop_caches` clears the cache. An engine that is opened in the exact mode runs a few passes of random ids first: open
it before the taps are set.

A tap only observes. To change what a model computes, use torch's hooks, which work on every path too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ponder.errors import Unsupported, UserError
from ponder.models.cache import Cache


@dataclass(frozen=True, slots=True)
class Tokens:
    """Which tokens a pass computed, in its order. Tokens of one row are in order, but need not be the whole row."""

    ids_N: Tensor
    positions_N: Tensor
    """Position of each in its own text."""
    rows_N: Tensor
    """Tokens with one number belong to one text: a row of the batch, a prompt of a pass over prompts, an engine's slot.
    The numbers are valid for this pass only; ids and positions identify the text."""


class Tap(Protocol):
    def __call__(self, layer: int, values: Tensor, tokens: Tokens) -> None:
        """`values` are hidden states, shape N D, in the graph of the pass, or attention probabilities, shape N H S.

        Probabilities are float32 without gradient; column s is position s in the token's own text, and what the token
        does not attend to is 0. Tensors belong to the pass: keep them (`detach()` where gradients run), do not write to
        them. Called on the thread that computes; an error that it raises ends the pass.
        """
        ...


@dataclass(frozen=True, slots=True)
class Taps:
    """What to observe. At least one of the two must be given."""

    hidden: Tap | None = None
    attention: Tap | None = None
    hidden_layers: Collection[int] | None = None
    """0 … L; None is all of them."""
    attention_layers: Collection[int] | None = None
    """0 … L-1; None is all of them."""

    def wants_hidden(self, layer: int) -> bool:
        return self.hidden is not None and (self.hidden_layers is None or layer in self.hidden_layers)

    def wants_attention(self, layer: int) -> bool:
        return self.attention is not None and (self.attention_layers is None or layer in self.attention_layers)


@contextlib.contextmanager
def tapped(module: nn.Module, taps: Taps) -> Iterator[None]:
    """Show `taps` every forward pass of a loaded model's module while this is open; may be nested.

    Raises `Unsupported` for a module without taps, `UserError` for layers that it does not have.
    """
    target: Any = module
    if not isinstance(getattr(target, "taps", None), tuple):
        raise Unsupported(f"a {type(module).__name__} takes no taps: give the `module` of a model that `load` returned")
    _check(taps, _layers(target))
    target.taps = (*target.taps, taps)
    try:
        yield
    finally:
        target.taps = tuple(t for t in target.taps if t is not taps)


def _layers(module: Any) -> int:
    return int(module.layer_count)


def _check(taps: Taps, layers: int) -> None:
    if taps.hidden is None and taps.attention is None:
        raise UserError("Taps: neither hidden nor attention is given: there is nothing to observe")
    for name, chosen, last in (
        ("hidden_layers", taps.hidden_layers, layers),
        ("attention_layers", taps.attention_layers, layers - 1),
    ):
        for layer in chosen or ():
            if not 0 <= layer <= last:
                raise UserError(f"Taps: {name} has {layer}, but this model's are 0 … {last}")


class Watch:
    """The taps of one forward pass, as a cache that wraps the real one."""

    def __init__(self, taps: tuple[Taps, ...], ids_BT: Tensor, positions_BT: Tensor, cache: Cache) -> None:
        self.taps, self.cache = taps, cache
        rows_N = cache.rows().to(ids_BT.device)
        self.count = len(rows_N)
        # Copies, since an engine reuses the memory of its positions.
        ids_N, positions_N = (x.reshape(-1)[: self.count].clone() for x in (ids_BT, positions_BT))
        self.tokens = Tokens(ids_N, positions_N, rows_N.clone())
        self.done: set[int] = set()
        """Layers whose attention was seen: one that is recomputed in the backward pass is not shown twice."""

    def hidden(self, layer: int, x_ND: Tensor) -> None:
        for taps in self.taps:
            if taps.hidden is not None and taps.wants_hidden(layer):
                taps.hidden(layer, x_ND[: self.count], self.tokens)

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor) -> Tensor:
        out = self.cache.attend(layer, query_BHTD, key_BKTD, value_BKTD)
        if layer not in self.done and any(taps.wants_attention(layer) for taps in self.taps):
            self.done.add(layer)
            self.attention(layer, self.cache.attention(layer, query_BHTD.detach(), key_BKTD.detach()))
        return out

    def attention(self, layer: int, weights_NHS: Tensor) -> None:
        for taps in self.taps:
            if taps.attention is not None and taps.wants_attention(layer):
                taps.attention(layer, weights_NHS, self.tokens)
