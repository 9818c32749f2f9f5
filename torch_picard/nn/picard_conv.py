"""A graph conv, iterated to its fixed point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.inits import reset
from torch_geometric.nn.resolver import activation_resolver
from torch_geometric.typing import Adj
from torch_geometric.utils.num_nodes import maybe_num_nodes

from ..engine import ConvergenceError, Solution
from ..engine.gradients import Gradient
from ..engine.held import held_weights
from ..engine.loop import settled
from ..engine.methods import Method
from ..ops.backends import BACKENDS, choose
from .inputs import check_batch, fault, resolved
from .plan import Plan, plan
from .sharded import Sharded
from .solver import Solver
from .typed import Typed, injected
from .width import check_widths

_BACKENDS = ("auto", *BACKENDS)


class PicardConv(Solver):
    r"""Any graph convolution, iterated to a fixed point, from the
    `"Operator Learning Meets Numerical Analysis: Improving Neural Networks
    through Iterative Methods" <https://arxiv.org/abs/2310.01618>`_ paper
    (Algorithm 1).

    .. math::
        \mathbf{X}^{(k+1)} = \alpha \mathbf{X}^{(k)} + (1 - \alpha)
        P(\mathbf{X}^{(k)}), \qquad \mathbf{X}^{(0)} = \mathbf{X}

    With :obj:`inject=False` (the paper's literal loop)
    :math:`P(\mathbf{X}) = \sigma(\mathrm{conv}(\mathbf{X}, \mathcal{E}))`;
    otherwise :math:`P(\mathbf{X}) = \sigma(\mathrm{conv}(\mathbf{X},
    \mathcal{E}) + \mathbf{F})` with :math:`\mathbf{F} = \mathbf{X}^{(0)}`
    or a map of it.

    .. note::
        :obj:`alpha` weights the *old* state. (In :class:`APPNP` and
        :class:`GCN2Conv` it weights the initial one.)

    .. warning::
        Without injection the fixed point of a contracting conv does not
        depend on the input: iterated to convergence the literal loop
        forgets it. Use :obj:`inject`, or few iterations.

    Normalisation and self-loops of PyG's GCN- and GAT-like convs are
    computed once per forward pass, not once per iteration.

    While PyG's explainers hold masks at :obj:`conv`, all :obj:`max_iter`
    iterations are made: masks make messages small, and a relative tolerance
    would end the solve before those from afar have arrived.

    Args:
        conv (torch.nn.Module): Any conv called as :obj:`conv(x, edge_index,
            ...)` that keeps the shape of :obj:`x`.
        alpha (float or torch.Tensor, optional): Weight of the old state, in
            :math:`[0, 1)`; a :class:`torch.nn.Parameter` is learned, with
            :class:`Unrolled` gradients: a fixed point does not depend on
            it. Belongs to :obj:`method=None`. (default: :obj:`0.5`)
        max_iter (int, optional): Evaluations of :obj:`conv` allowed.
            (default: :obj:`16`)
        rtol (float, optional): Relative tolerance on the undamped residual.
            With :obj:`rtol = atol = 0` exactly :obj:`max_iter` iterations
            are made. (default: :obj:`1e-4`)
        atol (float, optional): Absolute tolerance. (default: :obj:`0.0`)
        inject (bool or torch.nn.Module, optional): Whether the input is
            added in every iteration; a module is applied to it first.
            (default: :obj:`False`)
        activation (str or Callable, optional): :math:`\sigma`.
            (default: :obj:`None`)
        method (Method, optional): Another method of :func:`fixed_point`.
            (default: :obj:`None`, which is :class:`Picard`)
        gradient (Gradient, optional): How to differentiate the solve.
            (default: :obj:`None`, which is :class:`Unrolled`)
        on_failure (str, optional): :obj:`"ignore"`, :obj:`"warn"` or
            :obj:`"raise"`. (default: :obj:`"ignore"`)
        backend (str, optional): Kernels to use. (default: :obj:`"auto"`)

    Shapes:
        - **input:**
          node features :math:`(|\mathcal{V}|, F)`,
          edge indices :math:`(2, |\mathcal{E}|)` or an adjacency that
          :obj:`conv` takes; or dicts of both, by node and by edge type, for
          a conv that takes these: one solve over all types
        - **output:** node features :math:`(|\mathcal{V}|, F)`, or
          :math:`((|\mathcal{V}|, F)`, :class:`Solution`:math:`)` if
          :obj:`return_solution=True`

    Raises:
        ValueError: An option is out of range, both :obj:`alpha` and
            :obj:`method` are given, or :obj:`conv` changes the width.
        TypeError: An option is of the wrong type.
    """

    def __init__(
        self,
        conv: torch.nn.Module,
        alpha: float | Tensor | None = None,
        max_iter: int = 16,
        rtol: float = 1e-4,
        atol: float = 0.0,
        *,
        inject: bool | torch.nn.Module = False,
        activation: str | Callable[[Tensor], Tensor] | None = None,
        method: Method | None = None,
        gradient: Gradient | None = None,
        on_failure: str = "ignore",
        backend: str = "auto",
    ):
        super().__init__(
            alpha=alpha,
            max_iter=max_iter,
            rtol=rtol,
            atol=atol,
            method=method,
            gradient=gradient,
            on_failure=on_failure,
        )
        if not isinstance(conv, torch.nn.Module):
            raise TypeError(
                "conv must be a module called as conv(x, edge_index), got "
                f"{conv!r}"
            )
        if not isinstance(inject, (bool, torch.nn.Module)):
            raise TypeError(
                f"inject must be True, False or a Module, got {inject!r}"
            )
        _check_backend(backend)
        check_widths(conv)
        _check_cache(conv)

        self.conv = conv
        self.inject = inject
        self.activation: Callable[[Tensor], Tensor] | None = resolved(
            "activation", activation, activation_resolver
        )
        self.backend = backend

    def reset_parameters(self):
        r"""Resets all learnable parameters of the module."""
        for module in (self.conv, self.inject, self.activation):
            reset(module)
        self.reset_alpha()

    def forward(
        self,
        x: Tensor,
        edge_index: Adj,
        *args: Any,
        batch: Tensor | None = None,
        start: Tensor | None = None,
        return_solution: bool = False,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Solution]:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): The node features, and the first iterate.
            edge_index (torch.Tensor or SparseTensor): The edge indices or
                adjacency.
            *args: Further arguments of :obj:`conv`, such as
                :obj:`edge_weight`.
            batch (torch.Tensor, optional): The sorted batch vector
                :math:`\mathbf{b} \in {\{ 0, \ldots, B-1\}}^N`; each graph
                is then a solve of its own with its own stopping.
                (default: :obj:`None`)
            start (torch.Tensor, optional): Another first iterate than
                :obj:`x`, of the same structure, such as the fixed point of
                an earlier, similar solve; needs :obj:`inject`, as nothing
                else would depend on :obj:`x`. (default: :obj:`None`)
            return_solution (bool, optional): If set to :obj:`True`, will
                also return the :class:`Solution`.
                (default: :obj:`False`)
            **kwargs: Further arguments of :obj:`conv`.

        Raises:
            ValueError: The call failed because of an argument's shape, dtype,
                device or entries; it says which. Other errors of
                :obj:`conv` are passed on.
        """
        check_not_traced(self, x)
        try:
            return self._forward(
                x, edge_index, args, kwargs, batch, start, return_solution
            )
        except ConvergenceError:
            raise
        except Exception as error:
            found = fault(error, self.conv, x, edge_index, args, kwargs, batch)
            if found is None:
                raise
            raise ValueError(found) from error

    def _forward(
        self, x, edge_index, args, kwargs, batch, start, return_solution
    ):
        if isinstance(edge_index, Sharded):
            edge_index.agree(self, x, args, kwargs, batch, start)
        if start is not None:
            self._check_start(start, x)
        if isinstance(x, dict):
            if isinstance(edge_index, Sharded):
                raise ValueError(
                    "x must be one Tensor on a PartitionedGraph, which is of "
                    "one node type, got a dict"
                )
            solution, out = self._typed(
                x, (edge_index, *args), kwargs, batch, start
            )
            return (out, solution) if return_solution else out
        if not isinstance(x, Tensor):
            raise ValueError(
                "x must be one Tensor [N, F]: a fixed point needs source "
                f"and target nodes to be the same, got {type(x).__name__}; "
                "where to_hetero or HeteroConv calls it for an edge type, "
                f"{_AROUND}"
            )
        if not x.is_floating_point():
            raise ValueError(f"x must be of a floating dtype, got {x.dtype}")
        if isinstance(edge_index, dict):
            raise ValueError(
                "edge_index must be one adjacency, as x is one Tensor, got a "
                f"dict; for node types {_AROUND}"
            )
        if isinstance(edge_index, EdgeIndex) and torch.compiler.is_compiling():
            return _eagerly(
                self._forward, x, edge_index, args, kwargs, batch, start,
                return_solution,
            )  # fmt: skip
        check_batch("batch", batch, x)
        if self.method is None and self.counted and not return_solution:
            batch = None  # the value does not depend on it
        if x.size(0) == 0 and not isinstance(edge_index, Sharded):
            # as of a node type that a batch has none of
            solution = settled(x, x.device)
            return (x, solution) if return_solution else x
        with held_weights(self):
            if isinstance(edge_index, Sharded):
                operator = self._shared(x, edge_index, args, kwargs)
                segments = edge_index.segments(batch)
            else:
                planned = self._plan(x, edge_index, args, kwargs, self)
                operator, segments = planned.operator, batch
            first = x if start is None else start
            solution = self._solved(operator, first, segments)
        if return_solution:
            return solution.value, solution
        return solution.value

    def explain_plan(
        self,
        edge_index: Adj,
        *args: Any,
        num_nodes: int | None = None,
        **kwargs: Any,
    ) -> str:
        r"""Says in a line how :math:`P` would be computed, and why.

        ``fused``: one kernel call an iteration (after a dense map, if
        :obj:`conv` has one); ``aggregated``: a kernel aggregates, the rest
        follows; ``conv``: :obj:`conv` runs its own forward, and a kernel
        smooths.

        Args:
            edge_index (torch.Tensor or SparseTensor): The edge indices or
                adjacency.
            *args: Further arguments of :obj:`conv`.
            num_nodes (int, optional): The number of nodes. (default: from
                :obj:`edge_index`)
            **kwargs: Further arguments of :obj:`conv`.
        """
        kind = type(self.conv).__name__
        if isinstance(edge_index, dict):
            return (
                f"conv: {kind} over {len(edge_index)} edge types: it runs as "
                "it is, and one solve smooths all node types"
            )
        nodes = maybe_num_nodes(edge_index, num_nodes)
        like = next(
            (p for p in self.parameters() if p.is_floating_point()),
            torch.empty(0),
        )
        width = getattr(self.conv, "in_channels", 1)
        width = width[0] if isinstance(width, (tuple, list)) else width
        width = width if isinstance(width, int) and width > 0 else 1
        x = torch.zeros(nodes, width, dtype=like.dtype, device=like.device)
        with torch.no_grad():
            plan = self._plan(x, edge_index, args, kwargs, owner=None)
        return f"{plan.path}: {kind} on {plan.backend}: {plan.reason}"

    def _plan(self, x: Tensor, edge_index: Adj, args, kwargs, owner) -> Plan:
        return plan(
            owner,
            self.conv,
            x,
            edge_index,
            args,
            kwargs,
            f=self._injected(x),
            activation=self.activation,
            backend=self.backend,
        )

    def _solved(self, operator, x, segments) -> Solution:
        """All iterations, while somebody explains."""
        explained = any(
            isinstance(module, MessagePassing) and module.explain
            for module in self.conv.modules()
        )
        options: dict[str, Any] = {"rtol": 0.0, "atol": 0.0}
        if not explained:
            options = {}
        return self.solve(operator, x, segments, **options)

    def _typed(self, x, args, kwargs, batch, start):
        """One solve over all node types; the Solution, and all types."""
        f = x if self.inject else None
        if isinstance(self.inject, torch.nn.Module):
            f = injected(self.inject, x)
        with held_weights(self):
            operator = Typed(self.conv, x, args, kwargs, f, self.activation)
            segments = operator.segments(batch)
            first = x if start is None else start
            first = {t: first[t] for t in operator.state}
            if any(t.numel() for t in first.values()):
                solution = self._solved(operator, first, segments)
            else:
                device = next(iter(first.values())).device
                solution = settled(first, device)
        return solution, {t: solution.value.get(t, x[t]) for t in x}

    def _shared(self, x: Tensor, graph: Sharded, args, kwargs):
        """P on a graph that other processes have parts of."""
        for name in ("inject", "activation"):
            graph.check_rows(name, getattr(self, name), x)
        conv = graph.operator(self.conv, x, args, kwargs, self.backend)
        f, activation = self._injected(x), self.activation

        def operator(y: Tensor) -> Tensor:
            z = conv(y) if f is None else conv(y) + f
            return z if activation is None else activation(z)

        return operator

    def _check_start(self, start: Any, x: Any) -> None:
        if isinstance(self.inject, bool) and not self.inject:
            raise ValueError(
                "start needs inject: without it x is the first iterate, and "
                "nothing else depends on it"
            )
        if isinstance(x, dict) and isinstance(start, dict):
            if set(start) != set(x):
                raise ValueError(
                    f"start must have the node types of x, {list(x)}, got "
                    f"{list(start)}"
                )
            for name in x:
                _check_like(f"start[{name!r}]", start[name], x[name])
        else:
            _check_like("start", start, x)

    def _injected(self, x: Tensor) -> Tensor | None:
        if not isinstance(self.inject, torch.nn.Module):
            return x if self.inject else None
        f = self.inject(x)
        if f.shape != x.shape:
            raise ValueError(
                f"inject must keep the shape of x, but it maps "
                f"{list(x.shape)} to {list(f.shape)}"
            )
        return f

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.conv}, {self.extra_repr()})"


_AROUND = (
    "put PicardConv around to_hetero or HeteroConv, as in "
    "PicardConv(to_hetero(model, metadata)): one solve over all node types"
)


def check_not_traced(module: torch.nn.Module, x: Any) -> None:
    """By torch.fx, as to_hetero does with the model it is given."""
    if isinstance(x, torch.fx.Proxy):
        raise TypeError(
            f"{type(module).__name__} cannot be traced by torch.fx, as a "
            "solve decides on values when to stop; for node types "
            f"{_AROUND}, and for one graph of operations torch.export and "
            "torch.compile take rtol=0, atol=0"
        )


def _check_backend(backend: str) -> None:
    if backend not in _BACKENDS:
        raise ValueError(
            f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}"
        )
    if backend == "scatter":  # native depends on the device of x
        choose(backend, torch.device("cpu"))


@torch.compiler.disable
def _eagerly(call: Callable, *args: Any, **kwargs: Any) -> Any:
    """torch.compile does not follow EdgeIndex through a solve."""
    return call(*args, **kwargs)


def _check_like(name: str, start: Any, x: Any) -> None:
    tensors = isinstance(start, Tensor) and isinstance(x, Tensor)
    if not tensors or start.shape != x.shape or start.dtype != x.dtype:
        got = type(start).__name__
        if isinstance(start, Tensor):
            got = f"{start.dtype} of shape {list(start.shape)}"
        raise ValueError(f"{name} must be one Tensor like x, got {got}")


def _check_cache(conv: Any) -> None:
    caches_state = hasattr(conv, "_cached_x") or hasattr(conv, "_cached_h")
    if caches_state and getattr(conv, "cached", False):
        raise ValueError(
            f"conv {conv} was made with cached=True, which keeps the "
            "propagated features of the first call, so that iterating it "
            "does nothing; use cached=False"
        )
