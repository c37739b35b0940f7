"""`save`: a model as a Hugging Face folder that transformers, vLLM and others load, and that `load` verifies."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder.models.architecture import hf_config
from ponder.models.base import LoadedModel
from ponder.models.weights import publish, write_checksums, write_json, write_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn


def save(model: LoadedModel, folder: str | Path, *, replace: bool = False) -> Path:
    """Write config, weights, tokenizer, chat template, generation settings and checksums; returns the folder.

    For a model with an adapter only the adapter is written, in PEFT's format.

    The folder appears whole or not at all. Raises `UserError` if it exists and `replace` is false, `PonderError` if
    the disk is full; either way the old folder stays.
    """
    folder = Path(folder)
    with publish(folder, replace=replace) as partial:
        write_model(model, partial)
        write_checksums(partial)
    return folder


def export_adapter(model: LoadedModel, folder: str | Path) -> str:
    """Write an adapter so that PEFT loads it with its base, and return the base's folder or hub id.

    A base that PEFT cannot load by its name (a built-in one, a GGUF file) is written beside the adapter, as `base/`.
    Raises as `save` does.
    """
    from ponder.models.load import BASE, base_for_export, load

    folder = Path(folder)
    config = model.adapter
    assert config is not None, "a model without an adapter is saved, not exported"
    name = base_for_export(config.base)
    with publish(folder) as partial:
        if name is None:
            base = load(config.base, device="cpu")
            save(base, partial / BASE)
            name = str((folder / BASE).absolute())
        write_model(dataclasses.replace(model, adapter=dataclasses.replace(config, base=name)), partial)
        write_checksums(partial)
    return name


def write_model(model: LoadedModel, folder: Path) -> None:
    """Write the files of a model into an existing folder, without checksums: for a checkpoint with more files."""
    from ponder.models.decoder import DecoderLM
    from ponder.models.lora import write_adapter
    from ponder.models.other import TransformersLM, quiet

    if model.adapter is not None:
        write_adapter(model, folder)
        return
    config = model.config
    if isinstance(model.module, DecoderLM):
        config = {**hf_config(model.module.config), **{k: v for k, v in model.config.items() if k in _KEPT}}
        write_tensors(folder / "model.safetensors", weights(model.module))
    else:
        assert isinstance(model.module, TransformersLM)
        # Transformers maps an architecture's names in memory to those on disk.
        with quiet():
            model.module.whole[0].save_pretrained(folder)
        config = {**config, **json.loads((folder / "config.json").read_text(encoding="utf-8"))}
    write_json(folder / "config.json", {**config, **_ids(model), **_dtype(model.module), "ponder": formats(model)})
    write_json(folder / "generation_config.json", _ids(model))
    model.tokenizer.save(folder / "tokenizer.json")  # type: ignore[attr-defined]
    write_json(folder / "tokenizer_config.json", tokenizer_config(model))


_KEPT = ("architectures", "pretraining_tp", "attention_dropout")


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Name to tensor, tied tensors once (under the first name)."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            found[name] = tensor
        seen.add(tensor.data_ptr())
    return found


def tokenizer_config(model: LoadedModel) -> dict[str, Any]:
    """Hugging Face's `tokenizer_config.json`, the chat template included."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **model.special_tokens,
        "model_max_length": model.info.context,
        "clean_up_tokenization_spaces": False,
    }
    return config if model.chat_template is None else {**config, "chat_template": model.chat_template}


def _ids(model: LoadedModel) -> dict[str, Any]:
    bos = model.special_tokens.get("bos_token")
    ends = list(model.end_ids)
    ids = {
        "bos_token_id": model.tokenizer.id_of(bos) if bos else None,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": model.pad_id if "pad_token" in model.special_tokens else None,
    }
    return {k: v for k, v in ids.items() if v is not None}


def _dtype(module: nn.Module) -> dict[str, str]:
    name = str(next(module.parameters()).dtype).removeprefix("torch.")
    return {"dtype": name, "torch_dtype": name}


def formats(model: LoadedModel) -> dict[str, Any]:
    """How the model marks thoughts and tool calls, as its `config.json` says it under `ponder`."""
    thought, tools = model.thought, model.info.tools
    return {
        "thought": thought
        and {"open": thought.open, "close": thought.close, "opened_by_template": thought.opened_by_template},
        **({} if tools is None else {"tools": {"open": tools.open, "close": tools.close}}),
    }
