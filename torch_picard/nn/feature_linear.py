"""A first layer for wide, possibly sparse node features."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear


class FeatureLinear(Linear):
    r"""A linear map of node features with input dropout that never makes a
    dense :math:`N \times F` mask.

    .. math::
        \mathbf{Y} = \mathrm{dropout}(\mathbf{X}) \mathbf{W}^{\top} +
        \mathbf{b}

    - :math:`\mathbf{X}` sparse: dropout acts on the stored entries, which
      is ordinary dropout, because zeros stay zeros. It costs as much as
      there are stored entries.
    - :math:`\mathbf{X}` dense: dropout acts on whole columns (a feature is
      dropped for all nodes at once), which equals dropout of the rows of
      the weight, :math:`(\mathbf{X} \mathrm{diag}(\mathbf{m}))
      \mathbf{W}^{\top} = \mathbf{X} (\mathrm{diag}(\mathbf{m})
      \mathbf{W}^{\top})`, and costs one mask of :math:`F` entries.

    Args:
        in_channels (int): Size of each input sample.
        out_channels (int): Size of each output sample.
        bias (bool, optional): Whether to add a bias. (default: :obj:`True`)
        dropout (float, optional): Dropout probability of the input.
            (default: :obj:`0.0`)

    Shapes:
        - **input:** :math:`(N, F_{in})`, dense, sparse CSR or sparse COO
        - **output:** :math:`(N, F_{out})`, dense
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        *,
        dropout: float = 0.0,
    ) -> None:
        self.dropout = dropout
        super().__init__(in_channels, out_channels, bias)

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        torch.nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        p = self.dropout if self.training else 0.0
        if x.layout == torch.strided:
            if p == 0.0:
                return F.linear(x, self.weight, self.bias)
            mask = F.dropout(x.new_ones(x.size(-1)), p)
            return F.linear(x, self.weight * mask, self.bias)
        out = _drop_entries(x, p) @ self.weight.t()
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dropout={self.dropout}"


def _drop_entries(x: Tensor, p: float) -> Tensor:
    """Dropout on the stored entries of a sparse matrix."""
    if p == 0.0:
        return x
    if x.layout == torch.sparse_csr:
        return torch.sparse_csr_tensor(
            x.crow_indices(),
            x.col_indices(),
            F.dropout(x.values(), p),
            x.shape,
            check_invariants=False,
        )
    x = x.coalesce()
    return torch.sparse_coo_tensor(
        x.indices(),
        F.dropout(x.values(), p),
        x.shape,
        is_coalesced=True,
        check_invariants=False,
    )
