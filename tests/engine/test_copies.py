"""Copies: methods are equal by their settings, copied Solutions detached."""

import copy
import pickle

import pytest
import torch

from torch_picard import (
    Adaptive,
    Anderson,
    Broyden,
    ConvergenceError,
    Implicit,
    NewtonKrylov,
    Picard,
    Unrolled,
    fixed_point,
)

HALF = torch.tensor([0.5, 0.25])
MAKERS = {
    "Picard": Picard,
    "a number": lambda: Picard(0.3),
    "a Tensor": lambda: Picard(HALF.clone()),
    "one a leaf": lambda: Picard({"a": 0.1, "b": HALF.clone()}),
    "Adaptive": lambda: Adaptive(0.2),
    "Anderson": lambda: Anderson(window=3),
    "Broyden": Broyden,
    "NewtonKrylov": NewtonKrylov,
}


@pytest.mark.parametrize("name", MAKERS)
def test_methods_are_equal_by_their_settings(name):
    one, two = MAKERS[name](), MAKERS[name]()
    assert one == two and hash(one) == hash(two)
    assert len({one, two, copy.deepcopy(one)}) == 1
    assert pickle.loads(pickle.dumps(one)) == two
    others = [make() for other, make in MAKERS.items() if other != name]
    assert one not in others and one != 0.5


@pytest.mark.parametrize(
    "other",
    [
        Picard(0.25),
        Picard([0.5, 0.25]),
        Picard(HALF.double()),
        Picard(HALF[:1]),
        Picard(HALF / 2),
        Picard([HALF]),
    ],
    ids=repr,
)
def test_and_by_nothing_else(other):
    assert Picard(HALF) != other and other != Picard(HALF)


def test_a_learned_alpha_keeps_its_hash():
    alpha = torch.nn.Parameter(torch.tensor(0.5))
    known = {Picard(alpha)}
    with torch.no_grad():
        alpha.fill_(0.2)
    assert Picard(alpha) in known


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda s: pickle.loads(pickle.dumps(s)),
}


@pytest.mark.parametrize("gradient", [Unrolled(), Implicit()], ids=repr)
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copied_solution_is_detached(method, copied, gradient):
    w = torch.ones(3, requires_grad=True)

    def operator(x):
        return {"a": 0.5 * torch.cos(w * x["a"])}

    s = fixed_point(
        operator, {"a": torch.zeros(3)}, method=method, gradient=gradient
    )
    t = copied(s)
    assert torch.equal(t.value["a"], s.value["a"])
    assert t.value["a"].data_ptr() != s.value["a"].data_ptr()
    assert not t.value["a"].requires_grad
    assert t.describe() == s.describe()
    assert torch.equal(t.rate, s.rate)
    again = fixed_point(operator, t, method=method)  # with its method's state
    assert again.converged.all()
    s.value["a"].sum().backward()  # the original is as it was
    assert w.grad.abs().min() > 0


def test_a_shallow_copy_shares_the_graph():
    w = torch.ones(3, requires_grad=True)
    s = fixed_point(lambda x: 0.5 * torch.cos(w * x), torch.zeros(3))
    assert copy.copy(s).value is s.value


def test_a_shallow_copy_hears_of_the_backward_solve():
    w = torch.ones(3, requires_grad=True)
    s = fixed_point(
        lambda x: 0.5 * torch.cos(w * x), torch.zeros(3), gradient=Implicit()
    )
    t, known = copy.copy(s), copy.deepcopy(s)
    s.value.sum().backward()
    assert t.backward is s.backward
    assert t.backward.converged.all()
    assert known.backward is None


def test_a_solution_can_be_rebuilt(method):
    """As FSDP does with what a module returns."""
    utils = pytest.importorskip("torch.distributed.utils")
    s = fixed_point(
        lambda x: 0.5 * torch.cos(x), torch.zeros(3), method=method
    )
    seen = []
    t = utils._apply_to_tensors(lambda leaf: seen.append(leaf) or leaf, s)
    assert any(leaf is s.value for leaf in seen)
    assert t.describe() == s.describe()
    again = fixed_point(lambda x: 0.5 * torch.cos(x), t, method=method)
    assert again.converged.all()


def test_an_error_goes_from_process_to_process():
    w = torch.ones(3, requires_grad=True)
    with pytest.raises(ConvergenceError) as caught:
        fixed_point(lambda x: w - x, torch.zeros(3), method=Picard(0.0),
                    on_failure="raise")  # fmt: skip
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == str(caught.value)
    assert not error.solution.value.requires_grad
