"""The Frechet derivative as a loss term, after Theorem 3 of the paper: "add
a term in the loss where the Frechet derivative appears explicitly"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..engine.methods.base import check_count
from ..engine.space import Leaves, Space
from .certificate import check_number
from .jacobian import Jacobian, normal, unit

KINDS = ("frobenius", "spectral")


def jacobian_penalty(
    operator: Callable[[Any], Any],
    x: Any,
    kind: str = "frobenius",
    target: float | None = None,
    *,
    segments: Any = None,
    num_samples: int = 1,
    steps: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A loss term that makes P contract near x, J = P'(x).

    ``"frobenius"`` is an unbiased estimate of :math:`|J|_F^2 / n`, n the
    number of elements of x: the mean of :math:`|J^\top v|^2 / n` over
    ``num_samples`` vectors v of random signs (Hutchinson). As
    :math:`|J|_2^2 \le |J|_F^2`, it presses on the norm from above. It has no
    ``target``: a hinge of an estimate is not the hinge of the truth.

    ``"spectral"`` is the hinge :math:`(\sigma - \mathrm{target})_+^2`, with
    :math:`\sigma` the norm of J from below, by ``steps`` power iterations
    from a random vector; the mean over the segments. It leaves alone what is
    below ``target`` and the part of the spectrum that is not the largest.
    In training, :class:`JacobianPenalty` finds :math:`\sigma` better and
    with fewer steps.

    Both have the same size whatever the size of the state, so one weight in
    the loss fits all batches. Neither proves anything; :func:`contractive`
    does.

    Args:
        operator: P, any callable x -> P(x) that returns the structure,
            shapes and dtypes of x. Gradients reach whatever it depends on.
            Random masks (dropout) are frozen within a call.
        x: the point, a Tensor or a tuple, list or dict of Tensors, such as
            a state that a solve returned. Where it carries a graph,
            gradients reach that, too; pass ``x.detach()`` to stop them.
        kind: ``"frobenius"`` or ``"spectral"``.
        target: of the hinge, a number >= 0, such as .9;
            :obj:`None` is 0. (default: :obj:`None`)
        segments: what one problem is, as in
            :func:`torch_picard.fixed_point`. Only a spectral penalty looks.
        num_samples: of the Frobenius norm. One is unbiased; more vary less.
        steps: power iterations of the spectral norm, of two Jacobian
            products each.
        generator: of the random vectors. (default: torch's global one)

    Returns:
        A scalar, in float64 for a float64 state and float32 otherwise.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of
            range.

    Source: Hutchinson, Commun. Stat. Simul. 19, 1990; Bai, Koltun and
    Kolter, Stabilizing Equilibrium Models by Jacobian Regularization, 2021
    (the Frobenius term); Miyato et al., Spectral Normalization, 2018 (the
    power iterations); the hinge is ours.
    """
    penalty = JacobianPenalty(
        kind,
        target,
        num_samples=num_samples,
        steps=steps,
        generator=generator,
    )
    return penalty(operator, x, segments=segments)


class JacobianPenalty:
    """:func:`jacobian_penalty` for training: the power iteration goes on
    from where it was in the call before.

    The weights move little from one training step to the next, so that one
    iteration a step follows the leading singular vector. Rows of the state
    that come and go, as in a smaller last batch, take and leave their part
    of it; a state of other trailing dimensions starts anew.

    Args:
        kind, target, num_samples, steps, generator: as in
            :func:`jacobian_penalty`, ``steps`` with the default 1.
    """

    def __init__(
        self,
        kind: str = "spectral",
        target: float | None = None,
        *,
        num_samples: int = 1,
        steps: int = 1,
        generator: torch.Generator | None = None,
    ):
        if kind not in KINDS:
            raise ValueError(
                f"kind must be 'frobenius' or 'spectral', got {kind!r}"
            )
        if target is not None:
            check_number("target", target)
            if not 0 <= target < float("inf"):
                raise ValueError(
                    f"target must be finite and not negative, got {target}"
                )
            if kind == "frobenius":
                raise ValueError(
                    "target goes with kind='spectral': the Frobenius penalty "
                    f"is an estimate without a hinge, got target={target}"
                )
        check_count("num_samples", num_samples)
        check_count("steps", steps)
        if generator is not None and not isinstance(
            generator, torch.Generator
        ):
            raise TypeError(
                "generator must be a torch.Generator or None, got "
                f"{type(generator).__name__}"
            )
        self.kind, self.target = kind, 0.0 if target is None else target
        self.num_samples, self.steps = num_samples, steps
        self.generator = generator
        #: the left singular vector of the call before, leaf by leaf
        self.vector: Leaves = ()

    def __call__(
        self,
        operator: Callable[[Any], Any],
        x: Any,
        *,
        segments: Any = None,
    ) -> Tensor:
        """The penalty, a scalar; see :func:`jacobian_penalty`."""
        graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(graph):
            jacobian = Jacobian(operator, x, segments, graph=graph)
            if self.kind == "frobenius":
                return self._frobenius(jacobian, graph)
            return self._spectral(jacobian, graph)

    def _frobenius(self, jacobian: Jacobian, graph: bool) -> Tensor:
        space = jacobian.space
        total = torch.zeros((), dtype=space.dtype, device=space.device)
        for _ in range(self.num_samples):
            v = signs(space, self.generator)
            w = jacobian.transposed(v, create_graph=graph)
            total = total + sum(t.square().sum() for t in w)
        size = sum(t.numel() for t in space.start)
        return total / (size * self.num_samples)

    def _spectral(self, jacobian: Jacobian, graph: bool) -> Tensor:
        space = jacobian.space
        u = self._resumed(space)
        with torch.no_grad():
            for _ in range(self.steps):
                u = jacobian.times(unit(space, jacobian.transposed(u)))
                u = unit(space, u)
        self._keep(u)
        # u is a constant, as the derivative of a singular value has it
        w = jacobian.transposed(u, create_graph=graph)
        over = _hypot(space, w) - self.target
        return over.clamp(min=0).square().mean()

    def _resumed(self, space: Space) -> Leaves:
        """The kept vector in this space, with random numbers where it has
        none; all of it random where it is 0 or not finite."""
        fresh = normal(space, self.generator)
        old = self.vector
        if len(old) != len(fresh):
            return unit(space, fresh)
        u = tuple(_overlay(a, b) for a, b in zip(fresh, old))
        size = space.norm(u)
        sound = torch.isfinite(size) & (size > 0)
        return unit(space, space.where(sound, u, fresh))

    def _keep(self, u: Leaves) -> None:
        """Rows that this call did not have stay as they were."""
        old = self.vector
        if len(old) == len(u):
            u = tuple(
                torch.cat([a, b[len(a) :].to(a)])
                if _alike(a, b) and len(b) > len(a)
                else a
                for a, b in zip(u, old)
            )
        self.vector = u


def signs(space: Space, generator: torch.Generator | None) -> Leaves:
    """A vector of random signs: E vv' = I, and the variance of v'Av is the
    least among independent entries."""
    one = torch.ones((), dtype=space.dtype, device=space.device)
    return tuple(
        torch.where(t >= 0, one, -one) for t in normal(space, generator)
    )


def _alike(a: Tensor, b: Tensor) -> bool:
    """Differ in dim 0 at most."""
    return a.dim() == b.dim() > 0 and a.shape[1:] == b.shape[1:]


def _overlay(fresh: Tensor, old: Tensor) -> Tensor:
    if fresh.shape == old.shape:
        return old.to(fresh)
    if not _alike(fresh, old):
        return fresh
    rows = min(len(fresh), len(old))
    # Both of rows with entries of size 1: the old one has norm 1 in all.
    scale = old.numel() ** 0.5
    return torch.cat([scale * old[:rows].to(fresh), fresh[rows:]])


def _hypot(space: Space, w: Leaves) -> Tensor:
    """|w| per segment [S], in the graph; its derivative at 0 is 0."""
    square = space.dot(w, w)
    zero = square == 0
    root = torch.where(zero, torch.ones_like(square), square).sqrt()
    return torch.where(zero, torch.zeros_like(root), root)
