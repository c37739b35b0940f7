"""Whether a decoder computes exactly what its classes say, so that a faster form of it may be used instead.

A packed copy of the matrices, compiled pieces and a head that is fused with its softmax all bypass the modules. Where
a module has a hook or a tap, was replaced, or has its `forward` overridden, the module itself must compute. The fast
form returns when that is removed.
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
"""Exactly these: a parametrised or quantised layer has another class."""
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
    """Whether calling this one module does more than its class's `forward`; its children are not checked."""
    return any(_GLOBAL) or any(_hooks(module)) or "forward" in vars(module)


class AsWritten:
    """Checked before every step, so the modules are gathered once: 0.1 ms for 400 modules."""

    def __init__(self, module: DecoderLM) -> None:
        self.module = module
        self.structure = 0
        """Increases whenever a module is added, removed or replaced."""
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
        """Whether there is no tap, no hook (torch's global ones too), no foreign module and no overridden method."""
        if any(self._leaves) or self._found() != self._inside or list(map(type, self._parts)) != self._types:
            self._gather()
        if not self._known or self.module.taps or any(_GLOBAL) or any(self._hooks):
            return False
        return "logits" not in vars(self.module) and not any(map(contains, self._own, repeat("forward")))
