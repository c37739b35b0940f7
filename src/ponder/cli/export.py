"""Write a model, a run or a checkpoint as a Hugging Face folder that other tools load."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ponder.cli._output import say
from ponder.config import parse
from ponder.errors import UserError

DESCRIPTION = """Write a model as a Hugging Face folder (config.json, safetensors, tokenizer, chat template), which
transformers, vLLM and ponder itself load. For a model with a LoRA adapter, only the adapter is written, in PEFT's
format.

example: ponder export runs/quickstart my-model
"""


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """Options of `ponder export`."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run directory (its last checkpoint), a checkpoint, a model folder, a .gguf file, a name or a hub id."""
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """The folder to write; it must not exist."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights that are written."""
    json: bool = False
    """Print the result as JSON."""


def main(args: list[str]) -> int:
    config = parse(ExportConfig, args, prog="ponder export", description=DESCRIPTION)
    if config.folder.exists():
        raise UserError(f"{config.folder} exists already: choose another folder, or remove it first")
    from ponder.models.load import load
    from ponder.models.save import save

    model = load(config.model, dtype=config.dtype, device="cpu")
    if model.adapter is not None and config.dtype != "float32":
        raise UserError(f"--dtype {config.dtype}: {config.model} is an adapter, which is written in float32")
    save(model, config.folder)
    size = sum(p.stat().st_size for p in config.folder.iterdir())
    if config.json:
        say(json.dumps({"folder": str(config.folder), "source": model.source, "bytes": size}))
        return 0
    say(f"wrote {config.folder} ({size / 1e6:.1f} MB, {config.dtype}) from {model.source}")
    say(f"in Python: transformers.AutoModelForCausalLM.from_pretrained({str(config.folder)!r})")
    say(f"or here:   ponder solve 'QUESTION' --model {config.folder}")
    return 0
