"""The problems on which accelerators are compared with Picard."""

from __future__ import annotations

import torch

from .attention import uniform_attention
from .graph import appnp, linear_gcn
from .integral import green_fredholm, separable_fredholm
from .linear import rotation, symmetric_linear
from .nonlinear import cosine, sines, tanh_contraction
from .problem import Problem


def bank(dtype: torch.dtype = torch.float64) -> list[Problem]:
    """Linear ones from fast to slow, a rotation, and one of each kind."""
    return [
        symmetric_linear(rho=0.5, dtype=dtype),
        symmetric_linear(rho=0.9, dtype=dtype),
        symmetric_linear(rho=0.99, dtype=dtype),
        rotation(dtype=dtype),
        tanh_contraction(dtype=dtype),
        linear_gcn(dtype=dtype),
        appnp(dtype=dtype),
        uniform_attention(dtype=dtype),
        separable_fredholm(dtype=dtype),
        green_fredholm(dtype=dtype),
        cosine(dtype=dtype),
        sines(dtype=dtype),
    ]
