"""The head and its softmax: log-probabilities of chosen ids, with at most one tensor of tokens × vocabulary.

Autograd would keep or make six such tensors (logits, their division by the temperature, log-softmax, its exponential
for the entropy, and two gradients), 200 kB a token each at 49,152 ids. Here the logits are turned into probabilities
in place, and what the gradient needs of them is taken at once. With p the softmax of z = h Wᵀ / temperature, the
log-probability of id c has the gradients

    d/dh = (W[c] - p W) / temperature        d/dW = (onehot(c) - p)ᵀ h / temperature

so p W is computed in the forward pass (it replaces a product of the backward pass) and gives the entropy too:
logsumexp(z) - h · p W / temperature. Only p itself waits for the loss, since d/dW sums over tokens with weights that
the loss decides. What of p exceeds `KEPT_BYTES` is recomputed in the backward pass, chunk by chunk. Nothing waits where
those weights are known beforehand (`summed_logprob`, for pre-training and SFT) or the head is frozen.

The idea of a head that is fused with its loss is that of Liger kernels (Hsu et al. 2024, arXiv:2410.10989, §3.2) and of
cut cross-entropy (Wijmans et al. 2024, arXiv:2411.09009); these fuse one loss, while here any function of the
log-probabilities may follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

KEPT_BYTES = 1 << 30
"""Most bytes of probabilities kept for the backward pass; the rest is recomputed, an eighth more work in all."""
CHUNK_BYTES = 64 << 20
"""Logits that are made at a time where they are not kept."""


def token_logprobs(
    module: nn.Module, hidden_ND: Tensor, ids_N: Tensor, temperature: float = 1.0, *, kept_bytes: int = KEPT_BYTES
) -> tuple[Tensor, Tensor]:
    """Log-probability of an id after each hidden state (with gradient), and each distribution's entropy (without).

    `module` is a `models.base.CausalLM`. Both have shape N, float32; nats. The logits are divided by `temperature`.
    """
    weight_VD = plain_head(module)
    if not torch.is_grad_enabled():
        found = [
            _measured(module, weight_VD, h, i, temperature) for h, i in _split(module, weight_VD, hidden_ND, ids_N)
        ]
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])
    if weight_VD is not None:
        logprobs_N, entropy_N = _Chosen.apply(hidden_ND, weight_VD, ids_N, temperature, kept_bytes)
        return logprobs_N, entropy_N
    parts = [
        checkpoint(_plainly, module, h, i, temperature, use_reentrant=False, preserve_rng_state=False)
        for h, i in _split(module, None, hidden_ND, ids_N)
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def summed_logprob(module: nn.Module, hidden_ND: Tensor, ids_N: Tensor) -> Tensor:
    """Sum over tokens of the log-probability of an id after each hidden state, with gradient; nats.

    The weights of a sum are known before the loss is, so that nothing of the vocabulary's size is kept but the
    gradient of the head.
    """
    weight_VD = plain_head(module)
    if weight_VD is None or not torch.is_grad_enabled():
        return token_logprobs(module, hidden_ND, ids_N)[0].sum()
    return _Summed.apply(hidden_ND, weight_VD, ids_N)


def plain_head(module: nn.Module) -> Tensor | None:
    """Weights of a head that is one matrix, shape V D; None where `logits` does more, as with a hook."""
    from ponder.models.as_written import hooked
    from ponder.models.decoder import DecoderLM
    from ponder.models.other import TransformersLM

    head: Any = None
    if "logits" in vars(module):  # replaced on this instance
        return None
    if isinstance(module, DecoderLM):
        head = module.lm_head
    elif isinstance(module, TransformersLM) and module.split:
        head = module.whole[0].get_output_embeddings()
    return head.weight if type(head) is nn.Linear and head.bias is None and not hooked(head) else None


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, ids_N: Tensor, temperature: float, kept_bytes: int
    ) -> tuple[Tensor, Tensor]:
        count, vocabulary = len(hidden_ND), len(weight_VD)
        wants_weight = ctx.needs_input_grad[1]
        keep = min(count, kept_bytes // (4 * vocabulary)) if wants_weight else 0
        logprobs_N = hidden_ND.new_empty(count, dtype=torch.float32)
        entropy_N = torch.empty_like(logprobs_N)
        mixed_ND = torch.empty_like(hidden_ND)
        kept = hidden_ND.new_empty(0)
        for at in _spans(count, keep, _rows(vocabulary)):
            h, i, mixed = hidden_ND[at], ids_N[at], mixed_ND[at]
            chosen, logprobs_N[at], probabilities = _softmax(h, weight_VD, i, temperature)
            torch.mm(probabilities.to(h.dtype), weight_VD, out=mixed)
            entropy_N[at] = chosen - logprobs_N[at] - (h * mixed).sum(-1, dtype=torch.float32) / temperature
            kept = probabilities if at.stop <= keep else kept
        ctx.save_for_backward(hidden_ND, weight_VD, ids_N, mixed_ND, kept)
        ctx.temperature, ctx.keep = temperature, keep
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, ids_N, mixed_ND, kept = ctx.saved_tensors
        grad_N1 = (grad_N / ctx.temperature).unsqueeze(1).to(hidden_ND.dtype)
        grad_hidden = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_hidden = weight_VD[ids_N].sub_(mixed_ND).mul_(grad_N1)
        if ctx.needs_input_grad[1]:
            scaled_ND = hidden_ND * grad_N1
            grad_weight = torch.zeros_like(weight_VD)
            for at in _spans(len(ids_N), ctx.keep, _rows(len(weight_VD))):
                known = at.stop <= ctx.keep
                p = kept if known else _softmax(hidden_ND[at], weight_VD, ids_N[at], ctx.temperature)[2]
                grad_weight.addmm_(p.to(hidden_ND.dtype).T, scaled_ND[at], alpha=-1)
            grad_weight.index_add_(0, ids_N, scaled_ND)
        return grad_hidden, grad_weight, None, None, None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, ids_N: Tensor) -> Tensor:
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = weight_VD[ids_N] if wants_hidden else None
        grad_weight = torch.zeros_like(weight_VD) if wants_weight else None
        for at in _spans(len(ids_N), 0, _rows(len(weight_VD))):
            h = hidden_ND[at]
            _, logprobs, probabilities = _softmax(h, weight_VD, ids_N[at], 1.0)
            total += logprobs.sum()
            probabilities = probabilities.to(h.dtype)
            if grad_hidden is not None:
                grad_hidden[at].addmm_(probabilities, weight_VD, alpha=-1)
            if grad_weight is not None:
                grad_weight.addmm_(probabilities.T, h, alpha=-1)
        if grad_weight is not None:
            grad_weight.index_add_(0, ids_N, hidden_ND)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scaled = [None if g is None else g * grad.to(g.dtype) for g in (grad_hidden, grad_weight)]
        return scaled[0], scaled[1], None


def _softmax(hidden: Tensor, weight_VD: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logit and log-probability of the ids, and all probabilities, computed in place of the logits."""
    logits = (hidden @ weight_VD.T).float()
    if temperature != 1.0:
        logits /= temperature
    column = ids.unsqueeze(1)
    chosen = logits.gather(1, column).squeeze(1)
    # The kernel reads a row to its end before it writes it, so that result and input may be one.
    torch.log_softmax(logits, dim=-1, out=logits)
    return chosen, logits.gather(1, column).squeeze(1), logits.exp_()


def _plainly(module: Any, hidden: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logprobs = torch.log_softmax(module.logits(hidden) / temperature, dim=-1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, ids.unsqueeze(1)).squeeze(1), entropy


def _measured(
    module: Any, weight_VD: Tensor | None, hidden: Tensor, ids: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Without a gradient to come: the entropy costs no matrix product."""
    if weight_VD is None:
        return _plainly(module, hidden, ids, temperature)
    logits = (hidden @ weight_VD.T).float()
    logits = logits if temperature == 1.0 else logits.div_(temperature)
    torch.log_softmax(logits, dim=-1, out=logits)
    chosen = logits.gather(1, ids.unsqueeze(1)).squeeze(1)
    return chosen, -logits.mul_(logits.exp()).sum(-1)


def _split(module: Any, weight_VD: Tensor | None, hidden_ND: Tensor, ids_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states and ids, so many that their logits fit a chunk."""
    if weight_VD is not None:
        vocabulary = len(weight_VD)
    else:
        with torch.no_grad():
            vocabulary = module.logits(hidden_ND[:1]).shape[-1]
    rows = _rows(vocabulary)
    return zip(hidden_ND.split(rows), ids_N.split(rows), strict=True)


def _rows(vocabulary: int) -> int:
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def _spans(count: int, keep: int, rows: int) -> Iterator[slice]:
    """The tokens whose probabilities are kept, all at once, then the others in chunks."""
    if keep:
        yield slice(0, keep)
    for at in range(keep, count, rows):
        yield slice(at, min(at + rows, count))
