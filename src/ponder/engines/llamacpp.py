"""A GGUF file in this process, through llama.cpp: a function from ids to the next logits for `engines._stepwise`."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder.errors import MissingExtra, UserError
from ponder.models.base import LoadedModel

if TYPE_CHECKING:
    import numpy as np

    from ponder.engines._stepwise import StepwiseEngine
    from ponder.models.gguf import Header
    from ponder.models.tokenizer import Piece


@dataclass(frozen=True)
class LlamaCpp:
    """A GGUF file in this process, through `llama-cpp-python`: quantised weights stay as they are.

    One sample at a time on a separate thread; the prefix that a prompt shares with the last one is not recomputed.
    """

    context: int = 4096
    """Most tokens of prompt and response, at most what the model was trained for; 0 is what it was trained for."""
    threads: int = 0
    """CPU threads; 0 lets llama.cpp choose."""
    batch: int = 256
    """Prompt tokens that are computed at once, and the most that a cancelled call still computes."""
    gpu_layers: int = 0
    """Layers on the GPU; -1 is all."""

    def __post_init__(self) -> None:
        for name, fine, fix in (
            ("context", self.context >= 0, "0 (the model's own) or more tokens"),
            ("threads", self.threads >= 0, "0 (automatic) or more"),
            ("batch", self.batch >= 1, "at least 1"),
            ("gpu_layers", self.gpu_layers >= -1, "-1 (all) or more"),
        ):
            if not fine:
                raise UserError(f"{name} = {getattr(self, name)!r}: give {fix}")

    def open(self, model: str) -> StepwiseEngine:
        """An engine for a GGUF file, or a built-in model that is one.

        Raises `MissingExtra` without the library, `UserError` for a file that is not GGUF.
        """
        from ponder.models.gguf import read_header
        from ponder.models.load import BUILTIN, resolve

        path = Path(model)
        if path.is_dir():
            raise UserError(f"{model}: is a folder: name a file in it")
        if not path.is_file():
            source = resolve(model) if model in BUILTIN else None
            if source is None or source.kind != "gguf":
                raise UserError(f"{model}: {'no such file' if source is None else 'not a GGUF file'}")
            path = source.path

        header = read_header(path)
        if header.fields.get("tokenizer.ggml.model") in ("none", "no_vocab"):
            raise UserError(f"{model}: llama.cpp has no tokenizer for it: use --engine torch, which reads its own")
        try:
            import llama_cpp
        except ImportError:
            raise MissingExtra("a GGUF through llama.cpp", "llamacpp") from None
        from ponder.engines._stepwise import StepwiseEngine

        trained = header.fields.get(f"{header.architecture}.context_length")
        context = min(self.context, trained) if self.context and isinstance(trained, int) else self.context
        said: list[str] = []
        try:
            with _errors(llama_cpp, said):
                llama = llama_cpp.Llama(
                    str(path),
                    n_ctx=context,
                    n_batch=self.batch,
                    n_threads=self.threads or None,
                    n_threads_batch=self.threads or None,
                    n_gpu_layers=self.gpu_layers,
                    verbose=False,
                )
        except Exception as error:  # llama.cpp's own, of ctypes and of jinja2
            reason = said[0] if said else str(error)
            raise UserError(f"{model}: llama.cpp cannot read it: {reason}") from None
        return StepwiseEngine(_loaded(llama, header), _Logits(llama, self.batch), llama.close)


@contextlib.contextmanager
def _errors(llama_cpp: Any, said: list[str]) -> Iterator[None]:
    """Collect what llama.cpp reports as errors: its exceptions do not say what went wrong."""

    def note(level: int, text: bytes, _: Any) -> None:
        if level == _ERROR:
            line = text.decode("utf-8", "replace").strip()
            said.append(line.partition("error loading model: ")[2] or line)

    callback = llama_cpp.llama_log_callback(note)
    llama_cpp.llama_log_set(callback, None)
    try:
        yield
    finally:
        llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, None)


_ERROR = 4
"""`GGML_LOG_LEVEL_ERROR` of ggml.h (`llama_cpp._logger` has the levels of an older one)."""


class _Logits:
    """The next logits, from llama.cpp's cache as far as it holds the same ids."""

    def __init__(self, llama: Any, batch: int) -> None:
        self._llama, self._batch = llama, batch

    def __call__(self, ids: Sequence[int], computed: Callable[[int], None]) -> np.ndarray:
        import numpy as np

        llama = self._llama
        known = llama.input_ids[: llama.n_tokens]
        most = min(len(known), len(ids) - 1)
        differ = np.flatnonzero(known[:most] != np.asarray(ids[:most], dtype=known.dtype))
        common = int(differ[0]) if len(differ) else most
        if common < llama.n_tokens and not llama._ctx.kv_cache_seq_rm(-1, common, -1):
            # A recurrent state cannot be rolled back by a few tokens.
            llama._ctx.kv_cache_clear()
            common = 0
        llama.n_tokens = common
        for start in range(common, len(ids), self._batch):
            part = list(ids[start : start + self._batch])
            llama.eval(part)
            computed(len(part))
        row = np.ctypeslib.as_array(llama._ctx.get_logits_ith(-1), shape=(llama.n_vocab(),))
        return row.copy()


class _Tokenizer:
    """llama.cpp's tokenizer as ponder's; see `models.base.Tokenizer`."""

    def __init__(self, llama: Any) -> None:
        import llama_cpp

        self._llama, self._c = llama, llama_cpp
        self._vocab = vocab = llama._model.vocab
        self.vocab_size = llama.n_vocab()
        everyone = range(self.vocab_size)
        texts = [llama_cpp.llama_vocab_get_text(vocab, i).decode("utf-8", "replace") for i in everyone]
        self._ids = {text: i for i, text in reversed(list(enumerate(texts)))}
        kinds = [llama_cpp.llama_vocab_get_attr(vocab, i) for i in everyone]
        control, user = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL, llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        self.markers = tuple(t for t, kind in zip(texts, kinds, strict=True) if kind & (control | user))
        self.ends = tuple(i for i in everyone if llama_cpp.llama_vocab_is_eog(vocab, i))
        # llama.cpp spells out only control tokens; what a user writes must not become `<think>` either.
        self._known = _any_of(self.markers)
        loose = [t for t, kind in zip(texts, kinds, strict=True) if kind & user and re.fullmatch(r"[<\[].+[>\]]", t)]
        self._loose = _any_of(loose) if loose else None
        self._pieces: dict[int, bytes] = {}
        self._adds_space = False
        # A tokenizer that adds a space before a text removes it when it decodes.
        self._adds_space = self.decode(self.encode("a")) == " a"

    def encode(self, text: str, *, special: bool = False, continues: bool = False) -> list[int]:
        from ponder.models.tokenizer import Piece

        return self.encode_pieces([Piece()] * continues + [Piece(text, own=special)])

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[int]:
        from ponder.models.tokenizer import SURROGATE

        ids: list[int] = []
        begun = False
        for is_text, run in itertools.groupby(pieces, lambda p: bool(p.text)):
            if is_text:
                parts = [(SURROGATE.sub("\ufffd", p.text), p.own) for p in run]
                text, meant = "".join(t for t, _ in parts), "".join(t if o else "\0" * len(t) for t, o in parts)
                ids += self._text(text, meant, begun)
            else:
                ids += (i for p in run for i in p.ids)
            begun = True
        return ids

    def _text(self, text: str, meant: str, begun: bool) -> list[int]:
        """Ids of a text in which only the markers that are in `meant` too are meant; whether ids come before it."""
        if all(meant[m.start() : m.end()] == m[0] for m in self._known.finditer(text)):
            return self._after(text, True) if begun else self._encode(text, True)
        ids: list[int] = []
        at = 0
        for found in [*self._known.finditer(meant), None]:
            end = len(text) if found is None else found.start()
            while at < end:
                # Cut inside a marker that is not meant: neither half is one.
                loose = self._loose.search(text, at, end) if self._loose else None
                cut = loose.start() + 1 if loose else end
                ids += self._after(text[at:cut], False) if begun or ids else self._encode(text[at:cut], False)
                at = cut
            if found is not None:
                ids += self._encode(found[0], True)
                at = found.end()
        return ids

    def _after(self, text: str, special: bool) -> list[int]:
        """Ids of a text that does not begin one: without the space that llama.cpp puts in front."""
        if not self._adds_space:
            return self._encode(text, special)
        line = self._encode("\n", special)
        whole = self._encode("\n" + text, special)
        return whole[len(line) :] if whole[: len(line)] == line else self._encode(text, special)

    def _encode(self, text: str, special: bool) -> list[int]:
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=special)) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        data = b"".join(map(self._piece, ids))
        if self._adds_space and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")

    def _piece(self, i: int) -> bytes:
        # `Llama.detokenize` cuts pieces of more than 32 bytes.
        if i not in self._pieces:
            size = 64
            while True:
                buffer = self._c.ctypes.create_string_buffer(size)
                length = self._c.llama_token_to_piece(self._vocab, i, buffer, size, 0, True)
                if length >= 0:
                    break
                size = -length
            self._pieces[i] = buffer.raw[:length]
        return self._pieces[i]

    def id_of(self, token: str) -> int | None:
        return self._ids.get(token)


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


@dataclass
class _Gguf(LoadedModel):
    """A model that llama.cpp computes: tokenizer, templates and facts, without a module."""

    described: str = ""
    """What llama.cpp calls it, such as `llama 256M Q4_1`."""

    def facts(self) -> dict[str, Any]:
        import llama_cpp

        return {
            "name": self.info.name,
            "source": self.source,
            "architecture": self.config.get("model_type"),
            "parameters": self.info.parameters,
            "weights": self.described,
            "forward": f"llama-cpp-python {llama_cpp.__version__}",
        }


def _loaded(llama: Any, header: Header) -> LoadedModel:
    import dataclasses

    from ponder.models import thought, tools
    from ponder.models.gguf_tokenizer import special_tokens
    from ponder.types import ModelInfo

    tokenizer = _Tokenizer(llama)
    template = header.fields.get("tokenizer.chat_template")
    size, bos = int(llama._model.n_params()), llama.token_bos()
    # Embedding look-up costs nothing; with an untied head the embeddings are no product either.
    looked_up = llama.n_vocab() * llama.n_embd() if "output.weight" in header.tensors else 0
    context = min(llama.n_ctx(), len(llama.input_ids))
    info = ModelInfo(
        header.path.stem,
        context,
        parameters=size,
        flops_per_token=2.0 * (size - looked_up),
        chat=template is not None,
    )
    model = _Gguf(
        module=None,  # type: ignore[arg-type]
        tokenizer=tokenizer,
        info=info,
        end_ids=tokenizer.ends,
        chat_template=template,
        bos_id=bos if llama._model.add_bos_token() and bos >= 0 else None,
        special_tokens=special_tokens(header),
        config={"model_type": header.architecture},
        source=str(header.path),
        described=llama._model.desc(),
    )
    model.info = dataclasses.replace(info, thought=thought.find(model), tools=tools.find(model))
    return model
