"""`ponder-tiny`: the tokenizer, templates and shape of the built-in base model.

The tokenizer is fixed for all that comes later: numbers 0 to 99 (and 00 to 09) are one token each, longer numbers are
pairs of digits from the right (1234 is 12 34), letters, punctuation, space and newline are one token each, any other
character falls back to its UTF-8 bytes, and markers stand for chat roles, thought, tool call and tool result.
It is an ordinary `tokenizer.json` (byte-fallback BPE), so that Hugging Face's libraries load it.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

from ponder.types import ThoughtFormat

if TYPE_CHECKING:
    import tokenizers

    from ponder.models.llama import LlamaConfig

END = "<|end|>"
PAD = "<|pad|>"
MARKERS = (
    PAD,
    END,
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_result>",
    "</tool_result>",
    *(f"<|reserved{i}|>" for i in range(8)),
)
VOCAB_SIZE = 512
"""Padded to a round number; ids past the tokenizer's are never trained towards."""

THOUGHT = ThoughtFormat("<think>", "</think>", opened_by_template=True)
TEMPLATE = (
    "{%- for m in messages -%}"
    "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|><think>{%- endif -%}"
)


def build_tokenizer() -> tokenizers.Tokenizer:
    """Make the tokenizer from nothing; the shipped `tokenizer.json` is this one."""
    import tokenizers
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

    characters = [*string.digits, *string.ascii_letters, *string.punctuation, " ", "\n"]
    pairs = [a + b for a in string.digits for b in string.digits]
    vocab: dict[str, int] = {}
    for token in [*MARKERS, *(f"<0x{i:02X}>" for i in range(256)), *characters, *pairs]:
        vocab[token] = len(vocab)
    model = models.BPE(
        vocab=vocab, merges=[(a, b) for a in string.digits for b in string.digits], byte_fallback=True, fuse_unk=False
    )
    tokenizer = tokenizers.Tokenizer(model)
    # Digits in pairs from the right, so that a number's tokens are its base-100 digits.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d{1,2}(?=(?:\d{2})*(?!\d))|[^\d]"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(m, special=True, normalized=False) for m in MARKERS])
    return tokenizer


def architecture() -> LlamaConfig:
    """The shape of the network: 0.9 million parameters."""
    from ponder.models.llama import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rope_theta=10000.0,
        tie_word_embeddings=True,
    )


def tokenizer_config() -> dict[str, Any]:
    """Hugging Face's `tokenizer_config.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": architecture().max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
