"""Decode steps of a native decoder through `torch.compile`, piece by piece: everything but attention over the cache.

On a GPU a step of few rows costs what launching its small operations costs. A step is L + 1 calls of three compiled
functions: from the ids to the first block's queries, keys and values; from one block's attention to the next block's
queries, keys and values (output projection, norm, SwiGLU, norm, projections, rotation); from the last attention to the
last norm. On CUDA inductor records each call as a CUDA graph, one for each block and number of rows. Attention stays
eager: its shapes change at every step. So do prompts and the head: the head is one product and needs no padded rows.

Weights and adapters are arguments, read where the trainer has them. So all blocks share the functions, nothing is
copied, an optimiser's in-place step is seen, new weights need no new graph, and a replaced parameter or adapter is
found by identity before each step. Where the module does more than its classes say (`models.as_written`: a hook, a
tap), the module computes. Each function is compiled twice when the engine opens, for one row and for more; where that
fails the engine does not open and says why. Rows are padded to a few sizes, so that few graphs are recorded. No output
in a graph's memory outlives the sampling of its step, so nothing is copied out. In float32 the log-probabilities are
the eager ones up to rounding; in bf16 fused operations keep float32 between them, so they differ as two bf16 passes do.

Off unless asked for; refused for the exact mode, packed products and models that run through transformers. Tested on a
CPU only, by inductor's C++, where it showed no gain over packed products (docs/LOG.md). Tests of what concerns CUDA
(graphs, their memory, the decoding thread, bf16) are skipped without a GPU, and `benchmarks/gpu.py` was never run on
one.

Piecewise compilation and padded sizes as in vLLM (docs/design, "torch.compile integration") and SGLang.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import threading
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.errors import Unsupported
from ponder.models import fused, rope
from ponder.models.cache import Attends
from ponder.models.decoder import Block, DecoderLM, Linear, RMSNorm
from ponder.models.lora import Lora

if TYPE_CHECKING:
    from ponder.models.base import LoadedModel

_STEPS = threading.Lock()
"""The current step of CUDA graphs is one number per process, so engines take turns."""
_serial = itertools.count()


def why_not(model: LoadedModel, *, exact: bool, packed: bool) -> str:
    """Why this model's decoding cannot be compiled, as a clause after "cannot be compiled: "; empty if it can.

    Whether there is a compiler shows only when it compiles (`CompiledDecoder.warm_up`).
    """
    if not isinstance(model.module, DecoderLM) or not model.supports_cache:
        return "it runs through transformers' forward"
    if exact:
        return "the exact mode computes in its own tiles; leave out exact or compile"
    if packed:
        return "packed products cannot be part of a compiled graph; leave out products and precision, or compile"
    return ""


def padded(rows: int) -> int:
    """The size that this many rows are padded to: 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, …"""
    power = 1 << (rows - 1).bit_length()
    between = 3 * power // 4
    return between if power >= 32 and rows <= between else power


# What is compiled -----------------------------------------------------------------------------------------------------


class Projection(NamedTuple):
    """A linear layer, with its adapter if there is one (`models.lora`)."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor | None
    b: Tensor | None
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        if self.a is None or self.b is None:
            return y
        return y + F.linear(F.linear(x.to(self.a.dtype), self.a) * self.scale, self.b).to(x.dtype)


class Before(NamedTuple):
    """What a block needs before its attention."""

    norm: Tensor
    q: Projection
    k: Projection
    v: Projection
    q_norm: Tensor | None
    k_norm: Tensor | None


class After(NamedTuple):
    """What a block needs after its attention."""

    o: Projection
    norm: Tensor
    gate: Projection
    up: Projection
    down: Projection


class Pieces(NamedTuple):
    """The three functions of a step, for models with these constants."""

    first: Callable[..., tuple[Tensor, ...]]
    """(ids_N, positions_N, embeddings, rope table, before) -> (x_ND, query, key, value, cosine, sine)."""
    between: Callable[..., tuple[Tensor, ...]]
    """(x_ND, attention's output, after, before of the next block, cosine, sine) -> (x_ND, query, key, value)."""
    last: Callable[..., Tensor]
    """(x_ND, attention's output, after, the last norm) -> hidden states N D."""

    @classmethod
    def of(cls, dim: int, eps: float) -> Pieces:
        """For heads of `dim` numbers and norms with `eps`."""

        def norm(x: Tensor, weight: Tensor) -> Tensor:
            return F.rms_norm(x, (x.shape[-1],), weight, eps)

        def project(x: Tensor, w: Before, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = norm(x, w.norm)
            query, key, value = (p(y).unflatten(1, (-1, dim)) for p in (w.q, w.k, w.v))
            if w.q_norm is not None and w.k_norm is not None:
                query, key = norm(query, w.q_norm), norm(key, w.k_norm)
            query, key = (rope.rotate(h, cos, sin) for h in (query, key))
            return query.unsqueeze(2), key.unsqueeze(2), value.unsqueeze(2)

        def finish(x: Tensor, mixed: Tensor, w: After) -> Tensor:
            x = x + w.o(mixed)
            y = norm(x, w.norm)
            return x + w.down(fused.swiglu(w.gate(y), w.up(y)))

        def first(ids: Tensor, positions: Tensor, embeddings: Tensor, table: Tensor, w: Before) -> tuple[Tensor, ...]:
            x = F.embedding(ids, embeddings)
            cos, sin = rope.widened(table[positions].to(x.dtype).unsqueeze(1))
            return (x, *project(x, w, cos, sin), cos, sin)

        def between(
            x: Tensor, mixed: Tensor, w: After, following: Before, cos: Tensor, sin: Tensor
        ) -> tuple[Tensor, ...]:
            x = finish(x, mixed, w)
            return (x, *project(x, following, cos, sin))

        def last(x: Tensor, mixed: Tensor, w: After, weight: Tensor) -> Tensor:
            return norm(finish(x, mixed, w), weight)

        return cls(first, between, last)

    def compiled(self, backend: str | Callable[..., Any], mode: str | None) -> Pieces:
        """The same through `torch.compile`, whole graphs or an error.

        Dynamo makes a size dynamic from the second value that it sees, and specialises on 1: called with one row and
        then with two, each piece is compiled once for one row and once for more. With all sizes dynamic from the
        start compiling took four times as long.
        """

        def compile_one(piece: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(_separate(piece), fullgraph=True, backend=backend, mode=mode)

        return Pieces(*(compile_one(piece) for piece in self))


def _separate(piece: Any) -> Any:
    """A copy of the function with its own code object.

    Dynamo counts compilations, and remembers dynamic sizes, per code object: engines must not share one.
    """
    name = f"{piece.__name__}_{next(_serial)}"
    return types.FunctionType(piece.__code__.replace(co_name=name), piece.__globals__, name, None, piece.__closure__)


# A step ---------------------------------------------------------------------------------------------------------------


class CompiledDecoder:
    """The forward pass of a `DecoderLM` for one token a row. Used by one thread, under `torch.inference_mode` only."""

    def __init__(self, module: DecoderLM, *, backend: str | Callable[..., Any] = "inductor") -> None:
        self.module = module
        self.device = module.lm_head.weight.device
        self.cuda = self.device.type == "cuda"
        config = module.config
        # Only inductor has modes.
        mode = "reduce-overhead" if self.cuda and backend == "inductor" else None
        self.pieces = Pieces.of(config.head_dim, config.rms_norm_eps).compiled(backend, mode)
        self.mixed: dict[int, Tensor] = {}
        """Buffers for attention's output, by padded rows: at a fixed address, so that a graph can read it.
        """
        if self.cuda:
            _give_thread_its_graphs()
        self.gather()

    def gather(self) -> None:
        """Collect the arguments of the pieces, and where to look each of them up again (`fits`)."""
        self._places: list[tuple[dict[str, Any], str, Any]] = []
        model = self.module.model
        blocks = [b for b in model.layers if isinstance(b, Block)]
        self._before = [self._before_of(b) for b in blocks]
        self._after = [self._after_of(b) for b in blocks]
        self._embeddings = self._tensor(model.embed_tokens, "weight")
        self._norm = self._tensor(model.norm, "weight")
        self._table = self.module.rope_table
        # Parameters are read in place; a buffer would be copied into the graph at each step.
        torch._dynamo.mark_static_address(self._table, guard=False)

    def _tensor(self, part: nn.Module, name: str) -> Any:
        found = part._parameters.get(name)
        self._places.append((part._parameters, name, found))
        return found

    def _projection(self, layer: Linear) -> Projection:
        adapter = layer._modules.get("adapter")
        self._places.append((layer._modules, "adapter", adapter))
        weight, bias = self._tensor(layer, "weight"), self._tensor(layer, "bias")
        if adapter is None:
            return Projection(weight, bias, None, None, 0.0)
        assert isinstance(adapter, Lora)
        return Projection(weight, bias, self._tensor(adapter, "A"), self._tensor(adapter, "B"), adapter.scale)

    def _before_of(self, block: Block) -> Before:
        a = block.self_attn
        q, k, v = (self._projection(p) for p in (a.q_proj, a.k_proj, a.v_proj))
        q_norm, k_norm = (self._tensor(n, "weight") if isinstance(n, RMSNorm) else None for n in (a.q_norm, a.k_norm))
        return Before(self._tensor(block.input_layernorm, "weight"), q, k, v, q_norm, k_norm)

    def _after_of(self, block: Block) -> After:
        mlp = block.mlp
        gate, up, down = (self._projection(p) for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        norm = self._tensor(block.post_attention_layernorm, "weight")
        return After(self._projection(block.self_attn.o_proj), norm, gate, up, down)

    def fits(self) -> bool:
        """Whether every parameter and adapter is still the same object; its values may have changed."""
        return all(place.get(name) is found for place, name, found in self._places)

    def warm_up(self) -> None:
        """Compile for one row and for more. Raises `Unsupported` where `torch.compile` does not work."""
        for rows in (1, 2):
            nothing = np.zeros(rows, dtype=np.int64)
            try:
                with torch.inference_mode():
                    self(nothing, nothing, _Nothing())
            except Unsupported:
                raise
            except Exception as error:
                raise Unsupported(f"decoding cannot be compiled here: {_reason(error)}: leave out compile") from error

    def __call__(self, ids_B: np.ndarray, positions_B: np.ndarray, cache: Attends) -> Tensor:
        """Hidden states after the last norm, shape B D, valid until the next call.

        Raises `Unsupported` if dynamo's limit of compilations is reached.
        """
        if not self.fits():
            self.gather()
        rows = len(ids_B)
        size = padded(rows)
        ids_N, positions_N = (self._filled(x, size) for x in (ids_B, positions_B))
        try:
            with self._one_step():
                return self._run(ids_N, positions_N, rows, cache)[:rows]
        except Exception as error:
            # The class has another name before torch 2.7.
            if not type(error).__name__.startswith("FailOn"):
                raise
            raise Unsupported(
                f"decoding was recompiled more often than torch._dynamo.config.cache_size_limit = "
                f"{torch._dynamo.config.cache_size_limit}, as with adapters that differ from block to block: leave "
                "compile out or raise that limit"
            ) from error

    def _run(self, ids_N: Tensor, positions_N: Tensor, rows: int, cache: Attends) -> Tensor:
        first, between, last = self.pieces
        mixed_NE = self._handover(len(ids_N))
        # No output of a piece is kept longer than the next pieces need it: in a graph's memory it lives until then,
        # and outputs must be released in the same order at each replay.
        x, query, key, value, cos, sin = first(ids_N, positions_N, self._embeddings, self._table, self._before[0])
        for layer, after in enumerate(self._after):
            mixed_NE[:rows] = cache.attend(layer, query[:rows], key[:rows], value[:rows]).flatten(1)
            if layer + 1 < len(self._after):
                x, query, key, value = between(x, mixed_NE, after, self._before[layer + 1], cos, sin)
        return last(x, mixed_NE, self._after[-1], self._norm)

    def _handover(self, size: int) -> Tensor:
        found = self.mixed.get(size)
        if found is None:
            config, weight = self.module.config, self._embeddings
            width = config.num_attention_heads * config.head_dim
            # Zeros: padding must be finite, and is not read.
            found = self.mixed[size] = torch.zeros(size, width, dtype=weight.dtype, device=self.device)
            torch._dynamo.mark_static_address(found, guard=False)
        return found

    def _filled(self, values_B: np.ndarray, size: int) -> Tensor:
        values_N = np.zeros(size, dtype=np.int64)
        values_N[: len(values_B)] = values_B
        return torch.as_tensor(values_N, device=self.device)

    @contextlib.contextmanager
    def _one_step(self) -> Iterator[None]:
        if not self.cuda:
            yield
            return
        with _STEPS:
            # From here on the previous step's outputs may be overwritten; the sampler is done with them.
            torch.compiler.cudagraph_mark_step_begin()
            yield


class _Nothing:
    """A cache for compiling the pieces."""

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor) -> Tensor:
        return query_BHTD


def _reason(error: BaseException) -> str:
    """The most informative line of an error of torch.compile."""
    from torch._inductor.exc import InvalidCxxCompiler

    causes = [error]
    while (cause := causes[-1].__cause__ or getattr(causes[-1], "inner_exception", None)) is not None:
        causes.append(cause)
    if any(isinstance(c, InvalidCxxCompiler) or "InvalidCxxCompiler" in str(c) for c in causes):
        return "no C++ compiler is found (install g++ or name one in CXX)"
    # The last one is the root cause. For a compiler's exit status, its output is in the one before.
    last = next((c for c in reversed(causes) if not isinstance(c, subprocess.CalledProcessError)), error)
    text = str(last).rpartition("Output:\n")[2]
    line = next((x.strip() for x in text.splitlines() if x.strip()), "it failed without a message")
    return f"torch.compile failed with {type(last).__name__}: {line[:200]}"


def _give_thread_its_graphs() -> None:
    """Before torch 2.13 CUDA graphs of `torch.compile` raise in a thread that Python started (pytorch #123177)."""
    from torch._inductor import cudagraph_trees

    if not hasattr(cudagraph_trees, "_initialize_tls") and not hasattr(
        cudagraph_trees.local, "tree_manager_containers"
    ):
        cudagraph_trees.local.tree_manager_containers = {}
        cudagraph_trees.local.tree_manager_locks = defaultdict(threading.Lock)
