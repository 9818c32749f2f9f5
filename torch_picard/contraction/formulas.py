"""The theorems as formulas: what constants prove about an iteration.

L is a Lipschitz constant of P, r(x) = |P(x) - x| the undamped residual,
alpha the weight of the old state in x_{k+1} = alpha x_k + (1-alpha) P(x_k),
and q = alpha + (1-alpha) L its contraction factor. All hold in the norm that
the constants are stated in.

Lengths (steps, residuals, distances) are numbers or Tensors of any shape;
the result is of the same kind. NaN entries of a Tensor stay NaN.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .certificate import check_alpha, check_number


def a_priori_bound(q: float, first_step: Any, n: Any) -> Any:
    r"""How far x_n can be from the fixed point, known after one step:
    :math:`|x_n - x^*| \le \frac{q^n}{1-q}\,|x_1 - x_0|`.

    Equality is reached, by affine maps, so the bound is not strict.

    Args:
        q: contraction factor of the iteration, in [0, 1).
        first_step: :math:`|x_1 - x_0|`.
        n: the number of iterations, an int or a LongTensor that broadcasts
            with ``first_step``, such as ``torch.arange(20)``.

    Raises:
        ValueError: q is not in [0, 1), or a length or n is negative.

    Source: Theorem 2 (Banach-Caccioppoli), equation (4), with <= for <.
    """
    q = _factor("q", q)
    step = _length("first_step", first_step)
    if isinstance(n, Tensor):
        if n.is_floating_point() or n.is_complex() or n.dtype == torch.bool:
            raise TypeError(f"n must hold integers, got {n.dtype}")
        if bool((n < 0).any()):
            raise ValueError(f"n must not be negative, got {n.min().item()}")
        power = torch.pow(torch.tensor(q, dtype=torch.float64), n)
        if isinstance(step, Tensor):
            power = power.to(step)
        return power / (1 - q) * step
    _count("n", n)
    return q**n / (1 - q) * step


def a_posteriori_bound(q: float, last_step: Any) -> Any:
    r"""How far x_n can be from the fixed point, known from the last step:
    :math:`|x_n - x^*| \le \frac{q}{1-q}\,|x_n - x_{n-1}|`.

    The step of a smoothed iteration goes with its own q. Used with the
    factor of P instead, it would promise too much: a smoothed step is only
    (1-alpha) times the residual.

    Args:
        q: contraction factor of the iteration, in [0, 1).
        last_step: :math:`|x_n - x_{n-1}|`.

    Raises:
        ValueError: q is not in [0, 1), or a step is negative.

    Source: Theorem 2 (Banach-Caccioppoli), equation (5), with <= for <.
    """
    q = _factor("q", q)
    return q / (1 - q) * _length("last_step", last_step)


def residual_bound(constant: float, residual: Any) -> Any:
    r"""How far any x can be from the fixed point:
    :math:`|x - x^*| \le \frac{r(x)}{1-L}`.

    Free of alpha, and of how x was found.

    Args:
        constant: L, in [0, 1).
        residual: :math:`r(x) = |P(x) - x|`, undamped, such as
            ``solution.residual``.

    Raises:
        ValueError: L is not in [0, 1), or a residual is negative.

    Source: Theorem 2, applied to one undamped step from x.
    """
    constant = _factor("constant", constant)
    return _length("residual", residual) / (1 - constant)


def krasnoselskii_mann_bound(distance: Any, k: int, alpha: float) -> Any:
    r"""The residual after k smoothed steps of a map that does not expand
    (L <= 1) and has a fixed point:
    :math:`r(x_k) \le \frac{|x_0 - x^*|}{\sqrt{(k+1)\,\alpha(1-\alpha)}}`.

    In l2 (a Hilbert space). Without smoothing nothing is promised: a
    rotation circles for ever.

    Args:
        distance: :math:`|x_0 - x^*|`, or an upper bound of it.
        k: steps made, an int.
        alpha: the weight of the old state, in (0, 1).

    Raises:
        ValueError: alpha is not in (0, 1), or ``distance`` or k is negative.

    Source: Krasnoselskii 1955 and Mann 1953; the rate is the sum of
    :math:`|x_{k+1}-x^*|^2 \le |x_k-x^*|^2 - \alpha(1-\alpha)\,r(x_k)^2`,
    with r falling.
    """
    check_number("alpha", alpha)
    if not 0 < alpha < 1:
        raise ValueError(
            f"alpha must be in (0, 1), got {alpha}: at alpha = 0 a map with "
            "constant 1 need not converge"
        )
    _count("k", k)
    size = math.sqrt((k + 1) * alpha * (1 - alpha))
    return _length("distance", distance) / size


def one_sided_rate(lipschitz: float, m: float, alpha: float) -> float:
    r"""A factor by which the smoothed iteration contracts in l2, where
    :math:`\langle P(x)-P(y),\, x-y\rangle \le m\,|x-y|^2`:
    :math:`\sqrt{1 - 2h(1-m) + h^2(1-2m+L^2)}` with :math:`h = 1-\alpha`.

    It may be below 1 where L is not: a reflection (L = 1, m = -1) comes to
    rest in one step with alpha = 1/2, and L = 1.5, m = -1.5 contracts for
    every alpha > 1/5. It is never above alpha + (1-alpha) L.

    Args:
        lipschitz: L.
        m: the one-sided constant. By Cauchy-Schwarz it lies in [-L, L]; a
            value outside is taken as the nearer end.
        alpha: the weight of the old state, in [0, 1).

    Returns:
        The factor; below 1 if and only if m < 1 and
        :math:`h < 2(1-m)/(1-2m+L^2)`.

    Raises:
        ValueError: an argument is out of range.

    Source: expand :math:`|\alpha d + (1-\alpha)(P(x)-P(y))|^2`, d = x - y.
    """
    lipschitz, m = _one_sided(lipschitz, m)
    check_alpha(alpha)
    h = 1 - alpha
    # with 1 taken out, rounding makes no factor below 1 of one that is not
    gap = 2 * (1 - m) - h * _spread(lipschitz, m)
    return math.sqrt(max(1 - h * gap, 0.0))


def one_sided_alpha(lipschitz: float, m: float) -> float:
    r"""The alpha with the least :func:`one_sided_rate`:
    :math:`1 - \alpha = \min(1,\, (1-m)/(1-2m+L^2))`.

    Args:
        lipschitz: L.
        m: the one-sided constant, below 1.

    Raises:
        ValueError: m >= 1, where no alpha is certified, or an argument is
            out of range.
    """
    lipschitz, m = _one_sided(lipschitz, m)
    if m >= 1:
        raise ValueError(
            f"m must be below 1, got {m}: smoothing makes no contraction then"
        )
    return max(0.0, 1 - (1 - m) / _spread(lipschitz, m))


def neumann_bound(constant: float, k: int) -> float:
    r"""By how much k terms of the Neumann series miss the implicit
    gradient, relative to the incoming one:
    :math:`|(I-J)^{-1} - \sum_{i<k} J^i| \le \frac{L^k}{1-L}`.

    ``OneStep()`` is k = 1 and ``Phantom(steps=k)`` with alpha = 0 is k;
    k = 0 bounds :math:`|(I-J)^{-1}|` itself.

    Args:
        constant: L >= :math:`|J|`, in [0, 1).
        k: the number of terms, an int.

    Raises:
        ValueError: L is not in [0, 1), or k is negative.
    """
    constant = _factor("constant", constant)
    _count("k", k)
    return constant**k / (1 - constant)


def injection_bound(constant: float, difference: Any) -> Any:
    r"""How far apart the fixed points of T + f and T + g can be:
    :math:`|x^*(f) - x^*(g)| \le \frac{|f-g|}{1-L}`.

    They stay apart as well, by at least :math:`|f-g|/(1+L)`. Without
    injection every input ends at the same point, whatever it was.

    Args:
        constant: Lipschitz constant L of T, in [0, 1).
        difference: :math:`|f - g|`.

    Raises:
        ValueError: L is not in [0, 1), or ``difference`` is negative.
    """
    constant = _factor("constant", constant)
    return _length("difference", difference) / (1 - constant)


def _one_sided(lipschitz: Any, m: Any) -> tuple[float, float]:
    lipschitz = _number("lipschitz", lipschitz)
    if not 0 <= lipschitz < math.inf:
        raise ValueError(
            f"lipschitz must be finite and not negative, got {lipschitz}"
        )
    m = _number("m", m)
    if math.isnan(m):
        raise ValueError(f"m must be a number, got {m}")
    return lipschitz, min(max(m, -lipschitz), lipschitz)


def _spread(lipschitz: float, m: float) -> float:
    """1 - 2m + L^2, as a sum without cancellation."""
    return (1 - m) ** 2 + (lipschitz - m) * (lipschitz + m)


def _number(name: str, value: Any) -> float:
    """A number, or what a Tensor of one element holds."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    check_number(name, value)
    return float(value)


def _factor(name: str, value: Any) -> float:
    value = _number(name, value)
    if not 0 <= value < 1:
        raise ValueError(
            f"{name} must be in [0, 1), got {value}: without a contraction "
            "nothing bounds the distance to a fixed point"
        )
    return value


def _count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")


def _length(name: str, value: Any) -> Any:
    """A length: a number, or a Tensor in float32 or better."""
    if not isinstance(value, Tensor):
        check_number(name, value)
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")
        return float(value)
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be real, got {value.dtype}")
    if bool((value < 0).any()):
        raise ValueError(
            f"{name} must not be negative, got {value.min().item()}"
        )
    if not value.is_floating_point():
        return value.double()
    # half precision would round a bound by up to a percent
    short = value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if short else value
