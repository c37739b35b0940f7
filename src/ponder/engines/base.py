"""What most engines have in common. A custom engine derives from `BaseEngine` and adds only what differs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Self

from ponder import sync
from ponder.errors import Unsupported
from ponder.protocols import Delivery, Receipt, WeightsUpdate
from ponder.types import Capabilities, Completion, Delta, ModelInfo, Prompt, Request, Spend


class BaseEngine(ABC):
    """An engine with no weights to load, no caches and nothing to close; see `protocols.Engine`.

    An engine needs `info`, `capabilities`, `count_tokens` and `generate`. It overrides what else it supports.
    `with engine:` and `async with engine:` close it at the end.
    """

    info: ModelInfo
    capabilities: Capabilities
    grace: float = 0.0
    queues: bool = False
    opening: Spend = Spend()

    @property
    def weights_version(self) -> int:
        return 0

    @property
    def known(self) -> Mapping[str, Any]:
        return {}

    @abstractmethod
    def count_tokens(self, prompt: Prompt | tuple[int, ...]) -> int:
        """Number of prompt tokens that a request with this prompt costs (template included)."""

    @abstractmethod
    async def generate(self, request: Request, receipt: Receipt | None = None) -> tuple[Completion, ...]:
        """Sample `request.n` completions, in sample order; see `protocols.Engine.generate`."""

    async def stream(self, request: Request, receipt: Receipt | None = None) -> AsyncGenerator[Delta, None]:
        """The answer of `generate`, each completion in one piece."""
        for i, completion in enumerate(await self.generate(request, receipt)):
            yield Delta(i, completion.text, completion.ids, completion)

    async def load_weights(self, update: WeightsUpdate) -> Delivery:
        """Raises `Unsupported`."""
        raise Unsupported(f"the engine of {self.info.name} takes no new weights: train with the torch engine")

    async def drop_caches(self) -> None:  # noqa: B027  (an engine without caches leaves it as it is)
        """Nothing is cached."""

    async def close(self) -> None:  # noqa: B027
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        sync.run(self.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
