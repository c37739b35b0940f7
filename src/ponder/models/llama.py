"""Old names of `models.decoder`, for code that has not moved yet."""

from ponder.models.decoder import Cache as Cache
from ponder.models.decoder import DecoderConfig as LlamaConfig
from ponder.models.decoder import DecoderLM as Llama

__all__ = ["Cache", "Llama", "LlamaConfig"]
