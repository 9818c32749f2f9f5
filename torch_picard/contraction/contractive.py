"""Weights that cannot make a module expand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import parametrize

from .bounds import (
    ScaledContext,
    _graph,
    check_rows,
    check_size,
    load_rules,
)
from .certificate import Ball, check_norm, check_number
from .growth import Growth, is_infinite

_DOUBLE = torch.finfo(torch.float64).eps
METHODS = ("scale", "orthogonal", "project")


def contractive(
    module: Module,
    bound: float = 0.95,
    edge_index: Any = None,
    num_nodes: int | None = None,
    norm: str = "l2",
    region: Ball | None = None,
    *,
    edge_weight: Tensor | None = None,
    input_size: Sequence[int] | None = None,
    method: str = "scale",
) -> Module:
    r"""Parametrises the weights of ``module`` so that its
    :func:`lipschitz_bound` is at most ``bound``: now, after every step of an
    optimiser, and after ``load_state_dict``.

    The rules that bound a module say how the bound depends on the norms of
    its weights. Weights are computed from freely learned ones
    (``torch.nn.utils.parametrize``), with gradients through the constraint.
    Biases stay free. The norms are proven upper bounds, so nothing has to
    converge first (unlike power iteration, which comes from below).

    Args:
        module: any module that :func:`lipschitz_bound` knows; it is changed
            in place.
        bound: the constant not to exceed.
        edge_index, num_nodes, edge_weight: the graph, where the bound
            depends on it (SAGEConv in l2, GIN, GraphConv, directed graphs).
            The guarantee is for this graph; what is kept of it is the norm
            of its adjacency.
        norm: ``"l2"``, ``"l1"`` or ``"linf"``.
        region: a :class:`Ball`, where a constant holds on a ball only.
        input_size: see :func:`lipschitz_bound`.
        method: ``"scale"``: all weights share a factor s <= 1, which is 1
            while the bound holds without it. ``"orthogonal"``: matrices
            with orthonormal rows or columns, scaled to use up the bound
            (l2). ``"project"``: every row (in l_inf; column, in l1) is
            projected to an l1-ball, as IGNN does it; rows inside it stay as
            they are.

    Returns:
        ``module``.

    Raises:
        ValueError: the bound cannot be reached by scaling weights down (a
            plain residual sum x + f(x) has at least 1), depends on
            something that is missing, has no rule, or an option is out of
            range.

    A module can be made contractive once, and its structure is then fixed:
    a part that is replaced or added makes the next call an error.
    ``reset_parameters`` works as before, and a ``state_dict`` from before
    loads; ``torch.nn.init`` on a weight itself is lost, since the weight is
    computed. ``remove_contractive`` keeps the current weights and removes
    the constraint, for saving a plain model.
    """
    load_rules()
    if not isinstance(module, Module):
        raise TypeError(f"module must be a Module, got {module!r}")
    check_number("bound", bound)
    if not 0 < bound < math.inf:
        raise ValueError(f"bound must be positive and finite, got {bound}")
    check_norm(norm)
    _check_method(method, norm)
    if region is not None and not isinstance(region, Ball):
        raise TypeError(f"region must be a Ball or None, got {region!r}")
    graph = _graph(edge_index, num_nodes, edge_weight)
    budget = Budget(
        module,
        bound,
        method != "scale",
        norm,
        graph,
        check_rows(num_nodes),
        check_size(input_size),
        math.inf if region is None else region.reach,
    )
    weights = budget.check()
    if graph is not None:
        graph.forget()
    for owner, name in weights:
        shape = list(getattr(owner, name).shape)
        if method != "scale" and len(shape) != 2:
            raise ValueError(
                f"method {method!r} needs matrices, but {name} of "
                f"{_name(owner)} has shape {shape}"
            )
    for owner, name in weights:
        _parametrise(owner, name, budget, method)
    if len(weights) > 1:
        _work_out_once(module)
    return module


def remove_contractive(module: Module) -> Module:
    """Undoes :func:`contractive` and keeps the weights as they are now.

    Args:
        module: what :func:`contractive` was called with.
    """
    found: list[tuple[Any, str]] = []
    for part in module.modules():
        if parametrize.is_parametrized(part):
            found += [
                (part, name)
                for name, kinds in part.parametrizations.items()  # type: ignore[union-attr, operator]
                if any(isinstance(k, (Scaled, Projected)) for k in kinds)
            ]
    # all at once: each weight depends on the others
    with parametrize.cached():
        for part, name in found:
            getattr(part, name)
        for part, name in found:
            _own_class(part)
            parametrize.remove_parametrizations(part, name)
    for part in module.modules():
        for name in ("_contractive_hooks", "_contractive_call"):
            for hook in vars(part).pop(name, ()):
                hook.remove()
    return module


def _work_out_once(module: Module) -> None:
    """The scale is that of all weights; within a call of the module it is
    worked out for the first of them, and kept for the others."""
    module._contractive_call = (  # type: ignore[assignment]
        module.register_forward_pre_hook(hold),
        module.register_forward_hook(release, always_call=True),
    )


def hold(module: Any, args: Any) -> None:
    if torch.compiler.is_compiling():
        return
    held = parametrize.cached()
    held.__enter__()
    vars(module).setdefault("_held", []).append(held)


def release(module: Any, args: Any, out: Any) -> None:
    # called also where another hook came before ours and failed
    if vars(module).get("_held"):
        vars(module)["_held"].pop().__exit__(None, None, None)


def _own_class(part: Any) -> None:
    """Copies of a parametrised module share its class, from which torch
    removes the property: the others are to keep theirs."""
    kind = type(part)
    part.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))


class Budget:
    """The bound of a module as a polynomial of the scale of its weights, and
    the scale that is allowed.

    No module itself: it refers to the one that it belongs to.
    """

    def __init__(
        self,
        module: Module,
        bound: float,
        unit: bool,
        norm: str,
        graph: Any,
        num_nodes: int | None,
        input_size: Any,
        reach: float,
    ):
        self.module, self.bound, self.unit = module, bound, unit
        self.norm, self.graph = norm, graph
        self.num_nodes = num_nodes
        if num_nodes is None and graph is not None:
            self.num_nodes = graph.rows
        self.input_size, self.reach = input_size, reach

    def check(self) -> list[tuple[Module, str]]:
        """The weights that the bound depends on.

        Raises:
            ValueError: no scale is small enough.
        """
        with torch.no_grad():
            growth, asked, reason = self._growth()
        weights = list(asked.values())
        name = _name(self.module)
        if is_infinite(growth):
            raise ValueError(
                f"module: {name} has no finite Lipschitz bound in "
                f"{self.norm}: {reason}"
            )
        if not weights:
            raise ValueError(
                f"module: the bound of {name} depends on no weight that "
                "could be scaled"
            )
        for owner, attribute in weights:
            if parametrize.is_parametrized(owner, attribute):
                raise ValueError(
                    f"module: {attribute} of {_name(owner)} is "
                    "parametrised already; remove that parametrisation first"
                )
            weight = getattr(owner, attribute)
            if not isinstance(weight, torch.nn.Parameter):
                raise ValueError(
                    f"module: {attribute} of {_name(owner)} is no "
                    "Parameter of its own"
                )
        least = float(growth.terms.get(0, 0.0))
        if not least < self.bound:
            raise ValueError(
                f"bound must exceed {least:.6g}, which {name} has with all "
                f"weights 0, got {self.bound}; a plain residual sum has at "
                "least 1 (use Residual with a weight)"
            )
        return weights

    def scale(self) -> Tensor:
        """The largest allowed scale, 0-dim float64, with its gradient."""
        if not parametrize._cache_enabled:
            return self._solve()
        # One value for all weights, for as long as they are held.
        key: Any = (id(self), "scale")
        if key not in parametrize._cache:
            parametrize._cache[key] = self._solve()
        return parametrize._cache[key]  # type: ignore[return-value]

    def _solve(self) -> Tensor:
        growth, asked, reason = self._growth()
        name = _name(self.module)
        if is_infinite(growth):
            raise RuntimeError(
                f"contractive: {name} has no finite Lipschitz bound in its "
                f"present mode: {reason}"
            )
        for owner, attribute in asked.values():
            if not self._owns(owner, attribute):
                raise RuntimeError(
                    f"contractive: {attribute} of {_name(owner)}, a part of "
                    f"{name}, was replaced, added or parametrised again since "
                    "the constraint was made; remove_contractive the whole "
                    "and call contractive anew"
                )
        rounded = max(_rounding(w) for w in asked.values())
        bound = self.bound / (1 + rounded) ** max(growth.terms)
        fixed = growth.terms.get(0, 0.0)
        if not bool(fixed < bound):
            raise RuntimeError(
                f"contractive: the bound of {name} is {float(fixed):.6g} "
                f"with all weights 0, so that {self.bound} cannot be kept "
                "by scaling them; a parameter that is not scaled has grown, "
                "such as the gain of a normalisation or the slope of a PReLU"
            )
        return largest_scale(growth, bound, at_most_one=not self.unit)

    def _owns(self, owner: Any, name: str) -> bool:
        """Is the weight computed by this budget, last of all?"""
        if not parametrize.is_parametrized(owner, name):
            return False
        last = list(owner.parametrizations[name])[-1]
        return getattr(last, "budget", [None])[0] is self

    def _growth(self) -> tuple[Growth, dict, str]:
        context = ScaledContext(
            self.norm, self.graph, self.num_nodes, self.input_size, self.reach
        )
        context.unit = self.unit
        found = context.bound(self.module)
        constant = found.constant
        if not isinstance(constant, Growth):
            constant = Growth({0: constant})
        return constant, context.asked, found.reason


def _rounding(weight: tuple[Module, str]) -> float:
    """By how much rounding a weight to its own precision, after the scale,
    may raise its norm, relative to it: each entry moves by eps/2, as does
    the scale, and |.|_F is at most the root of the rank times |.|_2 (of a
    kernel: the rank times the taps)."""
    owner, name = weight
    parts: Any = getattr(owner, "parametrizations", {})
    original = parts[name].original if name in parts else getattr(owner, name)
    long = max(original.shape[:2])
    rank = original.numel() / max(long, 1)
    eps = torch.finfo(original.dtype).eps
    # what lipschitz_bound adds for its own arithmetic
    own = 32 * original.numel() / max(min(original.shape[:2]), 1)
    return (1 + math.sqrt(rank)) * eps / 2 + own * _DOUBLE


def largest_scale(
    growth: Growth, bound: float, at_most_one: bool = True
) -> Tensor:
    r"""The s > 0 with :math:`\sum_d c_d s^d = ` ``bound``, or 1 if that is
    less and ``at_most_one``.

    With one power it is a root. Otherwise the polynomial is increasing and
    convex in the logarithm of s, where Newton's method converges from every
    start; its last two steps carry the gradient, that of the implicit
    function.
    """
    fixed: Any = 0.0
    rising: list[tuple[int, Tensor]] = []
    device = None
    degrees = sorted(growth.terms)
    for degree in degrees:
        if isinstance(growth.terms[degree], Tensor) and degree > 0:
            device = growth.terms[degree].device
    for degree in degrees:
        c = growth.terms[degree]
        c = torch.as_tensor(c, dtype=torch.float64, device=device)
        if degree == 0:
            fixed = c
        else:
            rising.append((degree, c))
    left = torch.as_tensor(bound - fixed, dtype=torch.float64, device=device)
    if len(rising) == 1:
        degree, c = rising[0]
        least = left if at_most_one else left * 1e-30
        return (left / torch.maximum(c, least)) ** (1 / degree)
    rising = [(d, c.clamp_min(1e-30)) for d, c in rising]

    def step(log_s: Tensor) -> Tensor:
        """Newton's for log p(e^t) = log goal."""
        values = [c * (d * log_s).exp() for d, c in rising]
        value = torch.stack(values).sum()
        slope = torch.stack([d * v for (d, _), v in zip(rising, values)]).sum()
        return log_s - (value / left).log() * value / slope

    with torch.no_grad():
        # where the first of the terms alone reaches the goal
        log_s = torch.stack([(left / c).log() / d for d, c in rising]).min()
        for _ in range(12):
            log_s = step(log_s)
    scale = step(step(log_s)).exp()
    if not at_most_one:
        return scale
    whole = torch.stack([c for _, c in rising]).sum()
    return torch.where(whole <= left, torch.ones_like(scale), scale)


class Scaled(Module):
    """A weight times the scale that the budget allows."""

    def __init__(self, budget: Budget):
        super().__init__()
        self.budget = [budget]  # in a list: it is no submodule

    def forward(self, weight: Tensor) -> Tensor:
        # only the product is rounded: a short float may not hold the scale
        return (weight.double() * self.budget[0].scale()).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class Orthogonal(Scaled):
    """The scale times a matrix with orthonormal columns (or rows), for every
    value of what is learned."""

    def forward(self, weight: Tensor) -> Tensor:
        q = cayley(weight.double())
        return (q * self.budget[0].scale()).to(weight.dtype)


def cayley(matrix: Tensor) -> Tensor:
    r"""A matrix with orthonormal columns (rows, if it is wide).

    For :math:`M = [U; V]`, U square: with :math:`A = U - U^\top + V^\top V`
    it is :math:`[(I+A)^{-1}(I-A);\; -2V(I+A)^{-1}]`.

    Args:
        matrix: [m, n], any values.

    Source: Trockman and Kolter 2021, "Orthogonalizing Convolutional Layers
    with the Cayley Transform".
    """
    if matrix.size(0) < matrix.size(1):
        return cayley(matrix.T).T
    n = matrix.size(1)
    u, v = matrix[:n], matrix[n:]
    eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    a = u - u.T + v.T @ v
    inverse = torch.linalg.inv_ex(eye + a).inverse
    q = torch.cat([inverse @ (eye - a), -2 * v @ inverse])
    # Values so large that the inverse is rounded leave it orthonormal up to
    # an error that is measured here: |Q|^2 <= 1 + |Q'Q - I|.
    error = torch.linalg.matrix_norm(q.detach().T @ q.detach() - eye)
    slack = 8 * n * torch.finfo(matrix.dtype).eps
    return torch.where(error > slack, q / (1 + error).sqrt(), q)


class Projected(Module):
    """Rows (or columns) of a weight projected to an l1-ball, whose radius is
    what the budget allows."""

    def __init__(self, budget: Budget, rows: bool):
        super().__init__()
        self.budget = [budget]
        self.rows = rows

    def forward(self, weight: Tensor) -> Tensor:
        radius = self.budget[0].scale()
        matrix = weight if self.rows else weight.mT
        projected = project_l1(matrix.double(), radius).to(weight.dtype)
        return projected if self.rows else projected.mT

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def project_l1(rows: Tensor, radius: Tensor | float) -> Tensor:
    r"""The nearest rows with :math:`|w|_1 \le` ``radius``: those within
    stay, the others are shrunk by a threshold.

    Args:
        rows: [..., n].
        radius: positive.

    Source: Duchi et al. 2008, "Efficient Projections onto the l1-Ball"; for
    the weights of equilibrium graph networks, Gu et al. 2020 (IGNN).
    """
    size = rows.abs()
    down = size.sort(-1, descending=True).values
    count = torch.arange(
        1, rows.size(-1) + 1, dtype=rows.dtype, device=rows.device
    )
    candidates = (down.cumsum(-1) - radius) / count
    used = (down > candidates).sum(-1, keepdim=True).clamp_min(1)
    threshold = candidates.gather(-1, used - 1).clamp_min(0)
    inside = size.sum(-1, keepdim=True) <= radius
    shrunk = rows.sign() * (size - threshold).clamp_min(0)
    # The difference of large numbers is rounded.
    total = shrunk.detach().abs().sum(-1, keepdim=True)
    shrunk = shrunk * (radius / total).clamp(max=1.0).detach()
    return torch.where(inside, rows, shrunk)


def _parametrise(
    owner: Module, name: str, budget: Budget, method: str
) -> None:
    step: Module = Scaled(budget)
    if method == "orthogonal":
        step = Orthogonal(budget)
    if method == "project":
        step = Projected(budget, rows=budget.norm == "linf")
    parametrize.register_parametrization(owner, name, step, unsafe=True)
    _keep_working(owner)


def _keep_working(owner: Any) -> None:
    """``reset_parameters`` and ``load_state_dict`` of a parametrised part.

    Both write to the weight, which is computed now: initialisation in place
    would be lost without a word, and PyG's Linear also saves the weight,
    which nobody could load.
    """
    kind = type(owner)
    for name in ("reset_parameters", "_reset_parameters"):
        if name not in vars(kind) and hasattr(kind, name):
            setattr(kind, name, _resetting(name))
    if "_contractive_hooks" in vars(owner):
        return
    save = owner.register_state_dict_post_hook(_saved_once)
    load = owner.register_load_state_dict_pre_hook(_loaded)
    owner._contractive_hooks = (save, load)


def _resetting(method: str) -> Any:
    def reset(self: Any) -> None:
        """Resets all learnable parameters of the module."""
        with torch.no_grad(), parametrize.cached():
            names = list(self.parametrizations)
            weights = {name: getattr(self, name) for name in names}
            kind: Any = parametrize.type_before_parametrizations(self)
            getattr(kind, method)(self)
            for name, weight in weights.items():
                setattr(self, name, weight.clone())

    return reset


def _saved_once(module: Any, state: dict, prefix: str, metadata: Any) -> None:
    for name in module.parametrizations:
        state.pop(prefix + name, None)


def _loaded(module: Any, state: dict, prefix: str, *rest: Any) -> None:
    """A checkpoint from before, or with the weight beside its origin."""
    for name in module.parametrizations:
        key = f"{prefix}parametrizations.{name}.original"
        weight = state.pop(prefix + name, None)
        if weight is not None and key not in state:
            state[key] = weight


def _name(module: Module) -> str:
    return parametrize.type_before_parametrizations(module).__name__


def _check_method(method: Any, norm: str) -> None:
    if method not in METHODS:
        raise ValueError(
            "method must be 'scale', 'orthogonal' or 'project', got "
            f"{method!r}"
        )
    if method == "orthogonal" and norm != "l2":
        raise ValueError(
            f"method 'orthogonal' goes with norm 'l2', got {norm!r}"
        )
    if method == "project" and norm == "l2":
        raise ValueError(
            "method 'project' goes with norm 'linf' or 'l1', got 'l2'"
        )
