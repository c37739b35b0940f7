"""Prompts from JSON: the one reader of text and chat messages, the inverse of `types.to_json`.

A message is `{"role", "content"}`, and may have `tool_calls`, `tool_call_id`, `name`, `tools` and `ids` as
`types.Message` has them. Tools and calls are read in ponder's own spelling and in that of OpenAI's chat API
(https://platform.openai.com/docs/api-reference/chat): `{"type": "function", "function": {…}}`. Content may be a list of
texts, `{"type": "text", "text": …}`: they become lines, as in vLLM and llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from ponder.errors import UserError
from ponder.types import Message, Prompt, Role, Tool, ToolCall

ROLES: tuple[str, ...] = get_args(Role)
T = TypeVar("T")


def read_prompt(value: Any, where: str) -> Prompt:
    """A prompt: text as it is, or a list of messages. Raises `UserError`, one sentence that begins with `where`."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: the prompt must be text, or a list of objects with role and content")
    return tuple(read_message(m, f"{where}: message {i} of the prompt") for i, m in enumerate(value, 1))


def read_message(value: Any, where: str) -> Message:
    """A message of a chat. Content may be missing (or null) where there are tool calls. Raises `UserError`."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be an object with role and content, and is {_shown(value)}")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise UserError(f"{where}: the role must be {', '.join(ROLES[:-1])} or {ROLES[-1]}, and is {_shown(role)}")
    calls = _each(value.get("tool_calls"), _call, f"{where}: tool_calls")
    if content is None and calls:
        content = ""
    if isinstance(content, list):
        content = "\n".join(_each(content, _part, f"{where}: the content"))
    if not isinstance(content, str):
        raise UserError(f"{where}: the content must be text, and is {_shown(content)}")
    return Message(
        role,
        content,
        calls,
        _text(value, "tool_call_id", where),
        _text(value, "name", where),
        _each(value.get("tools"), read_tool, f"{where}: tools"),
        _each(value.get("ids"), _id, f"{where}: ids"),
    )


def _part(value: Any, where: str) -> str:
    text = value.get("text") if isinstance(value, Mapping) and value.get("type") == "text" else None
    if not isinstance(text, str):
        raise UserError(f"{where} must be text, or a list of texts, and holds {_shown(value)}")
    return text


def read_tool(value: Any, where: str) -> Tool:
    """A tool: name, description, and the JSON schema of its arguments (an object, or as text). Raises `UserError`."""
    function = _function(value, where)
    name, description = _name(function, where), _text(function, "description", where)
    parameters = function.get("parameters")
    if parameters is None:
        return Tool(name, description)
    try:
        return Tool(name, description, _json_text(parameters, f"{where}: parameters"))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _call(value: Any, where: str) -> ToolCall:
    function = _function(value, where)
    arguments = function.get("arguments")
    known = {} if arguments is None else {"arguments": _json_text(arguments, f"{where}: arguments")}
    return ToolCall(_text(value, "id", where), _name(function, where), **known)


def _function(value: Any, where: str) -> Mapping[str, Any]:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping):
        raise UserError(f"{where} must be objects with a name, and hold {_shown(value)}")
    return function


def _name(value: Mapping[str, Any], where: str) -> str:
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: the name must be text, and is {_shown(name)}")
    return name


def _text(value: Mapping[str, Any], field: str, where: str) -> str:
    found = value.get(field)
    if found is not None and not isinstance(found, str):
        raise UserError(f"{where}: {field} must be text, and is {_shown(found)}")
    return found or ""


def _json_text(value: Any, where: str) -> str:
    """JSON as text: as it is (a model's own may be no JSON at all), or written from an object."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be an object, or JSON as text, and is {_shown(value)}")
    return json.dumps(value, ensure_ascii=False)


def _id(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{where} must be whole numbers, and hold {_shown(value)}")
    return value


def _each(value: Any, read: Callable[[Any, str], T], where: str) -> tuple[T, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list, and is {_shown(value)}")
    return tuple(read(v, where) for v in value)


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
