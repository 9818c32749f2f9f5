"""Fixed points that are kept from batch to batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import SGConv

from ..engine import Solution
from ..engine.methods.base import check_count
from .inputs import check_batch
from .invariants import _NORMALISED
from .neighbourhood import check_one_hop, check_pieces, check_rows
from .picard_conv import PicardConv


class StoredPicard(nn.Module):
    r"""A :class:`PicardConv` on mini-batches of one large graph, with the
    fixed point of every node stored.

    A batch has seeds, and around them all their direct neighbours. Seeds
    start at their stored states and are solved for; neighbours stay at
    theirs, as boundary values. What was found is stored. With fixed weights,
    going through all batches again and again is a block Gauss-Seidel
    iteration for the fixed point of the whole graph, and converges to it
    where the conv contracts; in training the stored states trail the weights
    by an epoch, which a warm start mends in a few iterations. No sampled
    receptive field, and memory for one batch.

    Args:
        conv (PicardConv): With injection. Its graph conv must look one hop
            far and may not normalise by degrees that the batch does not
            show: ``GCNConv(..., normalize=False)`` with the weights of
            ``torch_geometric.transforms.GCNNorm`` on the whole graph.
        num_nodes (int): Of the whole graph.
        channels (int): Width of a state.

    Shapes:
        - **input:** features of the batch :math:`(n, F)`, seeds first;
          edge indices :math:`(2, e)`; their global ids :math:`(n,)`
        - **output:** :math:`(s, F)`, of the seeds

    Raises:
        TypeError: ``conv`` is no PicardConv.
        ValueError: it does not inject, or normalises, or looks further than
            the neighbours of the seeds; the batch is not as above.

    Source: the stored states of Fey et al., "GNNAutoScale", 2021, for a
    fixed point, where what is stored is a start and a boundary value.
    """

    states: Tensor
    known: Tensor

    def __init__(self, conv: PicardConv, num_nodes: int, channels: int):
        super().__init__()
        if not isinstance(conv, PicardConv):
            raise TypeError(
                f"conv must be a PicardConv, got {type(conv).__name__}"
            )
        if isinstance(conv.inject, bool) and not conv.inject:
            raise ValueError(
                "conv must inject: without it the input is the first iterate "
                "alone, and a stored state would replace it"
            )
        for module in conv.modules():
            normalises = type(module) in (SGConv, *_NORMALISED)
            if normalises and getattr(module, "normalize", True):
                raise ValueError(
                    f"conv normalises by degrees, {module}, and a batch does "
                    "not show those of the neighbours: use normalize=False "
                    "and the weights of torch_geometric.transforms.GCNNorm"
                )
        check_count("num_nodes", num_nodes)
        check_count("channels", channels)
        self.conv = conv
        kinds = (p.dtype for p in conv.parameters() if p.is_floating_point())
        states = torch.zeros(num_nodes, channels, dtype=next(kinds, None))
        self.register_buffer("states", states, persistent=False)
        known = torch.zeros(num_nodes, dtype=torch.bool)
        self.register_buffer("known", known, persistent=False)
        self._tried = False

    def reset_parameters(self) -> None:
        """Resets the conv, and forgets all states."""
        self.conv.reset_parameters()
        self.forget()

    def forget(self) -> None:
        """All states are unknown again: nodes start at their features."""
        self.known.zero_()

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        n_id: Tensor,
        num_seeds: int,
        *args: Any,
        batch: Tensor | None = None,
        return_solution: bool = False,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Solution]:
        """Solves for the seeds.

        Args:
            x: [n, F], features of the batch, as after an encoder. States
                are kept in its dtype.
            edge_index: [2, e], in the numbering of the batch; all edges to
                the seeds (``num_neighbors=[-1]``), others do not matter.
            n_id: [n], global ids; those of the seeds come first, as in
                PyG's loaders (``batch.n_id``, ``batch.batch_size``).
            num_seeds: s.
            args, kwargs: further arguments of the conv.
            batch: [n], which graph a node is of, where the large graph is
                several: sorted as far as the seeds go, the seeds of each
                stop by themselves.
            return_solution: whether to return the Solution, too; its value
                is [s, F].
        """
        self._check(x, edge_index, n_id, num_seeds)
        check_batch("batch", batch, x)
        segments = None if batch is None else batch[:num_seeds]
        if segments is not None and bool((segments.diff() < 0).any()):
            raise ValueError(
                "batch must be sorted (non-decreasing) for the seeds, its "
                f"first {num_seeds}, got {_some(segments)}"
            )
        if self.states.dtype != x.dtype:
            self.states = self.states.to(x.dtype)
        check_pieces(self.conv.conv, "in a StoredPicard")
        if not self._tried:
            check_one_hop(
                self.conv.conv, x, args, kwargs, edges_of_neighbours=False
            )
            for name in ("inject", "activation"):
                function = getattr(self.conv, name)
                check_rows(name, function, x, "in a StoredPicard")
            self._tried = True
        with torch.no_grad():
            known = self.known[n_id, None]
            stored = torch.where(known, self.states[n_id], x)
        operator = self.conv._plan(x, edge_index, args, kwargs, None).operator
        around = stored[num_seeds:]

        def of_seeds(y: Tensor) -> Tensor:
            return operator(torch.cat([y, around]))[:num_seeds]

        solution = self.conv.solve(of_seeds, stored[:num_seeds], segments)
        with torch.no_grad():
            # a solve that ran away may not reach the neighbours' solves
            sound = solution.value.isfinite().all(dim=1)
            seeds = n_id[:num_seeds][sound]
            self.states[seeds] = solution.value[sound]
            self.known[seeds] = True
        if return_solution:
            return solution.value, solution
        return solution.value

    def _check(
        self, x: Any, edge_index: Any, n_id: Any, num_seeds: Any
    ) -> None:
        nodes, channels = self.states.shape
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise ValueError(
                f"x must be a Tensor [n, {channels}] of a floating dtype, got "
                f"{getattr(x, 'dtype', type(x).__name__)}"
            )
        if x.dim() != 2 or x.size(1) != channels:
            raise ValueError(
                f"x must have the {channels} channels of the stored states, "
                f"got shape {list(x.shape)}"
            )
        n = x.size(0)
        dense = isinstance(edge_index, Tensor)
        dense = dense and edge_index.layout == torch.strided
        if not dense or edge_index.shape[:1] != (2,) or edge_index.dim() != 2:
            got = type(edge_index).__name__
            if isinstance(edge_index, Tensor):
                got = f"{edge_index.layout}, {list(edge_index.shape)}"
            raise ValueError(
                "edge_index must be a LongTensor [2, e] in the numbering of "
                f"the batch, got {got}; a loader gives one without "
                "torch_geometric.transforms.ToSparseTensor"
            )
        if not isinstance(n_id, Tensor) or n_id.dtype != torch.long:
            kind = getattr(n_id, "dtype", type(n_id).__name__)
            raise ValueError(f"n_id must be a LongTensor [{n}], got {kind}")
        counted = isinstance(num_seeds, int) and 0 < num_seeds <= n
        if n_id.shape != (n,) or not counted:
            raise ValueError(
                f"n_id must be [{n}] like x, with 1 to {n} seeds in front, "
                f"got {list(n_id.shape)} and {num_seeds} seeds"
            )
        if int(n_id.min()) < 0 or int(n_id.max()) >= nodes:
            raise ValueError(
                f"n_id must be in 0..{nodes - 1}, global ids of nodes, got "
                f"{int(n_id.min())}..{int(n_id.max())}"
            )
        if n_id.unique().numel() < n:
            raise ValueError(
                "n_id must name every node once, got "
                f"{n - n_id.unique().numel()} of {n} twice"
            )


def _some(t: Tensor) -> str:
    return f"{t[:8].tolist()}" + (" ..." if len(t) > 8 else "")
