"""Fixed-point problems with exact solutions, for tests, docs and timings."""

from .attention import uniform_attention
from .bank import bank
from .diffusion import GaussianDiffusion, gaussian_diffusion
from .equations import (
    ExactEquation,
    ExactIntegroDifferential,
    integral_equations,
    integro_differential_equations,
)
from .graph import appnp, linear_gcn, random_graph
from .integral import (
    exponential_fredholm,
    green_fredholm,
    hammerstein,
    separable_fredholm,
    volterra,
)
from .linear import reflection, rotation, symmetric_linear
from .nonlinear import cosine, sines, tanh_contraction
from .problem import Problem

__all__ = [
    "ExactEquation",
    "ExactIntegroDifferential",
    "GaussianDiffusion",
    "Problem",
    "appnp",
    "bank",
    "cosine",
    "exponential_fredholm",
    "gaussian_diffusion",
    "green_fredholm",
    "hammerstein",
    "integral_equations",
    "integro_differential_equations",
    "linear_gcn",
    "random_graph",
    "reflection",
    "rotation",
    "separable_fredholm",
    "sines",
    "symmetric_linear",
    "tanh_contraction",
    "uniform_attention",
    "volterra",
]
