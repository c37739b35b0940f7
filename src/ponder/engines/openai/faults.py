"""Errors of an endpoint: who caused it, whether to retry, and whether anything was sampled."""

from __future__ import annotations

import dataclasses
import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ponder.engines.openai.parts import Malformed
from ponder.errors import Retryable, UserError

_TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_BEFORE_ANY_WORK = {409, 425, 429, 500, 503, 529}
"""The others come from gateways, whose back end may have computed something."""

_REFUSALS = ("invalid_request_error", "BadRequestError")


class EndpointFailed(Retryable):
    """An infrastructure error: an endpoint failed at each attempt.

    Where only its reservation was used up, it may be retried with another one (`attempts_left`).
    """


@dataclass(frozen=True, slots=True)
class Fault:
    """One failed attempt."""

    sentence: str
    retry: bool = True
    worked: bool = True
    """The endpoint may have computed something."""
    busy: bool = False
    """It asks for fewer calls."""
    wait: float | None = None
    """Seconds that it asks to wait."""
    refusal: bool = False
    """The request is at fault, not the endpoint."""


def read(error: Exception, key_env: str, key: str) -> Fault:
    """Classify an exception of the client. No sentence holds the key."""
    fault = _read(error, key_env)
    if key and key in fault.sentence:
        fault = dataclasses.replace(fault, sentence=fault.sentence.replace(key, "***"))
    return fault


def _read(error: Exception, key_env: str) -> Fault:
    import openai

    if isinstance(error, openai.APIStatusError):
        return _status(error, key_env)
    if isinstance(error, openai.APIConnectionError):
        cause = type(error.__cause__).__name__
        sent = cause not in ("ConnectError", "ConnectTimeout", "PoolTimeout")
        if isinstance(error, openai.APITimeoutError):
            return Fault("it timed out", worked=sent)
        return Fault(f"the connection failed ({error.__cause__ or error})", worked=sent)
    if isinstance(error, openai.APIError):
        code = error.code or ""
        refused = error.type in _REFUSALS or (code.startswith("4") and code not in ("408", "429"))
        return Fault(f"it ended the stream with the error: {error.message}", retry=not refused, refusal=refused)
    if isinstance(error, Malformed):
        return Fault(str(error))
    if isinstance(error, ValueError):
        return Fault(f"it sent something unreadable: {error}")
    return Fault(f"{type(error).__name__}: {error}", retry=False)


def _status(error: Any, key_env: str) -> Fault:
    status, said = error.status_code, _said(error)
    sentence = f"status {status}: {said}"
    if status in (401, 403):
        return Fault(f"{sentence}; check the key in {key_env}", retry=False, worked=False, refusal=True)
    if error.code == "insufficient_quota":
        return Fault(sentence, retry=False, worked=False)
    if status in _TRANSIENT:
        return Fault(
            sentence,
            worked=status not in _BEFORE_ANY_WORK,
            busy=status in (429, 503, 529),
            wait=retry_after(error.response.headers),
        )
    return Fault(sentence, retry=False, worked=False, refusal=400 <= status < 500)


def _said(error: Any) -> str:
    """The endpoint's own message."""
    body = error.body
    for value in (body.get("message"), body.get("detail"), body.get("error")) if isinstance(body, Mapping) else ():
        if isinstance(value, str) and value:
            return value
    text = str(body or error.message).strip()
    return text if len(text) <= 500 else f"{text[:500]}…"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait from `retry-after-ms` or `Retry-After` (seconds or a date; RFC 9110, §10.2.3)."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except ValueError:
                continue
        if seconds == seconds:
            return max(0.0, seconds)
    return None


def refuse(url: str, fault: Fault) -> UserError:
    """The error for a request that the endpoint will not accept."""
    return UserError(f"{url} refuses the request: {fault.sentence}")
