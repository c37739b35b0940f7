"""Which packed products a machine runs fastest, by measuring them on the model's own matrices.

Timed on one block of the model, for the numbers of rows that decoding has, in less than half a second. The choice is
kept for the process and in a file of the cache folder (`PONDER_CACHE`), by processor, threads, torch and shapes: the
last bits of a sample depend on it, so the same command on the same machine has to choose alike. `PONDER_PRODUCTS` names
the products for every engine that is not told otherwise, such as on unlike machines of a cluster.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ponder.engines.torch.products import KINDS, Packed, Plan
from ponder.models import gguf_cache
from ponder.models.decoder import Block, DecoderLM

ROWS = (1, 4, 16, 64)
"""Rows of a decode step: one request, a few, a group of samples, a full batch."""
SECONDS = 0.02
"""Of measuring one kind with one number of rows; what takes longer runs once, after a run to warm up."""
MARGIN = 1.1
"""Products that come later in the list must be faster by this factor: noise must not decide."""
_FILE = "products.json"
_chosen: dict[str, Choice] = {}


@dataclass(frozen=True)
class Choice:
    """The products in the order of their speed, with what was measured."""

    ranked: tuple[str, ...]
    """Names, fastest first, by the geometric mean over the numbers of rows."""
    microseconds: Mapping[str, Mapping[str, float]]
    """Of the products of one block: name, rows, time."""

    def single(self) -> Plan:
        """The fastest for all numbers of rows together."""
        return ((math.inf, KINDS[self.ranked[0]]),)

    def plan(self) -> Plan:
        """The fastest for each number of rows, where that is more than noise; it may take a copy for each kind."""
        best = [min(self.ranked, key=lambda name: self._relative(name, rows)) for rows in ROWS]
        found: list[tuple[float, type[Packed]]] = []
        for i, name in enumerate(best):
            if i + 1 == len(best) or best[i + 1] != name:
                most = math.inf if i + 1 == len(best) else math.sqrt(ROWS[i] * ROWS[i + 1])
                found.append((most, KINDS[name]))
        return tuple(found)

    def _relative(self, name: str, rows: int) -> float:
        """Time of a kind; the others must be faster than the one that is best over all by more than noise."""
        return self.microseconds[name][str(rows)] * (1 if name == self.ranked[0] else MARGIN)


def choose(module: DecoderLM, precision: str, fitting: Sequence[type[Packed]]) -> Choice:
    """Measure the products that fit into memory, or read what was measured before."""
    key = _key(module, precision, fitting)
    if key not in _chosen:
        known = _read().get(key)
        _chosen[key] = known or _measure(module, fitting)
        if known is None:
            _write(key, _chosen[key])
    return _chosen[key]


def choices() -> dict[str, Choice]:
    """Every choice that this machine has made, by what it was made for."""
    return {**_read(), **_chosen}


def fixed_by_environment() -> str | None:
    """The products that `PONDER_PRODUCTS` names."""
    return os.environ.get("PONDER_PRODUCTS", "").strip() or None


def _matrices(module: DecoderLM) -> list[list[nn.Linear]]:
    """The projections of the first block, those of one input together."""
    block = next(b for b in module.model.layers if isinstance(b, Block))
    a, m = block.self_attn, block.mlp
    return [[a.q_proj, a.k_proj, a.v_proj], [a.o_proj], [m.gate_proj, m.up_proj], [m.down_proj]]


def _key(module: DecoderLM, precision: str, fitting: Sequence[type[Packed]]) -> str:
    from ponder.runs.manifest import hardware

    shapes = ",".join(f"{g[0].in_features}x{sum(y.out_features for y in g)}" for g in _matrices(module))
    names = "+".join(kind.name for kind in fitting)
    cpu, threads = hardware().get("cpu", "?"), torch.get_num_threads()
    return f"{cpu} | {threads} threads | torch {torch.__version__} | {precision} | {shapes} | {names}"


@torch.inference_mode()
def _measure(module: DecoderLM, fitting: Sequence[type[Packed]]) -> Choice:
    groups = _matrices(module)
    packed = {k.name: [k(torch.cat([y.weight.detach() for y in g]), None) for g in groups] for k in fitting}
    found: dict[str, dict[str, float]] = {name: {} for name in packed}
    for rows in ROWS:
        inputs = [torch.randn(rows, g[0].in_features) for g in groups]
        for name, products in packed.items():
            found[name][str(rows)] = round(1e6 * _seconds(products, inputs), 1)
    return Choice(tuple(_ranked(found)), found)


def _ranked(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Fastest first, by the geometric mean over the numbers of rows."""
    means = {name: math.exp(sum(map(math.log, times.values())) / len(times)) for name, times in found.items()}
    order: list[str] = []
    for name in means:
        at = next((i for i, other in enumerate(order) if means[name] * MARGIN < means[other]), len(order))
        order.insert(at, name)
    return order


def _seconds(products: Sequence[Packed], inputs: Sequence[Tensor]) -> float:
    """Of all products, one after another: the shortest of the runs that fit into `SECONDS`, after one to warm up."""

    def run() -> float:
        start = time.perf_counter()
        for product, x in zip(products, inputs, strict=True):
            product(x)
        return time.perf_counter() - start

    run()
    times = [run()]
    while sum(times) < SECONDS:
        times.append(run())
    return max(min(times), 1e-9)


def _read() -> dict[str, Choice]:
    """The choices on disk; none where the file is missing or is not one of ours."""
    where = gguf_cache.folder()
    if where is None:
        return {}
    try:
        found = json.loads((where / _FILE).read_text())
        return {
            str(key): Choice(
                tuple(map(str, value["ranked"])),
                {str(n): {str(r): float(t) for r, t in times.items()} for n, times in value["microseconds"].items()},
            )
            for key, value in found.items()
            if value["ranked"]
            and set(value["ranked"]) == set(value["microseconds"]) <= set(KINDS)
            and all(set(times) == set(map(str, ROWS)) for times in value["microseconds"].values())
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _write(key: str, choice: Choice) -> None:
    """Keep a choice; a cache that cannot be written is measured again."""
    where = gguf_cache.folder()
    if where is None:
        return
    every = {**_read(), key: choice}
    with contextlib.suppress(OSError):
        where.mkdir(parents=True, exist_ok=True)
        part = where / f"{_FILE}.{os.getpid()}.part"
        text = {k: {"ranked": list(c.ranked), "microseconds": c.microseconds} for k, c in every.items()}
        part.write_text(json.dumps(text, indent=1))
        part.replace(where / _FILE)
