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
    """How an endpoint wants to be asked, and what it can do."""

    n: bool = False
    logprobs: bool = False
    seed: bool = False
    prefix: Literal["", "flags", "plain"] = ""
    """How a response is continued: a last message of the assistant with the flags of vLLM and SGLang, or by itself."""
    thinking: str = ""
    """Field of the body that bounds a thought in tokens; empty: none does."""
    usage: Literal["running", "final", "none"] = "final"
    """`running`: every piece may carry the usage so far (vLLM, SGLang); `none`: the field that asks is refused."""
    cuts: bool = False
    """It takes `top_k` and `min_p`; so that none of its own are applied, they are sent when they are off, too."""
    limit_field: str = "max_tokens"
    """Or `max_completion_tokens`."""
    template_tokens: int = 128
    context: int = 0
    hidden: bool = False
    """It thinks where nobody sees it: what a cut stream has cost is not known."""
    markers: tuple[tuple[str, int], ...] = ()
    """Tokens of the thought markers as the endpoint counts them."""
    unasked: tuple[str, ...] = ()
    """Capabilities that a budget left no room to find out; they are taken as absent."""
    why: str = ""
    """What the first of them would have cost, and what was left."""

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
    """What `written` made of the findings; None if they are of another endpoint or cannot be read."""
    if not values or values.get("endpoint") != _name(url):
        return None
    try:
        return msgspec.convert(values.get("findings"), Findings)
    except msgspec.ValidationError:
        return None


def _name(url: str) -> str:
    # The address itself may hold a secret.
    return hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
