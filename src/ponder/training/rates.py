"""Learning rates that suit a model: the default by its size, and a warning where a given one is far off.

| parameters up to | fine-tuning | RL |
|---|---|---|
| 5 million | 2e-3 | 2e-4 |
| 50 million | 2e-4 | 6e-5 |
| 200 million | 2e-5 | 2e-5 |
| 2 billion | 2e-5 | 5e-6 |
| more | 1e-5 | 1e-6 |

Sources. Up to 5 million: measured with ponder-tiny (docs/LOG.md). 200 million: measured with SmolLM2-135M
(docs/results/smollm2-arithmetic.md); 2e-5 is also the default of TRL's SFTConfig. Largest: 1e-6 is the default of TRL's
GRPOConfig and of verl's examples; fine-tuning at 1e-5 is OLMo-1B's, and Tülu 3 8B took 5e-6 (Lambert et al. 2024,
arXiv:2411.15124). The rates of RL at 50 million and 2 billion and that of fine-tuning at 50 million lie between their
neighbours (about the geometric mean). Published rates for one size differ by a factor of ten and more, with batch and
data: the makers of SmolLM2-360M took 1e-3 with batches of a million tokens. So a given rate is called far off only at
ten times the default or a tenth.

An adapter takes ten times the rate of full training, whatever its rank (Schulman et al. 2025, "LoRA Without Regret",
doi:10.64434/tml.20250929), here up to 1e-3, the largest rate that was best in tinker-cookbook's sweep over 25 models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["sft", "rl"]
BY_SIZE: tuple[tuple[float, float, float], ...] = (
    (5e6, 2e-3, 2e-4),
    (5e7, 2e-4, 6e-5),
    (2e8, 2e-5, 2e-5),
    (2e9, 2e-5, 5e-6),
    (math.inf, 1e-5, 1e-6),
)
"""Most parameters, rate of fine-tuning, rate of RL."""
LORA = 10.0
LORA_MOST = 1e-3
FAR = 10.0
"""A rate is far off at this many times the default, or this part of it."""
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Rate:
    """A learning rate, and what to say of it."""

    value: float
    said: str
    """A sentence for the console."""
    far: bool = False
    """Whether the sentence is a warning."""


def usual(kind: Kind, parameters: int, lora: bool) -> float:
    """The default learning rate of AdamW for a model of that size."""
    full = next(sft if kind == "sft" else rl for most, sft, rl in BY_SIZE if parameters <= most)
    return max(full, min(LORA * full, LORA_MOST)) if lora else full


def rate(given: float | None, kind: Kind, parameters: int, lora: bool) -> Rate:
    """The rate to train with: the given one, else the default of the size."""
    default = usual(kind, parameters, lora)
    what = f"{'a LoRA adapter on ' if lora else ''}{_millions(parameters)} parameters"
    if given is None:
        return Rate(default, f"learning rate {default:g} (the default for {what})")
    times = given / default
    far = ""
    if times > FAR * (1 - _ROUNDING):
        far = f"{times:.0f} times the usual {default:g} for {what}: training may diverge"
    elif times < (1 + _ROUNDING) / FAR:
        far = f"1/{1 / times:.0f} of the usual {default:g} for {what}: it may learn little"
    if far:
        return Rate(given, f"warning: learning rate {given:g} is {far}", far=True)
    also = "" if math.isclose(given, default) else f" (the default for {what} is {default:g})"
    return Rate(given, f"learning rate {given:g}{also}")


def _millions(parameters: int) -> str:
    if parameters >= 1e9:
        return f"{parameters / 1e9:.1f} billion"
    return f"{parameters / 1e6:.{0 if parameters >= 1e7 else 1}f} million"
