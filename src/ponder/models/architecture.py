"""Between Hugging Face's `config.json` and `DecoderConfig`: which models run natively, and how they are saved.

Reads both spellings of the rotary settings: `rope_theta` with `rope_scaling`, and the `rope_parameters` of
transformers 5. Writes both, so that older tools load what ponder saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ponder.errors import Unsupported, UserError

if TYPE_CHECKING:
    from ponder.models.decoder_config import DecoderConfig


@dataclass(frozen=True, slots=True)
class Family:
    """How transformers' class of an architecture differs from the others that `models.decoder` runs."""

    architecture: str
    """The class, as `config.json` names it."""
    context: int
    """Its `max_position_embeddings` when `config.json` gives none."""
    attention_bias: bool | None = None
    """Of queries, keys and values; None if `config.json` says, then for the output projection too."""
    mlp_bias: bool = False
    """`config.json` has an `mlp_bias`."""
    qk_norm: bool = False
    head_dim: int | None = None
    """When `config.json` gives none; None is hidden_size / num_attention_heads."""
    window: str | None = None
    """The switch of sliding windows: a field of `config.json`, "" for always on, None for a family without them."""


FAMILIES = {
    "llama": Family("LlamaForCausalLM", context=2048, mlp_bias=True),
    "mistral": Family("MistralForCausalLM", context=131_072, attention_bias=False, window=""),
    "qwen2": Family("Qwen2ForCausalLM", context=32_768, attention_bias=True, window="use_sliding_window"),
    "qwen3": Family("Qwen3ForCausalLM", context=32_768, qk_norm=True, head_dim=128, window="use_sliding_window"),
}
"""By `model_type`."""

ROPE_NEEDS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
"""Rotary kinds of `models.rope`, and the settings that each requires."""
ROPE_MAY = {"yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")}
"""Optional settings of each kind."""
MOST = {"num_hidden_layers": 1024, "max_position_embeddings": 2**22}
"""More than any existing model has: a corrupt file must not take all memory before its weights are read."""


def why_not_native(config: Mapping[str, Any], where: str = "config.json") -> str | None:
    """Why a model runs through transformers' forward, which is slower; None if `models.decoder` runs it.

    A clause for a sentence, such as `its architecture is 'gpt2'`. Raises `UserError` for a field that makes no sense.
    """
    kind = config.get("model_type")
    family = FAMILIES.get(str(kind))
    if family is None:
        return f"its architecture is {kind!r}"
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        return f"its activation is {config['hidden_act']!r}"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping) or any(isinstance(v, Mapping) for v in rope.values()):
        return "its rotary settings are not one table"
    rotary = rope.get("rope_type") or rope.get("type") or "default"
    if rotary not in ROPE_NEEDS:
        return f"its rotary embeddings are of type {rotary!r}"
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        return f"its rotary embeddings rotate a share of {partial} of each head"
    window, context = _window(config, family), _context(config, where)
    if window is not None and window < context:
        return f"its attention looks back {window} tokens, less than its context of {context}"
    return None


def _window(config: Mapping[str, Any], family: Family) -> int | None:
    """The sliding window of any layer, in tokens; None if every layer sees all."""
    if family.window is None or (family.window and not config.get(family.window, False)):
        return None
    window = config.get("sliding_window", 4096)
    if not isinstance(window, int):
        return None
    if family.window:
        # Qwen's layers may differ: by name, or from some layer on.
        kinds, layers, first = (config.get(k) for k in ("layer_types", "num_hidden_layers", "max_window_layers"))
        if isinstance(kinds, list):
            return window if "sliding_attention" in kinds else None
        if isinstance(layers, int) and layers <= (first if isinstance(first, int) else 28):
            return None
    return window


def decoder_config(config: Mapping[str, Any], where: str) -> DecoderConfig:
    """Shape of the network from a `config.json`; `where` names the file in errors.

    Raises `UserError` for a field that is missing or makes no sense, `Unsupported` for what `models.decoder` lacks.
    """
    from ponder.models.decoder_config import DecoderConfig

    if reason := why_not_native(config, where):
        raise Unsupported(f"{where}: not a model that ponder runs natively: {reason}")
    kind = config["model_type"]
    family = FAMILIES[kind]
    width = _positive(config, "hidden_size", where)
    heads = _positive(config, "num_attention_heads", where)
    # Families other than Llama have other defaults here, which no published model relies on.
    shared = heads if kind == "llama" or "num_key_value_heads" in config else None
    kv_heads = _positive(config, "num_key_value_heads", where, default=shared)
    if heads % kv_heads:
        raise UserError(f"{where}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    head_dim = _positive(config, "head_dim", where, default=family.head_dim or width // heads)
    if head_dim % 2:
        raise UserError(f"{where}: head_dim {head_dim} is odd, which rotary embeddings cannot be")
    theta, scaling = _rope(config, where)
    bias = bool(config.get("attention_bias", False)) if family.attention_bias is None else family.attention_bias
    return DecoderConfig(
        vocab_size=_positive(config, "vocab_size", where),
        hidden_size=width,
        intermediate_size=_positive(config, "intermediate_size", where),
        num_hidden_layers=_positive(config, "num_hidden_layers", where),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=_context(config, where),
        rms_norm_eps=_number(config, "rms_norm_eps", where, 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bias,
        output_bias=bias and family.attention_bias is None,
        mlp_bias=family.mlp_bias and bool(config.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
        initializer_range=_number(config, "initializer_range", where, 0.02),
        model_type=kind,
    )


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """`config.json` of a model, without token ids and dtype (`save` adds them)."""
    scaling = dict(config.rope_scaling)
    kind = scaling.pop("rope_type", "default")
    family = FAMILIES[config.model_type]
    own: dict[str, Any] = {}
    if family.attention_bias is None:
        own["attention_bias"] = config.attention_bias
    if family.mlp_bias:
        own["mlp_bias"] = config.mlp_bias
    if family.window is not None:
        own["sliding_window"] = None
    if family.window:
        own[family.window] = False
    return {
        "architectures": [family.architecture],
        "model_type": config.model_type,
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
        **own,
        "initializer_range": config.initializer_range,
    }


def _rope(config: Mapping[str, Any], where: str) -> tuple[float, dict[str, Any]]:
    new = config.get("rope_parameters") or {}
    scaling = dict(new or config.get("rope_scaling") or {})
    theta = _number({"rope_theta": 10000.0, **config, **new}, "rope_theta", where, 10000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    needs = ROPE_NEEDS[kind]
    if "original_max_position_embeddings" in needs:
        # As transformers: next to the settings, or within them, or the whole context.
        old = config.get("original_max_position_embeddings", scaling.get("original_max_position_embeddings"))
        scaling["original_max_position_embeddings"] = config.get("max_position_embeddings") if old is None else old
    for key in needs:
        _number(scaling, key, f"{where}: rope settings of type {kind!r}")
    kept = [*needs, *(k for k in ROPE_MAY.get(kind, ()) if scaling.get(k) is not None)]
    return theta, {} if kind == "default" else {"rope_type": kind, **{k: scaling[k] for k in kept}}


def _context(config: Mapping[str, Any], where: str) -> int:
    """Most tokens of a row. YaRN's own length is used where it is longer: Qwen's files keep the shorter one."""
    key = "max_position_embeddings"
    context = _positive(config, key, where, default=FAMILIES[config["model_type"]].context)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (rope.get("rope_type") or rope.get("type")) != "yarn":
        return context
    factor, old = rope.get("factor"), rope.get("original_max_position_embeddings")
    if isinstance(factor, int | float) and isinstance(old, int) and 1 <= factor * old <= MOST[key]:
        context = max(context, int(factor * old))
    return context


def _positive(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        kind = str(config.get("model_type", "this")).capitalize()
        raise UserError(f"{where}: no {key!r} in it, which a {kind} model needs")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: {key!r} is {value!r}; it must be a positive whole number")
    if value > MOST.get(key, value):
        raise UserError(f"{where}: {key!r} is {value}, more than {MOST[key]}: the file is corrupt or not supported")
    return value


def _number(config: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise UserError(f"{where}: {key!r} is {value!r}; it must be a positive number")
    return float(value)
