"""`ponder-tiny`: the tokenizer, templates and shape of the built-in base model.

The tokenizer is fixed for all later versions: numbers 0 to 99 (and 00 to 09) are one token each, longer numbers are
pairs of digits from the right (1234 is 12 34), letters, punctuation, space and newline are one token each, any other
character falls back to its UTF-8 bytes, and markers stand for chat roles, thought, tool call and tool result.
It is an ordinary `tokenizer.json` (byte-fallback BPE), so that Hugging Face's libraries load it.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

from ponder.types import ThoughtFormat

if TYPE_CHECKING:
    import tokenizers

    from ponder.models.base import LoadedModel
    from ponder.models.decoder_config import DecoderConfig

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
    """Build the tokenizer; the shipped `tokenizer.json` is this one."""
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


def architecture() -> DecoderConfig:
    """The shape of the network: 0.9 million parameters."""
    from ponder.models.decoder_config import DecoderConfig

    return DecoderConfig(
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


def new_model(seed: int, shape: DecoderConfig | None = None) -> LoadedModel:
    """ponder-tiny with random weights, or a model of another shape with its tokenizer."""
    import torch

    from ponder.models.architecture import hf_config
    from ponder.models.base import LoadedModel, forward_flops
    from ponder.models.decoder import DecoderLM
    from ponder.models.tokenizer import FastTokenizer
    from ponder.types import ModelInfo

    shape = shape or architecture()
    module = DecoderLM(shape)
    module.initialise(torch.Generator().manual_seed(seed))
    tokenizer = FastTokenizer(build_tokenizer())
    parameters = sum(p.numel() for p in module.parameters())
    embedding = shape.vocab_size * shape.hidden_size
    end, pad = tokenizer.id_of(END), tokenizer.id_of(PAD)
    assert end is not None
    assert pad is not None
    return LoadedModel(
        module=module,
        tokenizer=tokenizer,
        info=ModelInfo(
            name="ponder-tiny",
            context=shape.max_position_embeddings,
            parameters=parameters,
            flops_per_token=forward_flops(
                shape.hidden_size, shape.num_hidden_layers, parameters - embedding, shape.vocab_size, 0
            ),
            thought=THOUGHT,
            chat=True,
        ),
        end_ids=(end,),
        chat_template=TEMPLATE,
        pad_id=pad,
        special_tokens={"eos_token": END, "pad_token": PAD},
        config={**hf_config(shape), "bos_token_id": None, "eos_token_id": end, "pad_token_id": pad, "dtype": "float32"},
        source="ponder-tiny (random weights)",
    )
