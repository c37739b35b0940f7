"""Reading a model folder in Hugging Face's form: `config.json`, safetensors, `tokenizer.json` and related files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder.errors import MissingExtra, UserError
from ponder.models.architecture import decoder_config, why_not_native
from ponder.models.assemble import Shape, assemble, decoder_module, torch_device, torch_dtype
from ponder.models.base import LoadedModel
from ponder.models.weights import read_json, read_tensors, verify_checksums

if TYPE_CHECKING:
    import tokenizers
    import torch
    from torch import Tensor

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def read_folder(
    folder: Path, *, name: str, dtype: str, device: str | torch.device | None, template: str | None = None
) -> LoadedModel:
    """Load a model folder, with the given chat template or its own.

    Raises `UserError` with one sentence for anything that is wrong with it.
    """
    config = read_config(folder)
    verify_checksums(folder)
    tokenizer_config = _optional(folder / "tokenizer_config.json")
    generation = _optional(folder / "generation_config.json")
    where = f"{folder}/config.json"
    native = why_not_native(config, where) is None
    if native:
        decoder = decoder_config(config, where)
        state, weights = read_state(folder)
        module: Any = decoder_module(decoder, state, dtype=dtype, device=device, where=weights)
        shape = Shape.of(decoder)
    else:
        weight_files(folder)
        module, shape = other_module(folder, dtype=dtype, device=device)
    return assemble(
        module,
        read_tokenizer(folder),
        shape,
        name=name,
        source=str(folder),
        config=config,
        chat_template=template or chat_template(folder),
        special_tokens=_special_tokens(folder, tokenizer_config),
        end_ids=[*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id"))],
        supports_cache=native,
    )


def other_module(
    folder: Path, *, dtype: str, device: str | torch.device | None, gguf_file: str | None = None
) -> tuple[Any, Shape]:
    """A model that runs through transformers' forward, and its shape."""
    kind, place = torch_dtype(dtype), torch_device(device)
    try:
        from ponder.models.other import TransformersLM, load_other
    except ImportError:
        raise MissingExtra("a model", "torch") from None
    whole = load_other(folder, dtype=kind, device=place, gguf_file=gguf_file)
    text = whole.config.get_text_config()
    context = getattr(text, "max_position_embeddings", None) or 2048
    head = whole.get_output_embeddings()
    tied = head is not None and head.weight is whole.get_input_embeddings().weight
    rows, width = whole.get_input_embeddings().weight.shape
    return TransformersLM(whole), Shape(rows, width, context, tied)


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model folder. Raises `UserError` if there is no such folder or file."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json in it; a model folder has config.json, *.safetensors, tokenizer.json"
        )
    config = read_json(folder / "config.json")
    if "model_type" not in config:
        raise UserError(f"{folder}/config.json: no 'model_type' in it, so the architecture is unknown")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. Raises `UserError` if there are none; pickles are refused."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / INDEX).is_file():
        table = read_json(folder / INDEX).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise UserError(f"{folder / INDEX}: no 'weight_map' in it: copy the model again")
        files = sorted({folder / str(f) for f in table.values()})
        for file in files:
            if not file.is_file():
                raise UserError(f"{file} is missing although {INDEX} lists it: copy the whole model again")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise UserError(f"{folder}: several safetensors files and no {INDEX}: copy the whole model again")
    pickles = [p.name for pattern in PICKLES for p in sorted(folder.glob(pattern))]
    if pickles:
        raise UserError(
            f"{folder}: its weights are a pickle ({pickles[0]}), which can run code when read: "
            "convert them first with transformers' save_pretrained, which writes safetensors"
        )
    raise UserError(f"{folder}: no weights in it (model.safetensors): copy the whole model again")


def read_state(folder: Path) -> tuple[dict[str, Tensor], str]:
    """All tensors of a folder, and the file to name when one is wrong (the index, if there are several)."""
    files = weight_files(folder)
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(read_tensors(file))
    return state, str(files[0] if len(files) == 1 else folder / INDEX)


def read_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a folder: `tokenizer.json`, or what transformers converts from older files."""
    import tokenizers

    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: not a tokenizer file: {error}") from None
    else:
        tokenizer = _old_tokenizer(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _old_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    if not any((folder / f).is_file() for f in ("tokenizer.model", "vocab.json", "tokenizer_config.json")):
        raise UserError(f"{folder}: no tokenizer.json in it: copy the whole model again, with its tokenizer")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtra(f"{folder}: a tokenizer without tokenizer.json", "hf") from None
    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        return loaded.backend_tokenizer
    except Exception as error:  # transformers raises many types
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder}: no tokenizer.json in it and transformers cannot make one: {reason}") from None


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]


def chat_template(folder: Path) -> str | None:
    """The chat template of a folder, in whichever file it is; None if there is none."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    value = _optional(folder / "chat_template.json").get("chat_template")
    value = _optional(folder / "tokenizer_config.json").get("chat_template") if value is None else value
    if isinstance(value, list):
        value = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}.get("default")
    return value if isinstance(value, str) else None


def _special_tokens(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for table in (_optional(folder / "special_tokens_map.json"), tokenizer_config):
        for key in TOKENS:
            value = table.get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[key] = text
    return found
