"""What certificates promise, how they combine, and what they refuse."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from torch_picard.contraction import Ball, Certificate, one_sided_rate

CONSTANTS = st.floats(0.0, 3.0)
BELOW_ONE = st.floats(0.0, 0.999)
ALPHAS = st.floats(0.0, 0.99)
NORMS = st.sampled_from(["l2", "l1", "linf"])
KINDS = st.sampled_from(["certified", "local", "estimate"])
BALL = Ball(1.0)


def certificate(constant, norm="l2", kind="certified"):
    region = BALL if kind == "local" else None
    return Certificate(constant, norm, kind, region, "by hand")


# -- laws ------------------------------------------------------------------


@given(a=CONSTANTS, b=CONSTANTS, norm=NORMS)
def test_composition_multiplies_and_sums_add(a, b, norm):
    f, g = certificate(a, norm), certificate(b, norm)
    assert (f @ g).constant == a * b
    assert (f + g).constant == a + b
    assert (f @ g).norm == (f + g).norm == norm


@given(a=CONSTANTS, b=CONSTANTS, c=CONSTANTS)
def test_combinations_associate(a, b, c):
    f, g, h = certificate(a), certificate(b), certificate(c)
    left, right = (f @ g) @ h, f @ (g @ h)
    assert math.isclose(left.constant, right.constant, abs_tol=1e-300)
    left, right = (f + g) + h, f + (g + h)
    assert math.isclose(left.constant, right.constant)


@given(first=KINDS, second=KINDS)
def test_a_combination_is_worth_its_weakest_part(first, second):
    order = ["certified", "local", "estimate"]
    worst = max(first, second, key=order.index)
    f, g = certificate(0.5, kind=first), certificate(0.5, kind=second)
    assert (f + g).kind == worst
    if first != "local" or second == "local":
        assert (f @ g).kind == worst


@given(constant=CONSTANTS, lam=st.floats(-5, 5))
def test_scaling(constant, lam):
    scaled = certificate(constant).scaled(lam)
    assert scaled.constant == pytest.approx(abs(lam) * constant)


@given(constant=st.floats(0.0, 100.0), alpha=ALPHAS)
def test_smoothing_never_makes_a_contraction(constant, alpha):
    """By the triangle inequality alone; the one-sided rule below can."""
    plain = certificate(constant)
    smooth = plain.smoothed(alpha)
    assert smooth.constant == alpha + (1 - alpha) * constant
    assert smooth.contracts <= plain.contracts
    assert smooth.constant >= min(constant, 1.0) * (1 - 1e-15)


@given(constant=CONSTANTS, m=st.floats(-4, 4), alpha=ALPHAS)
def test_the_one_sided_rule_only_helps(constant, m, alpha):
    plain = certificate(constant).smoothed(alpha)
    better = certificate(constant).smoothed(alpha, one_sided=m)
    assert better.constant <= plain.constant
    rate = one_sided_rate(constant, m, alpha)
    assert better.constant == min(plain.constant, rate)


def test_the_one_sided_rule_certifies_where_banach_cannot():
    reflection = certificate(1.0)
    assert not reflection.smoothed(0.5).contracts
    assert reflection.smoothed(0.5, one_sided=-1.0).constant == 0.0
    expanding = certificate(1.5)
    assert expanding.smoothed(0.5, one_sided=-1.5).contracts
    assert not expanding.smoothed(0.2, one_sided=-1.5).contracts
    assert "one-sided" in str(expanding.smoothed(0.5, one_sided=-1.5))


@given(alpha=ALPHAS, m=st.floats(1.0, 10.0), constant=st.floats(1.0, 10.0))
def test_rounding_makes_no_contraction_of_a_map_that_is_none(
    alpha, m, constant
):
    assert not certificate(constant).smoothed(alpha, one_sided=m).contracts


def test_an_estimate_never_contracts():
    assert certificate(0.99).contracts
    assert certificate(0.99, kind="local").contracts
    assert not certificate(0.0, kind="estimate").contracts
    assert not certificate(1.0).contracts
    assert not certificate(math.inf).contracts
    assert (certificate(0.0) @ certificate(math.inf)).constant == 0
    assert certificate(math.inf).scaled(0).constant == 0


# -- iterations_for and error_bound ----------------------------------------


def least(q, eps, step):
    n = 0
    while q**n / (1 - q) * step > eps:
        n += 1
    return n


@given(
    q=BELOW_ONE,
    eps=st.floats(1e-12, 10.0),
    step=st.floats(0.0, 1e6),
)
def test_iterations_for_is_the_least_sufficient_number(q, eps, step):
    assert certificate(q).iterations_for(eps, step) == least(q, eps, step)


def test_iterations_for_at_the_ends():
    assert certificate(0.0).iterations_for(1e-9, 5.0) == 1
    assert certificate(0.0).iterations_for(1e-9, 0.0) == 0
    assert certificate(0.5).iterations_for(1.0, 0.5) == 0
    # exactly reached: .5^3/.5 = .25
    assert certificate(0.5).iterations_for(0.25, 1.0) == 3
    tiny = certificate(0.5).iterations_for(1e-300, 1e300)
    assert 0 <= tiny - (600 * math.log2(10) + 1) <= 2
    slow = 1 - 1e-12
    n = certificate(slow).iterations_for(1e-3, 1.0)
    assert slow**n / (1 - slow) <= 1e-3 < slow ** (n - 1) / (1 - slow)


@given(q=BELOW_ONE, eps=st.floats(1e-9, 1.0), alpha=ALPHAS)
def test_a_smoothed_iteration_counts_with_its_own_factor(q, eps, alpha):
    smooth = certificate(q).smoothed(alpha)
    assume(smooth.constant < 0.9999)
    n = smooth.iterations_for(eps, 1 - alpha)
    assert smooth.constant**n / (1 - smooth.constant) * (1 - alpha) <= eps


def test_error_bound_takes_numbers_and_tensors():
    half = certificate(0.5)
    assert half.error_bound(3.0) == 6.0
    residual = torch.tensor([0.0, 1.0, math.nan])
    bound = half.error_bound(residual)
    assert bound[:2].tolist() == [0.0, 2.0] and bound[2].isnan()


@pytest.mark.parametrize("constant", [1.0, 1.5, math.inf])
def test_nothing_is_promised_without_a_contraction(constant):
    one = certificate(constant)
    with pytest.raises(ValueError, match="iterations_for needs a constant"):
        one.iterations_for(1e-3, 1.0)
    with pytest.raises(ValueError, match="error_bound needs a constant"):
        one.error_bound(1.0)


# -- what is shown and refused ---------------------------------------------


def test_str_says_what_it_is():
    text = str(Certificate(0.25, "linf", "local", BALL, "a reason"))
    assert "local" in text and "0.25" in text and "linf" in text
    assert "rows within 1" in text and "a reason" in text
    several = Certificate(torch.tensor([0.5, 2.0]), kind="estimate")
    assert "[0.5, 2.0]" in str(several) and not several.contracts


def test_local_certificates_combine_on_one_region_only():
    here = certificate(0.5, kind="local")
    there = Certificate(0.5, "l2", "local", Ball(2.0))
    assert (here @ here).region is BALL
    with pytest.raises(ValueError, match="region"):
        here + there
    with pytest.raises(ValueError, match="region"):
        here @ certificate(0.5)


BAD = {
    "negative": (lambda: Certificate(-1.0), ValueError, "constant"),
    "nan": (lambda: Certificate(math.nan), ValueError, "constant"),
    "text": (lambda: Certificate("1"), TypeError, "constant"),
    "bool": (lambda: Certificate(True), TypeError, "constant"),
    "nan entry": (
        lambda: Certificate(torch.tensor([0.5, math.nan])),
        ValueError,
        "constant",
    ),
    "norm": (lambda: Certificate(0.5, "l3"), ValueError, "norm"),
    "kind": (lambda: Certificate(0.5, kind="sure"), ValueError, "kind"),
    "no region": (
        lambda: Certificate(0.5, kind="local"),
        ValueError,
        "region",
    ),
    "no region, several": (
        lambda: Certificate(torch.tensor([0.5]), kind="local"),
        ValueError,
        "region",
    ),
    "two norms": (
        lambda: certificate(0.5, "l1") @ certificate(0.5, "l2"),
        ValueError,
        "norm",
    ),
    "alpha 1": (lambda: certificate(0.5).smoothed(1.0), ValueError, "alpha"),
    "alpha text": (
        lambda: certificate(0.5).smoothed("x"),
        TypeError,
        "alpha",
    ),
    "one_sided in l1": (
        lambda: certificate(0.5, "l1").smoothed(0.5, one_sided=0.1),
        ValueError,
        "one_sided",
    ),
    "lam": (lambda: certificate(0.5).scaled("2"), TypeError, "lam"),
    "eps 0": (
        lambda: certificate(0.5).iterations_for(0.0, 1.0),
        ValueError,
        "eps",
    ),
    "eps nan": (
        lambda: certificate(0.5).iterations_for(math.nan, 1.0),
        ValueError,
        "eps",
    ),
    "first_step": (
        lambda: certificate(0.5).iterations_for(1.0, -1.0),
        ValueError,
        "first_step",
    ),
    "first_step inf": (
        lambda: certificate(0.5).iterations_for(1.0, math.inf),
        ValueError,
        "first_step",
    ),
    "residual": (
        lambda: certificate(0.5).error_bound(-1.0),
        ValueError,
        "residual",
    ),
    "residual entry": (
        lambda: certificate(0.5).error_bound(torch.tensor([1.0, -1.0])),
        ValueError,
        "residual",
    ),
    "several": (
        lambda: Certificate(torch.tensor([0.1, 0.2])).iterations_for(1.0, 2.0),
        ValueError,
        "segment",
    ),
    "radius": (lambda: Ball(0.0), ValueError, "radius"),
    "radius text": (lambda: Ball("1"), TypeError, "radius"),
    "center": (lambda: Ball(1.0, [0.0]), TypeError, "center"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_the_argument(name):
    make, kind, argument = BAD[name]
    with pytest.raises(kind, match=argument):
        make()


def test_a_ball_says_how_far_it_reaches():
    assert Ball(2.0).reach == 2.0
    center = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert 6.0 <= Ball(1.0, center).reach <= 6.0 + 1e-6
    assert "a given center" in str(Ball(1.0, center))


def test_other_things_do_not_combine():
    with pytest.raises(TypeError):
        certificate(0.5) + 1
    with pytest.raises(TypeError):
        certificate(0.5) @ 2
