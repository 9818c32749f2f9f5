"""One solve, one map: weights that are computed are computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Module
from torch.nn.utils import parametrize


@contextmanager
def held_weights(operator: Any) -> Iterator[None]:
    """Within, parametrised weights (``torch.nn.utils.parametrize``) of a
    module are what they are on entry, with the gradient that they have
    there: a solve may run without one and attach it afterwards. Some
    parametrisations, such as torch's spectral norm in training, also change
    at every access. What is no module is left alone."""
    known = isinstance(operator, Module)
    modules = operator.modules() if known else ()
    parts = [m for m in modules if parametrize.is_parametrized(m)]
    if not parts or torch.compiler.is_compiling():
        yield
        return
    with parametrize.cached():
        for part in parts:
            for name in part.parametrizations:
                getattr(part, name)
        yield
