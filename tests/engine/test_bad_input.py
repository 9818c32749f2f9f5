"""Wrong calls, and the error that names what was wrong."""

import math

import pytest
import torch

from torch_picard import (
    Adaptive,
    Anderson,
    Broyden,
    Implicit,
    NewtonKrylov,
    OperatorEquation,
    Phantom,
    Picard,
    Unrolled,
    fixed_point,
)

X0 = torch.zeros(4, 3)
PAIR = (torch.zeros(4, 3), torch.zeros(2, 3))


def half(x):
    return 0.5 * x


def solve(x0=X0, operator=half, **options):
    return lambda: fixed_point(operator, x0, **options)


def long(*entries):
    return torch.tensor(entries, dtype=torch.long)


def writes(x):
    return x.mul_(0.5)


WRONG = {
    # the operator
    "operator not callable": (solve(operator=3), TypeError, "operator"),
    "operator is a result": (solve(operator=X0), TypeError, "operator"),
    "operator grows": (
        solve(operator=lambda x: torch.cat([x, x])),
        ValueError,
        r"operator.*shape.*\[4, 3\].*\[8, 3\]",
    ),
    "operator broadcasts": (
        solve(operator=lambda x: x[:, :1]),
        ValueError,
        "operator.*shape",
    ),
    "operator widens the dtype": (
        solve(operator=lambda x: x.double()),
        ValueError,
        "operator.*dtype.*float64",
    ),
    "operator returns integers": (
        solve(operator=lambda x: x.long()),
        ValueError,
        "operator.*dtype",
    ),
    "operator returns a tuple": (
        solve(operator=lambda x: (x, x)),
        TypeError,
        "operator.*Tensor.*tuple",
    ),
    "operator returns nothing": (
        solve(operator=lambda x: None),
        TypeError,
        "operator.*NoneType",
    ),
    "operator loses a key": (
        solve({"a": X0, "b": X0}, lambda x: {"a": x["a"]}),
        ValueError,
        "operator.*structure",
    ),
    "operator returns a list for a tuple": (
        solve(PAIR, list),
        ValueError,
        "operator.*structure",
    ),
    "operator returns a shorter tuple": (
        solve(PAIR, lambda x: x[:1]),
        ValueError,
        "operator.*structure",
    ),
    "one leaf changes its shape": (
        solve(PAIR, lambda x: (x[0], x[0])),
        ValueError,
        "operator.*leaf 1",
    ),
    "operator works in place": (
        solve(operator=writes),
        ValueError,
        "operator.*in place",
    ),
    # the state
    "x0 a list of numbers": (solve([1.0, 2.0]), TypeError, "x0.*float"),
    "x0 a number": (solve(1.0), TypeError, "x0.*float"),
    "x0 None": (solve(None), (TypeError, ValueError), "x0"),
    "x0 integers": (solve(long(1, 2)), ValueError, "x0.*int64"),
    "x0 complex": (
        solve(torch.zeros(2, dtype=torch.complex64)),
        ValueError,
        "x0.*complex64.*view_as_real",
    ),
    "x0 empty": (solve(torch.zeros(0, 3)), ValueError, r"x0.*\[0, 3\]"),
    "x0 no leaf": (solve(()), ValueError, "x0"),
    "x0 all leaves empty": (
        solve({"a": torch.zeros(0, 3), "b": torch.zeros(2, 0)}),
        ValueError,
        r"x0.*empty.*\[0, 3\], \[2, 0\]",
    ),
    "x0 float8": (
        solve(torch.zeros(3).to(torch.float8_e4m3fn)),
        ValueError,
        "x0.*float8",
    ),
    "f of another shape": (
        lambda: OperatorEquation(torch.cos, torch.zeros(4)).solve(X0),
        ValueError,
        r"f must.*\[4\]",
    ),
    "x0 sparse": (solve(X0.to_sparse()), ValueError, "x0.*sparse"),
    "x0 without values": (solve(X0.to("meta")), ValueError, "x0.*meta"),
    # options of the solve
    "unknown option": (solve(tolerance=1.0), TypeError, "tolerance"),
    "options by position": (
        lambda: fixed_point(half, X0, Picard()),
        TypeError,
        "positional",
    ),
    "max_iter 0": (solve(max_iter=0), ValueError, "max_iter.*0"),
    "max_iter negative": (solve(max_iter=-3), ValueError, "max_iter.*-3"),
    "max_iter float": (solve(max_iter=10.0), TypeError, "max_iter.*float"),
    "max_iter bool": (solve(max_iter=True), TypeError, "max_iter.*bool"),
    "rtol negative": (solve(rtol=-1e-3), ValueError, "rtol.*-0.001"),
    "rtol nan": (solve(rtol=math.nan), ValueError, "rtol.*nan"),
    "rtol infinite": (solve(rtol=math.inf), ValueError, "rtol.*inf"),
    "rtol text": (solve(rtol="1e-3"), TypeError, "rtol.*str"),
    "atol negative": (solve(atol=-1.0), ValueError, "atol.*-1"),
    "atol None": (solve(atol=None), TypeError, "atol.*NoneType"),
    "method a class": (solve(method=Anderson), TypeError, "method"),
    "method a name": (solve(method="anderson"), TypeError, "method"),
    "method None": (solve(method=None), TypeError, "method.*None"),
    "gradient a class": (solve(gradient=Implicit), TypeError, "gradient"),
    "gradient a name": (solve(gradient="implicit"), TypeError, "gradient"),
    "gradient a method": (solve(gradient=Picard()), TypeError, "gradient"),
    "on_failure unknown": (
        solve(on_failure="error"),
        ValueError,
        "on_failure.*'error'",
    ),
    "callback not callable": (solve(callback=1), TypeError, "callback"),
    # segments
    "segments unknown": (solve(segments="rows"), ValueError, "segments.*rows"),
    "segments a list": (solve(segments=[0, 0, 1, 1]), TypeError, "segments"),
    "segments an int": (solve(segments=2), TypeError, "segments"),
    "segments float": (
        solve(segments=torch.zeros(4)),
        ValueError,
        "segments.*float32",
    ),
    "segments int32": (
        solve(segments=torch.zeros(4, dtype=torch.int32)),
        ValueError,
        "segments.*int32",
    ),
    "segments 2-dim": (
        solve(segments=long(0, 0, 1, 1)[None]),
        ValueError,
        "segments",
    ),
    "segments unsorted": (
        solve(segments=long(0, 1, 0, 1)),
        ValueError,
        "segments.*sorted",
    ),
    "segments negative": (
        solve(segments=long(-1, 0, 0, 1)),
        ValueError,
        "segments.*-1",
    ),
    "segments too short": (
        solve(segments=long(0, 1)),
        ValueError,
        "segments.*2 entries",
    ),
    "segments of a number": (
        solve(torch.tensor(1.0), segments=long(0)),
        ValueError,
        "segments",
    ),
    "leading of a number": (
        solve(torch.tensor(1.0), segments="leading"),
        ValueError,
        "segments='leading'",
    ),
    "leading with different dim 0": (
        solve(PAIR, segments="leading"),
        ValueError,
        "segments='leading'.*equal dim 0",
    ),
    "one batch vector for different dim 0": (
        solve(PAIR, segments=long(0, 0, 1, 1)),
        ValueError,
        "segments.*matching structure",
    ),
    "segments of another structure": (
        solve(PAIR, segments={"a": long(0)}),
        ValueError,
        "segments",
    ),
    "segments hold a list": (
        solve(PAIR, segments=(long(0, 0, 0, 0), "leading")),
        (TypeError, ValueError),
        "segments",
    ),
    # methods
    "alpha 1": (lambda: Picard(1.0), ValueError, r"alpha.*\[0, 1\).*1.0"),
    "alpha negative": (lambda: Picard(-0.1), ValueError, "alpha.*-0.1"),
    "alpha nan": (lambda: Picard(math.nan), ValueError, "alpha.*got nan;"),
    "alpha text": (lambda: Picard("0.5"), TypeError, "alpha.*str"),
    "alpha bool": (lambda: Picard(True), TypeError, "alpha.*bool"),
    "alpha Tensor of 1": (
        lambda: Picard(torch.tensor([0.2, 1.0])),
        ValueError,
        "alpha",
    ),
    "alpha complex": (
        lambda: Picard(torch.tensor(0.5j)),
        ValueError,
        "alpha.*complex64",
    ),
    "alpha integers": (
        lambda: Picard(torch.tensor([0, 0, 0])),
        ValueError,
        "alpha.*int64",
    ),
    "alpha empty": (
        lambda: Picard(torch.tensor([])),
        ValueError,
        r"alpha.*\[0\]",
    ),
    "alpha does not fit the state": (
        solve(method=Picard(torch.full((5,), 0.5))),
        ValueError,
        r"alpha.*\[5\].*\[4, 3\]",
    ),
    "alpha would widen the state": (
        solve(method=Picard(torch.full((2, 4, 3), 0.5))),
        ValueError,
        r"alpha.*\[2, 4, 3\]",
    ),
    "window 0": (lambda: Anderson(window=0), ValueError, "window.*0"),
    "window float": (lambda: Anderson(window=2.0), TypeError, "window"),
    "Anderson alpha": (lambda: Anderson(alpha=1), ValueError, "alpha"),
    "Anderson with a Tensor": (
        lambda: Anderson(alpha=torch.tensor(0.5)),
        TypeError,
        r"alpha.*Tensor.*Picard",
    ),
    "Broyden with a Tensor": (
        lambda: Broyden(alpha=torch.tensor(0.5)),
        TypeError,
        "alpha.*Tensor",
    ),
    "NewtonKrylov with a Tensor": (
        lambda: NewtonKrylov(alpha=torch.tensor(0.5)),
        TypeError,
        "alpha.*Tensor",
    ),
    "regularization 0": (
        lambda: Anderson(regularization=0.0),
        ValueError,
        "regularization",
    ),
    "growth negative": (lambda: Anderson(growth=-1), ValueError, "growth"),
    "memory 0": (lambda: Broyden(memory=0), ValueError, "memory"),
    "restart 0": (lambda: NewtonKrylov(restart=0), ValueError, "restart"),
    "forcing 1": (lambda: NewtonKrylov(forcing=1.0), ValueError, "forcing"),
    "alpha partly nan": (
        lambda: Picard(torch.tensor([0.5, math.nan])),
        ValueError,
        "alpha.*got nan;",
    ),
    "alpha partly 1": (
        lambda: Picard(torch.tensor([0.5, 1.0])),
        ValueError,
        r"alpha.*got 0\.5 to 1\.0;",
    ),
    "Adaptive with a Tensor": (
        lambda: Adaptive(alpha=torch.tensor(0.5)),
        TypeError,
        "alpha.*Tensor",
    ),
    "Adaptive beyond its maximum": (
        lambda: Adaptive(alpha=0.9, max_alpha=0.5),
        ValueError,
        "max_alpha",
    ),
    "unknown option of a method": (
        lambda: Anderson(m=5),
        TypeError,
        "'m'",
    ),
    # gradients
    "Implicit rtol 0": (lambda: Implicit(rtol=0.0), ValueError, "rtol"),
    "Implicit rtol nan": (lambda: Implicit(rtol=math.nan), ValueError, "rtol"),
    "Implicit max_iter": (
        lambda: Implicit(max_iter=0),
        ValueError,
        "max_iter",
    ),
    "Implicit method": (lambda: Implicit("gmres"), TypeError, "method.*gmres"),
    "Phantom steps": (lambda: Phantom(steps=0), ValueError, "steps"),
    "Phantom alpha": (lambda: Phantom(alpha=1.0), ValueError, "alpha"),
    "Phantom with a Tensor": (
        lambda: Phantom(alpha=torch.tensor(0.5)),
        TypeError,
        "alpha.*Tensor",
    ),
    "checkpoint": (lambda: Unrolled(checkpoint=1), TypeError, "checkpoint"),
    # torch.func
    "vmap": (
        lambda: torch.func.vmap(lambda b: fixed_point(lambda x: b - x, X0))(
            torch.ones(2)
        ),
        NotImplementedError,
        "segments='leading'",
    ),
    "a fixed number of steps in vmap": (
        lambda: torch.func.vmap(
            lambda b: fixed_point(lambda x: b - x, X0, rtol=0.0)
        )(torch.ones(2)),
        NotImplementedError,
        "vmap",
    ),
    "torch.func.grad": (
        lambda: torch.func.grad(
            lambda b: fixed_point(lambda x: b - x, X0).value.sum()
        )(torch.ones(())),
        NotImplementedError,
        "torch.autograd",
    ),
    "Newton's products in torch.func.grad": (
        lambda: torch.func.grad(
            lambda b: fixed_point(
                lambda x: b - x, X0, method=NewtonKrylov(), rtol=0.0
            ).value.sum()
        )(torch.ones(())),
        NotImplementedError,
        "torch.autograd",
    ),
    # equation (1)
    "T not callable": (lambda: OperatorEquation(X0), TypeError, "T must"),
    "lam a vector": (
        lambda: OperatorEquation(half, lam=torch.ones(2)),
        TypeError,
        "lam",
    ),
    "lam text": (lambda: OperatorEquation(half, lam="1"), TypeError, "lam"),
    "nothing to start from": (
        lambda: OperatorEquation(half).solve(),
        ValueError,
        "x0",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_gives_its_named_error(name, no_warnings):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=f"(?s){message}"):
        call()


def test_there_are_enough_of_them():
    assert len(WRONG) >= 25


def test_a_learned_alpha_that_leaves_its_range():
    alpha = torch.tensor(0.5, requires_grad=True)
    method = Picard(alpha)
    with torch.no_grad():
        alpha.fill_(1.5)
    with pytest.raises(ValueError, match="alpha"):
        fixed_point(half, X0, method=method)


def test_an_error_in_the_operator_comes_through():
    def operator(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fixed_point(operator, X0)
