"""New weights for a module in use: all checks before the first tensor is copied, and their digest.

Versions are numbers that rise, so that staleness is a difference. The digest in a `Delivery` is of the tensors as they
are in the engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ponder.errors import UserError
from ponder.models.load import load


def state_of(source: Any) -> Mapping[str, Tensor]:
    """Tensors by name of a module, a state dict, or a path that `models.load` can read.

    Raises `UserError` if the source is none of these or cannot be read.
    """
    if isinstance(source, nn.Module):
        return source.state_dict()
    if isinstance(source, Mapping):
        return source
    if isinstance(source, Path):
        # `load` verifies checksums and knows checkpoints, runs and GGUF files too.
        return load(str(source), device="cpu").module.state_dict()
    raise UserError(f"cannot load weights from {type(source).__name__}: give a module, a state dict or a Path")


def check_fit(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raises `UserError` if names or shapes of a state differ from a module's."""
    targets = _targets(module)
    unknown = sorted(set(state) - set(targets))
    if unknown:
        raise UserError(f"the new weights hold {unknown[0]!r}, which the model does not have")
    # A tied tensor has two names and needs only one of them.
    given = {id(targets[name]) for name in state}
    missing = sorted(name for name, t in targets.items() if id(t) not in given)
    if missing:
        raise UserError(f"the new weights lack {missing[0]!r} ({len(missing)} tensors in all)")
    for name, tensor in state.items():
        if tensor.shape != targets[name].shape:
            want, have = tuple(targets[name].shape), tuple(tensor.shape)
            raise UserError(f"the new weights have {name!r} of shape {have}, the model has {want}")


def copy_weights(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state that fits into a module, in the module's dtype and on its device."""
    targets = _targets(module)
    with torch.no_grad():
        for name, tensor in state.items():
            targets[name].copy_(tensor)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that a module saves, each once: a tied one under its first name."""
    return dict(module.named_parameters()) | _persistent_buffers(module)


def as_stored(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `tensors_of` the module will be once a state that fits is copied into it."""
    targets = _targets(module)
    by_target = {id(targets[name]): tensor for name, tensor in state.items()}
    return {name: by_target[id(t)].to(t.dtype) for name, t in tensors_of(module).items()}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """BLAKE2b (16 bytes, in hex) over names, dtypes, shapes and bytes, in the order of the names."""
    whole = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        whole.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def lay_out(module: nn.Module) -> None:
    """Store the matrices of linear layers column by column, in place; names, shapes and values stay.

    On a CPU a product with few rows is 1.2 to 1.4 times as fast then, with many rows the same (docs/LOG.md). A matrix
    that is also looked up by row, as tied embeddings are, stays as it is.
    """
    looked_up = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and id(layer.weight) not in looked_up and layer.weight.is_contiguous():
            with torch.no_grad():
                layer.weight.data = layer.weight.t().contiguous().t()


def _targets(module: nn.Module) -> dict[str, Tensor]:
    """Every name that a state may have, tied tensors under each of theirs."""
    return dict(module.named_parameters(remove_duplicate=False)) | _persistent_buffers(module)


def _persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    saved = set(module.state_dict())
    return {name: b for name, b in module.named_buffers(remove_duplicate=False) if name in saved}
