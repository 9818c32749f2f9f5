"""Solves inside modules: copies, pickles, several processes."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from torch_picard import (
    Adaptive,
    Anderson,
    Broyden,
    Implicit,
    NewtonKrylov,
    OneStep,
    Phantom,
    Picard,
    Unrolled,
    fixed_point,
)

METHODS = [Picard(0.3), Anderson(), Broyden(), NewtonKrylov(), Adaptive()]
GRADIENTS = [Unrolled(True), Implicit(Anderson()), Phantom(2), OneStep()]


class Equilibrium(nn.Module):
    """x = .5*tanh(Wx) + input."""

    def __init__(self, method=Picard(), gradient=Implicit()):  # noqa: B008
        super().__init__()
        self.linear = nn.Linear(4, 4)
        nn.init.orthogonal_(self.linear.weight)
        self.method, self.gradient = method, gradient

    def forward(self, u):
        return fixed_point(
            lambda x: 0.5 * torch.tanh(self.linear(x)) + u,
            u,
            method=self.method,
            gradient=self.gradient,
            rtol=1e-6,
            max_iter=100,
        ).value


def gradient_of(model, u):
    model.zero_grad()
    model(u).square().sum().backward()
    return model.linear.weight.grad.clone()


@pytest.mark.parametrize("gradient", GRADIENTS, ids=repr)
@pytest.mark.parametrize("solver", METHODS, ids=repr)
def test_copies_and_pickles(seed, solver, gradient):
    model, u = Equilibrium(solver, gradient), torch.randn(3, 4)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    expected = gradient_of(model, u)
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(twin(u), model(u))
        assert torch.equal(gradient_of(twin, u), expected)
        assert twin.linear.weight is not model.linear.weight


def test_a_learned_alpha_is_copied_along():
    alpha = nn.Parameter(torch.tensor(0.3))
    twin = copy.deepcopy(Picard(alpha))
    assert twin.alpha is not alpha and torch.equal(twin.alpha, alpha)


def test_a_solution_can_be_pickled(seed, method):
    s = fixed_point(lambda x: 0.5 * x + 1, torch.randn(3), method=method)
    again = pickle.loads(pickle.dumps(s))
    assert torch.equal(again.value, s.value)
    warm = fixed_point(lambda x: 0.5 * x + 1, again, method=method)
    assert warm.converged.all() and warm.evaluations == 1


def test_eval_mode(seed):
    model, u = Equilibrium(), torch.randn(3, 4)
    expected = gradient_of(model, u)
    assert torch.equal(gradient_of(model.eval(), u), expected)


def test_options_are_values():
    assert Anderson() == Anderson(window=5)
    assert Anderson() != Anderson(window=4)
    assert len({Implicit(), Implicit(rtol=1e-6), OneStep()}) == 2
    for option in (*METHODS, *GRADIENTS):
        with pytest.raises(AttributeError):
            option.alpha = 0.1


def process(rank, world, folder, batch, weights, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
    )
    model = Equilibrium()
    model.load_state_dict(weights)
    model = nn.parallel.DistributedDataParallel(model)
    gradients = []
    for _ in range(2):  # the second pass reuses the reducer
        model.zero_grad()
        model(batch[rank]).square().mean().backward()
        gradients.append(model.module.linear.weight.grad.clone())
    results[rank] = gradients
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed_data_parallel(seed, tmp_path):
    """Two processes with half of the batch each: the gradient of one."""
    model, batch = Equilibrium(), torch.randn(2, 6, 4)
    model(batch.reshape(12, 4)).square().mean().backward()
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(
            process,
            (2, str(tmp_path), batch, model.state_dict(), results),
            nprocs=2,
        )
        for rank in range(2):
            for gradient in results[rank]:
                torch.testing.assert_close(
                    gradient, model.linear.weight.grad, rtol=1e-4, atol=1e-6
                )


@pytest.mark.parametrize("gradient", [Implicit(), Phantom(2), OneStep()])
def test_gradients_reach_cached_parametrised_weights(gradient):
    """A solve without gradient must not be what fills the cache."""
    torch.manual_seed(0)
    lin = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4))

    def solve():
        solution = fixed_point(
            lambda x: 0.3 * lin(x).tanh(), torch.ones(4), gradient=gradient
        )
        return torch.autograd.grad(solution.value.sum(), lin.parameters())

    with torch.nn.utils.parametrize.cached():
        found = solve()
    for a, b in zip(found, solve()):
        torch.testing.assert_close(a, b)
