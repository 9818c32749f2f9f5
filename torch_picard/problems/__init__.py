"""Fixed-point problems with exact solutions, for tests, docs and timings."""

from .attention import uniform_attention
from .bank import bank
from .graph import appnp, linear_gcn, random_graph
from .integral import green_fredholm, separable_fredholm
from .linear import reflection, rotation, symmetric_linear
from .nonlinear import cosine, tanh_contraction
from .problem import Problem

__all__ = [
    "Problem",
    "appnp",
    "bank",
    "cosine",
    "green_fredholm",
    "linear_gcn",
    "random_graph",
    "reflection",
    "rotation",
    "separable_fredholm",
    "symmetric_linear",
    "tanh_contraction",
    "uniform_attention",
]
