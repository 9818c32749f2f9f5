"""Lipschitz bounds of modules, put together from those of their parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import (
    is_parametrized,
    type_before_parametrizations,
)

from .certificate import Ball, Certificate, check_norm
from .graph import Graph
from .growth import Growth, Number, is_infinite
from .norms import differentiable_norm, operator_norm

#: type of a module, or a function such as torch.relu -> its rule
_RULES: dict[Any, Callable[[Any, Context], Any]] = {}


@dataclass(frozen=True, eq=False)
class Bound:
    r"""What a rule says of a map.

    Attributes:
        constant: the Lipschitz constant in the norm that was asked for, on
            the region that was given.
        reach: R with :math:`|P(x)_i|_2 \le R` for every row i of the image
            of the region; infinite if unknown.
        anywhere: whether ``reach`` holds for all x, region or not.
        local: whether ``constant`` needs the region.
        width: the number of features of the image, the length of its last
            axis, if known.
        reason: how the constant comes about.
        size: the spatial size of the image, if known.
        keeps_size: whether that is the one of the input.
    """

    constant: Number
    reach: Number = math.inf
    anywhere: bool = False
    local: bool = False
    width: int | None = None
    reason: str = ""
    size: Sequence[int] | None = None
    keeps_size: bool = False


@dataclass(frozen=True)
class Sum:
    """f(x) + g(x) + ..., as a part that a rule can ask about; () is x."""

    parts: tuple[Any, ...]


class Context:
    """What a rule may ask for.

    Attributes:
        norm: ``"l2"``, ``"l1"`` or ``"linf"``.
        reach: R with ``|x_i|_2 <= R`` for every row of the input; infinite if
            nothing is known.
        anywhere: whether ``reach`` holds for all inputs.
        width: the number of features of the input, if known.
        num_nodes: the number of rows, if given.
        input_size: the spatial size of images that the part sees, if known.
        graph: the :class:`Graph`, if an edge_index was given.
    """

    def __init__(
        self,
        norm: str,
        graph: Graph | None = None,
        num_nodes: int | None = None,
        input_size: Sequence[int] | None = None,
        reach: Number = math.inf,
    ):
        self.norm = norm
        self.graph = graph
        self.num_nodes = num_nodes
        self.input_size = input_size
        self.reach = reach
        self.anywhere = False
        self.width: int | None = None
        #: 1 for the module that was asked for, 2 for its parts, ...
        self.depth = 0
        #: whether a constant was derived from ``reach``
        self._used_reach = False

    # -- numbers ------------------------------------------------------------

    def weight(self, module: Module, name: str) -> Tensor:
        """A parameter whose norm the rule is going to ask for."""
        return _shaped(module, name)

    def matrix_norm(
        self,
        matrix: Tensor,
        norm: str | None = None,
        degree: int = 1,
        rest: Number = 1.0,
    ) -> Number:
        """The norm of a matrix [..., out, in] that is a product of
        ``degree`` parameters from :meth:`weight`, and of something else
        whose norm is at most ``rest``."""
        return operator_norm(matrix, norm or self.norm)

    def fixed_norm(self, matrix: Tensor) -> float:
        """The norm of a matrix that is no parameter."""
        return operator_norm(matrix, self.norm)

    def number(self, value: Any) -> Number:
        """A scalar that may be learned."""
        value = value.detach() if isinstance(value, Tensor) else value
        return float(value)

    # -- parts --------------------------------------------------------------

    def bound(self, module: Any) -> Bound:
        """The bound of a part that is applied to the same input."""
        rule = _rule(module)
        used, self._used_reach = self._used_reach, False
        self.depth += 1
        try:
            found = _as_bound(rule(module, self), self.norm)
            local = found.local or self._used_reach
            # what needs the region makes the whole need it
            used = used or local
        finally:
            self._used_reach = used
            self.depth -= 1
        reason = found.reason or _describe(module, found.constant)
        return replace(found, local=local, reason=reason)

    def chain(self, *modules: Any) -> Bound:
        """Composition, the first one applied first: constants multiply, and
        each part is asked on the image of the part before it."""
        before = self.reach, self.anywhere, self.width, self.input_size
        total = Bound(
            1.0, self.reach, self.anywhere, False, self.width,
            size=self.input_size, keeps_size=True,
        )  # fmt: skip
        reasons: list[str] = []
        try:
            for module in modules:
                part = self.bound(module)
                self.reach, self.anywhere = part.reach, part.anywhere
                self.width = part.width
                if not part.keeps_size:
                    self.input_size = part.size
                constant = _times(part.constant, total.constant)
                total = replace(
                    part,
                    constant=constant,
                    local=total.local or part.local,
                    size=self.input_size,
                    keeps_size=part.keeps_size and total.keeps_size,
                )
                reasons.append(part.reason)
        finally:
            self.reach, self.anywhere, self.width, self.input_size = before
        return replace(total, reason=" then ".join(reasons) or "identity")

    def known_reach(self) -> Number:
        """``reach``, by a rule whose constant depends on it."""
        if not self.anywhere:
            self._used_reach = True
        return self.reach

    def need_graph(self, module: Any) -> Graph:
        """The graph.

        Raises:
            ValueError: no edge_index was given.
        """
        if self.graph is None:
            raise ValueError(
                f"edge_index must be given: the constant of "
                f"{type(module).__name__} depends on the graph"
            )
        return self.graph

    def need_rows(self, module: Any) -> int:
        """The number of nodes or tokens.

        Raises:
            ValueError: num_nodes was not given.
        """
        if self.num_nodes is None:
            raise ValueError(
                "num_nodes must be given, the number of tokens: the constant "
                f"of {type(module).__name__} grows with it"
            )
        return self.num_nodes


class ScaledContext(Context):
    """The same with every weight that a rule asks for multiplied by a scale
    s that is still open: norms are polynomials in s, with a gradient.

    Args:
        unit: take the norm of every weight for 1, as it is for orthogonal
            matrices and for weights projected to a ball.
    """

    unit = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        #: (module, name) of the weights that were asked for
        self.asked: dict[tuple[int, str], tuple[Module, str]] = {}

    def weight(self, module: Module, name: str) -> Tensor:
        self.asked[id(module), name] = (module, name)
        if is_parametrized(module, name):
            parts: Any = module.parametrizations
            return parts[name].original
        return _shaped(module, name)

    def matrix_norm(
        self,
        matrix: Tensor,
        norm: str | None = None,
        degree: int = 1,
        rest: Number = 1.0,
    ) -> Number:
        if self.unit:
            same = norm is None or norm == self.norm
            return Growth({degree: rest}) if same else math.inf
        size = differentiable_norm(matrix, norm or self.norm)
        return Growth({degree: size})

    def number(self, value: Any) -> Number:
        return value.double() if isinstance(value, Tensor) else float(value)


def _shaped(module: Module, name: str) -> Tensor:
    weight = getattr(module, name)
    if _written_by_a_hook(module, name):
        raise ValueError(
            f"module: {name} of {_kind(module).__name__} is computed by a "
            "hook before each forward pass, so what it is now says nothing; "
            "use torch.nn.utils.parametrizations instead (or prune.remove)"
        )
    if isinstance(weight, UninitializedParameter):
        raise ValueError(
            f"module: {name} of {_kind(module).__name__} has no shape yet; "
            "call the module once first"
        )
    return weight


def _written_by_a_hook(module: Module, name: str) -> bool:
    """As weight_norm, spectral_norm and prune of torch.nn.utils did."""
    own = name in module._parameters or is_parametrized(module, name)
    return not own and bool(module._forward_pre_hooks)


def is_scaled(context: Context) -> bool:
    """Whether numbers may change after the rule has been asked."""
    return isinstance(context, ScaledContext)


def lipschitz_bound(
    module: Any,
    edge_index: Any = None,
    num_nodes: int | None = None,
    norm: str = "l2",
    region: Ball | None = None,
    *,
    edge_weight: Tensor | None = None,
    input_size: Sequence[int] | None = None,
) -> Certificate:
    r"""A proven upper bound of the Lipschitz constant of a module.

    Constants are put together from those of the parts: products along a
    composition, sums over branches. They are those of the map in exact
    arithmetic; the rounding of a forward pass comes on top of it.

    Of a :class:`~torch_picard.PicardConv` it is the bound of P, one
    application, that decides whether the iteration contracts.

    Args:
        module: a module, or an activation function, with a rule (see
            :func:`register_bound`).
        edge_index: [2, E] or an adjacency, for graph convs. GCNConv, SGConv,
            APPNP and LGConv with their own normalisation have a bound
            without one in l2, which then holds for every undirected graph.
        num_nodes: N, the rows of the state: nodes, or the tokens that
            attention mixes.
        norm: of the whole state: ``"l2"``, ``"l1"`` (sum over all entries)
            or ``"linf"`` (largest entry).
        region: a :class:`Ball` to stay in, for maps that are not Lipschitz
            everywhere, such as softmax attention. What needed it makes the
            certificate ``"local"``.
        edge_weight: [E], as the conv is called with.
        input_size: height and width of images (or length), for convolutions
            with circular padding.

    Returns:
        A :class:`Certificate`, ``"certified"`` or ``"local"``; its constant
        is infinite where there is no bound, and its reason says why.

    Raises:
        ValueError: a part has no rule, an argument that a rule needs is
            missing, or an argument is out of range.
    """
    load_rules()
    check_norm(norm)
    if region is not None and not isinstance(region, Ball):
        raise TypeError(f"region must be a Ball or None, got {region!r}")
    context = Context(
        norm,
        _graph(edge_index, num_nodes, edge_weight),
        check_rows(num_nodes),
        check_size(input_size),
        math.inf if region is None else region.reach,
    )
    if context.num_nodes is None and context.graph is not None:
        context.num_nodes = context.graph.rows
    found = context.bound(module)
    local = found.local and region is not None
    return Certificate(
        float(found.constant),  # type: ignore[arg-type]
        norm,
        "local" if local else "certified",
        region if local else None,
        found.reason,
    )


def register_bound(kind: Any) -> Callable:
    """Teaches :func:`lipschitz_bound` and :func:`contractive` a module.

    The rule is called as ``rule(module, context)`` and returns the constant,
    a number. It may ask ``context.bound(part)`` for parts that see the same
    input, ``context.bound((first, second))`` for a composition,
    ``context.bound(Sum((f, g)))`` for a sum, and
    ``context.matrix_norm(context.weight(module, "weight"))`` for the norm of
    a parameter, in ``context.norm``; a rule that reads its parameters in no
    other way works for :func:`contractive`, too. It may return a
    :class:`Bound` in order to say where its image lies.

    A subclass needs a rule of its own: its forward may be another.

    Args:
        kind: the type of the module, or a function such as ``torch.relu``.
    """

    def register(rule: Callable[[Any, Context], Any]) -> Callable:
        _RULES[kind] = rule
        return rule

    return register


def in_l2(features: Callable[[Any], int]) -> Callable:
    r"""For a rule that knows l2 alone: bounds in the other norms, too. With m
    entries in the input and n in the image the constant in l_inf is at most
    :math:`\sqrt m` times that in l2, and in l1 :math:`\sqrt n` times.

    Args:
        features: module -> the width of its input.
    """

    def known_in_all(rule: Callable[[Any, Context], Bound]) -> Callable:
        @wraps(rule)
        def bound(module: Any, context: Context) -> Bound:
            norm = context.norm
            if norm == "l2":
                return rule(module, context)
            if isinstance(context, ScaledContext) and context.unit:
                raise ValueError(
                    f"norm must be 'l2' for {_kind(module).__name__} with "
                    f"this method, got {norm!r}"
                )
            rows = context.need_rows(module)
            context.norm = "l2"
            try:
                found = rule(module, context)
            finally:
                context.norm = norm
            width = features(module) if norm == "linf" else found.width
            if width is None:  # infinite all the same
                return found
            larger = _times(math.sqrt(rows * width), found.constant)
            return replace(found, constant=larger)

        return bound

    return known_in_all


def residual_sum(*bounds: Bound, reason: str = "") -> Bound:
    """The bound of f(x) + g(x) + ...: constants and reaches add."""
    constant, reach = bounds[0].constant, bounds[0].reach
    for b in bounds[1:]:
        constant, reach = plus(constant, b.constant), plus(reach, b.reach)
    return Bound(
        constant,
        reach,
        all(b.anywhere for b in bounds),
        any(b.local for b in bounds),
        bounds[0].width,
        reason or " plus ".join(b.reason for b in bounds),
        next((b.size for b in bounds if not b.keeps_size), None),
        all(b.keeps_size for b in bounds),
    )


def plus(a: Number, b: Number) -> Number:
    return math.inf if is_infinite(a) or is_infinite(b) else a + b


def _times(a: Number, b: Number) -> Number:
    """0 times anything is 0: a constant map stays one."""
    if _is_zero(a) or _is_zero(b):
        return 0.0
    return math.inf if is_infinite(a) or is_infinite(b) else a * b


times = _times


def _is_zero(a: Any) -> bool:
    return isinstance(a, (int, float)) and a == 0


def _as_bound(found: Any, norm: str) -> Bound:
    """What a rule returned."""
    if isinstance(found, Bound):
        return found
    if not isinstance(found, Certificate):
        return Bound(found)
    if found.kind == "estimate" or found.norm != norm:
        raise ValueError(
            f"module: a rule must return a proven bound in {norm!r}, got "
            f"{found}"
        )
    return Bound(found.constant, local=found.kind == "local")


def load_rules() -> None:
    """The rules import the convs of PyG and are loaded at the first use."""
    from . import rules

    assert rules is not None


def _rule(module: Any) -> Callable[[Any, Context], Any]:
    kind = _kind(module)
    if isinstance(module, Module):
        rule = _RULES.get(kind)
    else:
        rule = None
        if callable(module) and isinstance(module, Hashable):
            rule = _RULES.get(module)
        rule = rule or _RULES.get(kind)
    if rule is None:
        name = kind.__name__
        if not isinstance(module, Module):
            name = getattr(module, "__name__", repr(module))
        raise ValueError(
            f"module: no rule bounds the Lipschitz constant of {name}; "
            "register one with @register_bound"
            f"({name if isinstance(module, Module) else 'the function'}) as "
            "rule(module, context) -> constant, or measure a lower bound at "
            "a point with estimate_lipschitz"
        )
    return rule


def _kind(module: Any) -> type:
    """parametrize derives a class of its own."""
    if isinstance(module, Module) and is_parametrized(module):
        return type_before_parametrizations(module)
    return type(module)


def _describe(module: Any, constant: Any) -> str:
    name = getattr(module, "__name__", None) or _kind(module).__name__
    if isinstance(constant, Growth):
        return name
    return f"{name} {float(constant):.6g}"


def _graph(
    edge_index: Any, num_nodes: int | None, edge_weight: Any
) -> Graph | None:
    if edge_index is None:
        if edge_weight is not None:
            raise ValueError(
                "edge_weight was given without the edge_index it belongs to"
            )
        return None
    return Graph(edge_index, num_nodes, edge_weight)


def check_rows(num_nodes: Any) -> int | None:
    if num_nodes is None:
        return None
    if isinstance(num_nodes, bool) or not isinstance(num_nodes, int):
        raise TypeError(
            f"num_nodes must be an integer, got {type(num_nodes).__name__}"
        )
    if num_nodes < 1:
        raise ValueError(f"num_nodes must be at least 1, got {num_nodes}")
    return num_nodes


def check_size(size: Any) -> tuple[int, ...] | None:
    if size is None:
        return None
    sizes = (size,) if isinstance(size, int) else tuple(size)
    if not sizes or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(
            f"input_size must hold positive integers, got {size!r}"
        )
    return sizes
