"""Low-rank adapters of a native model, applied in float32: `y = W x + B A x · scale`.

`load("FOLDER")` takes PEFT's folder, whose config names the base; `load("BASE", adapter="FOLDER")` names it;
`new_adapter` begins one. The base's weights are frozen: training moves A and B only, and `save` (so every checkpoint)
writes only the adapter. `merge` adds it to the base's weights.

Reads and writes PEFT's folders (`adapter_config.json`, `adapter_model.safetensors`). Of PEFT's kinds only plain and
rank-stabilised LoRA are supported: fields of others are refused by name. There is no dropout: sampler and trainer must
compute the same numbers, so `lora_dropout` is ignored when read and saved as 0.

Source: Hu et al. 2021 (arXiv:2106.09685); rank stabilisation, Kalajdzievski 2023 (arXiv:2312.03732).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.errors import Unsupported, UserError, nearest
from ponder.models.adapter import ALL, LoraConfig
from ponder.models.decoder import DecoderLM, Linear
from ponder.models.weights import read_json, read_tensors, verify_checksums, write_json, write_tensors

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLAIN = {
    "fan_in_fan_out": (False,),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),
    "runtime_config": ({"ephemeral_gpu_offload": False},),
}
"""Fields of PEFT with values that are plain LoRA (besides null, false and empty)."""
READ = ("r", "lora_alpha", "target_modules", "use_rslora", "base_model_name_or_path", "revision", "peft_type")
IGNORED = (
    "auto_mapping",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "task_type",
)
"""Fields that change nothing here, or only with others that are refused."""


class Lora(nn.Module):
    """`B A x · scale`, in float32 whatever the model's dtype, as PEFT keeps it."""

    def __init__(self, inner: int, outer: int, config: LoraConfig, device: torch.device) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.zeros(config.rank, inner, device=device))
        self.B = nn.Parameter(torch.zeros(outer, config.rank, device=device))
        self.scale = config.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x.to(self.A.dtype), self.A) * self.scale, self.B).to(x.dtype)


def read_config(folder: Path) -> LoraConfig:
    """The `adapter_config.json` of a folder. Raises `UserError` if it makes no sense, `Unsupported` for other kinds."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder}: no {CONFIG} in it; an adapter's folder has {CONFIG} and {WEIGHTS}")
    values = read_json(path)
    kind = values.get("peft_type")
    if kind != "LORA":
        raise Unsupported(f"{path}: an adapter of type {kind!r}; only LORA is supported")
    for key, value in values.items():
        if key in READ or key in IGNORED or value in (None, False, [], {}) or value in PLAIN.get(key, ()):
            continue
        raise Unsupported(
            f"{path}: {key} = {value!r} is not supported, only plain LoRA is: merge the adapter with PEFT"
        )
    rank, alpha, targets = (values.get(k) for k in ("r", "lora_alpha", "target_modules"))
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise UserError(f"{path}: r is {rank!r}; it must be a positive whole number")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < math.inf:
        raise UserError(f"{path}: lora_alpha is {alpha!r}; it must be a positive number")
    if isinstance(targets, list) and targets and all(isinstance(t, str) for t in targets):
        targets = tuple(sorted(targets))
    elif not isinstance(targets, str) or not targets:
        raise UserError(f"{path}: target_modules is {targets!r}; it must be names of modules or a regular expression")
    base, revision = values.get("base_model_name_or_path"), values.get("revision")
    base = base if isinstance(base, str) else ""
    if isinstance(revision, str) and revision:
        base = f"{base}@{revision}"
    return LoraConfig(rank, float(alpha), targets, bool(values.get("use_rslora")), base)


def attach(
    model: LoadedModel, config: LoraConfig, *, where: str = "the adapter", instead: str = "merge the adapter with PEFT"
) -> dict[str, Lora]:
    """Attach an adapter that changes nothing yet to a model's projections, and freeze the model's own weights.

    Returns the adapters by the name of their projection. Raises `Unsupported`, which says what to do `instead`, for a
    model that runs through transformers and for targets that are not projections of a block; `UserError` if nothing is
    targeted.
    """
    module = model.module
    if not isinstance(module, DecoderLM):
        raise Unsupported(
            f"{where}: adapters need a model that ponder runs natively, and {model.info.name} runs through "
            f"transformers: {instead}"
        )
    if model.adapter is not None:
        raise Unsupported(f"{where}: {model.info.name} has an adapter already; merge one of them with PEFT")
    found: dict[str, Lora] = {}
    for name, part in module.named_modules():
        if not isinstance(part, nn.Linear | nn.Embedding) or not _targeted(name, part, config.targets, where):
            continue
        if not isinstance(part, Linear):
            raise Unsupported(f"{where}: it adapts {name}, and only projections of the blocks can be: {instead}")
        found[name] = Lora(part.in_features, part.out_features, config, part.weight.device)
    if not found:
        raise UserError(f"{where}: target_modules {config.targets!r} names no projection of {model.info.name}")
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for name, adapter in found.items():
        module.get_submodule(name).adapter = adapter
    model.adapter = config
    extra = 2.0 * sum(p.numel() for a in found.values() for p in a.parameters())
    model.info = dataclasses.replace(model.info, flops_per_token=model.info.flops_per_token + extra)
    return found


def _targeted(name: str, part: nn.Module, targets: Sequence[str] | str, where: str) -> bool:
    if targets == ALL:
        return isinstance(part, Linear)
    if isinstance(targets, str):
        try:
            return re.fullmatch(targets, name) is not None
        except re.error as error:
            raise UserError(f"{where}: target_modules {targets!r} is no regular expression: {error}") from None
    return any(name == t or name.endswith(f".{t}") for t in targets)


def new_adapter(model: LoadedModel, config: LoraConfig, seed: int) -> None:
    """Create a new adapter: A random, B zero, so that the model computes what it did before (Hu et al., §4.1).

    Raises `UserError` for a target that no projection has (with the nearest name) and for a rank above the smaller
    dimension of a projection; what `attach` raises.
    """
    where = "lora_targets"
    if isinstance(model.module, DecoderLM):
        _refuse_unknown(model, config, where)
        shapes = {n: min(p.weight.shape) for n, p in model.module.named_modules() if _adapted(n, p, config, where)}
        smallest = min(shapes, key=lambda n: shapes[n], default=None)
        if smallest is not None and config.rank > shapes[smallest]:
            raise UserError(
                f"lora_rank = {config.rank}: the smaller dimension of {smallest} of {model.info.name} is "
                f"{shapes[smallest]}, so a larger rank adds nothing: give at most {shapes[smallest]}"
            )
    generator = torch.Generator().manual_seed(seed)
    for adapter in attach(model, config, where=where, instead="train all weights, without a rank").values():
        bound = 1 / math.sqrt(adapter.A.shape[1])
        with torch.no_grad():
            adapter.A.copy_(torch.empty(adapter.A.shape).uniform_(-bound, bound, generator=generator))


def _adapted(name: str, part: nn.Module, config: LoraConfig, where: str) -> bool:
    return isinstance(part, Linear) and _targeted(name, part, config.targets, where)


def _refuse_unknown(model: LoadedModel, config: LoraConfig, where: str) -> None:
    """Each name must be of a part: one of several with a typing error would be left out in silence."""
    if isinstance(config.targets, str):
        return
    parts = {n: p for n, p in model.module.named_modules() if isinstance(p, nn.Linear | nn.Embedding)}
    for target in config.targets:
        if not any(_targeted(name, part, (target,), where) for name, part in parts.items()):
            known = dict.fromkeys(n.rpartition(".")[2] for n, p in parts.items() if isinstance(p, Linear))
            raise UserError(f"{where}: {target!r} names no projection of {model.info.name}{nearest(target, known)}")


def merge(model: LoadedModel) -> None:
    """Add the adapter to the weights that it adapts, W + B A · scale in float32, and drop it: a whole model again.

    Raises `UserError` if there is none.
    """
    if model.adapter is None:
        raise UserError(f"{model.info.name} has no adapter to merge")
    dropped = 0
    for part in model.module.modules():
        if isinstance(part, Linear) and isinstance(part.adapter, Lora):
            adapter = part.adapter
            with torch.no_grad():
                change = adapter.B @ adapter.A * adapter.scale
                part.weight.copy_((part.weight.float() + change).to(part.weight.dtype))
            dropped += adapter.A.numel() + adapter.B.numel()
            part.adapter = None
    for parameter in model.module.parameters():
        parameter.requires_grad_(True)
    model.adapter = None
    model.info = dataclasses.replace(model.info, flops_per_token=model.info.flops_per_token - 2.0 * dropped)


def read_adapter(model: LoadedModel, folder: Path, config: LoraConfig) -> None:
    """Attach the adapter of a folder. Raises `UserError` for weights that are missing, broken or do not fit."""
    adapters = attach(model, config, where=str(folder / CONFIG))
    fill(adapters, folder)


def fill(adapters: Mapping[str, Lora], folder: Path) -> None:
    """Read an adapter's weights, in place. Raises `UserError` for weights that are missing, broken or do not fit."""
    verify_checksums(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        pickle = " (only a pickle, which can run code when read)" if (folder / "adapter_model.bin").is_file() else ""
        raise UserError(f"{folder}: no {WEIGHTS} in it{pickle}: save the adapter again with PEFT")
    tensors = read_tensors(path)
    wanted = _by_peft(adapters)
    for names, what in (
        (wanted.keys() - tensors.keys(), "is missing"),
        (tensors.keys() - wanted.keys(), "is too many"),
    ):
        if names:
            raise UserError(
                f"{path}: {min(names)!r} {what} ({len(names)} such tensors): take the {CONFIG} and the base model that "
                "belong to these weights"
            )
    for name, parameter in wanted.items():
        tensor = tensors[name]
        if tensor.shape != parameter.shape:
            raise UserError(
                f"{path}: {name!r} has shape {list(tensor.shape)} where {list(parameter.shape)} belongs: take the "
                f"{CONFIG} and the base model that belong to these weights"
            )
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name!r} holds values that are no finite numbers: take another copy")
        with torch.no_grad():
            parameter.copy_(tensor)


def adapters_of(module: nn.Module) -> dict[str, Lora]:
    """The adapters of a module by the name of their projection."""
    return {
        name: part.adapter
        for name, part in module.named_modules()
        if isinstance(part, Linear) and isinstance(part.adapter, Lora)
    }


def _by_peft(adapters: Mapping[str, Lora]) -> dict[str, nn.Parameter]:
    """Parameters under PEFT's names."""
    return {
        f"base_model.model.{name}.lora_{part}.weight": parameter
        for name, adapter in adapters.items()
        for part, parameter in (("A", adapter.A), ("B", adapter.B))
    }


def write_adapter(model: LoadedModel, folder: Path) -> None:
    """Write the adapter of a model as PEFT reads it; the weights of the base are not written."""
    config = model.adapter
    assert config is not None
    write_tensors(folder / WEIGHTS, _by_peft(adapters_of(model.module)))
    base, _, revision = config.base.partition("@")
    write_json(
        folder / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "revision": revision or None,
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": 0.0,
            "use_rslora": config.rslora,
            "target_modules": config.targets if isinstance(config.targets, str) else list(config.targets),
            "bias": "none",
            "inference_mode": True,
        },
    )
    if model.chat_template is not None:
        (folder / "chat_template.jinja").write_text(model.chat_template, encoding="utf-8")
