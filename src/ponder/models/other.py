"""Architectures that `models.decoder` has not, through transformers' own forward: slower, without a shared cache.

The module keeps Hugging Face's parameter names, so that training, saving and export work as they do there. Code
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

if TYPE_CHECKING:
    from ponder.models.decoder import Cache


class TransformersLM(nn.Module):
    """A transformers causal model as a `CausalLM`.

    Where the head is a plain matrix over the last hidden state, `forward` gives that state and `logits` the head; for
    models that scale or cap their logits, `forward` gives the logits (as "hidden", shape B T V) and `logits` passes
    them on. A probe with random ids at construction decides which.
    """

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
                apart = self.logits(self(ids))
            except (AttributeError, TypeError, RuntimeError):
                return False
        return apart.shape == whole.shape and torch.allclose(apart, whole, rtol=1e-4, atol=1e-4)

    def forward(self, ids_BT: Tensor, positions_BT: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Hidden states (or logits, see the class), shape B T D. Raises `Unsupported` if a cache is given."""
        if cache is not None:
            raise Unsupported("this architecture runs through transformers' forward, which takes no cache of ours")
        model: Any = self.whole[0]
        more = {} if positions_BT is None or not self.takes_positions else {"position_ids": positions_BT}
        if self.split:
            return model.base_model(input_ids=ids_BT, use_cache=False, **more).last_hidden_state
        return model(input_ids=ids_BT, use_cache=False, **more).logits

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Unnormalised log-probabilities over the vocabulary, shape N V (any leading shape), in float32."""
        return (self.whole[0].get_output_embeddings()(hidden_ND) if self.split else hidden_ND).float()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' warnings and progress bars off the screen; what is wrong is said in one sentence."""
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
        raise MissingExtra(f"{where} (which ponder does not run by itself)", "hf") from None
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
                ignore_mismatched_sizes=True,  # else it prints a table; the report has them
                **more,
            )
    except Exception as error:  # transformers raises many kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0].rstrip(".:") if lines else type(error).__name__
        raise UserError(f"{where}: transformers cannot load it: {reason}") from None
    # Transformers fills what is missing with random numbers; extra tensors it knows how to judge itself.
    for kind, found in (("missing_keys", "missing"), ("mismatched_keys", "of a wrong shape")):
        names = sorted(k if isinstance(k, str) else str(k[0]) for k in report.get(kind) or ())
        if names:
            raise UserError(f"{where}: {len(names)} tensors are {found}, such as {names[0]!r}: copy the model again")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"{where}: tensor {name!r} holds NaN or infinite values: take another copy or checkpoint")
    return model.to(device).eval()
