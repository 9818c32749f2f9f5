"""PIGN: encoder, Picard-iterated graph convolution, decoder."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Module
from torch_geometric.nn import GATConv, GCNConv, SAGEConv
from torch_geometric.nn.inits import reset
from torch_geometric.nn.resolver import (
    activation_resolver,
    normalization_resolver,
)
from torch_geometric.typing import Adj

from ..engine.gradients import Gradient
from ..engine.methods import Method
from ..engine.methods.base import as_float, check_count
from .feature_linear import FeatureLinear
from .inputs import check_batch, resolved, unfit
from .picard_conv import PicardConv, check_not_traced
from .sharded import Sharded
from .smoothing_linear import SmoothingLinear


class PIGN(Module):
    r"""The Picard Iterative Graph Network: a node classifier (or
    regressor) whose hidden state solves a fixed-point problem on the graph,
    after `"Operator Learning Meets Numerical Analysis: Improving Neural
    Networks through Iterative Methods" <https://arxiv.org/abs/2310.01618>`_
    (Algorithm 1), with the input injected into every iteration.

    .. math::
        \mathbf{x}_0 &= \mathrm{dropout}(\sigma_e(\mathrm{norm}(
        \mathbf{X} \mathbf{W}_e + \mathbf{b}_e)))

        P(\mathbf{x}) &= \sigma(\mathrm{norm}_P(\mathrm{conv}(
        \mathrm{dropout}_P(\mathbf{x}), \mathcal{E})) + s \mathbf{x}_0)

        \mathbf{x}_{k+1} &= \alpha \mathbf{x}_k + (1 - \alpha)
        P(\mathbf{x}_k)

        \mathbf{Y} &= \mathrm{dropout}(\mathbf{x}_n) \mathbf{W}_d +
        \mathbf{b}_d

    The weight of a conv given by name is a :class:`SmoothingLinear`: it
    starts at :math:`\lambda \mathbf{I}` (and attention starts uniform), so
    the untrained block is personalised PageRank with restart :math:`1 -
    \lambda`, and training moves it away from there, the more the larger
    :math:`\beta` is. Its norm is at most :math:`\lambda`: with
    :obj:`"gcn"`, an undirected graph, no :obj:`inner_norm` and a
    1-Lipschitz :obj:`activation` (or none) :math:`P` is a contraction
    before, during and after training.

    With ``inject=False`` the block is the paper's literal loop. Iterated to
    convergence it forgets its input whenever the conv contracts, so it
    needs a small :obj:`max_iter`.

    Args:
        in_channels (int): Size of each input sample.
        hidden_channels (int): Size of the state that is iterated.
        out_channels (int): Size of each output sample.
        conv (str or callable): :obj:`"gcn"`, :obj:`"gat"` (one head),
            :obj:`"sage"` (the mean of the neighbours), or a callable that
            takes a width and returns a conv of that width.
            (default: :obj:`"gcn"`)
        alpha (float or torch.Tensor, optional): Weight of the *old* state,
            in [0, 1). Belongs to :obj:`method=None`; :obj:`None` is then 0,
            as smoothing slows down an operator that contracts.
            (default: :obj:`None`)
        max_iter (int, optional): Largest number of evaluations of
            :math:`P`. (default: :obj:`16`)
        rtol (float, optional): Relative tolerance. (default: :obj:`1e-2`)
        atol (float, optional): Absolute tolerance. (default: :obj:`0.0`)
        inject (bool, float or torch.nn.Module, optional): The number
            :math:`s`; :obj:`True` is 1, :obj:`False` leaves the term out,
            and a module is applied to :math:`\mathbf{x}_0`. Attention
            depends on the size of the state: there, :math:`1 - \lambda`
            keeps it that of :math:`\mathbf{x}_0`. (default: :obj:`True`)
        lam (float, optional): :math:`\lambda`, in (0, 1): the closer to 1,
            the wider the neighbourhood. For noisy features take more,
            :obj:`0.95` to :obj:`0.98`. (default: :obj:`0.9`)
        beta (float, optional): :math:`\beta`, in [0, 1].
            (default: :obj:`0.1`)
        encoder_activation (str or callable, optional): :math:`\sigma_e`; for
            very noisy features :obj:`None` may be better.
            (default: :obj:`"relu"`)
        activation (str or callable, optional): :math:`\sigma`, inside the
            operator. (default: :obj:`None`)
        input_dropout (float, optional): Dropout of the features, see
            :class:`FeatureLinear`; 0.5 suits bags of words.
            (default: :obj:`0.0`)
        dropout (float, optional): Dropout of :math:`\mathbf{x}_0` and of the
            decoder's input. (default: :obj:`0.5`)
        inner_dropout (float, optional): Dropout inside the operator; its
            mask is the same in every iteration of a solve.
            (default: :obj:`0.0`)
        norm (str or callable, optional): Normalisation in the encoder: a
            name that PyG's resolver knows, or a callable from a width to a
            module. One that removes the column means also centres raw
            features. (default: :obj:`None`)
        inner_norm (str or callable, optional): Normalisation inside the
            operator. Where :obj:`batch` is given, that of both is each
            graph's own, if they can do it (layer, graph, instance and pair
            norms can, batch norm does not). (default: :obj:`None`)
        method, gradient, on_failure, backend: See :class:`PicardConv`.

    Shapes:
        - **input:** node features :math:`(N, F_{in})`, dense or a sparse
          tensor (CSR or COO); edge indices :math:`(2, E)`
        - **output:** :math:`(N, F_{out})`, or a tuple of it and the
          :class:`Solution` of the solve if :obj:`return_solution`

    Raises:
        ValueError: If a width is not positive, a dropout is outside [0, 1),
            :obj:`lam` or :obj:`beta` out of range, or a name unknown; in
            a call, as of :class:`PicardConv`.
        TypeError: If an option is of the wrong type.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        conv: str | Callable[[int], Module] = "gcn",
        *,
        alpha: float | Tensor | None = None,
        max_iter: int = 16,
        rtol: float = 1e-2,
        atol: float = 0.0,
        inject: bool | float | Module = True,
        lam: float = 0.9,
        beta: float = 0.1,
        encoder_activation: str | Callable[[Tensor], Tensor] | None = "relu",
        activation: str | Callable[[Tensor], Tensor] | None = None,
        input_dropout: float = 0.0,
        dropout: float = 0.5,
        inner_dropout: float = 0.0,
        norm: str | Callable[[int], Module] | None = None,
        inner_norm: str | Callable[[int], Module] | None = None,
        method: Method | None = None,
        gradient: Gradient | None = None,
        on_failure: str = "ignore",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _check_widths(in_channels, hidden_channels, out_channels)
        _check_dropouts(input_dropout, dropout, inner_dropout)
        self.in_channels = in_channels
        self.hidden_channels = hidden_channels
        self.out_channels = out_channels
        self.dropout = dropout
        self.encoder_activation = resolved(
            "encoder_activation", encoder_activation, activation_resolver
        )

        self.encoder = FeatureLinear(
            in_channels, hidden_channels, dropout=input_dropout
        )
        self.norm = _resolve_norm("norm", norm, hidden_channels)
        operator = _resolve_conv(conv, hidden_channels, lam, beta)
        if inner_dropout > 0.0 or inner_norm is not None:
            operator = _Operator(
                operator,
                inner_dropout,
                _resolve_norm("inner_norm", inner_norm, hidden_channels),
            )
        self.block = PicardConv(
            operator,
            alpha=0.0 if alpha is None and method is None else alpha,
            max_iter=max_iter,
            rtol=rtol,
            atol=atol,
            inject=_injection(inject),
            activation=activation,
            method=method,
            gradient=gradient,
            on_failure=on_failure,
            backend=backend,
        )
        self.decoder = Linear(hidden_channels, out_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        self.encoder.reset_parameters()
        reset(self.norm)
        self.block.reset_parameters()
        for module in self.block.modules():
            if _is_smoother(module) and isinstance(module, GATConv):
                torch.nn.init.zeros_(module.att_src)
                torch.nn.init.zeros_(module.att_dst)
        self.decoder.reset_parameters()

    def forward(
        self,
        x: Tensor,
        edge_index: Adj,
        *args,
        batch: Tensor | None = None,
        return_solution: bool = False,
        **kwargs,
    ):
        r"""Runs the forward pass.

        Args:
            x (torch.Tensor): Node features, dense or sparse.
            edge_index (torch.Tensor or SparseTensor): The graph.
            *args: Further arguments of the conv (:obj:`edge_weight`, ...).
            batch (torch.Tensor, optional): The graph of each node: each
                graph is then a solve of its own. (default: :obj:`None`)
            return_solution (bool, optional): Whether to return the
                :class:`Solution`, too. (default: :obj:`False`)
            **kwargs: Further arguments of the conv.
        """
        check_not_traced(self, x)
        compared: AbstractContextManager[None] = nullcontext()
        x = self.encode(x, batch)
        if isinstance(edge_index, Sharded):
            for name in ("norm", "encoder_activation"):
                edge_index.check_rows(name, getattr(self, name), x)
            compared = edge_index.comparing(self)
        elif batch is not None and _takes_batch(self.inner_norm):
            kwargs["norm_batch"] = batch
        with compared:
            x, solution = self.block(
                x, edge_index, *args, batch=batch, return_solution=True,
                **kwargs,
            )  # fmt: skip
        x = F.dropout(x, self.dropout, self.training)
        x = self.decoder(x)
        return (x, solution) if return_solution else x

    @property
    def inner_norm(self) -> Module | None:
        """The normalisation inside the operator."""
        conv = self.block.conv
        return conv.norm if isinstance(conv, _Operator) else None

    def encode(self, x: Tensor, batch: Tensor | None = None) -> Tensor:
        r"""The start and injected input :math:`\mathbf{x}_0`, of shape
        :math:`(N, F_{hidden})`; of graphs that :obj:`batch` tells apart, if
        it is given and the norm can do that."""
        x = _applied(self.encoder, x)
        x = _normalised(self.norm, x, batch)
        if self.encoder_activation is not None:
            x = self.encoder_activation(x)
        return F.dropout(x, self.dropout, self.training)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.in_channels}, "
            f"{self.hidden_channels}, {self.out_channels}, {self.block})"
        )


class _Operator(Module):
    """conv with dropout before and normalisation after it."""

    def __init__(
        self, conv: Module, dropout: float, norm: Module | None
    ) -> None:
        super().__init__()
        self.conv = conv
        self.dropout = dropout
        self.norm = norm

    def reset_parameters(self) -> None:
        reset(self.conv)
        reset(self.norm)

    def forward(
        self,
        x: Tensor,
        edge_index: Adj,
        *args,
        norm_batch: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        x = F.dropout(x, self.dropout, self.training)
        x = self.conv(x, edge_index, *args, **kwargs)
        return _normalised(self.norm, x, norm_batch)

    def __repr__(self) -> str:
        return f"{self.conv}, dropout={self.dropout}, norm={self.norm}"


def _takes_batch(norm: Module | None) -> bool:
    """Whether it can take statistics graph by graph."""
    return norm is not None and "batch" in signature(norm.forward).parameters


def _normalised(
    norm: Module | None, x: Tensor, batch: Tensor | None
) -> Tensor:
    if norm is None:
        return x
    if batch is not None and _takes_batch(norm):
        check_batch("batch", batch, x)
        return norm(x, batch=batch)
    return norm(x)


def _applied(encoder: Module, x: Tensor) -> Tensor:
    """encoder(x), or what is wrong with x."""
    try:
        out = encoder(x)
    except Exception as error:
        found = next(unfit(encoder, x, error), None)
        if found is None:
            raise
        raise ValueError(found) from error
    if out.dim() < 2:
        raise ValueError(next(unfit(encoder, x, ValueError())))
    return out


class _Scale(Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x

    def extra_repr(self) -> str:
        return f"{self.scale:g}"


CONVS: dict[str, Callable[[int], Module]] = {
    "gcn": lambda channels: GCNConv(channels, channels),
    "gat": lambda channels: GATConv(channels, channels),
    "sage": lambda channels: SAGEConv(channels, channels, root_weight=False),
}


def _resolve_conv(conv, channels: int, lam: float, beta: float) -> Module:
    if callable(conv):
        return conv(channels)
    if conv not in CONVS:
        raise ValueError(
            f"conv must be one of {sorted(CONVS)} or a callable from a width "
            f"to a module, got {conv!r}"
        )
    module = CONVS[conv](channels)
    name = "lin_l" if conv == "sage" else "lin"
    setattr(module, name, SmoothingLinear(channels, lam, beta))
    return module


def _is_smoother(module: Module) -> bool:
    return isinstance(getattr(module, "lin", None), SmoothingLinear)


def _injection(inject: bool | float | Module) -> bool | Module:
    if isinstance(inject, bool | Module):
        return inject
    return _Scale(as_float("inject", inject))


def _resolve_norm(name: str, norm: Any, channels: int) -> Module | None:
    made = resolved(name, norm, normalization_resolver, channels)
    return made if made is None or isinstance(norm, str) else made(channels)


def _check_widths(*widths: int) -> None:
    names = ("in_channels", "hidden_channels", "out_channels")
    for name, width in zip(names, widths):
        check_count(name, width)


def _check_dropouts(*values: float) -> None:
    names = ("input_dropout", "dropout", "inner_dropout")
    for name, p in zip(names, values):
        if not 0.0 <= p < 1.0:
            raise ValueError(f"{name} must be in [0, 1), got {p}")
