"""From weights, a tokenizer and settings to a `LoadedModel`, with all checks for broken folders."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ponder.errors import UserError, nearest
from ponder.models import thought, tools
from ponder.models.base import LoadedModel, forward_flops
from ponder.models.tokenizer import FastTokenizer
from ponder.models.weights import all_finite
from ponder.types import Message, ModelInfo

if TYPE_CHECKING:
    import tokenizers
    import torch
    from torch import Tensor, nn

    from ponder.models.decoder import DecoderLM
    from ponder.models.decoder_config import DecoderConfig

DTYPES = ("float32", "bfloat16", "float16")
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>")
"""Tokens that end a document in every family that has them."""


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of that name. Raises `UserError` for another."""
    import torch

    if name not in DTYPES:
        raise UserError(f"dtype {name!r}: weights are float{nearest(name, DTYPES)}")
    return getattr(torch, name)


def torch_device(name: str | torch.device | None) -> torch.device:
    """The device of that name; None or `auto` is the first CUDA device if there is one, else the CPU."""
    import torch

    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r} is not known to torch; try auto, cpu or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {str(name)!r}: torch sees no CUDA device here; use cpu")
    return device


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Modules made here have shapes and no values: on the meta device, and their initialisation is skipped.

    Initialising them there would import torch's compiler, which takes seconds.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Skip(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if getattr(func, "__module__", None) == "torch.nn.init":
                return args[0] if args else kwargs["tensor"]
            return func(*args, **kwargs)

    with torch.device("meta"), Skip():
        yield


def decoder_module(
    config: DecoderConfig, state: dict[str, Tensor], *, dtype: str, device: str | torch.device | None, where: str
) -> DecoderLM:
    """A decoder with these weights (the dictionary is emptied, so that memory holds the weights once).

    Raises `UserError` for a tensor that is missing, too many, of the wrong shape or not finite; `where` names the file.
    """

    from ponder.models import rope
    from ponder.models.decoder import DecoderLM

    kind, place = torch_dtype(dtype), torch_device(device)
    with without_values():
        module = DecoderLM(config)
    wanted = {name: p.shape for name, p in module.named_parameters()}
    _fit(state, wanted, config, where)
    ready = {}
    for name in list(state):
        weight = state.pop(name)
        if not all_finite(weight):
            raise UserError(f"{where}: tensor {name!r} holds NaN or infinite values: take another copy or checkpoint")
        ready[name] = weight.to(place, kind)
    module.load_state_dict(ready, strict=False, assign=True)
    if config.tie_word_embeddings:
        module.lm_head.weight = module.model.embed_tokens.weight
    module.rope_table = rope.table(config).to(place)
    return module.eval()


def _fit(state: dict[str, Tensor], wanted: Mapping[str, torch.Size], config: DecoderConfig, where: str) -> None:
    # Old checkpoints contain this buffer; it follows from the config.
    for name in [n for n in state if n.endswith("rotary_emb.inv_freq")]:
        del state[name]
    if config.tie_word_embeddings and "lm_head.weight" in state:
        head, embedding = state.pop("lm_head.weight"), state.get("model.embed_tokens.weight")
        if embedding is not None and not (head.shape == embedding.shape and bool((head == embedding).all())):
            raise UserError(
                f"{where}: lm_head.weight differs from the embeddings although config.json ties them: "
                "set tie_word_embeddings to false"
            )
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing:
        raise UserError(f"{where}: {_listed('tensor', missing)} missing: copy the whole model again")
    if extra:
        raise UserError(
            f"{where}: {_listed('tensor', extra)} not part of the model that config.json describes: "
            "take the config.json that belongs to these weights"
        )
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise UserError(
                f"{where}: tensor {name!r} has shape {list(state[name].shape)} where config.json asks for "
                f"{list(shape)}: take the config.json that belongs to these weights"
            )
        if not state[name].is_floating_point():
            raise UserError(f"{where}: tensor {name!r} is of type {state[name].dtype}: quantised weights are not read")


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more are" if len(names) > 3 else " is" if len(names) == 1 else " are"
    return f"{what}{'' if len(names) == 1 else 's'} {', '.join(map(repr, names[:3]))}{more}"


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that determine a model's cost and limits, whatever its architecture calls them."""

    rows: int
    """Embeddings: the size of the vocabulary, padding included."""
    width: int
    context: int
    tied: bool

    @classmethod
    def of(cls, config: DecoderConfig) -> Shape:
        return cls(config.vocab_size, config.hidden_size, config.max_position_embeddings, config.tie_word_embeddings)


def assemble(
    module: nn.Module,
    tokenizer: tokenizers.Tokenizer,
    shape: Shape,
    *,
    name: str,
    source: str,
    config: dict[str, Any],
    chat_template: str | None,
    special_tokens: Mapping[str, str],
    end_ids: Iterable[int],
    supports_cache: bool,
) -> LoadedModel:
    """Assemble a model and derive from its parts: end ids, begin and pad token, thought, tool calls, cost.

    Raises `UserError` if the tokenizer has more tokens than the model has embeddings.
    """
    rows = shape.rows
    if tokenizer.get_vocab_size(with_added_tokens=False) > rows:
        raise UserError(
            f"{source}: the tokenizer has {tokenizer.get_vocab_size(with_added_tokens=False)} tokens and the model "
            f"{rows} embeddings: take the tokenizer that belongs to the model"
        )
    bos = tokenizer.token_to_id(special_tokens["bos_token"]) if "bos_token" in special_tokens else None
    begins = tokenizer.encode("a", add_special_tokens=True).ids[:1] == [bos]
    fast = FastTokenizer(tokenizer)
    pad = fast.id_of(special_tokens.get("pad_token", ""))
    parameters = sum(p.numel() for p in module.parameters())
    tables = rows * shape.width * (1 if shape.tied else 2)
    flops = forward_flops(shape.width, 0, parameters - tables, rows, 0)
    model = LoadedModel(
        module=module,
        tokenizer=fast,
        info=ModelInfo(name, shape.context, parameters, flops, None, chat_template is not None),
        end_ids=(),
        chat_template=chat_template,
        bos_id=bos if begins else None,
        pad_id=pad if pad is not None and pad < rows else 0,
        special_tokens=dict(special_tokens),
        config=config,
        supports_cache=supports_cache,
        source=source,
    )
    model.end_ids = _end_ids(model, end_ids, rows)
    model.info = dataclasses.replace(model.info, thought=thought.find(model), tools=tools.find(model))
    return model


def _end_ids(model: LoadedModel, given: Iterable[int], rows: int) -> tuple[int, ...]:
    texts = [model.special_tokens.get("eos_token", ""), *(t for t in END_OF_TEXT if t in model.tokenizer.markers)]
    ids = [*given, *(model.tokenizer.id_of(t) for t in texts), _turn_end(model)]
    return tuple(dict.fromkeys(i for i in ids if i is not None and 0 <= i < rows))


def _turn_end(model: LoadedModel) -> int | None:
    """The marker that the chat template puts after an assistant message."""
    if model.chat_template is None:
        return None
    said = "\ue002"
    try:
        text = model.render([Message("user", "Hi"), Message("assistant", said), Message("user", "Hi")])
    except UserError:
        return None
    after = text.partition(said)[2]
    found = [m for m in model.tokenizer.markers if after.startswith(m)]
    return model.tokenizer.id_of(max(found, key=len)) if found else None
