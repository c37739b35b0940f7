"""The in-process engine: an asynchronous interface over one decoding thread with continuous batching."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from ponder.engines._handover import Handover, deltas
from ponder.engines.base import BaseEngine
from ponder.engines.requests import Markers
from ponder.engines.text import Vocabulary
from ponder.engines.torch.batch import Batch
from ponder.engines.torch.compiled import why_not
from ponder.engines.torch.forward import Native
from ponder.engines.torch.jobs import Job, Sink, prepare, prepare_lease
from ponder.engines.torch.products import PLAIN
from ponder.engines.torch.sinks import FutureSink, SyncSink
from ponder.engines.torch.weights import as_stored, check_fit, copy_weights, digest, state_of, tensors_of
from ponder.engines.torch.worker import CLOSED, Worker
from ponder.errors import EngineClosed, Unsupported, UserError
from ponder.models.base import LoadedModel
from ponder.models.host import release_threads, reuse_freed_memory
from ponder.protocols import Delivery, Receipt, WeightsUpdate
from ponder.types import Capabilities, Completion, Delta, Prompt, Request, Spend

_EXIT_SECONDS = 5.0
GRACE = 1.0
"""Most seconds that a cancelled call waits for the thread to finish its current decode step or chunk of prompts.

Then it knows what was sampled and settles its receipt. If the step takes longer, the receipt stays unsettled, and the
caller books the worst case.
"""


@dataclass(frozen=True, slots=True)
class CacheUse:
    """Bytes of keys and values; the last three never add up to more than the first."""

    limit: int
    slots: int
    """Room for the running rows, used or not."""
    held: int
    """Prefixes that running rows, prompts being computed and leases need."""
    free: int
    """Prefixes that are kept for reuse."""


class TorchEngine(BaseEngine):
    """Samples from a `LoadedModel` in this process; see `protocols.Engine`.

    Rows join and leave the running batch at every step; what does not fit into `max_rows` rows or `kv_memory` bytes
    waits, first in, first out. Requests that are submitted together (one `asyncio.gather`, one `generate_many`) to an
    idle engine form one group and give the same tokens and log-probabilities bit for bit each time, on one machine with
    one number of threads. With a different batch composition a sample draws the same random numbers, but its logits may
    differ in the last bits, as matrix products of another shape round differently; so they may once other requests have
    left prefixes in the cache (`drop_caches` empties it). With `exact=True` none of this changes a bit.

    Requests share the keys and values of common prefixes automatically. A prefix that is no longer in use stays cached
    until the memory is needed or the weights change. `hold` keeps one.

    A call that is cancelled, or whose stream is closed, ends within `grace` seconds, and then its receipt is settled. A
    slow reader of a stream slows down neither its own call nor others; its pieces are merged.

    Log-probabilities are of the distribution that was sampled from (after temperature, top-k, top-p and min-p; 0 for
    greedy samples), or of the model's own with `SamplingParams.logprobs_of="raw"`.

    The module is the trainer's own: a trainer that shares it steps between calls and then announces the new version
    with `load_weights(WeightsUpdate(model.module, version))`. `path` is `"native"` (own cache) or `"transformers"` (a
    module that does not support the cache; whole rows are recomputed at every step: correct, but slow).
    """

    grace = GRACE
    queues = True

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_rows: int = 512,
        kv_memory: int | None = None,
        prefill_chunk: int = 512,
        exact: bool = False,
        products: str | None = None,
        precision: str = "float32",
        compile: bool | None = None,
        version: int = 0,
    ) -> None:
        """`kv_memory` is the most bytes that keys and values may take; None takes a quarter of what is available,

        1 GiB at most (on a GPU half of what is free there). `prefill_chunk` is the most prompt tokens that are computed
        between two decode steps. `exact` is the batch-invariant mode, slower, on a CPU in float32
        only (`engines.torch.exact` says how it works, docs/LOG.md what it costs). `precision` is what the products with
        the matrices of the blocks compute in: float32, bfloat16 or int8 (weights; the inputs are bfloat16). `products`
        names one of the ways to do so (`engines.torch.products`); None takes the fastest on this machine
        (`engines.torch.choosing`) whose copy of the matrices takes at most a quarter of the free memory. `compile`
        is whether decode steps go through `torch.compile`, with CUDA graphs on a GPU (`engines.torch.compiled`);
        opening then takes as long as compiling. None means no: it was never measured on a GPU, and on a CPU it showed
        no gain over packed products.
        """
        if max_rows < 1:
            raise UserError(f"max_rows is {max_rows}: it must be at least 1")
        if kv_memory is not None and kv_memory < 1:
            raise UserError(f"kv_memory is {kv_memory}: it must be a positive number of bytes")
        if prefill_chunk < 1:
            raise UserError(f"prefill_chunk is {prefill_chunk}: it must be at least 1")
        self.model = model
        self.info = model.info
        self.kv_memory = default_kv_memory(model.device) if kv_memory is None else kv_memory
        self._vocabulary = Vocabulary(model.tokenizer, vocabulary_size(model))
        self._markers = Markers.of(model)
        if exact and not model.supports_cache:
            raise Unsupported(f"{model.info.name} runs through transformers' forward, which has no exact mode")
        if not model.supports_cache and (precision != "float32" or products not in (None, PLAIN)):
            raise Unsupported(f"{model.info.name} runs through transformers' forward: it has no precision or products")
        packs = precision != "float32" or products not in (None, PLAIN)
        if compile and (reason := why_not(model, exact=exact, packed=packs)):
            raise Unsupported(f"{model.info.name} cannot be compiled: {reason}")
        batch = Batch(
            model,
            self._vocabulary,
            self._markers,
            version,
            memory=self.kv_memory,
            exact=exact,
            products=PLAIN if compile else products,
            precision=precision,
        )
        self.path = batch.forward.path
        self._bytes_per_token = 0 if batch.pool is None else batch.pool.shape.bytes_per_token
        self.capabilities = Capabilities(
            ids=True,
            logprobs=True,
            seed=True,
            n=True,
            prefix=True,
            thinking=model.info.thought is not None,
            leases=batch.pool is not None,
            load_weights=True,
            exact=exact,
        )
        self._batch = batch
        reuse_freed_memory()
        release_threads()  # the team of the thread that loaded the model: from here on the worker computes
        self._worker = Worker(batch, max_rows=max_rows, chunk=prefill_chunk)
        self._last_prompt: tuple[Any, Any, tuple[int, ...]] = (None, None, ())
        self._pending: dict[asyncio.AbstractEventLoop, list[Job]] = {}
        self._lock = threading.Lock()
        # Ends the thread when the engine is garbage-collected and, before torch is torn down, when Python exits.
        self._finalizer = weakref.finalize(self, self._worker.shutdown, _EXIT_SECONDS)
        if compile and isinstance(batch.forward, Native):
            try:
                self._worker.call(batch.forward.compile).result()
            except BaseException:
                self._worker.shutdown()
                raise

    @property
    def products(self) -> dict[str, Any]:
        """How matrices are multiplied, for a run's manifest: precision, products, and what was measured."""
        forward = self._batch.forward
        if not isinstance(forward, Native):
            return {"precision": "float32", "products": PLAIN}
        facts: dict[str, Any] = {"precision": forward.precision, "products": forward.products}
        if forward.choice is not None:
            facts["microseconds_by_rows"] = forward.choice.microseconds
        return facts

    @property
    def weights_version(self) -> int:
        return self._batch.version

    @property
    def running(self) -> int:
        """Number of rows in the running batch."""
        return len(self._batch)

    @property
    def waiting(self) -> int:
        """Requests that wait for room or for their prompt."""
        jobs = (*self._worker.queue, *(job for job, _ in self._worker.joining))
        return len({id(job) for job in jobs if not job.lease})

    @property
    def cache(self) -> CacheUse:
        """Current size of the KV cache in bytes."""
        pool = self._batch.pool
        if pool is None:
            return CacheUse(self.kv_memory, 0, 0, 0)
        per_token, tree = self._bytes_per_token, pool.tree
        slots, held, free = pool.slots.tokens, tree.held_tokens + pool.making, tree.tokens - tree.held_tokens
        return CacheUse(self.kv_memory, slots * per_token, held * per_token, free * per_token)

    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        return len(self._prompt_ids(prompt))

    def _prompt_ids(self, prompt: Prompt | tuple[int, ...]) -> tuple[int, ...]:
        """The ids of a prompt. The last ones are kept, since a prompt is counted, sampled and often sampled again."""
        info, known, ids = self._last_prompt
        if info is not self.model.info or (known is not prompt and known != prompt):
            info, ids = self.model.info, tuple(self.model.prompt_ids(prompt))
            self._last_prompt = info, prompt, ids
        return ids

    async def generate(self, request: Request, receipt: Receipt | None = None) -> tuple[Completion, ...]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Completion, ...]] = loop.create_future()
        receipt = receipt or Receipt()
        job = self._prepare(request, FutureSink(loop, future), receipt)
        self._submit_soon(loop, job)
        try:
            return await future
        except asyncio.CancelledError:
            await self._cut_short(job)
            raise
        finally:
            job.settle(receipt)

    async def _cut_short(self, job: Job) -> None:
        """Drop a job and wait until it is known what it used. Cancelled again, it does not wait."""
        await asyncio.wait([asyncio.wrap_future(self._worker.cancel([job]))], timeout=GRACE)

    def stream(self, request: Request, receipt: Receipt | None = None) -> AsyncGenerator[Delta, None]:
        handover, receipt = Handover(), receipt or Receipt()
        return self._stream(self._prepare(request, handover, receipt, streams=True), handover, receipt)

    async def _stream(self, job: Job, handover: Handover, receipt: Receipt) -> AsyncGenerator[Delta, None]:
        handover.open()
        self._submit_soon(asyncio.get_running_loop(), job)
        pieces = deltas(handover, job.request.n, self._vocabulary, job.params.stop, job.prefix)
        try:
            async with contextlib.aclosing(pieces):
                async for delta in pieces:
                    yield delta
        except (asyncio.CancelledError, GeneratorExit):
            await self._cut_short(job)
            raise
        finally:
            job.settle(receipt)

    @contextlib.asynccontextmanager
    async def hold(self, ids: Sequence[int]) -> AsyncIterator[None]:
        """Compute a prefix if it is not cached, and keep it while the context is open; see `protocols.PrefixHolder`.

        It waits in the queue like a request. New weights recompute it, before any later request. Raises
        `UserError` if it does not fit into `kv_memory` with the other leases, `Unsupported` for a model whose prompts
        cannot be kept.
        """
        if self._batch.pool is None:
            raise Unsupported(f"{self.info.name} runs through transformers' forward, which keeps no prefixes")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Completion, ...]] = loop.create_future()
        self._refuse_closed()
        memory = self.kv_memory
        job = prepare_lease(
            ids,
            self.model,
            self._vocabulary,
            FutureSink(loop, future),
            bytes_per_token=self._bytes_per_token,
            memory=memory,
        )
        self._submit_soon(loop, job)
        try:
            await future
            yield
        finally:
            self._worker.cancel([job])

    async def drop_caches(self) -> None:
        """Free every cached prefix that no request and no lease needs.

        What is cached decides with which batch composition a prompt is computed, and so its last bits: call this where
        a run must repeat bit for bit without the exact mode. New weights do it anyway.
        """
        await asyncio.wrap_future(self._worker.call(self._worker.drop_caches))

    def drop_caches_now(self) -> None:
        """`drop_caches` for a caller without an event loop."""
        self._worker.call(self._worker.drop_caches).result()

    def generate_many(self, requests: Sequence[Request]) -> list[tuple[Completion, ...]]:
        """Sample several requests as one group and wait for all; completions in the order of the requests.

        For scripts and the trainer; do not call it on an event loop's thread. Raises what `generate` raises; then
        all of the requests are dropped.
        """
        futures: list[concurrent.futures.Future[tuple[Completion, ...]]] = []
        jobs = []
        for request in requests:
            futures.append(concurrent.futures.Future())
            jobs.append(self._prepare(request, SyncSink(futures[-1]), Receipt()))
        release_threads()
        self._worker.submit(jobs)
        try:
            return [f.result() for f in futures]
        except BaseException:
            self._worker.cancel(jobs)
            raise

    async def load_weights(self, update: WeightsUpdate) -> Delivery:
        """Take new weights between two steps.

        The module that the engine itself uses is only announced, and nothing is copied: the delivery has no digest. It
        may be announced again under the version that the engine has, by a trainer that has restored a checkpoint of it;
        all other versions must rise. With `update.digest` the new tensors, in the engine's types, must have that digest
        (`weights.digest`) before one of them is copied.

        Running requests continue with the new weights over the keys and values that they have; their segments
        say which version sampled what. Raises `UserError` if the weights do not fit, are not those of the digest, or
        are not newer; the old ones then stay.
        """
        own = update.source is self.model.module
        state = self._incoming(update) if own else await asyncio.to_thread(self._incoming, update)
        return await asyncio.wrap_future(self._worker.call(self._loader(state, update.version)))

    def load_weights_now(self, update: WeightsUpdate) -> Delivery:
        """`load_weights` for a caller without an event loop."""
        delivery: Delivery = self._worker.call(self._loader(self._incoming(update), update.version)).result()
        return delivery

    def _incoming(self, update: WeightsUpdate) -> Mapping[str, Tensor] | None:
        """The tensors of an update, checked; None for the engine's own module."""
        module = self.model.module
        own = update.source is module
        self._refuse_old(update.version, own)
        if own:
            if update.digest:
                raise UserError("digest: the engine shares this module, so nothing is sent to compare")
            return None
        state = state_of(update.source)
        check_fit(module, state)
        if update.digest and (found := digest(as_stored(module, state))) != update.digest:
            raise UserError(
                f"the new weights of version {update.version} have the digest {found}, not {update.digest}: they are "
                "not the ones that were sent; send them again"
            )
        return state

    def _refuse_old(self, version: int, own: bool) -> None:
        now = self.weights_version
        if version < now or (version == now and not own):
            raise UserError(
                f"the new weights have version {version}, and the engine has version {now} already: versions must rise"
            )

    def _loader(self, state: Mapping[str, Tensor] | None, version: int) -> Callable[[], Delivery]:
        worker, module = self._worker, self.model.module

        def load() -> Delivery:
            # Again: another update may have come first.
            self._refuse_old(version, own=state is None)
            if state is not None:
                copy_weights(module, state)
            worker.begin_again()
            worker.batch.set_version(version)
            return Delivery(version, "" if state is None else digest(tensors_of(module)))

        return load

    async def close(self) -> None:
        self._flush_all()
        self._worker.shutdown()
        await asyncio.shield(asyncio.wrap_future(self._worker.ended))

    def close_now(self) -> None:
        """`close` for a caller without an event loop."""
        self._flush_all()
        self._worker.shutdown(timeout=None)

    def _refuse_closed(self, receipt: Receipt | None = None) -> None:
        if not self._finalizer.alive or self._worker.closing:
            if receipt is not None:
                receipt.settle(Spend())
            raise EngineClosed(CLOSED)

    def _prepare(self, request: Request, sink: Sink, receipt: Receipt, streams: bool = False) -> Job:
        self._refuse_closed(receipt)
        job = prepare(
            request,
            self._prompt_ids(request.prompt),
            self.model,
            self._vocabulary,
            self._markers,
            sink,
            bytes_per_token=self._bytes_per_token,
            memory=self.kv_memory,
            streams=streams,
        )
        job.begin, job.left, job.timed = receipt.begin, receipt.left, receipt.left() is not None
        return job

    def _submit_soon(self, loop: asyncio.AbstractEventLoop, job: Job) -> None:
        """Hand over all jobs of one turn of the event loop as one group: the batch must not depend on timing."""
        with self._lock:
            jobs = self._pending.setdefault(loop, [])
            jobs.append(job)
        if len(jobs) == 1:
            loop.call_soon(self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            jobs = self._pending.pop(loop, [])
        if not jobs:
            return
        release_threads()  # the caller's team: it waits while the worker computes
        try:
            self._worker.submit(jobs)
        except EngineClosed as error:
            for job in jobs:
                job.spend = Spend()
                job.sink.failed(EngineClosed(*error.args))

    def _flush_all(self) -> None:
        for loop in list(self._pending):
            self._flush(loop)


def default_kv_memory(device: torch.device) -> int:
    """A bounded share of the memory that is available now, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    return min(psutil.virtual_memory().available // 4, 1 << 30)


def vocabulary_size(model: LoadedModel) -> int:
    """Number of ids that the module knows; may be more than the tokenizer's."""
    module: Any = model.module
    known = model.config.get("vocab_size") or getattr(getattr(module, "config", None), "vocab_size", None)
    return int(known or model.tokenizer.vocab_size)
