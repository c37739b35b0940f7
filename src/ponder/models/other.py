"""Architectures that `models.decoder` lacks, through transformers' own forward: slower, without a shared cache.

The module keeps Hugging Face's parameter names, so that training, saving and export work as with a native model. Code
that comes with a model folder is never run (`trust_remote_code` is off).
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ponder.errors import MissingExtra, Unsupported, UserError
from ponder.models.cache import WholeRows
from ponder.models.taps import Watch

if TYPE_CHECKING:
    from ponder.models.cache import Cache
    from ponder.models.taps import Taps


class TransformersLM(nn.Module):
    """A transformers causal model as a `CausalLM`.

    Where the head is a plain matrix over the last hidden state, `forward` gives that state and `logits` the head; for
    models that scale or cap their logits, `forward` gives the logits (as "hidden", shape B T V) and `logits` passes
    them on. A probe with random ids at construction decides which.
    """

    taps: tuple[Taps, ...] = ()
    """The taps in place; set by `models.taps.tapped`."""

    whole: list[Any]
    """The transformers model; in a list, so that torch registers only its children, under their own names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.whole = [model]
        for name, child in model.named_children():
            self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self.split = self._head_is_plain()

    def _head_is_plain(self) -> bool:
        model: Any = self.whole[0]
        if model.get_output_embeddings() is None or model.base_model is model:
            return False
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(int(model.config.get_text_config().vocab_size), (1, 6), generator=generator)
        ids = ids.to(next(model.parameters()).device)
        with torch.no_grad():
            whole = model(input_ids=ids, use_cache=False).logits.float()
            self.split = True
            try:
                split = self.logits(self(ids))
            except (AttributeError, TypeError, RuntimeError):
                return False
        return split.shape == whole.shape and torch.allclose(split, whole, rtol=1e-4, atol=1e-4)

    def forward(self, ids_BT: Tensor, positions_BT: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Hidden states (or logits, see the class), shape B T D. Raises `Unsupported` if a cache is given."""
        if cache is not None:
            raise Unsupported("it runs through transformers' forward, which cannot use an engine's cache")
        model: Any = self.whole[0]
        options: dict[str, Any] = {"input_ids": ids_BT, "use_cache": False}
        if positions_BT is not None and self.takes_positions:
            options["position_ids"] = positions_BT
        inner = model.base_model if self.split else model
        out = self._tapped(inner, options, positions_BT) if self.taps else inner(**options)
        return out.last_hidden_state if self.split else out.logits

    def _tapped(self, inner: Any, options: dict[str, Any], positions_BT: Tensor | None) -> Any:
        """The output of `inner`; its hidden states and attention go to the taps (`models.taps`)."""
        ids_BT = options["input_ids"]
        rows, length = ids_BT.shape
        if positions_BT is None:
            positions_BT = torch.arange(length, device=ids_BT.device).expand(rows, length)
        # Attention is not taken from this cache: transformers returns it at the end, layer by layer.
        watch = Watch(self.taps, ids_BT, positions_BT, WholeRows(rows, length))
        states = any(taps.hidden is not None for taps in self.taps)
        maps = any(taps.attention is not None for taps in self.taps)
        with self._eager() if maps else contextlib.nullcontext():
            out = inner(**options, output_hidden_states=states, output_attentions=maps)
        for layer, x_BTD in enumerate(self._each(out, "hidden_states", self.layer_count + 1) if states else ()):
            watch.hidden(layer, x_BTD.flatten(0, 1))
        for layer, weights_BHTT in enumerate(self._each(out, "attentions", self.layer_count) if maps else ()):
            watch.attention(layer, weights_BHTT.detach().float().transpose(1, 2).flatten(0, 1))
        return out

    @property
    def layer_count(self) -> int:
        return int(self.whole[0].config.get_text_config().num_hidden_layers)

    def _each(self, out: Any, what: str, count: int) -> tuple[Tensor, ...]:
        found = tuple(x for x in getattr(out, what, None) or () if isinstance(x, Tensor))
        if len(found) != count:
            raise Unsupported(
                f"transformers' {type(self.whole[0]).__name__} gives {what.replace('_', ' ')} for {len(found)} of "
                f"{count} layers: leave them out of the taps, or put a hook on the modules of interest"
            )
        return found

    @contextlib.contextmanager
    def _eager(self) -> Iterator[None]:
        """Transformers' fused attention kernels give no probabilities."""
        model: Any = self.whole[0]
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        try:
            yield
        finally:
            model.set_attn_implementation(before)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Unnormalised log-probabilities over the vocabulary, shape N V (any leading shape), in float32."""
        return (self.whole[0].get_output_embeddings()(hidden_ND) if self.split else hidden_ND).float()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' warnings and progress bars; errors are reported in one sentence."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_other(folder: str | Path, *, dtype: torch.dtype, device: torch.device, gguf_file: str | None = None) -> Any:
    """Read a model folder (or a GGUF file in it) with transformers; returns transformers' model in eval mode.

    Raises `UserError` for weights that are missing or do not fit and for an architecture that transformers does not
    know, `MissingExtra` without transformers.
    """
    where = Path(folder) / gguf_file if gguf_file else Path(folder)
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise MissingExtra(f"{where} (which ponder does not run natively)", "hf") from None
    more: dict[str, Any] = {"use_safetensors": True}
    if gguf_file:
        from transformers import GgufConfig

        more = {"gguf_file": gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    try:
        with quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # otherwise it prints a table; the report has them
                **more,
            )
    except Exception as error:  # transformers raises many types
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0].rstrip(".:") if lines else type(error).__name__
        raise UserError(f"{where}: transformers cannot load it: {reason}") from None
    # Transformers fills what is missing with random numbers; it checks extra tensors itself.
    for kind, found in (("missing_keys", "missing"), ("mismatched_keys", "of a wrong shape")):
        names = sorted(k if isinstance(k, str) else str(k[0]) for k in report.get(kind) or ())
        if names:
            raise UserError(f"{where}: {len(names)} tensors are {found}, such as {names[0]!r}: copy the model again")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"{where}: tensor {name!r} holds NaN or infinite values: take another copy or checkpoint")
    return model.to(device).eval()
