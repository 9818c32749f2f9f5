"""Does an operator contract, and how to make it: certificates, bounds,
estimates, parametrisations and penalties."""

from .attention import L2Attention, L2TransformerLayer
from .balls import BallInvariance, Kantorovich, ball_invariance, kantorovich
from .bounds import Bound, Context, Sum, lipschitz_bound, register_bound
from .certificate import Ball, Certificate
from .contractive import contractive, remove_contractive
from .estimate import estimate_lipschitz, one_sided_constant, spectral_radius
from .formulas import (
    a_posteriori_bound,
    a_priori_bound,
    injection_bound,
    krasnoselskii_mann_bound,
    neumann_bound,
    one_sided_alpha,
    one_sided_rate,
    residual_bound,
)
from .monitoring import ConvergenceMonitor
from .norms import gram_bound
from .penalty import JacobianPenalty, jacobian_penalty
from .residual import Residual

__all__ = [
    "Ball",
    "BallInvariance",
    "Bound",
    "Certificate",
    "Context",
    "ConvergenceMonitor",
    "JacobianPenalty",
    "Kantorovich",
    "L2Attention",
    "L2TransformerLayer",
    "Residual",
    "Sum",
    "a_posteriori_bound",
    "a_priori_bound",
    "ball_invariance",
    "contractive",
    "estimate_lipschitz",
    "gram_bound",
    "injection_bound",
    "jacobian_penalty",
    "kantorovich",
    "krasnoselskii_mann_bound",
    "lipschitz_bound",
    "neumann_bound",
    "one_sided_alpha",
    "one_sided_constant",
    "one_sided_rate",
    "register_bound",
    "remove_contractive",
    "residual_bound",
    "spectral_radius",
]
