"""One solve, one map: weights that are computed are computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import Module
from torch.nn.utils import parametrize


@contextmanager
def held_weights(module: Module) -> Iterator[None]:
    """Within, parametrised weights (``torch.nn.utils.parametrize``) are what
    they are on entry, with the gradient that they have there: a solve may
    run without one and attach it afterwards. Some parametrisations, such as
    torch's spectral norm in training, also change at every access."""
    parts = [m for m in module.modules() if parametrize.is_parametrized(m)]
    if not parts or torch.compiler.is_compiling():
        yield
        return
    with parametrize.cached():
        for part in parts:
            for name in part.parametrizations:  # type: ignore[union-attr]
                getattr(part, name)
        yield
