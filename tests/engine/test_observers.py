"""Whoever listens hears of every solve, once, and changes nothing."""

import gc

import pytest
import torch

from torch_picard import ConvergenceError, Implicit, fixed_point
from torch_picard.engine import observers


class Listener:
    def __init__(self):
        self.heard = []

    def solved(self, solution):
        self.heard.append(solution)


@pytest.fixture
def listener():
    it = Listener()
    observers.add(it)
    yield it
    observers.remove(it)


def solve(**options):
    return fixed_point(torch.cos, torch.ones(3), **options)


@pytest.mark.parametrize("rtol", [0.0, 1e-5])
def test_the_solution_that_is_returned_is_heard(listener, rtol):
    solution = solve(rtol=rtol)
    assert listener.heard == [solution]


def test_a_gradient_is_attached_before(listener):
    w = torch.tensor(0.5, requires_grad=True)
    solution = fixed_point(
        lambda x: torch.cos(w * x), torch.ones(3), gradient=Implicit()
    )
    (heard,) = listener.heard
    assert heard is solution and heard.value.requires_grad


def test_a_solve_that_raises_is_heard(listener):
    with pytest.raises(ConvergenceError) as raised:
        solve(max_iter=2, on_failure="raise")
    assert listener.heard == [raised.value.solution]


def test_inner_solves_are_heard_first(listener):
    inner = []

    def operator(x):
        inner.append(fixed_point(lambda y: 0.3 * y + x, x, max_iter=60))
        return torch.cos(inner[-1].value)

    outer = fixed_point(operator, torch.ones(1), max_iter=3, rtol=0.0)
    assert listener.heard == [*inner, outer]


def test_each_of_several_hears_until_removed(listener):
    other = Listener()
    observers.add(other)
    observers.add(other)  # no second time
    solve()
    observers.remove(other)
    observers.remove(other)
    solve()
    assert (len(listener.heard), len(other.heard)) == (2, 1)


def test_one_that_nobody_holds_is_forgotten():
    observers.add(Listener())
    gc.collect()
    solve()
    it = Listener()
    observers.add(it)
    observers.remove(it)
    assert not observers._observers


def test_compiled_solves_are_not_heard_and_need_no_new_graph(listener):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(
        lambda x: fixed_point(torch.cos, x, max_iter=4, rtol=0.0).value,
        fullgraph=True,
        backend=backend,
    )
    compiled(torch.ones(3))
    observers.remove(listener)
    compiled(torch.ones(3))
    assert not listener.heard and len(graphs) == 1
