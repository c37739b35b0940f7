"""Write a model, a run or a checkpoint as a Hugging Face folder that other tools load."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ponder.cli._output import say
from ponder.config import parse
from ponder.errors import UserError

DESCRIPTION = """Write a model as a Hugging Face folder (config.json, safetensors, tokenizer, chat template), which
transformers, vLLM and ponder itself load. For a model with a LoRA adapter, the adapter is written in PEFT's format; its
base is written with it where it is neither a folder nor on the hub. With --merge one whole model is written instead.

examples:
  ponder export runs/quickstart my-model
  ponder export runs/lora my-adapter
  ponder export runs/lora my-model --merge --dtype bfloat16
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
    merge: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Add the LoRA adapter to the weights of its base, and write the whole model."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the result as JSON."""


def main(args: list[str]) -> int:
    config = parse(ExportConfig, args, prog="ponder export", description=DESCRIPTION)
    if config.folder.exists():
        raise UserError(f"{config.folder} exists already: choose another folder, or remove it first")
    from ponder.models.load import load, resolve

    model = load(config.model, device="cpu", dtype="float32" if config.merge else config.dtype)
    base = None
    if config.merge:
        from ponder.models.assemble import torch_dtype
        from ponder.models.lora import merge

        merge(model)
        model.module.to(torch_dtype(config.dtype))
    if model.adapter is None:
        from ponder.models.save import save

        save(model, config.folder)
    elif config.dtype != "float32":
        raise UserError(
            f"--dtype {config.dtype}: {config.model} is an adapter, which is written in float32; with --merge the "
            "whole model is written"
        )
    else:
        from ponder.models.save import export_adapter

        base = export_adapter(model, config.folder)
    size = sum(p.stat().st_size for p in config.folder.rglob("*") if p.is_file())
    if config.json:
        written = {"folder": str(config.folder), "source": model.source, "bytes": size}
        say(json.dumps(written if base is None else {**written, "base": base}))
        return 0
    say(f"wrote {config.folder} ({size / 1e6:.1f} MB, {config.dtype}) from {resolve(config.model).where}")
    name = str(config.folder)
    if base is None:
        say(f"in Python: transformers.AutoModelForCausalLM.from_pretrained({name!r})")
    else:
        say(f"an adapter; its base is {base}")
        say(f"in Python: peft.AutoPeftModelForCausalLM.from_pretrained({name!r})   (pip install peft)")
        say(f"as a whole model, without peft: ponder export {shlex.quote(config.model)} NEW-FOLDER --merge")
    say(f"or here:   ponder solve 'QUESTION' --model {shlex.quote(name)}")
    return 0
