"""The machine's physical limits, measured: rate of matrix products, memory bandwidth, and what decoding needs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ponder.engines.torch.products import Packed

COPY_BYTES = 512 * 2**20
"""Far more than any cache holds."""


@dataclass(frozen=True)
class Products:
    """The matrix products of one decoding step: (width in, width out) of each, in order."""

    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Products:
        """Of a model with this Hugging Face config: fused where products share their input, the head last."""
        width, inner = config["hidden_size"], config["intermediate_size"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        head = config.get("head_dim") or width // heads
        layer = (
            (width, (heads + 2 * kv_heads) * head),
            (heads * head, width),
            (width, 2 * inner),
            (inner, width),
        )
        return cls(layer * config["num_hidden_layers"] + ((width, config["vocab_size"]),))

    @property
    def weights(self) -> int:
        return sum(a * b for a, b in self.shapes)

    def bytes(self, item: int = 4) -> int:
        """Read at every step, however many rows."""
        return item * self.weights

    def flops(self, rows: int) -> float:
        return 2.0 * rows * self.weights


@dataclass(frozen=True)
class Limits:
    """What the machine can do, in float32 with the threads that torch uses."""

    read_gbs: float
    """Memory read, GB/s."""
    copy_gbs: float
    """Memory copied, bytes read and written together, GB/s."""
    gflops: float
    """Best rate of a large matrix product."""

    def step_seconds(self, products: Products, rows: int) -> float:
        """Least time of a decoding step: at least one read of the weights, at least the arithmetic."""
        return max(products.bytes() / (self.read_gbs * 1e9), products.flops(rows) / (self.gflops * 1e9))


def measure() -> Limits:
    """Measure the limits in this process. Takes a few seconds and 1.5 GiB."""
    import torch

    big = torch.rand(COPY_BYTES // 4)
    other = torch.empty_like(big)
    read = COPY_BYTES / best_seconds(lambda: big.max(), 5)
    copy = 2 * COPY_BYTES / best_seconds(lambda: other.copy_(big), 5)
    a, b = torch.rand(1024, 2048), torch.rand(2048, 2048)
    rate = 2.0 * 1024 * 2048 * 2048 / best_seconds(lambda: a @ b, 20)
    return Limits(read / 1e9, copy / 1e9, rate / 1e9)


def layers(shapes: Sequence[tuple[int, int]], kind: type[Packed] | None) -> list[Callable[[Any], Any]]:
    """Products x W^T with random matrices, packed in one of the engine's ways, or in torch's layout."""
    import torch

    from ponder.engines.torch.packed import Product

    plain = [torch.nn.Linear(a, b, bias=False).requires_grad_(False) for a, b in shapes]
    return list(plain) if kind is None else [Product([layer], ((math.inf, kind),)) for layer in plain]


def product_gflops(rows: int, width_in: int, width_out: int, kind: type[Packed] | None = None) -> float:
    """Rate of one product x W^T with W in cache, GFLOP/s."""
    import torch

    x, [layer] = torch.rand(rows, width_in), layers([(width_in, width_out)], kind)
    return 2.0 * rows * width_in * width_out / best_seconds(lambda: layer(x), 50) / 1e9


def products_seconds(products: Products, rows: int, kind: type[Packed] | None = None, repeats: int = 7) -> float:
    """Median time of all products of one step, one after another, each with its own weights: the attainable floor

    of a step that does nothing else. Weights come from memory as they do in decoding.
    """
    import torch

    work = layers(products.shapes, kind)
    inputs = {a: torch.rand(rows, a) for a, _ in products.shapes}
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            began = time.perf_counter()
            for (a, _), layer in zip(products.shapes, work, strict=True):
                layer(inputs[a])
            times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def best_seconds(work: Callable[[], Any], repeats: int) -> float:
    """The shortest of some runs, after one that is not counted: a limit is measured without other load."""
    times = []
    work()
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def machine() -> str:
    """The machine in a line."""
    import platform

    import torch

    from ponder.runs.manifest import hardware

    found = hardware()
    gib = found["memory_bytes"] / 2**30
    return (
        f"{found['cpu']}, {found['cores']} cores, {gib:.0f} GiB, {platform.system()}, PyTorch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
