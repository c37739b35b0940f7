"""GGUF files as trainable float weights for `models.decoder`, with the exact tokenizer.

The header is parsed here, in one pass: the `gguf` package takes 5 s over a vocabulary of 49 152 tokens, and
transformers parses it three times and drops the kind of pre-tokenizer (for SmolLM2 it then splits newlines before
digits differently than in pre-training). Dequantisation is the `gguf` package's. Other architectures go through
transformers; see `models.other`.

Source: the GGUF specification, version 3 (ggml's docs/gguf.md).
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder import threads
from ponder.errors import MissingExtra, Unsupported, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from ponder.models.decoder_config import DecoderConfig

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""GGUF architectures that are read here; Mistral's models are `llama` there."""
MAGIC = b"GGUF"
FORMATS = "ponder.formats"
"""A field of ponder's own: how the model marks thoughts and tool calls, as JSON."""
ROPE_FACTORS = "rope_freqs.weight"
"""The tensor of Llama 3's scaled rotary embeddings: what each frequency is divided by."""
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
_PIECE = 1 << 18
"""Values that are dequantised at once."""
_THREADS = 4
"""The most tensors that are dequantised at once."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Location of a tensor. `shape` is row-major, as numpy has it; `offset` counts from the start of the file."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a GGUF file."""

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """A field of this architecture, such as `block_count`. Raises `UserError` if it is missing without default."""
        value = self.fields.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise UserError(f"{self.path}: no field {self.architecture}.{key} in this GGUF file; convert it again")
        return value


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        size = self.number("Q")
        raw = self.data[self.at : self.at + size]
        if len(raw) != size:
            raise EOFError
        self.at += size
        return raw.decode("utf-8", "replace")

    def strings(self, count: int) -> list[str]:
        """Hundreds of thousands of them in a vocabulary: one loop without calls."""
        data, at, size_at = self.data, self.at, struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            (size,) = size_at(data, at)
            at += 8 + size
            found.append(data[at - size : at].decode("utf-8", "replace"))
        if at > len(data):
            raise EOFError
        self.at = at
        return found

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"unknown value type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if count > len(self.data) - self.at:
            raise EOFError
        if inner in SCALARS:
            values = struct.unpack_from(f"<{count}{SCALARS[inner]}", self.data, self.at)
            self.at += struct.calcsize(f"<{count}{SCALARS[inner]}")
            return list(values)
        if inner == STRING:
            return self.strings(count)
        return [self.value(inner) for _ in range(count)]


def read_header(path: str | Path) -> Header:
    """Fields and tensor locations of a GGUF file. Raises `UserError` if it is not GGUF, truncated or corrupt."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            if file.read(4) != MAGIC:
                raise UserError(f"{path}: not a GGUF file (it does not begin with 'GGUF')")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, _Reader(data))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (EOFError, struct.error):
        raise UserError(f"{path}: this GGUF file is truncated in its header: copy or download it again") from None
    except (ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: this GGUF file is corrupt ({error}): copy or download it again") from None


def _parse(path: Path, reader: _Reader) -> Header:
    reader.at = 4
    version = reader.number("I")
    if version not in (2, 3):
        raise UserError(f"{path}: GGUF version {version} is not supported (2 and 3 are): convert the model again")
    tensor_count, field_count = reader.number("Q"), reader.number("Q")
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        key = reader.string()
        fields[key] = reader.value(reader.number("I"))
    places = {}
    for _ in range(tensor_count):
        name, dimensions = reader.string(), reader.number("I")
        if dimensions > 8:
            raise ValueError(f"tensor {name!r} with {dimensions} dimensions")
        shape = tuple(reader.number("Q") for _ in range(dimensions))[::-1]
        places[name] = (shape, reader.number("I"), reader.number("Q"))
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"alignment {alignment!r}")
    start = math.ceil(reader.at / alignment) * alignment
    tensors = {name: TensorInfo(shape, kind, start + offset) for name, (shape, kind, offset) in places.items()}
    return Header(path, fields, tensors)


def read_weights(header: Header) -> dict[str, Tensor]:
    """Dequantised float32 weights under Hugging Face's names.

    Raises `UserError` if the file ends before its tensors do, `Unsupported` for a tensor that such a model lacks.
    """
    import torch

    with open(header.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        targets = {}
        for name in header.tensors:
            target = _hf_name(name)
            if target is not None:
                targets[name] = target
            elif name != ROPE_FACTORS:
                raise Unsupported(f"{header.path}: tensor {name!r} is not part of a plain {header.architecture} model")
        # numpy lets go of the interpreter's lock where the work is.
        with ThreadPoolExecutor(min(_THREADS, threads.count())) as executor:
            found = executor.map(lambda name: _dequantise(header, name, header.tensors[name], data), targets)
            state = {target: torch.from_numpy(values) for target, values in zip(targets.values(), found, strict=True)}
    if header.architecture != "llama":
        return state
    heads = header.get("attention.head_count")
    kv_heads = header.get("attention.head_count_kv", heads)
    for name, weight in state.items():
        if name.endswith(("q_proj.weight", "q_proj.bias")):
            state[name] = _unpermute(weight, heads)
        elif name.endswith(("k_proj.weight", "k_proj.bias")):
            state[name] = _unpermute(weight, kv_heads)
    return state


def _dequantise(header: Header, name: str, info: TensorInfo, data: mmap.mmap) -> Any:
    import numpy as np

    gguf = gguf_package()
    kind, size = _storage(header, name, info)
    if info.offset + size > len(data):
        raise _truncated(header, name, info.offset + size, len(data))
    raw = np.frombuffer(data[info.offset : info.offset + size], dtype=np.uint8)
    if kind is gguf.GGMLQuantizationType.F32:
        return raw.view(np.float32).reshape(info.shape).copy()
    if kind is gguf.GGMLQuantizationType.F16:
        return raw.view(np.float16).reshape(info.shape).astype(np.float32)
    try:
        # Corrupt scales give infinities here; the loader names the tensor.
        with np.errstate(all="ignore"):
            return _piecewise(gguf, raw, kind).reshape(info.shape)
    except NotImplementedError:
        raise Unsupported(
            f"{header.path}: tensors of type {kind.name} cannot be dequantised; use another one"
        ) from None


def _piecewise(gguf: Any, raw: Any, kind: Any) -> Any:
    """All values in a row, dequantised piece by piece: what it needs besides stays in the processor's cache."""
    import numpy as np

    block, size = gguf.GGML_QUANT_SIZES[kind]
    values = np.empty(len(raw) // size * block, dtype=np.float32)
    step = max(1, _PIECE // block)
    for start in range(0, len(raw) // size, step):
        piece = raw[start * size : (start + step) * size].reshape(1, -1)
        values[start * block : (start + step) * block] = gguf.dequantize(piece, kind)[0]
    return values


def _storage(header: Header, name: str, info: TensorInfo) -> tuple[Any, int]:
    """Type of a tensor and its size in bytes."""
    gguf = gguf_package()
    try:
        kind = gguf.GGMLQuantizationType(info.kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise UserError(f"{header.path}: tensor {name!r} has the unknown type {info.kind}; it may be corrupt") from None
    if not info.shape or info.shape[-1] % block:
        raise UserError(f"{header.path}: tensor {name!r} of shape {list(info.shape)} cannot be of type {kind.name}")
    return kind, math.prod(info.shape) // block * block_bytes


def _truncated(header: Header, name: str, end: int, size: int) -> UserError:
    return UserError(
        f"{header.path}: this GGUF file is truncated (tensor {name!r} ends at byte {end}, the file at {size}): "
        "copy or download it again"
    )


def check_whole(header: Header) -> None:
    """Raise `UserError` if the file ends before its tensors do."""
    size = header.path.stat().st_size
    for name, info in header.tensors.items():
        end = info.offset + _storage(header, name, info)[1]
        if end > size:
            raise _truncated(header, name, end, size)


def _unpermute(weight: Tensor, heads: int) -> Tensor:
    """Rows of Llama's query or key projection from GGUF's interleaved pairs to Hugging Face's two halves."""
    rows = weight.shape[0]
    if rows % (2 * heads):
        return weight  # the loader's shape check has the better message
    rest = weight.shape[1:]
    return weight.reshape(heads, rows // heads // 2, 2, *rest).transpose(1, 2).reshape(rows, *rest).contiguous()


PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def _hf_name(name: str) -> str | None:
    words = name.split(".")
    if len(words) == 2 and words[0] in TOP:
        return f"{TOP[words[0]]}.{words[1]}"
    if len(words) == 4 and words[0] == "blk" and words[2] in PARTS:
        return f"model.layers.{words[1]}.{PARTS[words[2]]}.{words[3]}"
    return None


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor of a native model."""
    words = name.split(".")
    whole, last = ".".join(words[:-1]), words[-1]
    for theirs, ours in TOP.items():
        if whole == ours:
            return f"{theirs}.{last}"
    parts = {ours: theirs for theirs, ours in PARTS.items()}
    return f"blk.{words[2]}.{parts['.'.join(words[3:-1])]}.{last}"


def formats(header: Header) -> dict[str, Any]:
    """What a file that ponder wrote says of the model's thoughts and tool calls, as in `config.json`; else nothing."""
    text = header.fields.get(FORMATS)
    if text is None:
        return {}
    try:
        return {"ponder": json.loads(text)}
    except (TypeError, ValueError):
        raise UserError(f"{header.path}: the field {FORMATS} is corrupt: copy or download the file again") from None


def decoder_config(header: Header) -> DecoderConfig:
    """Shape of the network. Raises `UserError` for missing fields, `Unsupported` for what `models.decoder` lacks."""
    from ponder.models.architecture import decoder_config as checked
    from ponder.models.architecture import hf_config
    from ponder.models.decoder_config import DecoderConfig

    if header.get("expert_count", 0):
        raise Unsupported(f"{header.path}: a mixture of experts; only dense models are read from GGUF")
    if header.fields.get("split.count", 1) > 1:
        raise Unsupported(f"{header.path}: one part of a split GGUF file: merge the parts with gguf-split first")
    if "token_embd.weight" not in header.tensors:
        raise UserError(f"{header.path}: no tensor 'token_embd.weight'; this GGUF file holds no whole model")
    heads, width = header.get("attention.head_count"), header.get("embedding_length")
    if isinstance(heads, list) or not heads:
        raise Unsupported(f"{header.path}: head_count {heads!r} is not one number for all layers")
    head_dim = header.get("attention.key_length", width // heads)
    rotated = header.get("rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise Unsupported(f"{header.path}: rotary embeddings over {rotated} of {head_dim} dimensions")
    window, context = header.get("attention.sliding_window", 0), header.get("context_length")
    if window and window < context:
        raise Unsupported(
            f"{header.path}: its attention looks back {window} tokens, less than its context of {context}: "
            "give the model's Hugging Face folder instead"
        )
    theta = float(header.get("rope.freq_base", 10000.0))
    config = DecoderConfig(
        vocab_size=header.tensors["token_embd.weight"].shape[0],
        hidden_size=width,
        intermediate_size=header.get("feed_forward_length"),
        num_hidden_layers=header.get("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=header.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=context,
        rms_norm_eps=float(header.get("attention.layer_norm_rms_epsilon")),
        rope_theta=theta,
        rope_scaling=_rope_scaling(header, theta, head_dim),
        tie_word_embeddings="output.weight" not in header.tensors,
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        mlp_bias="blk.0.ffn_up.bias" in header.tensors,
        model_type=header.architecture,
    )
    return checked(hf_config(config), str(header.path))


def _rope_scaling(header: Header, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3's scaling is stored as a factor per frequency; find the settings that give those factors."""
    kind = header.get("rope.scaling.type", "none")
    if ROPE_FACTORS in header.tensors:
        return _llama3_scaling(header, theta, head_dim)
    if kind == "none":
        return {}
    scaling = {"rope_type": kind, "factor": float(header.get("rope.scaling.factor"))}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = header.get("rope.scaling.original_context_length")
        for key in ("beta_fast", "beta_slow"):
            if value := header.get(f"rope.scaling.yarn_{key}", 0):
                scaling[key] = float(value)
        for key in ("attn_factor", "yarn_log_multiplier", "yarn_attn_factor"):
            if header.get(f"rope.scaling.{key}", 0) not in (0, 1):
                raise Unsupported(f"{header.path}: the rotary setting rope.scaling.{key} is not supported")
    return scaling


def _llama3_scaling(header: Header, theta: float, head_dim: int) -> dict[str, Any]:
    import numpy as np

    with open(header.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        stored = _dequantise(header, ROPE_FACTORS, header.tensors[ROPE_FACTORS], data)
    factor = float(stored.max())
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": header.get("rope.scaling.original_context_length", 8192),
    }
    inverse = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    smooth = (scaling["original_max_position_embeddings"] * inverse / (2 * math.pi) - 1.0) / 3.0
    smooth = smooth.clip(0.0, 1.0)
    factors = 1.0 / (smooth + (1 - smooth) / factor)
    if stored.shape != factors.shape or not np.allclose(stored, factors, rtol=1e-3):
        raise Unsupported(f"{header.path}: its rotary factors (rope_freqs) are not those of Llama 3")
    return scaling


def gguf_package() -> Any:
    """The package `gguf`. Raises `MissingExtra` without it."""
    try:
        import gguf
    except ImportError:
        raise MissingExtra("a GGUF file", "hf") from None
    return gguf
