"""IterGNN, the paper's baseline: a graph network that learns when to stop.

From the formulas of Tang, Huang, Gu, Lu, Su, "Towards Scale-Invariant
Graph-related Problem Solving by Iterative Homogeneous Graph Neural Networks"
(NeurIPS 2020, https://arxiv.org/abs/2010.13547). One conv f is applied again
and again; after each step k a confidence c_k in (0, 1) is read off the whole
graph, and the output is the expectation of the state under the distribution
"stop at step k":

    h_k = f(h_{k-1}),    c_k = sigmoid(g(max_i h_k[i]))
    p_k = c_k * (1 - c_1) * ... * (1 - c_{k-1})
    h   = p_1 * h_1 + ... + p_n * h_n

The loop ends when the probability that is left, (1 - c_1) * ... * (1 - c_k),
is below a threshold, or after max_iter steps; what is left then goes to the
last state. Each graph of a batch has its own confidence.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Module
from torch_geometric.nn import global_max_pool

from torch_picard.nn.feature_linear import FeatureLinear


class Stop(NamedTuple):
    iterations: int  # steps taken
    remaining: Tensor  # [S], the probability left at the end
    stopped: Tensor  # [S], whether it is below the threshold
    residual: Tensor  # [n], |f(h) - h| / |f(h)| at each step


class IterGNN(Module):
    """Encoder, iterated conv with soft stopping, decoder.

    `conv` is a callable from a width to a conv of that width.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        conv: Callable[[int], Module],
        *,
        max_iter: int = 16,
        threshold: float = 1e-2,
        decay: float = 1.0,
        input_dropout: float = 0.5,
        dropout: float = 0.5,
        norm: Callable[[int], Module] | None = None,
    ) -> None:
        super().__init__()
        self.max_iter = max_iter
        self.threshold = threshold
        self.decay = decay
        self.dropout = dropout
        self.encoder = FeatureLinear(
            in_channels, hidden_channels, dropout=input_dropout
        )
        self.norm = norm(hidden_channels) if norm else torch.nn.Identity()
        self.conv = conv(hidden_channels)
        self.conv_norm = norm(hidden_channels) if norm else torch.nn.Identity()
        self.confidence = Linear(hidden_channels, 1)
        self.decoder = Linear(hidden_channels, out_channels)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        batch: Tensor | None = None,
        return_solution: bool = False,
    ):
        h = self.norm(self.encoder(x)).relu()
        h = F.dropout(h, self.dropout, self.training)
        num_graphs = 1 if batch is None else int(batch.max()) + 1
        remaining = h.new_ones(num_graphs, 1)
        out, residual = torch.zeros_like(h), []

        for step in range(1, self.max_iter + 1):  # noqa: B007
            new = self.conv_norm(self.conv(h, edge_index)).relu()
            with torch.no_grad():
                residual.append((new - h).norm() / new.norm())
            # "decay" < 1 forgets old states and pushes towards early stops.
            h = self.decay * new
            c = self.confidence(global_max_pool(h, batch)).sigmoid()
            out = out + _to_nodes(remaining * c, batch) * h
            remaining = remaining * (1 - c)
            if float(remaining.detach().max()) < self.threshold:
                break
        out = out + _to_nodes(remaining, batch) * h

        out = F.dropout(out, self.dropout, self.training)
        out = self.decoder(out)
        if not return_solution:
            return out
        left = remaining.detach().view(-1)
        stop = Stop(step, left, left < self.threshold, torch.stack(residual))
        return out, stop


def _to_nodes(value: Tensor, batch: Tensor | None) -> Tensor:
    return value if batch is None else value[batch]
