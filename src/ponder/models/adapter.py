"""The settings of a low-rank adapter, as plain data; `models.lora` reads, writes and attaches one."""

from __future__ import annotations

import math
from dataclasses import dataclass

ALL = "all-linear"


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The settings of an adapter; PEFT's names in brackets."""

    rank: int
    """Rows of A (`r`)."""
    alpha: float
    """(`lora_alpha`)"""
    targets: tuple[str, ...] | str = ALL
    """Names of projections, such as `q_proj`; or a regular expression for whole names, or `all-linear`."""
    rslora: bool = False
    """Scale by 1/sqrt(rank) instead of 1/rank (`use_rslora`)."""
    base: str = ""
    """The base model (`base_model_name_or_path`)."""

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
