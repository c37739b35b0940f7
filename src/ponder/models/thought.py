"""How a model marks its thought: found from its vocabulary, its chat template, or its config.

`"ponder": {"thought": {"open": …, "close": …, "opened_by_template": …}}` in `config.json` overrides what is found;
`"thought": null` there says that the model marks no thoughts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ponder.errors import UserError
from ponder.types import Message, ThoughtFormat

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel

KNOWN = (
    ("<think>", "</think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
"""Marker pairs in use: DeepSeek-R1, Qwen3 and many more; Sky-T1; and others."""


def find(model: LoadedModel) -> ThoughtFormat | None:
    """The thought format of a model; None if it has none. Raises `UserError` for a wrong override in its config."""
    ponder = model.config.get("ponder")
    if isinstance(ponder, Mapping) and "thought" in ponder:
        return _override(ponder["thought"], model.source)
    for opening, closing in KNOWN:
        if _has(model, opening) and _has(model, closing):
            return ThoughtFormat(opening, closing, opened_by_template=_opened(model, opening))
    return None


def _has(model: LoadedModel, marker: str) -> bool:
    return model.tokenizer.id_of(marker) is not None or marker in (model.chat_template or "")


def _opened(model: LoadedModel, opening: str) -> bool:
    if model.chat_template is None:
        return False
    try:
        return model.render([Message("user", "Hi")]).rstrip().endswith(opening)
    except UserError:
        # A template that refuses a plain question raises again, with its reason, when it is used.
        return False


def _override(value: Any, source: str) -> ThoughtFormat | None:
    if value is None:
        return None
    fine = isinstance(value, Mapping) and all(isinstance(value.get(k), str) and value[k] for k in ("open", "close"))
    if not fine or not isinstance(value.get("opened_by_template", False), bool):
        raise UserError(
            f"{source}/config.json: ponder.thought must be null or have the texts 'open' and 'close' "
            f"and, if wanted, 'opened_by_template' true or false; it is {value!r}"
        )
    return ThoughtFormat(value["open"], value["close"], value.get("opened_by_template", False))
