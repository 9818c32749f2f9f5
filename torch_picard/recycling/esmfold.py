"""Early stopping for ESMFold, which has none."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import Solution
from .distance import ca_distance
from .recycler import Recycler

#: Of the distances between beta carbons that are recycled, in Angstrom.
_FIRST_BIN, _LAST_BIN = 3.375, 21.375
_ATOMS = slice(0, 3)  # N, CA, C of the 14 of a residue
_CA = 1


def recycle_esmfold(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    tol: float = 0.5,
    max_recycles: int = 20,
    alpha: float = 0.0,
    callback: Callable[[int, Any, Tensor], Any] | None = None,
    on_failure: str = "warn",
    **kwargs: Any,
) -> tuple[Any, Solution]:
    """Fold with transformers' ``EsmForProteinFolding``, and stop when the
    structure does not change any more.

    One pass is the folding trunk and its structure module; the state is what
    they recycle: ``s`` [B, L, c_s], ``z`` [B, L, L, c_z] and the ``backbone``
    [B, L, 3, 3] (N, CA, C). Proteins of a batch stop apart. With
    ``alpha = 0`` and ``tol = 0``, a run to ``max_recycles`` is that of
    ``model(input_ids, num_recycles=max_recycles)``.

    Args:
        model: ``EsmForProteinFolding``, or one with its ``trunk``. It is not
            changed.
        input_ids: residues [B, L], as the model takes them.
        attention_mask: [B, L]; the distance is over these residues.
        tol: of :func:`ca_distance`, in Angstrom.
        max_recycles: passes after the first.
        alpha: smoothing of ``s`` and ``z``.
        callback: as that of :class:`Recycler`, with the state.
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"``.
        kwargs: for the model's ``forward``.

    Returns:
        What the model returns (heads included), of the structures the
        recycling ended with, and the :class:`Solution` [B].

    Raises:
        TypeError: the model has no folding trunk, or its ``forward`` does not
            take what is in ``kwargs``.
        ValueError: ``num_recycles`` is given, a shape does not fit, or an
            option is out of range.
    """
    if not _has_trunk(model):
        raise TypeError(
            "model must be an EsmForProteinFolding of transformers "
            "(pip install torch-picard[transformers]), or have its folding "
            f"trunk, got {type(model).__name__}"
        )
    _check_inputs(model, input_ids, attention_mask, kwargs)
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    mask = attention_mask

    def distance(prev: dict[str, Tensor], cur: dict[str, Tensor]) -> Tensor:
        return ca_distance(
            prev["backbone"][..., _CA, :], cur["backbone"][..., _CA, :], mask
        )

    def recycler(step: Callable[[Any], Any]) -> Recycler:
        return Recycler(
            step,
            distance=distance,
            tol=tol,
            max_recycles=max_recycles,
            alpha=alpha,
            smooth=("s", "z"),
            callback=callback,
            on_failure=on_failure,
        )

    recycler(lambda state: state)  # wrong options are reported here
    trunk = _Recycled(model.trunk, recycler)
    # A copy that shares everything but the trunk: the model may be in use.
    twin = copy.copy(model)
    twin._modules = {**model._modules, "trunk": trunk}
    output = twin(input_ids, attention_mask=attention_mask, **kwargs)
    assert trunk.solution is not None
    return output, trunk.solution


class _Recycled(nn.Module):
    """A folding trunk whose loop is a :class:`Recycler`."""

    solution: Solution | None = None

    def __init__(
        self,
        trunk: Any,
        recycler: Callable[[Callable[[Any], Any]], Recycler],
    ):
        super().__init__()
        self.trunk, self.recycler = trunk, recycler

    def forward(
        self,
        seq_feats: Tensor,
        pair_feats: Tensor,
        true_aa: Tensor,
        residx: Tensor,
        mask: Tensor,
        no_recycles: int | None = None,
    ) -> dict[str, Any]:
        trunk: Any = self.trunk

        def structure(s: Tensor, z: Tensor) -> dict[str, Any]:
            inputs = {"single": trunk.trunk2sm_s(s)}
            inputs["pair"] = trunk.trunk2sm_z(z)
            return trunk.structure_module(inputs, true_aa, mask.float())

        def step(state: dict[str, Tensor]) -> dict[str, Tensor]:
            bins = trunk.distogram(
                state["backbone"], _FIRST_BIN, _LAST_BIN, trunk.recycle_bins
            )
            s = seq_feats + trunk.recycle_s_norm(state["s"])
            z = pair_feats + trunk.recycle_z_norm(state["z"])
            z = z + trunk.recycle_disto(bins)
            z = z + trunk.pairwise_positional_embedding(residx, mask=mask)
            for block in trunk.blocks:
                s, z = block(
                    s, z, mask=mask, residue_index=residx,
                    chunk_size=trunk.chunk_size,
                )  # fmt: skip
            positions = structure(s, z)["positions"][-1]
            return {"s": s, "z": z, "backbone": positions[..., _ATOMS, :]}

        batch, length = true_aa.shape
        start = {
            "s": torch.zeros_like(seq_feats),
            "z": torch.zeros_like(pair_feats),
            # all in one place: the first bin, as nothing to recycle has
            "backbone": seq_feats.new_zeros(batch, length, 3, 3),
        }
        self.solution = self.recycler(step)(start)
        s, z = self.solution.value["s"], self.solution.value["z"]
        return {**structure(s, z), "s_s": s, "s_z": z}


def _check_inputs(
    model: nn.Module, ids: Any, mask: Any, kwargs: dict[str, Any]
) -> None:
    if not isinstance(ids, Tensor):
        raise TypeError(
            f"input_ids must be a long tensor [B, L], got {type(ids).__name__}"
        )
    if ids.dim() != 2 or not ids.numel() or ids.is_floating_point():
        raise ValueError(
            "input_ids must be a long tensor [B, L], of one residue at least, "
            f"got {ids.dtype} {list(ids.shape)}"
        )
    if mask is not None and not isinstance(mask, Tensor):
        raise TypeError(
            f"attention_mask must be a Tensor, got {type(mask).__name__}"
        )
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask must be {list(ids.shape)} like input_ids, got "
            f"{list(mask.shape)}"
        )
    if "num_recycles" in kwargs:
        raise ValueError("num_recycles must be given as max_recycles")
    takes = inspect.signature(model.forward).parameters
    # its **kwargs take all else, and ignore it
    known = [
        name
        for name, parameter in takes.items()
        if parameter.kind != parameter.VAR_KEYWORD
        and name not in ("input_ids", "attention_mask", "num_recycles")
    ]
    if unknown := [name for name in kwargs if name not in known]:
        raise TypeError(
            f"recycle_esmfold got an argument {unknown[0]!r}; of those for "
            f"the model's forward it knows {', '.join(known)}"
        )


def _has_trunk(model: Any) -> bool:
    trunk = getattr(model, "trunk", None)
    parts = ("blocks", "structure_module", "recycle_s_norm", "distogram")
    return isinstance(model, nn.Module) and all(
        hasattr(trunk, part) for part in parts
    )
