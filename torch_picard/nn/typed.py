"""P over node types: one solve for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import HeteroConv

from .inputs import check_batch

State = dict[str, Tensor]


class Typed:
    """conv on a dict of features by node type, as an operator.

    Types that receive no messages are no part of the state: they are held at
    their input.

    Args:
        conv: called as ``conv(x_dict, edge_index_dict, ...)``, such as
            HeteroConv or a model of to_hetero.
        x: features by node type.
        args, kwargs: what follows ``x`` in a call of conv.
        f: what is added, by node type, or None.
        activation: applied to every type.

    Raises:
        TypeError, ValueError: x holds something else than floating Tensors,
            or conv or f have another structure or shape.
    """

    def __init__(
        self,
        conv: Any,
        x: State,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        f: State | None,
        activation: Callable[[Tensor], Tensor] | None,
    ):
        _check(x)
        self.conv, self.args, self.kwargs = conv, args, kwargs
        self.f, self.activation = f, activation
        moving = _receiving(conv, x, args, kwargs)
        self.state = {t: x[t] for t in x if t in moving}
        if f is not None:
            _check_injected(f, self.state)
        self.held = {t: x[t] for t in x if t not in moving}
        if not self.state:
            raise ValueError(
                "edge_index must lead to at least one node type of x, got "
                f"the types {list(x)}"
            )

    def __call__(self, y: State) -> State:
        z = self.conv({**self.held, **y}, *self.args, **self.kwargs)
        if not isinstance(z, dict):
            raise TypeError(
                "conv must return a dict by node type, as x is one, got "
                f"{type(z).__name__}"
            )
        return {t: self._one(t, y[t], z.get(t)) for t in y}

    def _one(self, name: str, y: Tensor, z: Tensor | None) -> Tensor:
        if z is None:
            return y
        if z.shape != y.shape:
            raise ValueError(
                f"conv changed the width of {name!r}: x is {list(y.shape)}, "
                f"conv(x) {list(z.shape)}; a fixed point needs equal widths, "
                "such as those of a Linear for each type before it"
            )
        if self.f is not None:
            z = z + self.f[name]
        return z if self.activation is None else self.activation(z)

    def segments(self, batch: Any) -> Any:
        if batch is None:
            return None
        if not isinstance(batch, dict) or not set(self.state) <= set(batch):
            got = list(batch) if isinstance(batch, dict) else type(batch)
            raise ValueError(
                "batch must be a dict with a LongTensor [N] for each of the "
                f"node types {list(self.state)}, got {got}"
            )
        for t, x in self.state.items():
            check_batch(f"batch[{t!r}]", batch[t], x)
        return {t: batch[t] for t in self.state}


def injected(inject: torch.nn.Module, x: State) -> Any:
    """What a module makes of the features of all types."""
    try:
        return inject(x)
    except (AttributeError, TypeError) as error:
        raise ValueError(
            "inject must map a dict of features by node type to such a dict, "
            "as torch_geometric.nn.HeteroDictLinear does, got "
            f"{type(inject).__name__}, which fails with: {error}"
        ) from error


def _check(x: State) -> None:
    for name, t in x.items():
        if not isinstance(t, Tensor) or not t.is_floating_point():
            kind = getattr(t, "dtype", type(t).__name__)
            raise ValueError(
                f"x[{name!r}] must be a Tensor [N, F] of a floating dtype, "
                f"got {kind}"
            )


def _check_injected(f: Any, state: State) -> None:
    for name, t in state.items():
        found = f.get(name) if isinstance(f, dict) else f
        if not isinstance(found, Tensor) or found.shape != t.shape:
            got = type(found).__name__
            if isinstance(found, Tensor):
                got = f"shape {list(found.shape)}"
            raise ValueError(
                "inject must map x to a dict of the same shapes, "
                f"{list(t.shape)} for {name!r}, got {got}"
            )


def _receiving(
    conv: Any, x: State, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> set[str]:
    """Node types that conv has messages for."""
    if isinstance(conv, HeteroConv):
        given = args[0]
        return {kind[-1] for kind in conv.convs.keys() if kind in given}
    with torch.no_grad():  # only an evaluation can say
        found = conv(x, *args, **kwargs)
    return set(found) if isinstance(found, dict) else set(x)
