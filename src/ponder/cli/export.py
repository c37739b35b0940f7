"""Write a model, a run or a checkpoint for other tools: a Hugging Face folder or a GGUF file; push it to the hub."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ponder.cli._common import check_target
from ponder.cli._output import note, say
from ponder.config import parse
from ponder.errors import PonderError, UserError

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel

DESCRIPTION = """Write a model as a Hugging Face folder (config.json, safetensors, tokenizer, chat template), which
transformers, vLLM and ponder itself load. For a model with a LoRA adapter, the adapter is written in PEFT's format; its
base is named by its hub id or its absolute path, and is written with it where it has neither. With --merge one whole
model is written instead.

With --gguf it is written as one GGUF file, for llama.cpp and the programs built on it (Llama, Mistral, Qwen2 and
Qwen3); an adapter is merged.

examples:
  ponder export runs/quickstart my-model
  ponder export runs/lora my-adapter
  ponder export runs/lora my-model --merge --dtype bfloat16
  ponder export runs/lora my-model --gguf q8_0
  ponder export runs/rl my-model --push OWNER/NAME
"""


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """Options of `ponder export`."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run directory (its last checkpoint), a checkpoint, a model folder, a .gguf file, a name or a hub id."""
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """The folder to write, or with --gguf a name that ends in .gguf for the file alone; it must not exist."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights that are written (default: float32)."""
    merge: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Add the LoRA adapter to the weights of its base, and write the whole model."""
    gguf: Literal["f16", "q8_0"] | None = None
    """Write a GGUF file instead, its matrices in 16 bits (f16) or about 8.5 (q8_0)."""
    push: Annotated[str | None, tyro.conf.arg(metavar="OWNER/NAME")] = None
    """Then upload what was written to this model of the Hugging Face hub, with the login of `hf auth login` or
    HF_TOKEN; a model that is not there yet is made, private."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the result as JSON."""


def main(args: list[str]) -> int:
    config = parse(ExportConfig, args, prog="ponder export", description=DESCRIPTION)
    _check(config)
    from ponder.models import hub

    if config.push is not None:
        hub.check(config.push)
    model = _loaded(config)
    base = missing = None
    if config.gguf is not None:
        written, missing = _gguf(config, model)
    else:
        written, base = _folder(config, model)
    if missing is not None:
        note(f"note: {missing}")
    url = None if config.push is None else _pushed(config, config.push)
    if config.json:
        say(json.dumps(_as_json(config, model, written, base, url)))
    else:
        say("\n".join(_text(config, written, base, missing, url)))
    return 0


def _check(config: ExportConfig) -> None:
    """Raises `UserError` for flags that contradict each other, and for a place that is taken."""
    folder, file = config.folder, config.folder.suffix == ".gguf"
    if folder.exists():
        raise UserError(f"{folder} exists already: choose another folder, or remove it first")
    if file and config.gguf is None:
        raise UserError(f"{folder}: for a GGUF file say which: --gguf f16 or --gguf q8_0")
    if file and config.push is not None:
        raise UserError(f"--push uploads a folder: name one in place of {folder}")
    if file:
        check_target("FOLDER", str(folder))
    if config.gguf is not None and config.dtype is not None:
        raise UserError(f"--dtype {config.dtype}: --gguf says the type of the weights; give one of the two")


def _loaded(config: ExportConfig) -> LoadedModel:
    """The model, its adapter merged where a whole one is asked for."""
    from ponder.models.load import load

    whole = config.gguf is not None
    dtype = config.dtype or "float32"
    model = load(config.model, device="cpu", dtype="float32" if config.merge or whole else dtype)
    if config.merge or (whole and model.adapter is not None):
        from ponder.models.assemble import torch_dtype
        from ponder.models.lora import merge

        merge(model)
        model.module.to(torch_dtype(dtype))
    return model


def _gguf(config: ExportConfig, model: LoadedModel) -> tuple[Path, str | None]:
    """The file that is written, and what llama.cpp cannot do with it."""
    from ponder.models.gguf_write import write_gguf
    from ponder.models.weights import publish

    assert config.gguf is not None
    name = config.folder.absolute().stem if config.folder.suffix == ".gguf" else config.folder.absolute().name
    if config.folder.suffix == ".gguf":
        return config.folder, write_gguf(model, config.folder, config.gguf, name=name)
    file = f"{name}-{config.gguf.upper()}.gguf"
    with publish(config.folder) as partial:
        missing = write_gguf(model, partial / file, config.gguf, name=name)
    return config.folder / file, missing


def _folder(config: ExportConfig, model: LoadedModel) -> tuple[Path, str | None]:
    """The folder that is written, and the base of an adapter."""
    from ponder.models.save import export_adapter, save

    if model.adapter is None:
        return save(model, config.folder), None
    if config.dtype not in (None, "float32"):
        raise UserError(
            f"--dtype {config.dtype}: {config.model} is an adapter, which is written in float32; with --merge the "
            "whole model is written"
        )
    if config.push is not None:
        from ponder.models.load import base_for_export

        base = base_for_export(model.adapter.base)
        if base is None or Path(base).is_absolute():
            raise UserError(
                f"--push: the base of this adapter is {base or model.adapter.base}, which is not on the hub, so nobody "
                "else could load it: give --merge too"
            )
    return config.folder, export_adapter(model, config.folder)


def _pushed(config: ExportConfig, repository: str) -> str:
    """The address of what was uploaded. Raises `PonderError`; what was written stays."""
    from ponder.models import hub

    try:
        return hub.push(config.folder, repository)
    except PonderError as error:
        again = f"hf upload {shlex.quote(repository)} {shlex.quote(str(config.folder))}"
        raise PonderError(f"{error}; {config.folder} is written, upload it later with: {again}") from None


def _size(written: Path) -> int:
    files = [written] if written.is_file() else written.rglob("*")
    return sum(p.stat().st_size for p in files if p.is_file())


def _as_json(
    config: ExportConfig, model: LoadedModel, written: Path, base: str | None, url: str | None
) -> dict[str, str | int]:
    found: dict[str, str | int] = {"folder": str(config.folder), "source": model.source, "bytes": _size(written)}
    more = {"file": str(written) if config.gguf else None, "base": base, "url": url}
    return found | {key: value for key, value in more.items() if value is not None}


def _text(config: ExportConfig, written: Path, base: str | None, missing: str | None, url: str | None) -> list[str]:
    from ponder.models.load import resolve

    kind = (config.gguf or "").upper() or config.dtype or "float32"
    lines = [f"wrote {written} ({_size(written) / 1e6:.1f} MB, {kind}) from {resolve(config.model).where}"]
    name = str(written)
    if config.gguf is not None and missing is None:
        lines.append(f"with llama.cpp: llama-cli -m {shlex.quote(name)}")
    elif config.gguf is None and base is None:
        lines.append(f"in Python: transformers.AutoModelForCausalLM.from_pretrained({name!r})")
    elif base is not None:
        lines += [
            f"an adapter; its base is {base}",
            f"in Python: peft.AutoPeftModelForCausalLM.from_pretrained({name!r})   (pip install peft)",
            f"as a whole model, without peft: ponder export {shlex.quote(config.model)} NEW-FOLDER --merge",
        ]
    lines.append(f"or here:   ponder solve 'QUESTION' --model {shlex.quote(name)}")
    return lines if url is None else [*lines, f"on the hub: {url}"]
