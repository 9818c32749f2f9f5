"""What a graph must offer that several processes have parts of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor


class Sharded(ABC):
    """Takes the place of ``edge_index``; see torch_picard.distributed."""

    @abstractmethod
    def segments(self, batch: Tensor | None) -> Any:
        """Those of :func:`fixed_point`, over all processes."""

    @abstractmethod
    def operator(
        self,
        conv: Any,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        backend: str,
    ) -> Callable[[Tensor], Tensor]:
        """conv on the whole graph, from the rows here to the rows here."""
