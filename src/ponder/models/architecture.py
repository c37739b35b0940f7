"""Between Hugging Face's `config.json` and `LlamaConfig`.

Reads both spellings of the rotary settings: `rope_theta` with `rope_scaling`, and the `rope_parameters` of
transformers 5. Writes both, so that older tools load what we save.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ponder.errors import Unsupported, UserError

if TYPE_CHECKING:
    from ponder.models.llama import LlamaConfig

ROPE_NEEDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Rotary kinds of `models.llama`, and what each must come with."""
MOST = {"num_hidden_layers": 1024, "max_position_embeddings": 2**22}
"""Beyond any model there is: a garbled file must not take all memory before its weights are looked at."""


def is_native(config: Mapping[str, Any]) -> bool:
    """True if `models.llama` runs this architecture; others take transformers' forward, which is slower."""
    return config.get("model_type") == "llama" and config.get("hidden_act", "silu") in ("silu", "swish")


def llama_config(config: Mapping[str, Any], where: str) -> LlamaConfig:
    """Shape of the network from a `config.json`; `where` names the file in errors.

    Raises `UserError` for a field that is missing or makes no sense, `Unsupported` for a rotary kind that
    `models.llama` has not.
    """
    from ponder.models.llama import LlamaConfig

    width = _positive(config, "hidden_size", where)
    heads = _positive(config, "num_attention_heads", where)
    kv_heads = _positive(config, "num_key_value_heads", where, default=heads)
    if heads % kv_heads:
        raise UserError(f"{where}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    head_dim = _positive(config, "head_dim", where, default=width // heads)
    if head_dim % 2:
        raise UserError(f"{where}: head_dim {head_dim} is odd, which rotary embeddings cannot be")
    theta, scaling = _rope(config, where)
    return LlamaConfig(
        vocab_size=_positive(config, "vocab_size", where),
        hidden_size=width,
        intermediate_size=_positive(config, "intermediate_size", where),
        num_hidden_layers=_positive(config, "num_hidden_layers", where),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=_positive(config, "max_position_embeddings", where, default=2048),
        rms_norm_eps=_number(config, "rms_norm_eps", where, 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        initializer_range=_number(config, "initializer_range", where, 0.02),
    )


def hf_config(config: LlamaConfig) -> dict[str, Any]:
    """`config.json` of a Llama, without token ids and dtype (`save` adds them)."""
    scaling = dict(config.rope_scaling)
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if kind == "default" else {"rope_type": kind, **scaling},
        "rope_parameters": {"rope_type": kind, "rope_theta": config.rope_theta, **scaling},
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "initializer_range": config.initializer_range,
    }


def _rope(config: Mapping[str, Any], where: str) -> tuple[float, dict[str, Any]]:
    new = config.get("rope_parameters") or {}
    scaling = dict(new or config.get("rope_scaling") or {})
    theta = _number({"rope_theta": 10000.0, **config, **new}, "rope_theta", where, 10000.0)
    scaling.pop("rope_theta", None)
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    if kind not in ROPE_NEEDS:
        raise Unsupported(f"{where}: rope type {kind!r} is not supported; supported: {', '.join(ROPE_NEEDS)}")
    partial = scaling.pop("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1, 1.0):
        raise Unsupported(f"{where}: partial_rotary_factor {partial} is not supported; it must be 1")
    for key in ROPE_NEEDS[kind]:
        _number(scaling, key, f"{where}: rope settings of type {kind!r}")
    return theta, {} if kind == "default" else {"rope_type": kind, **{k: scaling[k] for k in ROPE_NEEDS[kind]}}


def _positive(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise UserError(f"{where}: no {key!r} in it, which a Llama model needs")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: {key!r} is {value!r}; it must be a positive whole number")
    if value > MOST.get(key, value):
        raise UserError(f"{where}: {key!r} is {value}, more than {MOST[key]}: the file is garbled or not supported")
    return value


def _number(config: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise UserError(f"{where}: {key!r} is {value!r}; it must be a positive number")
    return float(value)
