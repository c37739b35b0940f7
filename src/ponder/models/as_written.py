"""Whether a decoder computes what its classes say, so that another form of it may compute in its place.

A packed copy of the matrices, compiled pieces and a head that is fused with its softmax all pass by the modules. Where
somebody put a hook or a tap into one of these, another module in its place or another `forward` on it, the module
itself must compute; the fast form returns when all that is gone.
"""

from __future__ import annotations

from itertools import chain, repeat
from operator import contains
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from ponder.models.decoder import MLP, Attention, Block, Decoder, DecoderLM, Linear, RMSNorm
from ponder.models.lora import Lora

_KNOWN = {
    DecoderLM,
    Decoder,
    Block,
    Attention,
    MLP,
    RMSNorm,
    Linear,
    Lora,
    nn.Linear,
    nn.Embedding,
    nn.Identity,
    nn.ModuleList,
}
"""Exactly these: a parametrised or quantised layer has a class of its own."""
_GLOBAL = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    return (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )


def hooked(module: nn.Module) -> bool:
    """Whether calling this one module does more than its class's `forward`; its children are not looked at."""
    return any(_GLOBAL) or any(_hooks(module)) or "forward" in vars(module)


class AsWritten:
    """Asked before every step, so it goes through what was gathered once: 0.1 ms for 400 modules."""

    def __init__(self, module: DecoderLM) -> None:
        self.module = module
        self.structure = 0
        """Grows whenever a module was put in, taken out or put in place of another."""
        self._gather()

    def _gather(self) -> None:
        self._parts = list(self.module.modules())
        self._types = [type(part) for part in self._parts]
        self._known = set(self._types) <= _KNOWN
        children = [part._modules for part in self._parts]
        self._inner, self._leaves = [c for c in children if c], [c for c in children if not c]
        self._inside = self._found()
        self._hooks = [hooks for part in self._parts for hooks in _hooks(part)]
        self._own = [vars(part) for part in self._parts]
        self.structure += 1

    def _found(self) -> list[nn.Module | None]:
        return list(chain.from_iterable([children.values() for children in self._inner]))

    def __call__(self) -> bool:
        """Whether there is no tap, no hook (torch's global ones too), no foreign module and no replaced method."""
        if any(self._leaves) or self._found() != self._inside or list(map(type, self._parts)) != self._types:
            self._gather()
        if not self._known or self.module.taps or any(_GLOBAL) or any(self._hooks):
            return False
        return "logits" not in vars(self.module) and not any(map(contains, self._own, repeat("forward")))
