"""The model that a run began with, for losses that keep the policy near it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class Reference:
    """The initial values of the weights that training moves; with an adapter, of the adapter's alone."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._weights = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """While open, the module has the initial weights. Nothing may sample from it meanwhile; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        with torch.no_grad():
            for name, parameter in self._module.named_parameters():
                if name in self._weights:
                    parameter.data, self._weights[name] = self._weights[name], parameter.data
