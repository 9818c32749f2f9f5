"""Norms of matrices: exact, and as bounds that can be differentiated."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Above this size of the smaller side a Gram bound replaces the SVD.
_LARGEST_SVD = 2048
#: Above this size products are taken in the precision of the matrix.
_LARGEST_DOUBLE = 256


def operator_norm(matrix: Tensor, norm: str = "l2") -> float:
    r"""The norm of :math:`x \mapsto M x`, rounded up.

    In l2 it is the largest singular value from an SVD in float64 (for
    matrices beyond 2048 the Gram bound, at most 0.1% above); in l1 the
    largest column sum, in l_inf the largest row sum of absolute values.

    Args:
        matrix: [..., m, n]; with leading dimensions, the largest one.
        norm: ``"l2"``, ``"l1"`` or ``"linf"``.
    """
    m = _in_double(matrix.detach())
    if m.numel() == 0:
        return 0.0
    if not bool(torch.isfinite(m).all()):
        return math.inf
    n = max(m.shape[-2:])
    up = 1 + 16 * n * torch.finfo(torch.float64).eps
    if norm == "l1":
        return float(m.abs().sum(-2).max()) * up
    if norm == "linf":
        return float(m.abs().sum(-1).max()) * up
    if min(m.shape[-2:]) > _LARGEST_SVD:
        return float(gram_bound(m, excess=1e-3))
    return float(torch.linalg.svdvals(m).max()) * up


def gram_bound(
    matrix: Tensor, iterations: int | None = None, excess: float = 1e-2
) -> Tensor:
    r"""A proven upper bound of the largest singular value, by Gram
    iteration, that can be differentiated.

    With :math:`G_0 = M` and :math:`G_{k+1} = G_k^* G_k` the singular values
    are squared again and again, and :math:`|G_k|_F^{1/2^k}` lies between the
    largest one and :math:`r^{1/2^{k+1}}` times it, r the rank. Unlike power
    iteration, it is never below.

    Args:
        matrix: [..., m, n], real or complex.
        iterations: k. (default: as many as bring the bound within
            ``excess`` whatever the matrix)
        excess: the relative excess to keep below.

    Returns:
        0-dim Tensor of dtype float64, the largest bound over the leading
        dimensions; with a gradient if ``matrix`` requires one.

    Source: Delattre et al. 2023, "Efficient Bound of Lipschitz Constant for
    Convolutional Layers by Gram Iteration", Theorem 1.
    """
    small, large = sorted(matrix.shape[-2:])
    if matrix.numel() == 0:
        return torch.zeros((), dtype=torch.float64, device=matrix.device)
    g = matrix if _multiplies_well(matrix) else _in_double(matrix)
    if g.size(-2) < g.size(-1):
        g = g.mT  # the same singular values, and a smaller product
    info = torch.finfo(g.dtype)
    # A product A'A is off by n*eps/2*|A|_F^2 at most, and |A'A|_F is at
    # least |A|_F^2 / sqrt(n); the roots halve it from step to step. The
    # logarithms are of moderate numbers.
    up = 1 + 2 * large**1.5 * info.eps + 32 * torch.finfo(torch.float64).eps
    if iterations is None:
        # what rounding may add leaves less to the iteration
        rest = (1 + excess) / up - 1
        iterations = gram_iterations(small, max(rest, excess / 8))
    # squares neither overflow nor vanish
    unit = g.detach().abs().amax((-2, -1), keepdim=True)
    unit = unit.clamp_min(info.tiny)
    g = g / unit
    # |G_k|_F^(1/2^k) in logarithms, each G_k divided by its own norm
    log_bound = torch.zeros((), dtype=torch.float64, device=g.device)
    for k in range(iterations + 1):
        size = torch.linalg.vector_norm(g, dim=(-2, -1), keepdim=True)
        size = size.clamp_min(info.tiny)
        log_bound = log_bound + size.double().log() / 2**k
        if k < iterations:
            g = g / size
            g = g.mH @ g
    return (log_bound.exp() * unit.double()).max() * up


def _multiplies_well(matrix: Tensor) -> bool:
    """Whether products are taken as they are: the bound counts on an error
    of eps, which neither short floats have, nor float32 where torch may
    round its factors."""
    if min(matrix.shape[-2:]) <= _LARGEST_DOUBLE:
        return False
    single = matrix.dtype in (torch.float32, torch.complex64)
    if not single:
        return matrix.dtype in (torch.float64, torch.complex128)
    rounded = torch.get_float32_matmul_precision() != "highest"
    return not rounded and not torch.is_autocast_enabled(matrix.device.type)


def gram_iterations(rank: int, excess: float = 1e-2) -> int:
    """The least k with rank^(1/2^(k+1)) <= 1 + excess."""
    if rank <= 1:
        return 0
    ratio = math.log(rank) / math.log1p(excess)
    return max(0, math.ceil(math.log2(ratio)) - 1)


def differentiable_norm(matrix: Tensor, norm: str = "l2") -> Tensor:
    """An upper bound of :func:`operator_norm` in float64 with a gradient:
    exact in l1 and l_inf, a Gram bound in l2."""
    if norm == "l2":
        return gram_bound(matrix)
    m = _in_double(matrix)
    return m.abs().sum(-2 if norm == "l1" else -1).max()


def _in_double(matrix: Tensor) -> Tensor:
    return matrix.to(
        torch.complex128 if matrix.is_complex() else torch.float64
    )
