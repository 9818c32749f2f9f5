"""A weight for iterated convs that cannot make them expand."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from ..engine.held import Computed


class SmoothingLinear(Computed):
    r"""A square linear map without bias, :math:`\mathbf{x}
    \mathbf{W}^{\top}`, whose weight is a learned deviation from a multiple
    of the identity and never expands by more than :obj:`lam`:

    .. math::
        \mathbf{W} = \lambda \left((1 - \beta) \mathbf{I} + \beta
        \frac{\mathbf{M}}{\max(1, \|\mathbf{M}\|_2)} \right), \qquad
        \|\mathbf{W}\|_2 \le \lambda

    :math:`\mathbf{M}` is learned and starts at :math:`\mathbf{I}`, so
    :math:`\mathbf{W}` starts at :math:`\lambda \mathbf{I}`. As the
    :obj:`lin` of a :class:`~torch_geometric.nn.GCNConv` it makes the conv a
    contraction with rate :math:`\lambda` on an undirected graph, and one
    that starts as plain smoothing.

    Args:
        channels (int): Size of each input and output sample.
        lam (float): :math:`\lambda`, in (0, 1).
        beta (float): :math:`\beta`, how far the weight may move, in [0, 1].

    Shapes:
        - **input:** :math:`(*, F)`
        - **output:** :math:`(*, F)`

    Raises:
        ValueError: If :obj:`lam` or :obj:`beta` is out of range.
    """

    def __init__(self, channels: int, lam: float, beta: float) -> None:
        super().__init__()
        if not 0.0 < lam < 1.0:
            raise ValueError(f"lam must be in (0, 1), got {lam}")
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta must be in [0, 1], got {beta}")
        self.in_channels = self.out_channels = channels
        self.lam = lam
        self.beta = beta
        self.deviation = Parameter(torch.empty(channels, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets the weight to a multiple of the identity."""
        torch.nn.init.eye_(self.deviation)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def computed(self) -> Tensor:
        """The weight, of shape [F, F]; computed once a solve."""
        m = self.deviation
        eye = torch.eye(self.in_channels, dtype=m.dtype, device=m.device)
        wide = torch.promote_types(m.dtype, torch.float32)
        size = torch.linalg.matrix_norm(m.to(wide), 2).to(m.dtype)
        m = m / size.clamp(min=1.0)
        return self.lam * ((1.0 - self.beta) * eye + self.beta * m)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, lam={self.lam:g}, beta={self.beta:g}"
