"""What would probably be faster than the torch engine for a quantised GGUF file on a processor, and how to get it.

The torch engine dequantises such a file to float32, and a single request is bound by reading the weights. llama.cpp
reads them as they are quantised, but computes one sample at a time. benchmarks/RESULTS.md has what was measured.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

from ponder.engines.opening import EngineOptions
from ponder.errors import PonderError, UserError

FLOATS = ("F32", "F16", "BF16")
MEASURED = "--engine llamacpp was 3 times as fast for one request at a time, and half as fast for 16 at once"
"""Qwen2.5-Coder-0.5B in Q4_K_M, one thread; benchmarks/RESULTS.md."""
INSTALL = "; install it with: pip install 'ponder[llamacpp]', which compiles for minutes"


def hints(options: EngineOptions) -> list[str]:
    """A sentence for each faster way; none for another engine, a GPU, or a model that is no quantised GGUF file.

    Reads the header of the file alone. Raises nothing: a model that cannot be opened is refused where it is opened.
    """
    if options.engine != "torch" or options.options.get("exact"):
        return []
    try:
        kind = quantised(options.model)
        if kind is None or _on_gpu(str(options.options.get("device", "auto"))):
            return []
    except PonderError:
        return []
    said = [
        f"{options.model} holds {kind} weights, which the torch engine dequantises to float32; {MEASURED}"
        f"{INSTALL if _missing() else ''}"
    ]
    if options.options.get("precision", "float32") == "float32" and _bf16_units():
        said.append("this processor multiplies bfloat16 faster, most of all for many requests: --precision bfloat16")
    return said


def quantised(model: str) -> str | None:
    """The type of most matrices of a GGUF file, such as Q4_K, if they are quantised; None for any other model.

    Raises `UserError` for a model that is not found or a corrupt file, `MissingExtra` without the package `gguf`.
    """
    from ponder.models.gguf import gguf_package, read_header
    from ponder.models.load import resolve

    source = resolve(model)
    if source.kind != "gguf":
        return None
    header = read_header(Path(source.where))
    kinds = Counter(tensor.kind for tensor in header.tensors.values() if len(tensor.shape) > 1)
    if not kinds or header.fields.get("tokenizer.ggml.model") == "none":
        return None  # the second has a tokenizer that llama.cpp lacks
    try:
        name = str(gguf_package().GGMLQuantizationType(kinds.most_common(1)[0][0]).name)
    except ValueError:
        raise UserError(f"{model}: a tensor of an unknown type") from None
    return None if name in FLOATS else name


def _missing() -> bool:
    return importlib.util.find_spec("llama_cpp") is None


def _on_gpu(device: str) -> bool:
    from ponder.models.assemble import torch_device

    return torch_device(device).type != "cpu"


def _bf16_units() -> bool:
    """Whether the processor has units for bfloat16 that oneDNN uses; without them it converts, which gains little."""
    import torch

    there = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(there and there() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
