"""Engines of the server on localhost for tests, and calls of them."""

from __future__ import annotations

import functools
import ssl

from ponder.engines.openai import OpenAI
from ponder.engines.openai.probe import forget
from ponder.types import Request, SamplingParams, Spend

QUESTION = "2 * 21 ="


@functools.cache
def certificates():
    return ssl.create_default_context()


def fresh(monkeypatch):
    """No probe is remembered, and a client costs little."""
    forget()
    # Reading the system's certificates is most of what a client costs; nothing here is encrypted.
    monkeypatch.setattr("httpcore2.default_ssl_context", lambda **_: certificates())
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")


def offline(server, *can, model="mock", **options):
    """An engine that does not probe; retries come at once."""
    options = {"backoff": 0.0, "template_tokens": 8, "timeout": 20.0, "in_flight_seconds": 0.0} | options
    return OpenAI(server.url, probe=False, capabilities=can, **options).open(model)


def ask(max_tokens=200, n=1, prompt=QUESTION, seed=3, **params):
    return Request(prompt, SamplingParams(max_tokens, seed=seed, **params), n)


def faults(*script):
    """The first calls fail as given, the rest do not."""
    return lambda number, body: script[number] if number < len(script) else None


def spent(completions):
    return sum((c.spend for c in completions), Spend())
