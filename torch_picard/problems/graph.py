"""Linear propagation on graphs, exact by a dense solve."""

from __future__ import annotations

import torch
from torch import Tensor

from .linear import symmetric_matrix
from .problem import Problem


def random_graph(num_nodes: int, seed: int = 0) -> Tensor:
    """``edge_index`` [2, E] of a ring with as many random chords, undirected
    and without self-loops or duplicates."""
    rng = torch.Generator().manual_seed(seed)
    row = torch.arange(num_nodes)
    chord = torch.randint(num_nodes, (2, num_nodes), generator=rng)
    pairs = torch.cat([torch.stack([row, row.roll(-1)]), chord], dim=1)
    both = torch.cat([pairs, pairs.flip(0)], dim=1)
    return both[:, both[0] != both[1]].unique(dim=1)


def gcn_matrix(edge_index: Tensor, num_nodes: int) -> Tensor:
    r"""Dense :math:`D^{-1/2}(A+I)D^{-1/2}` in float64. For an undirected
    graph it is symmetric, with norm 1 and eigenvector
    :math:`\sqrt{deg}`."""
    row, col = edge_index
    a = torch.eye(num_nodes, dtype=torch.float64)
    a[col, row] += 1.0
    scale = a.sum(1).rsqrt()
    return scale[:, None] * a * scale


def appnp(
    edge_index: Tensor | None = None,
    num_nodes: int = 40,
    teleport: float = 0.1,
    channels: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    r"""G1: APPNP, :math:`x = (1-a)\hat{A}x + ah`, solved by
    :math:`a(I-(1-a)\hat{A})^{-1}h`; rate 1 - a on an undirected graph.

    Args:
        edge_index: [2, E], undirected; a random graph if not given.
        num_nodes: N.
        teleport: a.
        channels: features of h, which is random.
    """
    if not 0 < teleport <= 1:
        raise ValueError(f"teleport must be in (0, 1], got {teleport}")
    if edge_index is None:
        edge_index = random_graph(num_nodes, seed)
    rng = torch.Generator().manual_seed(seed + 1)
    shape = (num_nodes, channels)
    h = torch.randn(shape, generator=rng, dtype=torch.float64)
    a = (1 - teleport) * gcn_matrix(edge_index, num_nodes)
    eye = torch.eye(num_nodes, dtype=torch.float64)
    exact = torch.linalg.solve(eye - a, teleport * h)
    a, f = a.to(dtype), (teleport * h).to(dtype)
    return Problem(
        name="APPNP",
        operator=lambda x: a @ x + f,
        x0=h.to(dtype),
        solution=exact.to(dtype),
        rate=1 - teleport,
    )


def linear_gcn(
    edge_index: Tensor | None = None,
    num_nodes: int = 30,
    channels: int = 4,
    rho: float = 0.9,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    r"""G2: a GCN layer without activation and with injection,
    :math:`x = \hat{A}xW + f`, W symmetric with norm ``rho``, which is the
    rate because :math:`\hat{A}` has the eigenvalue 1.

    Solved through the Kronecker product: with rows stacked,
    :math:`(I - \hat{A}\otimes W)\,x = f`.
    """
    if edge_index is None:
        edge_index = random_graph(num_nodes, seed)
    weight = symmetric_matrix(channels, rho, seed, torch.float64)[0]
    rng = torch.Generator().manual_seed(seed + 1)
    shape = (num_nodes, channels)
    f = torch.randn(shape, generator=rng, dtype=torch.float64)
    a = gcn_matrix(edge_index, num_nodes)
    both = torch.kron(a, weight)
    eye = torch.eye(both.size(0), dtype=torch.float64)
    exact = torch.linalg.solve(eye - both, f.reshape(-1)).reshape(shape)
    a, weight, f = a.to(dtype), weight.to(dtype), f.to(dtype)
    return Problem(
        name="GCN",
        operator=lambda x: a @ x @ weight + f,
        x0=torch.zeros(shape, dtype=dtype),
        solution=exact.to(dtype),
        rate=abs(rho),
    )
