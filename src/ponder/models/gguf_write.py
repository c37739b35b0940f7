"""Write a native model as one GGUF file, in F16 or Q8_0: for llama.cpp, the programs built on it, and ponder itself.

Matrices are written in the named type, vectors (norms, biases) in float32, as llama.cpp's own converter does. Tensors
are converted one after the other, so memory holds one of them besides the model. `models.gguf` reads the file back.

Source: the GGUF specification, version 3 (ggml's docs/gguf.md); llama.cpp's convert_hf_to_gguf.py for the keys that its
loader needs of each architecture.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ponder.errors import Unsupported, UserError
from ponder.models import gguf_vocabulary
from ponder.models.base import LoadedModel
from ponder.models.gguf import FORMATS, ROPE_FACTORS, gguf_name, gguf_package

if TYPE_CHECKING:
    from torch import Tensor

    from ponder.models.decoder_config import DecoderConfig

Kind = Literal["f16", "q8_0"]
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""GGUF's name of each family of `models.architecture`."""


def write_gguf(model: LoadedModel, path: Path, kind: Kind, *, name: str) -> str | None:
    """Write a model without an adapter to `path`, which appears whole or not at all; `name` is `general.name` in it.

    Returns what other programs cannot do with the file, as a sentence, or None. Raises `Unsupported` for a model or a
    setting that GGUF has no form for, `UserError` for weights that are too large for 16 bits.
    """
    from ponder.models.decoder import DecoderLM

    if not isinstance(model.module, DecoderLM):
        raise Unsupported(
            f"{model.info.name}: GGUF is written for {', '.join(ARCHITECTURES)} only: export a folder, and "
            "convert that with llama.cpp's convert_hf_to_gguf.py"
        )
    partial = path.with_name(f".{path.name}.partial")
    try:
        missing = _write(model, model.module.config, partial, kind, name)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return missing


def _write(model: LoadedModel, config: DecoderConfig, path: Path, kind: Kind, name: str) -> str | None:
    from ponder.models.save import formats, weights

    gguf = gguf_package()
    matrices = gguf.GGMLQuantizationType.Q8_0 if kind == "q8_0" else gguf.GGMLQuantizationType.F16
    file_type = gguf.LlamaFileType.MOSTLY_Q8_0 if kind == "q8_0" else gguf.LlamaFileType.MOSTLY_F16
    writer = gguf.GGUFWriter(path, ARCHITECTURES[config.model_type])
    try:
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_string(FORMATS, json.dumps(formats(model)))
        _add_shape(writer, config)
        missing = gguf_vocabulary.add(writer, model, config.vocab_size)
        tensors = {gguf_name(key): _ordered(key, tensor, config) for key, tensor in weights(model.module).items()}
        tensors |= _rotary(writer, config)
        for key, tensor in tensors.items():
            shape, stored = tuple(tensor.shape), _stored(tuple(tensor.shape), matrices)
            size = math.prod(gguf.quant_shape_to_byte_shape(shape, stored))
            writer.add_tensor_info(key, shape, None, size, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for key, tensor in tensors.items():
            writer.write_tensor_data(_values(key, tensor, _stored(tuple(tensor.shape), matrices)))
    finally:
        writer.close()
    return missing


def _stored(shape: tuple[int, ...], matrices: Any) -> Any:
    """The type of a tensor of this shape. Rows that are not whole blocks of Q8_0 are written in F16."""
    gguf = gguf_package()
    if len(shape) < 2:
        return gguf.GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[matrices]
    return gguf.GGMLQuantizationType.F16 if shape[-1] % block else matrices


def _values(name: str, tensor: Tensor, stored: Any) -> Any:
    """A tensor's values as they lie in the file."""
    import numpy as np

    gguf = gguf_package()
    values = tensor.detach().float().contiguous().cpu().numpy()
    if stored == gguf.GGMLQuantizationType.F32:
        return values
    with np.errstate(over="ignore"):
        written = gguf.quantize(values, stored)
    # The scale of a block of Q8_0 is a float16 too.
    largest = 65504.0 * (127 if stored == gguf.GGMLQuantizationType.Q8_0 else 1)
    if np.abs(values).max() > largest:
        raise UserError(f"tensor {name!r} holds values above {largest:g}, which {stored.name} cannot hold")
    return written


def _ordered(name: str, weight: Tensor, config: DecoderConfig) -> Tensor:
    """Query and key rows of a Llama in GGUF's order: the two halves of each head interleaved."""
    if ARCHITECTURES[config.model_type] != "llama":
        return weight
    if name.endswith(("q_proj.weight", "q_proj.bias")):
        heads = config.num_attention_heads
    elif name.endswith(("k_proj.weight", "k_proj.bias")):
        heads = config.num_key_value_heads
    else:
        return weight
    rows, rest = weight.shape[0], weight.shape[1:]
    return weight.reshape(heads, 2, rows // heads // 2, *rest).transpose(1, 2).reshape(rows, *rest)


def _add_shape(writer: Any, config: DecoderConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)


def _rotary(writer: Any, config: DecoderConfig) -> dict[str, Tensor]:
    """Add the fields of scaled rotary embeddings; Llama 3's are a tensor, a factor for each frequency.

    Raises `Unsupported` for settings that GGUF has no key for.
    """
    from ponder.models.rope import attention_factor, frequencies

    gguf = gguf_package()
    scaling = config.rope_scaling
    kind = scaling.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(float(scaling["factor"]))
    if kind == "yarn":
        usual = {key: scaling[key] for key in ("rope_type", "factor")}
        if not scaling.get("truncate", True) or attention_factor(scaling) != attention_factor(usual):
            raise Unsupported(
                "GGUF has no form for these settings of YaRN (truncate, attention_factor, mscale): export a folder"
            )
        writer.add_rope_scaling_orig_ctx_len(int(scaling["original_max_position_embeddings"]))
        if scaling.get("beta_fast"):
            writer.add_rope_scaling_yarn_beta_fast(float(scaling["beta_fast"]))
        if scaling.get("beta_slow"):
            writer.add_rope_scaling_yarn_beta_slow(float(scaling["beta_slow"]))
    if kind != "llama3":
        return {}
    if (scaling["low_freq_factor"], scaling["high_freq_factor"]) != (1.0, 4.0):
        raise Unsupported(
            "GGUF has no form for Llama 3's rotary settings with other values than low_freq_factor 1 and "
            "high_freq_factor 4: export a folder"
        )
    writer.add_rope_scaling_orig_ctx_len(int(scaling["original_max_position_embeddings"]))
    plain = dataclasses.replace(config, rope_scaling={})
    return {ROPE_FACTORS: frequencies(plain)[0] / frequencies(config)[0]}
