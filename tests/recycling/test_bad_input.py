"""Wrong calls: the error names the argument and what is allowed."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from torch_picard.recycling import Recycler, ca_distance

TARGET = torch.tensor([[0.0, 0.0, 0.0], [3.8, 0.0, 0.0], [3.8, 3.8, 0.0]])
PAIR = torch.stack([TARGET, TARGET + 1])


def gap(prev, cur):
    return (cur - prev).abs().amax(-1)


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"step": 3}, TypeError, "step must be callable"),
        ({"tol": -1.0}, ValueError, "tol must be finite and not negative"),
        ({"tol": math.nan}, ValueError, "tol must be finite"),
        ({"tol": "0.5"}, TypeError, "tol must be a number"),
        ({"tol": True}, TypeError, "tol must be a number, got True"),
        ({"max_recycles": -1}, ValueError, "max_recycles must be at least 0"),
        ({"max_recycles": 2.0}, TypeError, "max_recycles must be an int"),
        ({"max_recycles": True}, TypeError, "max_recycles must be an int"),
        ({"alpha": 1.0}, ValueError, "alpha weights the old state"),
        ({"distance": None}, TypeError, "distance must be callable"),
        ({"callback": 3}, TypeError, "callback must be callable"),
        ({"smooth": "x"}, TypeError, "smooth must be a collection"),
        ({"on_failure": "no"}, ValueError, "on_failure must be"),
        ({"gradient": "last"}, TypeError, "gradient must be an instance"),
    ],
)
def test_options(options, error, text):
    with pytest.raises(error, match=text):
        Recycler(**({"step": lambda x: x} | options))


def test_numbers_of_numpy():
    recycler = Recycler(
        lambda x: x, max_recycles=np.int64(3), tol=np.float32(0.25)
    )
    assert "tol=0.25, max_recycles=3," in repr(recycler)
    assert recycler(TARGET).converged.all()


@pytest.mark.parametrize(
    "state, options, error, text",
    [
        (
            {"x": TARGET}, {}, TypeError,
            "prev must be CA coordinates .* got dict; where the state",
        ),
        (torch.zeros(4), {}, ValueError, "prev must be CA coordinates"),
        (torch.zeros(2, 2, 3, 3), {}, ValueError, "distance must return"),
        ((TARGET, 3.0), {"distance": gap}, TypeError, "state must hold Ten"),
        (TARGET, {"smooth": ("x",)}, ValueError, "the state is a single"),
        (
            (TARGET, TARGET),
            {"smooth": (2,), "distance": lambda a, b: (a[0] - b[0]).norm()},
            ValueError, r"smooth must name parts of the state, \[0, 1\]",
        ),
        (TARGET, {"distance": lambda a, b: 1.0}, ValueError, "distance must"),
        (
            TARGET,
            {"distance": partial(ca_distance, mask=torch.ones(4))},
            ValueError, "mask must be",
        ),
    ],
)  # fmt: skip
def test_states(state, options, error, text):
    with pytest.raises(error, match=text):
        Recycler(lambda x: x, **options)(state)


@pytest.mark.parametrize(
    "step, error, text",
    [
        (lambda x: x[:2], ValueError, r"step changed the shape.* is \[2, 3\]"),
        (lambda x: x.double(), ValueError, "step changed the dtype"),
        (lambda x: x.to("meta"), ValueError, "step changed the device"),
        (lambda x: None, TypeError, "step must return a Tensor, got NoneType"),
        (lambda x: (x, x), TypeError, "step must return a Tensor, got tuple"),
        (lambda x: x.mul_(0.5), ValueError, "step changed its argument in pl"),
    ],
)
def test_what_a_step_returns(step, error, text):
    with pytest.raises(error, match=text):
        Recycler(step)(TARGET.clone())


def test_the_structure_that_a_step_returns():
    recycler = Recycler(
        lambda x: (x["a"],), distance=lambda a, b: gap(a["a"], b["a"]).amax()
    )
    with pytest.raises(ValueError, match="step must return the structure"):
        recycler({"a": TARGET})


@pytest.mark.parametrize(
    "prev, mask, error, text",
    [
        (None, None, TypeError, "prev must be CA coordinates .* NoneType"),
        (PAIR[..., :2], None, ValueError, r"\[\.\.\., N, 3\] .* \[2, 3, 2\]"),
        (PAIR.long(), None, ValueError, "floating dtype, got torch.int64"),
        (TARGET, None, ValueError, "prev and cur must have one shape"),
        (PAIR, [1, 1, 1], TypeError, "mask must be a Tensor, got list"),
        (PAIR, torch.ones(()), ValueError, r"mask must be .* got \[\]"),
        (PAIR, torch.ones(2), ValueError, r"mask must be .* got \[2\]"),
        (PAIR, torch.ones(5, 3), ValueError, r"got \[5, 3\] for .*\[2, 3, 3"),
        (PAIR, torch.ones(1, 2, 3), ValueError, r"got \[1, 2, 3\] for"),
    ],
)
def test_distances(prev, mask, error, text):
    with pytest.raises(error, match=text):
        ca_distance(prev, PAIR, mask)


@pytest.mark.parametrize("mask", [None, torch.ones(2, 0)])
def test_no_residues_at_all_do_not_move(mask):
    empty = torch.zeros(2, 0, 3)
    assert ca_distance(empty, empty, mask).tolist() == [0.0, 0.0]
