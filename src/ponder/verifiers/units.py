"""Units of measurement in one spelling, so that `square centimeters` and `cm^{2}` are the same."""

from __future__ import annotations

import re
from functools import lru_cache

_SHORT = {
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
    "kilometer": "km",
    "inch": "in",
    "inche": "in",
    "foot": "ft",
    "feet": "ft",
    "yard": "yd",
    "mile": "mi",
    "gram": "g",
    "kilogram": "kg",
    "pound": "lb",
    "ounce": "oz",
    "second": "s",
    "sec": "s",
    "minute": "min",
    "hour": "h",
    "hr": "h",
    "liter": "l",
    "milliliter": "ml",
    "dollar": "$",
    "cent": "\u00a2",
    "degree": "\u00b0",
    "mph": "mi/h",
    "milesperhour": "mi/h",
}
_POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}


@lru_cache(maxsize=4096)
def unit(text: str) -> str:
    """One spelling of a unit; a word that is no unit stays as it is, in small letters and without a plural."""
    text = re.sub(r"[{}\s]", " ", text.casefold().replace("metre", "meter").replace("litre", "liter"))
    words: list[str] = []
    power = ""
    for word in re.findall(r"[a-z]+|\S", text):
        if word in _POWERS:
            power = _POWERS[word]
            continue
        stem = word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
        words.append("/" if word == "per" else _SHORT.get(stem, stem))
        if power:
            words += ["^", power]
            power = ""
    return "".join(words)
