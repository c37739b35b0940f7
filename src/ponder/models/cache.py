"""The interface between the forward pass and a KV cache, and an implementation for whole rows that keeps nothing.

The cache belongs to the caller: an engine keeps keys and values padded or shared, training keeps those of prompts for
their responses, and the network does not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Attends(Protocol):
    """What a forward pass needs of a cache: attention."""

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor) -> Tensor:
        """Store the new keys and values of this layer and return the attention output, shape B H T D.

        The rotation is already applied. H is the number of query heads, K that of key-value heads.
        """
        ...


class Cache(Attends, Protocol):
    """What a pass needs for taps (`models.taps`). The two methods below are called only while there is a tap."""

    def rows(self) -> Tensor:
        """Which row of the pass each of its N tokens belongs to; shorter where the rest is padding of a tile."""
        ...

    def attention(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor) -> Tensor:
        """What each token attended to, right after `attend` of this layer: probabilities, shape N H S, float32.

        Column s is position s in the text of the token's own row; what it did not attend to is 0. No gradient.
        """
        ...


@dataclass(frozen=True, slots=True)
class WholeRows:
    """Causal attention over whole rows of equal length, without a prefix. Padding goes on the right."""

    count: int
    length: int

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor) -> Tensor:
        grouped = query_BHTD.shape[1] != key_BKTD.shape[1]
        return F.scaled_dot_product_attention(query_BHTD, key_BKTD, value_BKTD, is_causal=True, enable_gqa=grouped)

    def rows(self) -> Tensor:
        return torch.arange(self.count).repeat_interleave(self.length)

    def attention(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor) -> Tensor:
        return causal(query_BHTD, key_BKTD).transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def causal(query_BHTD: Tensor, key_BKSD: Tensor) -> Tensor:
    """Attention probabilities of the last T of S tokens, shape B H T S, float32."""
    rows, heads, length, dim = query_BHTD.shape
    kv_heads, seen = key_BKSD.shape[1:3]
    query = query_BHTD.reshape(rows, kv_heads, -1, dim)
    scores = (query @ key_BKSD.transpose(2, 3)).float().view(rows, heads, length, seen) * dim**-0.5
    hidden = torch.ones(length, seen, dtype=torch.bool, device=scores.device).triu(seen - length + 1)
    return scores.masked_fill_(hidden, -torch.inf).softmax(-1)
