"""The options of an OpenAI-compatible endpoint, checked."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from ponder.errors import UserError, nearest

HOSTED = "https://api.openai.com/v1"
CAPABILITIES = ("n", "logprobs", "seed", "prefix", "thinking")
"""What is probed, and may be declared instead."""


@dataclass(frozen=True)
class EndpointOptions:
    """How an endpoint is reached, asked and counted; `ponder.engines.openai.OpenAI` opens it."""

    base_url: str = ""
    """Such as http://localhost:8000/v1; empty: OPENAI_BASE_URL, or OpenAI's own."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is never written anywhere."""
    organization: str = ""
    """Empty: OPENAI_ORG_ID, if set."""
    project: str = ""
    """Empty: OPENAI_PROJECT_ID, if set."""
    timeout: float = 120.0
    """Seconds without a byte from the endpoint after which a call has failed."""
    concurrency: int = 64
    """Most calls in flight; fewer while the endpoint says that it is too busy."""
    retries: int = 4
    """Most retries of a call, as far as its reservation allows."""
    backoff: float = 0.5
    """Seconds before the first retry where the endpoint gives no Retry-After; doubled each time."""
    max_wait: float = 60.0
    """Longest Retry-After in seconds that is accepted; beyond it the call fails."""
    context: int = 0
    """Most tokens of prompt and response; 0: what the endpoint's model list says, else the endpoint decides."""
    tokenizer: str = ""
    """A tokenizer.json, or a folder that holds one: closer bounds before a call."""
    template_tokens: int = 0
    """Most tokens that the chat template adds to one message; 0: measured by the probe, 128 without it."""
    message_tokens: int = 16
    """Most tokens that the chat template adds to each further message."""
    in_flight_tokens: int = 8
    """Tokens per sample that may have been sampled but not received when a stream is cut: booked in addition."""
    in_flight_seconds: float = 0.2
    """The same in seconds, at the endpoint's fastest rate so far."""
    thought_open: str = "<think>"
    """How thoughts are marked in the response's text; empty: the model shows no thoughts."""
    thought_close: str = "</think>"
    """How the end of a thought is marked."""
    thought_opened: bool = False
    """The chat template opens the thought, and the endpoint leaves it in the text."""
    reasoning_effort: str = ""
    """Sent with each call if not empty: low, medium, high or another value that the endpoint knows."""
    thinking_parameter: str = ""
    """Field of the body that bounds a thought in tokens, dots for nesting; empty: the probe looks for one."""
    limit_field: Literal["", "max_tokens", "max_completion_tokens"] = ""
    """Field of the body that bounds a response; empty: the probe finds it, max_tokens without it."""
    usage: Literal["", "running", "final", "none"] = ""
    """How it counts tokens: with each piece, at the end, not at all (then an upper bound is booked); empty: the probe
    finds it, final without it."""
    body: dict[str, Any] = field(default_factory=dict)
    """Further fields of each request's body."""
    probe: bool = True
    """Find out what it can do with a few short calls when it is first opened, for a quarter of the budget at most."""
    capabilities: tuple[str, ...] = ()
    """Without the probe: what the endpoint can do, of n, logprobs, seed, prefix, thinking."""

    def __post_init__(self) -> None:
        for name, fine, fix in (
            ("timeout", 0 < self.timeout < math.inf, "more than 0 seconds"),
            ("concurrency", self.concurrency >= 1, "at least 1"),
            ("retries", self.retries >= 0, "0 or more"),
            ("backoff", 0 <= self.backoff < math.inf, "0 seconds or more"),
            ("max_wait", 0 <= self.max_wait < math.inf, "0 seconds or more"),
            ("context", self.context >= 0, "0 (not known) or more tokens"),
            ("template_tokens", self.template_tokens >= 0, "0 (not known) or more"),
            ("message_tokens", self.message_tokens >= 0, "0 or more"),
            ("in_flight_tokens", self.in_flight_tokens >= 0, "0 or more"),
            ("in_flight_seconds", 0 <= self.in_flight_seconds < math.inf, "0 or more"),
        ):
            if not fine:
                raise UserError(f"{name} = {getattr(self, name)!r}: give {fix}")
        if bool(self.thought_open) != bool(self.thought_close):
            raise UserError("thought_open and thought_close: give both, or neither")
        for name in self.capabilities:
            if name not in CAPABILITIES:
                raise UserError(f"capabilities: unknown {name!r}{nearest(name, CAPABILITIES)}")
        if self.probe and self.capabilities:
            raise UserError("capabilities need probe = false: the probe finds them out")
        if "thinking" in self.capabilities and not self.thinking_parameter:
            raise UserError("the capability thinking needs thinking_parameter, the field that bounds a thought")
        url = urlsplit(self.url)
        if url.scheme not in ("http", "https") or not url.netloc:
            raise UserError(f"base_url = {self.url!r}: give an address such as http://localhost:8000/v1")

    @property
    def url(self) -> str:
        """The base address of all calls."""
        return (self.base_url or os.environ.get("OPENAI_BASE_URL") or HOSTED).rstrip("/")

    @property
    def key(self) -> str:
        """The key from the environment. Raises `UserError` where one is needed and there is none."""
        key = os.environ.get(self.api_key_env, "").strip()
        if key:
            return key
        if self.url == HOSTED or self.api_key_env != "OPENAI_API_KEY":
            raise UserError(f"{self.url} needs a key: set the environment variable {self.api_key_env}")
        return "none"
