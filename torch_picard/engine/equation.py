"""Equation (1) of the paper: lam*T(x) + f = x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from .solution import Solution
from .solve import fixed_point


class OperatorEquation:
    r"""The operator equation :math:`x = \lambda T(x) + f`.

    Callable as :math:`P(x) = \lambda T(x) + f`.

    Args:
        T: any callable x -> T(x) that keeps structure, shapes and dtypes.
        f: the free function, in the structure of x; :obj:`None` is 0.
        lam: the scalar :math:`\lambda`, a number or a 0-dim Tensor (which
            may be learned). It scales T; smoothing is the method's
            ``alpha``. (default: :obj:`1.0`)

    Source: Zappala et al. 2023, equation (1).
    """

    def __init__(
        self,
        T: Callable[[Any], Any],
        f: Any = None,
        lam: float | Tensor = 1.0,
    ):
        if not callable(T):
            raise TypeError(f"T must be callable as x -> T(x), got {T!r}")
        number = isinstance(lam, (int, float)) and not isinstance(lam, bool)
        if not number and not (isinstance(lam, Tensor) and lam.dim() == 0):
            raise TypeError(
                f"lam must be a number or a 0-dim Tensor, got {lam!r}"
            )
        self.T, self.f, self.lam = T, f, lam

    def __call__(self, x: Any) -> Any:
        """P(x) = lam*T(x) + f."""
        image = self.T(x)
        if isinstance(image, Tensor) and isinstance(self.f, Tensor):
            return self._one(image, self.f)
        if self.f is None:
            return pytree.tree_map(lambda t: self.lam * t, image)
        leaves, spec = pytree.tree_flatten(self.f)
        try:
            images = spec.flatten_up_to(image)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"T must return the structure of f, but: {error}"
            ) from None
        return pytree.tree_unflatten(
            [self._one(t, f) for t, f in zip(images, leaves)], spec
        )

    def _one(self, image: Tensor, f: Any) -> Tensor:
        try:
            return self.lam * image + f
        except (RuntimeError, TypeError) as error:
            given = f"{type(f).__name__}"
            if isinstance(f, Tensor):
                given = f"shape {list(f.shape)} on {f.device}"
            raise ValueError(
                "f must be added to T(x), of shape "
                f"{list(image.shape)} on {image.device}, got {given}"
            ) from error

    def solve(self, x0: Any = None, **options: Any) -> Solution:
        """:func:`fixed_point` of this operator.

        Args:
            x0: where to start. (default: ``f``)
            **options: those of :func:`fixed_point`.

        Raises:
            ValueError: neither ``x0`` nor ``f`` was given.
        """
        if x0 is None:
            x0 = self.f
        if x0 is None:
            raise ValueError(
                "x0 must be given when the equation has no f to start from"
            )
        return fixed_point(self, x0, **options)

    def __repr__(self) -> str:
        return f"OperatorEquation(T={self.T!r}, lam={self.lam!r})"
