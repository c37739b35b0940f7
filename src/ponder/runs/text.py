"""Untrusted text, made safe to show."""

from __future__ import annotations

from typing import Any

MOST_CHARACTERS = 4000
"""Of one model response in a report; the run directory has the whole."""


def visible(text: Any, most: int = MOST_CHARACTERS) -> str:
    """Untrusted text with everything that a page or an editor would act on made visible.

    Control characters become their pictures, lone surrogates and direction overrides their escapes; long texts are cut.
    """
    text = text if isinstance(text, str) else str(text)
    cut = f"… ({len(text) - most:,} more characters)" if len(text) > most else ""
    return "".join(_visible(c) for c in text[:most]) + cut


def _visible(c: str) -> str:
    code = ord(c)
    if c in "\n\t" or 0x20 <= code < 0x7F:
        return c
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if code < 0xA0:
        return f"\\x{code:02x}"
    if 0xD800 <= code <= 0xDFFF or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069 or code in (0x200E, 0x200F):
        return f"\\u{code:04x}"
    return c
