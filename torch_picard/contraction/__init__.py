"""Does an operator contract, and how to make it: certificates, bounds,
estimates, parametrisations and penalties."""

from .balls import BallInvariance, Kantorovich, ball_invariance, kantorovich
from .certificate import Ball, Certificate
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

__all__ = [
    "Ball",
    "BallInvariance",
    "Certificate",
    "Kantorovich",
    "a_posteriori_bound",
    "a_priori_bound",
    "ball_invariance",
    "injection_bound",
    "kantorovich",
    "krasnoselskii_mann_bound",
    "neumann_bound",
    "one_sided_alpha",
    "one_sided_rate",
    "residual_bound",
]
