"""Operators and methods that the engine's tests share."""

import pytest
import torch

from torch_picard import Adaptive, Anderson, Broyden, NewtonKrylov, Picard

METHODS = {
    "picard": Picard(),
    "plain": Picard(0.0),
    "anderson": Anderson(),
    "broyden": Broyden(),
    "newton": NewtonKrylov(),
    "adaptive": Adaptive(),
}


@pytest.fixture(params=METHODS.values(), ids=METHODS.keys())
def method(request):
    return request.param


class Counted:
    """An operator that counts its calls."""

    def __init__(self, operator):
        self.operator, self.calls = operator, 0

    def __call__(self, x):
        self.calls += 1
        return self.operator(x)


@pytest.fixture(scope="session")
def counted():
    return Counted


class Contraction:
    """P(x) = L*R tanh(Q(x - c)) + b with orthogonal Q and R: its Lipschitz
    constant in l2 is L, reached at c."""

    def __init__(self, seed, size=6, lipschitz=0.5, bias=True):
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=rng, dtype=torch.float64)

        self.q = torch.linalg.qr(normal(size, size))[0]
        self.r = torch.linalg.qr(normal(size, size))[0]
        self.c = normal(size) if bias else torch.zeros(size).double()
        self.b = normal(size) if bias else torch.zeros(size).double()
        self.lipschitz = lipschitz
        self.x0, self.other = normal(size), normal(size)

    def __call__(self, x):
        inner = torch.tanh(self.q @ (x - self.c))
        return self.lipschitz * self.r @ inner + self.b

    def residual(self, x):
        return (self(x) - x).norm().item()

    def solution(self):
        """To rounding, by a loop that is not the engine's."""
        x = self.x0
        for _ in range(3000):
            x, old = self(x), x
            if torch.equal(x, old):
                break
        return x


@pytest.fixture(scope="session")
def contraction():
    return Contraction
