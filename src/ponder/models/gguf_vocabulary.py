"""The tokenizer of a model as fields of a GGUF file.

The whole `tokenizer.json` goes into `tokenizer.huggingface.json`, which ponder reads, so ids stay what they were. For
llama.cpp there are its own fields besides, where it has such a tokenizer: byte-level BPE with a pre-tokenizer that
`models.gguf_tokenizer` knows by name, and SentencePiece's BPE. The name is found by trial: it is the one whose
tokenizer gives the same ids for texts on which they differ, as llama.cpp's converter finds it too.

Source: the GGUF specification (ggml's docs/gguf.md); llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder.models.base import LoadedModel
from ponder.models.gguf import Header
from ponder.models.gguf_tokenizer import CONTROL, HUGGINGFACE, KINDS, USER_DEFINED, rebuilt

if TYPE_CHECKING:
    import tokenizers

NORMAL, UNKNOWN, UNUSED, BYTE = 1, 2, 5, 6
SPACE = "\u2581"
"""SentencePiece's sign of a space."""
TEXTS = (
    "Hello  world, it's 3.14159 and 1234567 o'clock: I'LL don't",
    "lines\n\n\nand\t\ttabs \r\n 12\n\n3   ",
    "naïve cafe\u0301 ßẞ 日本語 한국어 Русский ﷺ \u1100\u1161 \u212b",
    "👩‍👩‍👧‍👦 🎉 <|im_end|> $\\frac{1}{2}$ def f(x):\n    return x**2\n!!!???",
)
"""Texts on which pre-tokenizers differ: spaces, line ends, digits, contractions, scripts, composed letters, signs."""


def add(writer: Any, model: LoadedModel, rows: int) -> str | None:
    """Add the tokenizer, the special tokens and the chat template; `rows` is the number of embeddings.

    Returns what is missing for other programs, as a sentence, or None.
    """
    import tokenizers

    text = model.tokenizer.to_json()  # type: ignore[attr-defined]
    tokenizer, saved = tokenizers.Tokenizer.from_str(text), json.loads(text)
    writer.add_string(HUGGINGFACE, text)
    _add_ids(writer, model)
    if model.chat_template is not None:
        writer.add_chat_template(model.chat_template)
    tokens, kinds = _vocabulary(saved, rows)
    writer.add_token_list(tokens)
    fields = _byte_level(tokenizer, saved, tokens, kinds) or _sentencepiece(saved, tokens, kinds)
    if fields is None:
        writer.add_tokenizer_model("none")
        return (
            f"llama.cpp has no tokenizer like that of {model.info.name}: with this file it takes ids, and no text "
            "(ponder reads the tokenizer from it)"
        )
    writer.add_tokenizer_model(fields["model"])
    writer.add_tokenizer_pre(fields["pre"])
    writer.add_token_types(fields["token_type"])
    if "scores" in fields:
        writer.add_token_scores(fields["scores"])
        writer.add_add_space_prefix(fields["add_space_prefix"])
    else:
        writer.add_token_merges(fields["merges"])
    return None


def _add_ids(writer: Any, model: LoadedModel) -> None:
    """Begin, padding and unknown token, and up to three that end a response."""
    named = {name: model.tokenizer.id_of(text) for name, text in model.special_tokens.items()}
    for name, add_id in (
        ("bos_token", writer.add_bos_token_id),
        ("unk_token", writer.add_unk_token_id),
        ("pad_token", writer.add_pad_token_id),
    ):
        if (i := named.get(name)) is not None:
            add_id(i)
    writer.add_add_bos_token(model.bos_id is not None)
    end = named.get("eos_token")
    ends = dict.fromkeys([*([] if end is None else [end]), *model.end_ids])
    adds = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for i, add_id in zip(ends, adds, strict=False):
        add_id(i)


def _vocabulary(saved: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """The spelling and the kind of every id; ids that only the embeddings have are unused."""
    tokens = [f"[PAD{i}]" for i in range(rows)]
    kinds = [UNUSED] * rows
    for token, i in saved["model"]["vocab"].items():
        tokens[i], kinds[i] = token, NORMAL
    for added in saved["added_tokens"]:
        if added["id"] < rows:
            tokens[added["id"]] = added["content"]
            kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return tokens, kinds


def _byte_level(
    tokenizer: tokenizers.Tokenizer, saved: dict[str, Any], tokens: list[str], kinds: list[int]
) -> dict[str, Any] | None:
    """Fields of a byte-level BPE; None if it is another kind, or none of the pre-tokenizers gives its ids."""
    if saved["model"]["type"] != "BPE" or (saved.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    merges = [m if isinstance(m, str) else " ".join(m) for m in saved["model"]["merges"]]
    wanted = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    for pre in dict.fromkeys(KINDS.values()):
        fields = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": kinds, "merges": merges}
        again = rebuilt(Header(Path(), {f"tokenizer.ggml.{key}": value for key, value in fields.items()}, {}))
        if [again.encode(text, add_special_tokens=False).ids for text in TEXTS] == wanted:
            return fields
    return None


def _sentencepiece(saved: dict[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any] | None:
    """Fields of SentencePiece's BPE with byte fallback (Llama 2, Mistral 7B); None if it is another kind.

    llama.cpp merges the pair whose piece has the highest score; a merge's rank, negated, gives the same order.
    """
    model = saved["model"]
    if model["type"] != "BPE" or not model.get("byte_fallback") or SPACE not in model["vocab"]:
        return None
    kinds = list(kinds)
    unknown = model.get("unk_token")
    for i, token in enumerate(tokens):
        if token == unknown:
            kinds[i] = UNKNOWN
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[i] = BYTE
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(merge.split(" ", 1) if isinstance(merge, str) else merge), rank)
    # Single characters come last; markers and bytes are not merged.
    scores = [-float(ranks.get(t, 1e6)) if k == NORMAL else 0.0 for t, k in zip(tokens, kinds, strict=True)]
    prefix = json.dumps([saved.get("normalizer"), saved.get("pre_tokenizer")])
    return {
        "model": "llama",
        "pre": "default",
        "token_type": kinds,
        "scores": scores,
        "add_space_prefix": '"Prepend"' in prefix or '"prepend_scheme": "first"' in prefix or '"always"' in prefix,
    }
