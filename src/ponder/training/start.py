"""What a training starts from: a model, where it is held, and which of its weights are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ponder import threads
from ponder.errors import UserError
from ponder.models.adapter import ALL, LoraConfig

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel


@dataclass(frozen=True)
class StartOptions:
    """The model of a training; a training's config inherits these fields."""

    model: str = "ponder-tiny"
    """Folder (of a LoRA adapter too), GGUF file, hub id, run directory or built-in name of the model to start from."""
    lora_rank: int = 0
    """Train a new LoRA adapter of this rank and leave the model's own weights as they are; 0 trains all weights. 1 to
    32 are usual in RL, 16 to 256 in fine-tuning."""
    lora_alpha: float = 32.0
    """The adapter is scaled by alpha / rank; with a fixed alpha the best learning rate hardly depends on the rank."""
    lora_targets: tuple[str, ...] = (ALL,)
    """Projections that get an adapter, such as q_proj v_proj; all-linear is all of them."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto is the first GPU if there is one, else the CPU."""
    threads: int | None = None
    """Threads of the processor (default: as many as there are cores)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the model's weights. An adapter's own are float32 always; without one, 16 bits round small updates
    away."""

    def __post_init__(self) -> None:
        threads.check(self.threads)
        if self.lora_rank < 0:
            raise UserError(f"lora_rank = {self.lora_rank}: give 1 or more, or 0 to train all weights")
        if not 0 < self.lora_alpha < math.inf:
            raise UserError(f"lora_alpha = {self.lora_alpha}: give more than 0")
        if not self.lora_targets or not all(self.lora_targets):
            raise UserError("lora_targets is empty: give names of projections, such as q_proj v_proj, or all-linear")
        if ALL in self.lora_targets and len(self.lora_targets) > 1:
            raise UserError(f"lora_targets: {ALL} is all projections; give it alone, or names")
        if not self.lora_rank and (self.lora_alpha != 32.0 or self.lora_targets != (ALL,)):
            raise UserError("lora_alpha and lora_targets are for a LoRA adapter: give lora_rank too")

    def load(self, seed: int) -> LoadedModel:
        """The model, with a new adapter if one is asked for; `seed` is that of its random half.

        Raises `UserError` for a model that cannot be loaded, a target that it does not have or a rank that is too
        large; `Unsupported` for one that takes no adapter.
        """
        from ponder.models.load import base_name, load
        from ponder.models.lora import new_adapter

        threads.use(self.threads)
        model = load(self.model, device=self.device, dtype=self.dtype)
        if not self.lora_rank:
            return model
        if model.adapter is not None:
            raise UserError(
                f"lora_rank = {self.lora_rank}: {self.model} is a LoRA adapter; leave lora_rank out to train it on, or "
                "merge it first (ponder export --merge)"
            )
        targets = ALL if self.lora_targets == (ALL,) else self.lora_targets
        new_adapter(model, LoraConfig(self.lora_rank, self.lora_alpha, targets, base=base_name(self.model)), seed)
        return model


def trained(model: LoadedModel) -> list[str]:
    """A line about what training moves, where that is not the whole model in float32."""
    import torch

    weights = [p for p in model.module.parameters() if p.requires_grad]
    count = sum(p.numel() for p in weights)
    if model.adapter is not None:
        share = count / max(1, model.info.parameters)
        part = f"{100 * share:.2f} % of the model's"
        return [f"training a LoRA adapter of rank {model.adapter.rank}: {count:,} weights, {part}"]
    if any(p.dtype != torch.float32 for p in weights):
        return ["warning: weights are trained in 16 bits, which round small updates away; take float32 or LoRA"]
    return []
