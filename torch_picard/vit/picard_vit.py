"""Algorithm 2: a transformer, iterated to a fixed point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..contraction.bounds import Bound, Context, Sum, register_bound
from ..engine import Solution, Status, Unrolled
from ..engine.gradients import Gradient
from ..engine.methods import Method
from ..nn.solver import Solver
from .hosts import Part, begin
from .split import Split, owner_of, split


class PicardViT(Solver):
    r"""A vision transformer whose transformer is iterated.

    .. math::

       y_{k+1} = \alpha y_k + (1-\alpha) (T(y_k) + f), \qquad y_0 = f

    With ``state="tokens"``, f is the embedded image, T the transformer, and
    the readout sees the last state. With ``state="image"`` the state is the
    image itself: T is the whole model (which must return an image of its
    input's shape), f the input. Each sample is a problem of its own, with its
    own stopping. Dropout masks are drawn once for a solve.

    Args:
        model: a vision transformer that :func:`split` knows, or a tuple
            (embed, operator, readout); :class:`DenseReadout` reads out
            images. Of a tuple, modules, their methods and parts of a host
            bring their parameters along; what another function closes over
            stays unknown, and has to be given to the optimiser.
        max_iter: evaluations of the transformer allowed.
        alpha: weight of the *old* state, in [0, 1), or a Tensor. Belongs to
            ``method=None``.
        inject: whether f is added in every iteration. Without it the
            iteration starts at f and forgets it where T contracts.
        state: ``"tokens"`` or ``"image"``.
        rtol, atol: tolerances; both 0: exactly ``max_iter`` iterations.
        gradient: how to differentiate. (default: :class:`Unrolled`)
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"``.
        method: another method of :func:`fixed_point`.
        residual: ``"keep"``: T as it is. ``"strip"``: T(y) - y, for
            transformers whose every block adds to its input.

    A sample whose state keeps growing has a *relative* residual that falls,
    and would pass. Where the state has more than doubled and the observed
    rate says that at least as much again is to come, its status is DIVERGED.
    Growth that slows down (as a root or a logarithm of the iterations) or has
    just begun looks like slow convergence and can pass a loose ``rtol``; an
    ``atol`` alone (``rtol=0``) is not deceived.

    Raises:
        ValueError: an option is out of range, or the operator changes the
            number of tokens.
        TypeError: an option is of the wrong type, or embed gives no tokens.

    Source: Zappala et al. 2023, Algorithm 2; Table 3 for ``"image"``.
    """

    def __init__(
        self,
        model: Any,
        max_iter: int = 3,
        alpha: float | Tensor | None = None,
        inject: bool = True,
        state: str = "tokens",
        *,
        rtol: float = 1e-5,
        atol: float = 0.0,
        gradient: Gradient | None = None,
        on_failure: str = "warn",
        method: Method | None = None,
        residual: str = "keep",
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
        if state not in ("tokens", "image"):
            raise ValueError(
                f"state must be 'tokens' or 'image', got {state!r}"
            )
        if residual not in ("keep", "strip"):
            raise ValueError(
                f"residual must be 'keep' or 'strip', got {residual!r}"
            )
        if not isinstance(inject, bool):
            raise TypeError(f"inject must be True or False, got {inject!r}")
        self.parts = split(model)
        # the parameters
        self.model = model if isinstance(model, nn.Module) else None
        if self.model is None:
            self.owners = nn.ModuleList(_owners(self.parts))
        self.inject, self.state, self.residual = inject, state, residual

    def forward(
        self,
        x: Tensor,
        *,
        max_iter: int | None = None,
        return_solution: bool = False,
    ) -> Any:
        """The readout of the last state; with ``return_solution`` also the
        :class:`Solution`, whose value is the state.

        Args:
            x: the model's input, [B, ...].
            max_iter: instead of the one of the module.
        """
        f, operator, readout = self._begin(x)
        return self._run(operator, f, readout, max_iter, return_solution)

    def states(self, x: Tensor, *, max_iter: int | None = None) -> list[Any]:
        """The readouts of all iterates y_1, y_2, ..., for a loss on each of
        them: so many as ``max_iter``, by plain smoothed iteration.

        Raises:
            ValueError: the module has another method than Picard.
        """
        f, operator, readout = self._begin(x)
        return self._run_states(operator, f, readout, max_iter)

    def _run(
        self,
        operator: Callable[[Tensor], Tensor],
        f: Tensor,
        readout: Callable[[Tensor], Any],
        max_iter: int | None,
        return_solution: bool,
    ) -> Any:
        watched = not self.counted
        norms = Norms()
        solution = self.solve(
            norms.of(operator) if watched else operator,
            f,
            "leading",
            max_iter,
            on_failure="ignore",
        )
        if watched:
            _guard(solution, norms)
            solution.report(self.on_failure, stacklevel=3)
        out = readout(solution.value)
        return (out, solution) if return_solution else out

    def _run_states(
        self,
        operator: Callable[[Tensor], Tensor],
        f: Tensor,
        readout: Callable[[Tensor], Any],
        max_iter: int | None,
    ) -> list[Any]:
        if self.method is not None:
            raise ValueError(
                "states are those of plain iteration, but method is "
                f"{self.method}"
            )
        iterates: list[Tensor] = []
        last = self.solve(
            operator,
            f,
            "leading",
            max_iter,
            rtol=0.0,
            atol=0.0,
            gradient=Unrolled(),
            callback=lambda k, y, residual: iterates.append(y),
        ).value
        return [readout(y) for y in (*iterates[1:], last)]

    def _begin(
        self, x: Any
    ) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Any]]:
        """y_0, the map P and the readout for an input."""
        if self.state == "image":
            return x, self._operator(x, self._whole), _same
        f, apply, readout = begin(self.parts, x)
        if not isinstance(f, Tensor) or f.dim() < 2:
            raise TypeError(
                "embed must return tokens [B, n, d], got "
                f"{_shape_of(f)}: such a model (hierarchical, masked) "
                "cannot be iterated as it is"
            )
        return f, self._operator(f, apply), readout

    def _whole(self, y: Tensor) -> Any:
        embed = self.parts.embed
        if self.model is not None and isinstance(embed, Part):
            return embed.source.output(y)
        tokens, operator, readout = begin(self.parts, y)
        return readout(operator(tokens))

    def _operator(
        self, f: Tensor, apply: Callable[[Tensor], Any]
    ) -> Callable[[Tensor], Tensor]:
        def operator(y: Tensor) -> Tensor:
            z = apply(y)
            _check_shape(z, y, self.state)
            if self.residual == "strip":
                z = z - y
            return z + f if self.inject else z

        return operator

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, state={self.state!r}"


def _same(y: Tensor) -> Tensor:
    return y


def _owners(parts: Split) -> list[nn.Module]:
    """The modules whose parameters the parts use, none inside another."""
    found: dict[nn.Module, None] = {}
    for part in parts:
        if (owner := owner_of(part)) is not None:
            found[owner] = None
    inner = {
        module for owner in found for module in owner.modules()
        if module is not owner
    }  # fmt: skip
    return [owner for owner in found if owner not in inner]


def _check_shape(z: Any, y: Tensor, state: str) -> None:
    if isinstance(z, Tensor) and z.shape == y.shape:
        return
    shape = _shape_of(z)
    if state == "image":
        raise ValueError(
            f"state='image' needs a model that maps images {list(y.shape)} to "
            f"images, but it returns {shape}"
        )
    raise ValueError(
        f"operator must keep the shape of its tokens {list(y.shape)}, but it "
        f"returns {shape}: a model that merges or drops tokens inside "
        "(hierarchical, with patch dropout) cannot be iterated"
    )


def _shape_of(z: Any) -> Any:
    return list(z.shape) if isinstance(z, Tensor) else type(z).__name__


class Norms:
    """|y| of every sample at every evaluation, [K, B]."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    def of(self, operator: Any) -> Any:
        def watched(y: Tensor) -> Tensor:
            with torch.no_grad():
                rows = y.detach().flatten(1)
                self._seen.append(torch.linalg.vector_norm(rows, dim=1))
            return operator(y)

        return watched

    def growing(self, run: int = 8) -> Tensor:
        """[B]: more than doubled, and rising without a break up to where it
        is largest."""
        norms = torch.stack(self._seen)
        peak = norms.argmax(0)
        rising = norms.diff(dim=0) > 0
        index = torch.arange(len(rising), device=norms.device)[:, None]
        before = (index < peak) & (index >= peak - run)
        return (norms.amax(0) > 2 * norms[0]) & (rising | ~before).all(0)


def _guard(solution: Solution, norms: Norms) -> None:
    """Samples that passed because they grew have diverged: what is still to
    come, by the observed rate, is as large as what is there. So have those
    that grew and whose residual does not fall."""
    size = torch.linalg.vector_norm(solution.value.detach().flatten(1), dim=1)
    more = ~(solution.error_bound.to(size) < size)
    history = solution.residual_history
    level = ~(history[-1] < 0.5 * history[0])
    status = solution.status
    ended = (status == int(Status.CONVERGED)) & more
    ended |= (status == int(Status.STAGNATED)) & level
    status[ended & norms.growing()] = int(Status.DIVERGED)


@register_bound(PicardViT)
def _picard_vit(module: PicardViT, context: Context) -> Bound:
    """Of P, one application: f is added."""
    if context.depth > 1:
        raise ValueError(
            "module: as part of another module PicardViT is the whole solve, "
            "but lipschitz_bound(PicardViT) is about P, one application; ask "
            "for it by itself"
        )
    embed, operator, readout = (_rules_for(part) for part in module.parts)
    chain: tuple[Any, ...] = (operator,)
    if module.state == "image":
        chain = (embed, operator, readout)
    if module.residual == "strip":  # T(y) - y
        return context.bound(Sum((chain, ())))
    return context.bound(chain)


def _rules_for(part: Any) -> Any:
    """What lipschitz_bound may know a part by."""
    if isinstance(part, Part) and part.role == "operator":
        return part.source.stack()
    return part
