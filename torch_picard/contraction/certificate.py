"""A Lipschitz constant together with what it is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

NORMS = ("l2", "l1", "linf")
#: From the strongest statement to the weakest.
KINDS = ("certified", "local", "estimate")


@dataclass(frozen=True, eq=False)
class Ball:
    r"""The states whose rows all lie within ``radius`` of the rows of
    ``center``: :math:`|x_i - c_i|_2 \le R` for every node or token i.

    It contains the ball of the same radius around ``center`` in the norm of
    the whole state, so what holds here holds there, too.

    Args:
        radius: R, finite and positive.
        center: [..., N, F], or :obj:`None` for the origin.

    Raises:
        ValueError: ``radius`` is not positive and finite.
    """

    radius: float
    center: Tensor | None = None

    def __post_init__(self):
        check_number("radius", self.radius)
        if not 0 < self.radius < math.inf:
            raise ValueError(
                f"radius must be positive and finite, got {self.radius}"
            )
        if self.center is not None and not isinstance(self.center, Tensor):
            raise TypeError(
                f"center must be a Tensor or None, got {self.center!r}"
            )

    @property
    def reach(self) -> float:
        """An upper bound of :math:`|x_i|` over the ball and all rows."""
        if self.center is None:
            return float(self.radius)
        center = self.center.detach().double()
        rows = center.reshape(-1, center.size(-1) if center.dim() else 1)
        if rows.numel() == 0:
            return float(self.radius)
        far = float(torch.linalg.vector_norm(rows, dim=1).max())
        return far * (1 + 1e-12) + float(self.radius)

    def __str__(self) -> str:
        where = "the origin" if self.center is None else "a given center"
        return f"rows within {self.radius:.6g} of {where}"


@dataclass(frozen=True, eq=False)
class Certificate:
    r"""A constant L with :math:`|P(x) - P(y)| \le L\,|x - y|`, and how far
    it can be trusted.

    Attributes:
        constant: L, a float; of an estimate for several segments a Tensor
            [S].
        norm: of the whole state (all nodes and features): ``"l2"``,
            ``"l1"`` or ``"linf"``.
        kind: ``"certified"``: proved for all x and y. ``"local"``: proved
            for x and y in ``region``. ``"estimate"``: measured at a point;
            the true constant may be larger.
        region: where it holds; :obj:`None` is everywhere.
        reason: how it comes about, in words.

    Certificates combine as the maps do: ``g @ f`` for g(f(x)), ``f + g`` for
    f(x) + g(x), :meth:`scaled` and :meth:`smoothed`. The result is worth what
    its weakest part is worth.
    """

    constant: float | Tensor
    norm: str = "l2"
    kind: str = "certified"
    region: Any = None
    reason: str = ""

    def __post_init__(self):
        if self.norm not in NORMS:
            raise ValueError(
                f"norm must be 'l2', 'l1' or 'linf', got {self.norm!r}"
            )
        if self.kind not in KINDS:
            raise ValueError(
                "kind must be 'certified', 'local' or 'estimate', got "
                f"{self.kind!r}"
            )
        if self.kind == "local" and self.region is None:
            raise ValueError("region must be given with kind='local'")
        if isinstance(self.constant, Tensor):
            if not bool((self.constant >= 0).all()):
                raise ValueError(
                    f"constant must not be negative, got {self.constant}"
                )
            return
        check_number("constant", self.constant)
        if not self.constant >= 0:
            raise ValueError(
                f"constant must not be negative or NaN, got {self.constant}"
            )

    @property
    def contracts(self) -> bool:
        """Whether P is proved to contract. An estimate proves nothing; a
        local one does so for iterates that stay in ``region``
        (:func:`ball_invariance` says when they do)."""
        return self.kind != "estimate" and self._largest() < 1

    def iterations_for(self, eps: float, first_step: float) -> int:
        r"""The number n of iterations after which Picard iteration with
        this map is within ``eps`` of the fixed point: the least n with
        :math:`L^n / (1-L)\,|x_1 - x_0| \le \varepsilon`.

        For a smoothed iteration ask the :meth:`smoothed` certificate, with
        its own first step :math:`|x_1-x_0| = (1-\alpha)\,r(x_0)`. What an
        estimate answers is itself an estimate; it proves no number.

        Args:
            eps: the distance to reach, positive, in ``norm``.
            first_step: :math:`|x_1 - x_0|`.

        Raises:
            ValueError: L >= 1, or an argument is out of range.

        Source: Theorem 1 and Corollary 2 of the paper. Corollary 2 needs
        what its proof uses: ``first_step`` bounded over all inputs, as it is
        for a map with bounded range.
        """
        q = self._below_one("iterations_for")
        check_number("eps", eps)
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}")
        step = _length("first_step", first_step)
        if step <= eps * (1 - q):
            return 0
        if q == 0:
            return 1
        gap = math.log(eps) + math.log1p(-q) - math.log(step)
        n = max(0, math.ceil(gap / math.log(q)))
        if gap < -600:  # powers of q that small are 0
            return n + 1
        # the logarithms are rounded
        while n > 0 and q ** (n - 1) / (1 - q) * step <= eps:
            n -= 1
        while q**n / (1 - q) * step > eps:
            n += 1
        return n

    def error_bound(self, residual: Any) -> Any:
        r"""A bound of the distance to the fixed point:
        :math:`|x - x^*| \le r(x) / (1 - L)`, r the undamped residual in
        ``norm``. From an estimate it is an estimate, and may be too small.

        Args:
            residual: a number, or a Tensor of any shape.

        Raises:
            ValueError: L >= 1, or a residual is negative.
        """
        from .formulas import residual_bound

        return residual_bound(self._below_one("error_bound"), residual)

    def smoothed(
        self, alpha: float, one_sided: float | None = None
    ) -> Certificate:
        r"""The certificate of :math:`\alpha x + (1-\alpha) P(x)`:
        :math:`\alpha + (1-\alpha) L`.

        Args:
            alpha: the weight of the old state, in [0, 1).
            one_sided: m with :math:`\langle P(x)-P(y), x-y \rangle \le
                m |x-y|^2`, known for all x and y that the certificate is
                about. In l2 the rate is then at most
                :math:`\sqrt{1 - 2h(1-m) + h^2(1-2m+L^2)}`,
                :math:`h = 1-\alpha`, which may be below 1 where L is not.

        Raises:
            ValueError: ``alpha`` is out of range, or ``one_sided`` is given
                in another norm than l2.
        """
        from .formulas import one_sided_rate

        check_alpha(alpha)
        q = alpha + (1 - alpha) * self.constant
        why = f"smoothed by {alpha:g}"
        if one_sided is not None:
            if self.norm != "l2":
                raise ValueError(
                    "one_sided is a statement about inner products and goes "
                    f"with norm 'l2', got {self.norm!r}"
                )
            better = one_sided_rate(self._scalar(), one_sided, alpha)
            if better < q:
                q, why = better, why + f", one-sided constant {one_sided:g}"
        return replace(self, constant=q, reason=_because(self.reason, why))

    def scaled(self, lam: float) -> Certificate:
        r"""The certificate of :math:`\lambda P`: :math:`|\lambda| L`."""
        check_number("lam", lam)
        reason = _because(self.reason, f"times {abs(lam):g}")
        constant = 0.0 if lam == 0 else abs(lam) * self.constant
        return replace(self, constant=constant, reason=reason)

    def __matmul__(self, inner: Certificate) -> Certificate:
        """Composition: the constants multiply. Where one of the two is
        local, ``inner`` must be so, too, or map into the region."""
        if not isinstance(inner, Certificate):
            return NotImplemented
        norm, kind = _common(self, inner)
        if self.region is not None and self.region is not inner.region:
            raise ValueError(
                "region: the outer certificate holds on "
                f"{self.region}, and nothing says that the inner map stays "
                "in it; ask lipschitz_bound for the whole module, or give "
                "both the same region if both map it into itself"
            )
        a, b = self.constant, inner.constant
        constant = 0.0 if _zero(a) or _zero(b) else a * b
        reason = f"({self.reason}) after ({inner.reason})"
        return Certificate(constant, norm, kind, inner.region, reason)

    def __add__(self, other: Certificate) -> Certificate:
        """Sum of two maps: the constants add."""
        if not isinstance(other, Certificate):
            return NotImplemented
        norm, kind = _common(self, other)
        region = self.region if self.region is not None else other.region
        if other.region is not None and region is not other.region:
            raise ValueError(
                f"region: one holds on {self.region}, the other on "
                f"{other.region}; give both the same Ball"
            )
        reason = f"({self.reason}) plus ({other.reason})"
        total = self.constant + other.constant
        return Certificate(total, norm, kind, region, reason)

    def __str__(self) -> str:
        text = f"{self.kind}: constant {_show(self.constant)}"
        text += f" in {self.norm}"
        if self.region is not None:
            text += f" on {self.region}"
        return text + (f" ({self.reason})" if self.reason else "")

    def _largest(self) -> float:
        if isinstance(self.constant, Tensor):
            return float(self.constant.max())
        return float(self.constant)

    def _scalar(self) -> float:
        if isinstance(self.constant, Tensor) and self.constant.numel() != 1:
            raise ValueError(
                "constant holds one entry a segment; take one of them"
            )
        return float(self.constant)

    def _below_one(self, what: str) -> float:
        if not self._largest() < 1:
            raise ValueError(
                f"{what} needs a constant below 1, got "
                f"{_show(self.constant)}: nothing bounds the distance to a "
                "fixed point then (see contractive(), or smoothed() with a "
                "one-sided constant)"
            )
        return self._scalar()


def _common(a: Certificate, b: Certificate) -> tuple[str, str]:
    """Norm and kind of a combination."""
    if a.norm != b.norm:
        raise ValueError(
            f"norm must be the same to combine two certificates, got "
            f"{a.norm!r} and {b.norm!r}"
        )
    return a.norm, KINDS[max(KINDS.index(a.kind), KINDS.index(b.kind))]


def _because(reason: str, more: str) -> str:
    return f"{reason}, {more}" if reason else more


def _zero(constant: float | Tensor) -> bool:
    return not isinstance(constant, Tensor) and constant == 0


def _show(constant: float | Tensor) -> str:
    if isinstance(constant, Tensor):
        return str([float(f"{c:.6g}") for c in constant.flatten()])
    return f"{constant:.6g}"


def check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def check_alpha(alpha: Any) -> None:
    check_number("alpha", alpha)
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be in [0, 1), got {alpha}")


def check_norm(norm: Any) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm must be 'l2', 'l1' or 'linf', got {norm!r}")


def _length(name: str, value: Any) -> float:
    """A norm that somebody measured: a number or a Tensor of one element."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = float(value)
    check_number(name, value)
    if not value >= 0 or value == math.inf:
        raise ValueError(
            f"{name} must be finite and not negative, got {value}"
        )
    return float(value)
