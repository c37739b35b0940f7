"""A GGUF file in this process, through llama.cpp."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder.errors import MissingExtra, UserError

if TYPE_CHECKING:
    import numpy as np

    from ponder.engines._stepwise import StepwiseEngine


@dataclass(frozen=True)
class LlamaCpp:
    """A GGUF file in this process, through `llama-cpp-python`: quantised weights stay as they are.

    One sample at a time on a thread of its own; what a prompt has in common with the last one is not computed again.
    """

    context: int = 4096
    """Most tokens of prompt and response; 0 is what the model was trained for."""
    threads: int = 0
    """CPU threads; 0 lets llama.cpp choose."""
    batch: int = 256
    """Prompt tokens that are computed at once; a cancelled call waits for no more than these."""
    gpu_layers: int = 0
    """Layers on the GPU; -1 is all."""

    def __post_init__(self) -> None:
        for name, fine, mend in (
            ("context", self.context >= 0, "0 (the model's own) or more tokens"),
            ("threads", self.threads >= 0, "0 (automatic) or more"),
            ("batch", self.batch >= 1, "at least 1"),
            ("gpu_layers", self.gpu_layers >= -1, "-1 (all) or more"),
        ):
            if not fine:
                raise UserError(f"{name} = {getattr(self, name)!r}: give {mend}")

    def open(self, model: str) -> StepwiseEngine:
        """An engine for a GGUF file. Raises `MissingExtra` without the library, `UserError` for a file that is none."""
        path = Path(model)
        if not path.is_file():
            raise UserError(f"{model}: there is no such file; give a GGUF file")
        try:
            from llama_cpp import Llama
        except ImportError:
            raise MissingExtra("a GGUF through llama.cpp", "llamacpp") from None
        from ponder.engines._stepwise import StepwiseEngine

        try:
            llama = Llama(
                str(path),
                n_ctx=self.context,
                n_batch=self.batch,
                n_threads=self.threads or None,
                n_gpu_layers=self.gpu_layers,
                verbose=False,
            )
        except (ValueError, RuntimeError, AssertionError) as error:
            raise UserError(f"{model}: llama.cpp cannot read it: {error}") from None
        logits = _Logits(llama, self.batch)
        return StepwiseEngine(_loaded(llama, path), logits, llama.close)


class _Logits:
    """The next logits, from llama.cpp's cache as far as it holds the same ids."""

    def __init__(self, llama: Any, batch: int) -> None:
        self._llama, self._batch = llama, batch

    def __call__(self, ids: Sequence[int], stop: Callable[[], bool]) -> tuple[np.ndarray, int] | None:
        import numpy as np

        llama = self._llama
        known = llama.input_ids[: llama.n_tokens]
        most = min(len(known), len(ids) - 1)
        differ = np.flatnonzero(known[:most] != np.asarray(ids[:most], dtype=known.dtype))
        common = int(differ[0]) if len(differ) else most
        if common < llama.n_tokens and not llama._ctx.kv_cache_seq_rm(-1, common, -1):
            # A recurrent state cannot be taken back by a few tokens.
            llama._ctx.kv_cache_clear()
            common = 0
        llama.n_tokens = common
        for start in range(common, len(ids), self._batch):
            if stop():
                return None
            llama.eval(list(ids[start : start + self._batch]))
        size = llama.n_vocab()
        row = np.ctypeslib.as_array(llama._ctx.get_logits_ith(-1), shape=(size,)).copy()
        return row, len(ids) - common


class _Tokenizer:
    """llama.cpp's tokenizer as ponder's; see `models.base.Tokenizer`."""

    def __init__(self, llama: Any) -> None:
        import llama_cpp

        self._llama = llama
        self.vocab_size = llama.n_vocab()
        vocab = llama._model.vocab
        wanted = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        self._special = {}
        for i in range(self.vocab_size):
            if llama_cpp.llama_vocab_get_attr(vocab, i) & wanted:
                self._special[llama_cpp.llama_vocab_get_text(vocab, i).decode("utf-8", "replace")] = i
        self.markers = tuple(self._special)
        self.ends = tuple(i for i in range(self.vocab_size) if llama_cpp.llama_vocab_is_eog(vocab, i))

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        if not text:
            return []
        return list(self._llama.tokenize(text.encode("utf-8", "replace"), add_bos=False, special=special))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._llama.detokenize(list(ids), special=True).decode("utf-8", "replace"))

    def id_of(self, token: str) -> int | None:
        if token in self._special:
            return self._special[token]
        # Byte tokens are asked for by name.
        with contextlib.suppress(ValueError, RuntimeError):
            ids = self.encode(token, special=True)
            if len(ids) == 1 and self.decode(ids) == token:
                return ids[0]
        return None


def _loaded(llama: Any, path: Path) -> Any:
    """The model as tokenizer, templates and facts, without a module."""
    import dataclasses

    from ponder.models.base import LoadedModel
    from ponder.models.thought import find
    from ponder.types import ModelInfo

    tokenizer = _Tokenizer(llama)
    template = llama.metadata.get("tokenizer.chat_template")
    texts = {i: t for t, i in tokenizer._special.items()}
    bos, eos = llama.token_bos(), llama.token_eos()
    special = {name: texts[i] for name, i in (("bos_token", bos), ("eos_token", eos)) if i in texts}
    size = int(llama._model.n_params())
    info = ModelInfo(path.stem, llama.n_ctx(), parameters=size, flops_per_token=2.0 * size, chat=template is not None)
    model = LoadedModel(
        module=None,  # type: ignore[arg-type]
        tokenizer=tokenizer,
        info=info,
        end_ids=tokenizer.ends,
        chat_template=template,
        bos_id=bos if llama._model.add_bos_token() and bos >= 0 else None,
        special_tokens=special,
        source=str(path),
    )
    model.info = dataclasses.replace(info, thought=find(model))
    return model
