"""What a graph must offer that several processes have parts of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.nn import Module


class Sharded(ABC):
    """Takes the place of ``edge_index``; see torch_picard.distributed."""

    @abstractmethod
    def comparing(self, module: Module) -> AbstractContextManager[None]:
        """Within, it is all of this module that the processes compare."""

    @abstractmethod
    def agree(
        self,
        module: Module,
        x: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        batch: Any,
        start: Any,
    ) -> None:
        """That all processes are about to make the same solve.

        Raises:
            ValueError: they are not; in every one of them.
        """

    @abstractmethod
    def check_rows(self, name: str, function: Any, like: Tensor) -> None:
        """That a function, given as ``name``, maps each row by itself."""

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
