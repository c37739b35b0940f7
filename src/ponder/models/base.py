"""A model in memory: the module, its tokenizer, its chat and thought templates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ponder.errors import TooLong, Unsupported
from ponder.models.template import ChatTemplate, encode_chat, render
from ponder.models.tokenizer import Tokenizer
from ponder.types import Message, ModelInfo, Prompt, ThoughtFormat

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ponder.models.adapter import LoraConfig
    from ponder.models.cache import Cache


class CausalLM(Protocol):
    """What engine and trainer need of a module; `models.decoder.DecoderLM` is one."""

    def __call__(self, ids_BT: Tensor, positions_BT: Tensor | None = None, cache: Cache | None = None) -> Tensor: ...

    def logits(self, hidden_ND: Tensor) -> Tensor: ...


@dataclass
class LoadedModel:
    """A model ready to sample from and to train."""

    module: nn.Module
    """A `CausalLM`."""
    tokenizer: Tokenizer
    info: ModelInfo
    end_ids: tuple[int, ...]
    """Ids that end a response."""
    chat_template: str | None = None
    """Jinja source in Hugging Face's convention; None for a model without chat."""
    bos_id: int | None = None
    """Begin token for plain-text prompts, if the model uses one."""
    pad_id: int = 0
    special_tokens: dict[str, str] = field(default_factory=dict)
    """`bos_token`, `eos_token`, …, as the template may use them."""
    config: dict[str, Any] = field(default_factory=dict)
    """Hugging Face's `config.json`, for export."""
    supports_cache: bool = True
    """Whether it runs natively. False for transformers' own forward, whose attention does not use `Cache`."""
    source: str = ""
    adapter: LoraConfig | None = None
    """The low-rank adapter, if there is one: then only the adapter is trained and saved."""

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def thought(self) -> ThoughtFormat | None:
        return self.info.thought

    def facts(self) -> dict[str, Any]:
        """Facts for a run's manifest: where the model is from and which forward pass it uses."""
        from ponder.models.architecture import why_not_native

        slower = why_not_native(self.config) or "transformers reads its file"
        return {
            "name": self.info.name,
            "source": self.source,
            "architecture": self.config.get("model_type"),
            "parameters": self.info.parameters,
            "dtype": str(next(self.module.parameters()).dtype).removeprefix("torch."),
            "device": str(self.device),
            "forward": "native" if self.supports_cache else "transformers",
            **({} if self.supports_cache else {"slower_because": slower}),
            **({} if self.adapter is None else {"adapter": dataclasses.asdict(self.adapter)}),
        }

    @property
    def template(self) -> ChatTemplate:
        """The chat template with its special tokens. Raises `Unsupported` if there is none."""
        if self.chat_template is None:
            raise Unsupported(f"{self.info.name} has no chat template; give it plain text")
        return ChatTemplate(self.chat_template, tuple(self.special_tokens.items()), self.info.name)

    def render(self, messages: Sequence[Message]) -> str:
        """The chat prompt as text, ready for the assistant's turn.

        Raises `Unsupported` if the model has no chat template.
        """
        return render(self.template, messages)

    def take_plain_prompts(self) -> None:
        """Continue plain-text prompts as they are from now on, instead of sending them as a user message."""
        self.info = dataclasses.replace(self.info, chat=False)

    def prompt_ids(self, prompt: Prompt | tuple[int, ...]) -> tuple[int, ...]:
        """Token ids of a prompt: ids as they are, messages through the template, text with the begin token.

        A plain-text prompt of a chat model is sent as one user message. Raises `TooLong` for a text that is many times
        as long as the context.
        """
        if isinstance(prompt, tuple) and all(isinstance(i, int) for i in prompt):
            return prompt  # type: ignore[return-value]
        self._refuse_endless((prompt,) if isinstance(prompt, str) else tuple(m.content for m in prompt))  # type: ignore[union-attr]
        if isinstance(prompt, str):
            if not self.info.chat:
                ids = self.tokenizer.encode(prompt)
                return tuple(ids if self.bos_id is None else [self.bos_id, *ids])
            prompt = (Message("user", prompt),)
        return encode_chat(self.template, self.tokenizer, self.end_ids, prompt)  # type: ignore[arg-type]

    def _refuse_endless(self, texts: Sequence[str]) -> None:
        """Raises `TooLong` for texts that cannot fit the context, after a look at their beginnings.

        To tokenise 10 MB takes a minute. How few tokens a text may have is not known of every tokenizer (some drop
        spaces, some have one token for all that they do not know), so it is counted: parts of it, until there are twice
        as many tokens as there may be. Cutting a text makes no tokens but those at the cuts.
        """
        context, size = self.info.context, sum(map(len, texts))
        if size <= LIKELY * context:
            return
        found, part = 0, LIKELY * context
        for text in texts:
            for begin in range(0, len(text), part):
                found += len(self.tokenizer.encode(text[begin : begin + part]))
                if found > 2 * context:
                    raise TooLong(
                        f"the prompt has {size:,} characters, which is more than {context:,} tokens, and "
                        f"{self.info.name} has a context of {context:,}; shorten the prompt"
                    )


LIKELY = 16
"""A text of more characters per token of the context is looked at before it is tokenised as a whole."""


def forward_flops(hidden: int, layers: int, non_embedding: int, vocab: int, context: float) -> float:
    """Forward FLOPs of one token at a mean context length.

    2 per weight that it uses (embedding look-up is free, the head is not), and 4 · context · width per layer for
    scores and mixing (Kaplan et al. 2020, arXiv:2001.08361, §2.1; Hoffmann et al. 2022, arXiv:2203.15556, app. F).
    A training step costs three times this.
    """
    return 2.0 * (non_embedding + hidden * vocab) + 4.0 * layers * hidden * context
