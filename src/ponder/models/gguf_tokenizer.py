"""The tokenizer inside a GGUF file as a `tokenizers.Tokenizer`: byte-level BPE in its common kinds.

A file may hold the whole tokenizer (`tokenizer.huggingface.json`), which is then used as it is. llama.cpp's own fields
are the vocabulary, the merges and the name of a pre-tokenizer (llama.cpp's `LLAMA_VOCAB_PRE_TYPE_*`), not the
pre-tokenizer itself. The kinds known here are rebuilt exactly; any other goes through transformers' converter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ponder.errors import MissingExtra, UserError

if TYPE_CHECKING:
    import tokenizers

    from ponder.models.gguf import Header

CONTROL, USER_DEFINED = 3, 4
HUGGINGFACE = "tokenizer.huggingface.json"
"""The field with a whole `tokenizer.json`, for programs that read that; llama.cpp does not."""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""The split of Llama 3's published tokenizer."""
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
"""The split of Qwen2's: every digit alone."""
KINDS = {
    "smollm": "smollm",
    "gpt-2": "gpt-2",
    "llama-bpe": "llama-bpe",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "qwen2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
}
"""Names of pre-tokenizers that are rebuilt here, and what they are."""


def read_tokenizer(header: Header) -> tokenizers.Tokenizer:
    """Build the tokenizer of a GGUF file. Raises `UserError` if the file has none or a corrupt one."""
    if HUGGINGFACE in header.fields:
        return _published(header)
    kind, pre = header.fields.get("tokenizer.ggml.model"), header.fields.get("tokenizer.ggml.pre", "default")
    if kind is None or "tokenizer.ggml.tokens" not in header.fields:
        raise UserError(f"{header.path}: no tokenizer in this GGUF file; convert the model again with its tokenizer")
    if kind != "gpt2" or pre not in KINDS:
        return _by_transformers(header)
    return rebuilt(header)


def rebuilt(header: Header) -> tokenizers.Tokenizer:
    """A byte-level BPE from the fields of llama.cpp, whose pre-tokenizer is one of `KINDS`. Raises `UserError`."""
    pre = KINDS[header.fields.get("tokenizer.ggml.pre", "default")]
    import tokenizers
    from tokenizers import AddedToken, decoders, models, normalizers

    tokens: list[str] = header.fields["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ", 1)) for m in header.fields.get("tokenizer.ggml.merges", [])]
    try:
        # Llama 3 looks a word up in the vocabulary before it merges.
        model = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=pre == "llama-bpe")
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{header.path}: the tokenizer in this GGUF file is corrupt: {error}") from None
    tokenizer = tokenizers.Tokenizer(model)
    if pre == "qwen2" or header.architecture == "gptneox":
        # As in the published tokenizers; the file does not say it.
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = header.fields.get("tokenizer.ggml.token_type", [])
    added = [
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    bos = special_tokens(header).get("bos_token")
    if bos is not None and header.fields.get("tokenizer.ggml.add_bos_token", False):
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
        )
    return tokenizer


def special_tokens(header: Header) -> dict[str, str]:
    """`bos_token`, `eos_token`, `unk_token`, `pad_token`, those that the file names."""
    tokens = header.fields.get("tokenizer.ggml.tokens", [])
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {f"{short}_token": header.fields.get(f"tokenizer.ggml.{key}_token_id") for short, key in keys.items()}
    return {name: tokens[i] for name, i in ids.items() if isinstance(i, int) and 0 <= i < len(tokens)}


def end_ids(header: Header) -> list[int]:
    """Ids that end a response by the file's own fields: end of text and end of turn."""
    ids = [header.fields.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    return [i for i in ids if isinstance(i, int)]


def _pre_tokenizer(pre: str) -> Any:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if pre == "smollm":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)])
    if pre in ("llama-bpe", "qwen2"):
        split = Split(Regex(LLAMA3 if pre == "llama-bpe" else QWEN2), "isolated")
        return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    return ByteLevel(add_prefix_space=False, use_regex=True)


def _published(header: Header) -> tokenizers.Tokenizer:
    """The tokenizer that the file holds whole."""
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(header.fields[HUGGINGFACE])
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{header.path}: {HUGGINGFACE} in this GGUF file is corrupt: {error}") from None


def _by_transformers(header: Header) -> tokenizers.Tokenizer:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtra(f"the tokenizer of {header.path}", "hf") from None
    try:
        loaded = AutoTokenizer.from_pretrained(str(header.path.parent), gguf_file=header.path.name)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{header.path}: transformers cannot read its tokenizer: {reason}") from None
    return loaded.backend_tokenizer
