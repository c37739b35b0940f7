"""Log-probabilities of sampled tokens under the trainer's weights, each prompt computed once for its whole group.

Two passes: the prompts of the micro-batch (one row a group), then the responses, whose attention reads the prompts'
keys and values. The gradient flows through both. With groups of 16 and prompts as long as the responses this halves
the work; models whose attention does not go through `models.llama.Cache` take one plain pass over whole rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.training.rollouts import Rollouts

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Of the trained tokens of some rows, flat, in the order of rows and then of positions."""

    logprobs_N: Tensor
    """With gradient, at the sampling temperature."""
    entropy_N: Tensor
    """Of each token's distribution, nats; without gradient."""
    computed: int
    """Ids that went through the network, padding included."""


def row_logprobs(model: LoadedModel, rollouts: Rollouts, rows: Tensor, temperature: float) -> TokenLogprobs:
    """Log-probabilities of the ids that `rollouts.mask_BT` marks in these rows. Logits are made there only."""
    if model.supports_cache:
        return _shared(model, rollouts, rows, temperature)
    length = int(rollouts.lengths_B[rows].max())
    ids_BT = rollouts.ids_BT[rows, :length].to(model.device)
    chosen_BT = rollouts.mask_BT[rows, 1:length].to(model.device)
    hidden_BTD = model.module(ids_BT[:, :-1])
    logprobs_N, entropy_N = _of(model.module, hidden_BTD[chosen_BT], ids_BT[:, 1:][chosen_BT], temperature)
    return TokenLogprobs(logprobs_N, entropy_N, ids_BT.numel())


def _of(module: nn.Module, hidden_ND: Tensor, ids_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits_NV = module.logits(hidden_ND) / temperature  # type: ignore[operator]
    logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
    with torch.no_grad():
        entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    return logprobs_NV.gather(1, ids_N.unsqueeze(1)).squeeze(1), entropy_N


@dataclass
class _Prompts:
    """A `Cache` that keeps what the prompts' pass makes."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor) -> Tensor:
        self.keys.append(key_BKTD)
        self.values.append(value_BKTD)
        gqa = query_BHTD.shape[1] != key_BKTD.shape[1]
        return F.scaled_dot_product_attention(query_BHTD, key_BKTD, value_BKTD, is_causal=True, enable_gqa=gqa)


@dataclass
class _Responses:
    """A `Cache` for the responses' pass: each row reads its group's prompt and its own past."""

    prompts: _Prompts
    group_B: Tensor
    mask_B1TS: Tensor

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor) -> Tensor:
        key = torch.cat((self.prompts.keys[layer][self.group_B], key_BKTD), dim=2)
        value = torch.cat((self.prompts.values[layer][self.group_B], value_BKTD), dim=2)
        gqa = query_BHTD.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query_BHTD, key, value, attn_mask=self.mask_B1TS, enable_gqa=gqa)


def _shared(model: LoadedModel, rollouts: Rollouts, rows: Tensor, temperature: float) -> TokenLogprobs:
    device = model.device
    groups, group_B = torch.unique(rollouts.group_B[rows], return_inverse=True)
    # One row of each group stands for its prompt; siblings share it by construction.
    first_P = torch.stack([rows[(group_B == g).nonzero()[0, 0]] for g in range(len(groups))])
    prompt_P = rollouts.prompt_lengths_B[first_P]
    width = int(prompt_P.max())
    prompts_PT = rollouts.ids_BT[first_P, :width].to(device)

    prompt_B = prompt_P[group_B]
    length = int((rollouts.lengths_B[rows] - prompt_B).max())
    # Responses moved to the left: column t is position prompt + t.
    columns_BT = (prompt_B.unsqueeze(1) + torch.arange(length)).clamp(max=rollouts.ids_BT.shape[1] - 1)
    inside_BT = prompt_B.unsqueeze(1) + torch.arange(length) < rollouts.lengths_B[rows].unsqueeze(1)
    ids_BT = rollouts.ids_BT[rows].gather(1, columns_BT).to(device)
    chosen_BT = (rollouts.mask_BT[rows].gather(1, columns_BT) & inside_BT).to(device)

    kept = _Prompts()
    positions = torch.arange(width, device=device).expand(len(first_P), -1)
    hidden_PTD = model.module(prompts_PT, positions, kept)
    # A prompt's last hidden state predicts the first id of each of its responses.
    last_PD = hidden_PTD[torch.arange(len(first_P)), (prompt_P - 1).to(device)]

    group_B, prompt_B = group_B.to(device), prompt_B.to(device)
    prefix_BS = torch.arange(width, device=device) < prompt_B.unsqueeze(1)
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask = torch.cat(
        (
            prefix_BS.unsqueeze(1).expand(-1, length, -1),
            causal_TT.unsqueeze(0).expand(len(rows), -1, -1),
        ),
        dim=2,
    ).unsqueeze(1)
    positions = prompt_B.unsqueeze(1) + torch.arange(length, device=device)
    positions = positions.clamp(max=model.info.context - 1)
    hidden_BTD = model.module(ids_BT, positions, _Responses(kept, group_B, mask))
    hidden_BTD = torch.cat((last_PD[group_B].unsqueeze(1), hidden_BTD[:, :-1]), dim=1)
    logprobs_N, entropy_N = _of(model.module, hidden_BTD[chosen_BT], ids_BT[chosen_BT], temperature)
    return TokenLogprobs(logprobs_N, entropy_N, prompts_PT.numel() + ids_BT.numel())
