"""Which of the backends computes: native, scatter or torch."""

from __future__ import annotations

import importlib.util
import os
import warnings

import torch

from .library import MISSING

BACKENDS = ("native", "scatter", "torch")
VARIABLE = "TORCH_PICARD_BACKEND"

_told = False


def missing(backend: str, device: torch.device) -> str | None:
    """Why ``backend`` cannot be used on ``device``; None if it can."""
    if backend == "native":
        return MISSING.get(
            device.type, f"there are no kernels for {device.type}"
        )
    if backend == "scatter" and not _has_scatter():
        return (
            "torch-scatter is not installed; pip install "
            "--no-build-isolation torch-picard[scatter]"
        )
    return None


def choose(
    backend: str | None, device: torch.device, *, quiet: bool = False
) -> str:
    """``backend``, else $TORCH_PICARD_BACKEND, else the fastest present.

    Raises:
        ValueError: no backend has this name.
        RuntimeError: it was asked for and is not there.
    """
    name, source = backend, "backend"
    if name is None or name == "auto":
        name, source = os.environ.get(VARIABLE) or None, VARIABLE
    if name is None or name == "auto":
        if missing("native", device) is None:
            return "native"
        if not quiet:
            _tell(device)
        return "torch"
    if name not in BACKENDS:
        raise ValueError(
            f"{source} must be one of auto, {', '.join(BACKENDS)}, "
            f"got {name!r}"
        )
    reason = missing(name, device)
    if reason is not None:
        raise RuntimeError(
            f"{source}={name!r} cannot be used on {device.type}: {reason}"
        )
    return name


def _tell(device: torch.device) -> None:
    """Once a process: the compiled kernels are not there."""
    global _told
    if _told or torch.compiler.is_compiling():
        return
    _told = True
    warnings.warn(
        f"torch_picard computes without its compiled kernels, several times "
        f"slower: {missing('native', device)}. (python -m torch_picard "
        "tells more; TORCH_PICARD_BACKEND=torch silences this.)",
        UserWarning,
        stacklevel=4,
    )


def _has_scatter() -> bool:
    return importlib.util.find_spec("torch_scatter") is not None
