"""A graph whose nodes belong to the processes of a group."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module

from ..engine.shared import Shared, naming_ranks
from ..nn.neighbourhood import check_one_hop, check_pieces, check_rows
from ..nn.sharded import Sharded
from .halo import Halo
from .local import Piece, local_operator
from .partition import check_edges, partition
from .sameness import Facts, agree


class PartitionedGraph(Sharded):
    """The part of a graph that this process owns, and how it reaches the
    rest. It takes the place of ``edge_index`` in :class:`PicardConv` and
    :class:`PIGN`, with ``features[graph.owned]`` in that of all features.

    A node is computed where it is owned. In every evaluation of P the rows
    that other processes need (the halo) are exchanged by ``all_to_all``,
    while the nodes that need none are computed; residuals are summed over
    the group, so all processes stop at the same iteration. Gradients go
    back through the exchange: with a loss that is the sum of the
    processes' losses, the sum of their gradients is the whole gradient,
    for every mode (backward must then run in every process).

    Making one is collective, and so is every use. Before a solve the
    processes compare what they must have in common: parameters and buffers,
    bit by bit, options, further arguments of the conv, dtypes, and where
    gradients are asked for.

    Args:
        edge_index: [2, E], the whole graph, the same in every process.
        num_nodes: N, at least as many as there are processes.
        group: of torch.distributed. (default: all processes)
        owner: the process of every node, long [N]. (default:
            :func:`partition`, made by the first process)

    Attributes:
        owned: global ids of the nodes here, long [n]; first those that no
            other process is needed for.
        halo: the rows received, and how much that has been so far.

    Raises:
        RuntimeError: torch.distributed has not been initialised, or another
            process has ended or does not answer.
        ValueError: ``edge_index``, ``num_nodes`` or ``owner`` is unsound in
            some process, or not the same in all. Likewise in a solve, and in
            every process.
    """

    def __init__(
        self,
        edge_index: Tensor,
        num_nodes: int,
        group: Any = None,
        owner: Tensor | None = None,
    ):
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "PartitionedGraph needs torch.distributed: start the script "
                "with torchrun and call "
                "torch.distributed.init_process_group('gloo') or ('nccl')"
            )
        self.group = group
        self.rank = dist.get_rank(group)
        self.num_parts = dist.get_world_size(group)
        self.num_nodes = num_nodes
        if self.rank < 0:
            raise ValueError("group must have this process in it")
        _check_given(edge_index, num_nodes, owner, group)
        self.device = edge_index.device
        edges = edge_index.cpu()
        owner = self._partitioned(edges) if owner is None else owner.cpu()

        source, target = edges
        mine = owner == self.rank
        reads = mine[target] & ~mine[source]
        boundary = torch.zeros(num_nodes, dtype=torch.bool)
        boundary[target[reads]] = True
        inner = (mine & ~boundary).nonzero()[:, 0]
        outer = (mine & boundary).nonzero()[:, 0]
        self.owned = torch.cat([inner, outer])
        self.num_interior = inner.numel()
        position = self._positions(owner)
        wanted = source[reads].unique()
        wanted = wanted[owner[wanted].argsort(stable=True)]
        self.halo = Halo(wanted, owner, position, group, self.device)

        # local ids: the rows here, then those received
        local = torch.full((num_nodes,), -1)
        local[self.owned] = torch.arange(self.owned.numel())
        local[wanted] = self.owned.numel() + torch.arange(wanted.numel())
        self._local = local.to(self.device)
        self.owned = self.owned.to(self.device)
        self._edge_index = edge_index
        self._sizes = torch.bincount(owner).tolist()
        self._compared: Module | None = None
        self._tried: weakref.WeakSet = weakref.WeakSet()

    def __repr__(self) -> str:
        return (
            f"PartitionedGraph(rank {self.rank} of {self.num_parts}, "
            f"{self.num_owned} of {self.num_nodes} nodes, "
            f"{self.num_owned - self.num_interior} at the boundary, "
            f"{self.halo.size} in the halo)"
        )

    @property
    def num_owned(self) -> int:
        return self.owned.numel()

    def gather(self, x: Tensor) -> Tensor:
        """All rows, in every process, in the order of the graph: [n, ...]
        to [N, ...]. Collective; not differentiable.

        Raises:
            ValueError: not one row a node here.
        """
        facts = Facts()
        facts.rows("x", x, self.num_owned)
        agree(facts, self.group, self.device)
        self._check_rows(x)
        sizes = self._sizes
        width = x.reshape(x.size(0), -1)
        most = max(sizes)
        sent = width.new_zeros(most, width.size(1))
        sent[: len(width)] = width.detach()
        ids = torch.zeros(most, dtype=torch.long, device=x.device)
        ids[: self.num_owned] = self.owned
        rows = [torch.empty_like(sent) for _ in sizes]
        names = [torch.empty_like(ids) for _ in sizes]
        with naming_ranks("gathering the rows", self.group):
            dist.all_gather(rows, sent, group=self.group)
            dist.all_gather(names, ids, group=self.group)
        out = width.new_empty(self.num_nodes, width.size(1))
        for n, row, name in zip(sizes, rows, names):
            out[name[:n]] = row[:n]
        return out.reshape(self.num_nodes, *x.shape[1:])

    @contextmanager
    def comparing(self, module: Module) -> Iterator[None]:
        """Solves within it compare the parameters and buffers of all of
        ``module`` between the processes, not those of a PicardConv alone;
        PIGN does so by itself."""
        before = self._compared
        self._compared = module if before is None else before
        try:
            yield
        finally:
            self._compared = before

    # -- what PicardConv asks ------------------------------------------------

    def agree(
        self,
        module: Module,
        x: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        batch: Any,
        start: Any,
    ) -> None:
        facts = Facts()
        facts.modes(self.device)
        for name, rows in {"x": x, "batch": batch, "start": start}.items():
            facts.rows(name, rows, self.num_owned)
        for i, value in enumerate(args):
            facts.tensor(f"argument {i} of conv", value)
        for name, value in kwargs.items():
            facts.tensor(name, value)
        facts.module(self._compared or module)
        agree(facts, self.group, self.device)

    def segments(self, batch: Tensor | None) -> Shared:
        return Shared(self.group, batch)

    def operator(
        self,
        conv: Any,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        backend: str,
    ) -> Callable[[Tensor], Tensor]:
        self._check_rows(x)
        return local_operator(self, conv, x, args, kwargs, backend)

    # -- the pieces ----------------------------------------------------------

    def incoming(self) -> Tensor:
        """Edges to the nodes here, long."""
        target = self._local[self._edge_index[1]]
        return ((target >= 0) & (target < self.num_owned)).nonzero()[:, 0]

    def surrounding(self) -> Tensor:
        """The same, and those to the halo."""
        return (self._local[self._edge_index[1]] >= 0).nonzero()[:, 0]

    def ends(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Source and target of these edges (long), in local ids: the rows
        here, then the halo's; -1 is unknown."""
        source, target = self._local[self._edge_index[:, edges]]
        return source, target

    def try_once(self, conv: Any, x: Tensor, args, kwargs) -> None:
        """Whether conv can be computed here; all processes come to the same
        answer."""
        if conv not in self._tried:
            check_one_hop(conv, x, args, kwargs)
            self._tried.add(conv)

    def check_rows(self, name: str, function: Any, like: Tensor) -> None:
        where = "on a PartitionedGraph"
        if isinstance(function, Module):
            check_pieces(function, where, name)  # its mode may have changed
        if callable(function) and function not in self._tried:
            check_rows(name, function, like, where)
            self._tried.add(function)

    def split(
        self, source: Tensor, target: Tensor, at: int
    ) -> tuple[Tensor, list[Piece]]:
        """Edges in local ids: their order by piece, and the pieces: nodes
        0..at-1, which need the rows here alone, if there are any; and the
        others."""
        inner = target < at
        first, second = inner.nonzero()[:, 0], (~inner).nonzero()[:, 0]
        pieces = [self._outer(source[second], target[second], at)]
        if at:
            edges = torch.stack([source[first], target[first]])
            pieces.insert(0, Piece(None, edges, self.num_owned, at))
        return torch.cat([first, second]), pieces

    def _outer(self, source: Tensor, target: Tensor, at: int) -> Piece:
        """Its rows: those from ``at``, what is read here, the halo, and one
        that stands for all that is unknown."""
        n = self.num_owned
        reads = source[(source >= 0) & (source < at)].unique()
        boundary = torch.arange(at, n, device=self.device)
        rows = torch.cat([boundary, reads])
        name = torch.full((n + self.halo.size + 1,), -1, device=self.device)
        name[rows] = torch.arange(rows.numel(), device=self.device)
        more = torch.arange(self.halo.size + 1, device=self.device)
        name[n:] = rows.numel() + more
        edges = torch.stack([name[source], name[target]])  # -1: the last
        size = rows.numel() + self.halo.size + 1
        return Piece(rows, edges, size, boundary.numel())

    # -- setting up ----------------------------------------------------------

    def _partitioned(self, edges: Tensor) -> Tensor:
        """By the first process, for all."""
        owner = torch.zeros(self.num_nodes, dtype=torch.long)
        if self.rank == 0:
            owner = partition(edges, self.num_nodes, self.num_parts)
        owner = owner.to(self.device)
        first = 0
        if self.group is not None:
            first = dist.get_global_rank(self.group, 0)
        with naming_ranks("agreeing on the owners", self.group):
            dist.broadcast(owner, first, group=self.group)
        return owner.cpu()

    def _positions(self, owner: Tensor) -> Tensor:
        """Where every node stands among the rows of its owner, [N]."""
        position = torch.zeros(self.num_nodes, dtype=torch.long)
        position[self.owned] = torch.arange(self.owned.numel())
        position = position.to(self.device)
        with naming_ranks("agreeing on the order", self.group):
            dist.all_reduce(position, group=self.group)
        return position.cpu()

    def _check_rows(self, x: Tensor) -> None:
        kind = type(x).__name__
        rows = x.size(0) if isinstance(x, Tensor) and x.dim() else f"a {kind}"
        if rows != self.num_owned:
            raise ValueError(
                f"x must have one row for each of the {self.num_owned} nodes "
                f"owned here, as in features[graph.owned], got {rows}"
            )

    def whole(self, name: str, t: Tensor) -> Tensor:
        """An argument of all edges."""
        count = self._edge_index.size(1)
        if t.dim() == 0 or t.size(0) != count:
            raise ValueError(
                f"{name} must be of all {count} edges of the graph (each "
                f"process takes its own), got shape {list(t.shape)}"
            )
        return t


def _check_given(
    edge_index: Any, num_nodes: Any, owner: Any, group: Any
) -> None:
    """Collective, so that what is wrong in one process ends all.

    Raises:
        ValueError: something is unsound, or differs between the processes.
    """
    facts, problem = Facts(), None
    facts.say("the graph", "sound")
    try:
        check_edges(edge_index, num_nodes)
        _check_device(edge_index, group)
        _check_owner(owner, num_nodes, dist.get_world_size(group))
        facts.tensor("edge_index", edge_index)
        facts.tensor("num_nodes", num_nodes)
        facts.tensor("owner", owner)
    except ValueError as error:
        facts, problem = Facts(), error
        facts.say("the graph", error)
    nccl = dist.get_backend(group) == "nccl"
    agree(facts, group, torch.device("cuda" if nccl else "cpu"))
    if problem is not None:
        raise problem


def _check_owner(owner: Any, num_nodes: int, parts: int) -> None:
    if owner is None:
        if num_nodes < parts:
            raise ValueError(
                f"num_nodes must be at least the {parts} processes, got "
                f"{num_nodes}"
            )
        return
    if not isinstance(owner, Tensor):
        raise ValueError(
            f"owner must be a LongTensor [{num_nodes}], got "
            f"{type(owner).__name__}"
        )
    if owner.shape != (num_nodes,) or owner.dtype != torch.long:
        raise ValueError(
            f"owner must be a LongTensor [{num_nodes}], got {owner.dtype} of "
            f"shape {list(owner.shape)}"
        )
    used = owner.unique().tolist()
    if used != list(range(parts)):
        raise ValueError(
            f"owner must use every process 0..{parts - 1}, got {used[:8]}"
        )


def _check_device(edge_index: Tensor, group: Any) -> None:
    backend = dist.get_backend(group)
    if backend == "nccl" and not edge_index.is_cuda:
        raise ValueError(
            "edge_index must be on the GPU of this process, since its group "
            f"communicates by nccl, got {edge_index.device}"
        )
