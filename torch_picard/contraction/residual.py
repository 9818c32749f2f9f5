"""A residual connection that can contract."""

from __future__ import annotations

from typing import Any

from torch import nn


class Residual(nn.Module):
    r"""A residual sum: :math:`x + f(x)`, or with a weight
    :math:`(1-w)\,x + w f(x)`.

    The plain sum has a Lipschitz bound of at least 1, whatever f is, so that
    nothing can be concluded from it. The weighted one contracts if f does:
    its bound is :math:`1 - w + w L`.

    Args:
        module: f, called as ``f(x, *args, **kwargs)``.
        weight: w in (0, 1], or :obj:`None` for the plain sum.

    Raises:
        ValueError: ``weight`` is out of range.
    """

    def __init__(self, module: nn.Module, weight: float | None = None):
        super().__init__()
        if not callable(module):
            raise TypeError(f"module must be callable, got {module!r}")
        if weight is not None:
            number = isinstance(weight, (int, float))
            if not number or isinstance(weight, bool):
                raise TypeError(
                    f"weight must be a number or None, got {weight!r}"
                )
            if not 0 < weight <= 1:
                raise ValueError(f"weight must be in (0, 1], got {weight}")
        self.module = module
        self.weight = weight

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        y = self.module(x, *args, **kwargs)
        if self.weight is None:
            return x + y
        return (1 - self.weight) * x + self.weight * y

    def extra_repr(self) -> str:
        return "" if self.weight is None else f"weight={self.weight:g}"
