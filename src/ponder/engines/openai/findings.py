"""What is known of an endpoint and model: declared by the user or found out by the probe."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ponder.types import Capabilities, to_json


@dataclass(frozen=True, slots=True)
class Findings:
    """Which fields an endpoint takes, and what it can do."""

    n: bool = False
    logprobs: bool = False
    seed: bool = False
    prefix: Literal["", "flags", "plain"] = ""
    """How a response is continued: a last message of the assistant with the flags of vLLM and SGLang, or without."""
    thinking: str = ""
    """Field of the body that bounds a thought in tokens; empty: none does."""
    usage: Literal["running", "final", "none"] = "final"
    """`running`: every piece may carry the usage so far (vLLM, SGLang); `none`: it refuses the field."""
    cuts: bool = False
    """It takes `top_k` and `min_p`; they are sent even when off, so that its own defaults are overridden."""
    limit_field: str = "max_tokens"
    """Or `max_completion_tokens`."""
    template_tokens: int = 128
    context: int = 0
    hidden: bool = False
    """It hides its thoughts: the cost of a cut stream is not known."""
    markers: tuple[tuple[str, int], ...] = ()
    """Tokens of the thought markers as the endpoint counts them."""
    unasked: tuple[str, ...] = ()
    """Capabilities that the budget had no room to probe; they are taken as absent."""
    why: str = ""
    """Cost of the first call that did not fit, and what was left."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            logprobs=self.logprobs,
            seed=self.seed,
            n=self.n,
            prefix=bool(self.prefix),
            thinking=bool(self.thinking),
        )


def written(url: str, findings: Findings) -> dict[str, Any]:
    """Plain values for `recalled`, in another process."""
    return {"endpoint": _name(url), "findings": to_json(findings)}


def recalled(url: str, values: Mapping[str, Any] | None) -> Findings | None:
    """The findings that `written` saved; None if they are of another endpoint or cannot be read."""
    if not values or values.get("endpoint") != _name(url):
        return None
    try:
        return msgspec.convert(values.get("findings"), Findings)
    except msgspec.ValidationError:
        return None


def _name(url: str) -> str:
    # The address itself may hold a secret.
    return hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
