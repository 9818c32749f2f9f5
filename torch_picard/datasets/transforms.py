"""Feature transforms: drop-in noise and centring."""

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from .options import check_number, check_seed


class DropInNoise(BaseTransform):
    r"""Turns each zero entry of the node features into a one with
    probability :obj:`p`: the "drop-in noise" of `"Operator Learning Meets
    Numerical Analysis" <https://arxiv.org/abs/2310.01618>`_ (Table 5), with
    the raw 0/1 features of a bag of words.

    For features that are not 0/1, "one" is the largest feature of the
    graph: a black pixel of a scaled grey image becomes a white one.

    The result depends on :obj:`seed` and on the features only: the global
    random state is neither read nor moved, the input graph is not modified,
    and sparse features (CSR or COO) give the same values as dense ones. The
    result is always dense, as about a share :obj:`p` of it is not zero.

    Args:
        p (float): The probability, in [0, 1].
        seed (int, optional): The seed of the noise. (default: :obj:`0`)

    Shapes:
        - **input:** :obj:`data.x` of any shape and floating dtype
        - **output:** :obj:`data.x` of the same shape and dtype, dense

    Raises:
        TypeError: If :obj:`p` is not a number or :obj:`seed` not an int.
        ValueError: If :obj:`p` is not in [0, 1], or the graph has no
            features, or features below zero (centre *after* adding noise).
    """

    def __init__(self, p: float, seed: int = 0) -> None:
        check_number("p", p)
        check_seed(seed)
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"p must be in [0, 1], got {p}")
        self.p = p
        self.seed = seed

    def forward(self, data: Data) -> Data:
        x = _dense_features(data)
        if x.numel() == 0:
            return data
        if x.min() < 0:
            raise ValueError(
                "DropInNoise needs non-negative features, got a minimum of "
                f"{float(x.min()):g}: apply it before centring"
            )
        # Drawn on the CPU, so that the noise is the same on every device.
        generator = torch.Generator().manual_seed(self.seed)
        hit = torch.rand(x.shape, generator=generator).to(x.device) < self.p
        top = x.max() if bool((x > 0).any()) else x.new_ones(())
        data.x = torch.where(hit & (x == 0), top, x)
        return data

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}(p={self.p}, seed={self.seed})"


class Centre(BaseTransform):
    r"""Removes the mean of each feature column over the nodes of the graph,
    then scales each row to unit Euclidean length.

    .. math::
        \mathbf{x}'_i = \frac{\mathbf{x}_i - \bar{\mathbf{x}}}
        {\| \mathbf{x}_i - \bar{\mathbf{x}} \|_2}, \quad
        \bar{\mathbf{x}} = \frac{1}{N} \sum_j \mathbf{x}_j

    Rows that equal the mean stay zero. The mean is taken over all nodes,
    with or without a label: no label is used. Sparse features become
    dense; the input graph is not modified.

    Shapes:
        - **input:** :obj:`data.x` of shape :math:`(N, F)`
        - **output:** :obj:`data.x` of shape :math:`(N, F)`, dense

    Raises:
        ValueError: If the graph has no features.
    """

    def forward(self, data: Data) -> Data:
        x = _dense_features(data)
        x = x - x.mean(dim=0, keepdim=True)
        data.x = torch.nn.functional.normalize(x, dim=-1)
        return data


def _dense_features(data: Data) -> Tensor:
    x = getattr(data, "x", None)
    if not isinstance(x, Tensor):
        raise ValueError(
            "data must be a graph with features `x`, and has no features: "
            f"got {data!r}"
        )
    return x if x.layout == torch.strided else x.to_dense()
