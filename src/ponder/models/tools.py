"""How a model writes tool calls: found from its chat template or its config.

`"ponder": {"tools": {"open": …, "close": …}}` in `config.json` overrides what is found; `"tools": null` there says that
the model calls no tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ponder.errors import UserError
from ponder.types import ToolFormat

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel


def find(model: LoadedModel) -> ToolFormat | None:
    """The tool format of a model; None if it has none. Raises `UserError` for a wrong override in its config.

    Templates with `<tool_call>` are those of Hermes, Qwen and models that follow them: a JSON object between two
    markers. Other formats (Llama's, Mistral's) are not found.
    """
    ponder = model.config.get("ponder")
    if isinstance(ponder, Mapping) and "tools" in ponder:
        value = ponder["tools"]
        if value is None:
            return None
        if isinstance(value, Mapping) and all(isinstance(value.get(k), str) and value[k] for k in ("open", "close")):
            return ToolFormat(value["open"], value["close"])
        raise UserError(
            f"{model.source}/config.json: ponder.tools must be null or have the texts 'open' and 'close'; "
            f"it is {value!r}"
        )
    usual = ToolFormat()
    return usual if usual.open in (model.chat_template or "") else None
