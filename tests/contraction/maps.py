"""Maps whose Lipschitz constant in l2 is known, with their fixed points."""

import torch


def orthogonal(rng, size):
    raw = torch.randn(size, size, generator=rng, dtype=torch.float64)
    return torch.linalg.qr(raw)[0]


class Affine:
    """P(x) = Mx + b, M with singular values from 0 up to ``lipschitz`` and
    not normal."""

    def __init__(self, seed, lipschitz, size=6):
        rng = torch.Generator().manual_seed(seed)
        values = torch.linspace(0, lipschitz, size, dtype=torch.float64)
        left, right = orthogonal(rng, size), orthogonal(rng, size)
        self.matrix = (left * values) @ right
        self.b = torch.randn(size, generator=rng, dtype=torch.float64)
        self.x0 = torch.randn(size, generator=rng, dtype=torch.float64)
        self.lipschitz = lipschitz

    def __call__(self, x):
        return self.matrix @ x + self.b

    def solution(self):
        eye = torch.eye(len(self.b), dtype=torch.float64)
        return torch.linalg.solve(eye - self.matrix, self.b)


class Tanh(Affine):
    """P(x) = tanh(Mx) + b: the constant is reached at 0."""

    def __call__(self, x):
        return torch.tanh(self.matrix @ x) + self.b

    def solution(self):
        """By Newton's method, to rounding."""
        x = self.x0
        eye = torch.eye(len(x), dtype=torch.float64)
        for _ in range(100):
            slope = 1 - torch.tanh(self.matrix @ x).square()
            jacobian = slope[:, None] * self.matrix
            x = x + 0.5 * torch.linalg.solve(eye - jacobian, self(x) - x)
        for _ in range(20):
            slope = 1 - torch.tanh(self.matrix @ x).square()
            jacobian = slope[:, None] * self.matrix
            x = x + torch.linalg.solve(eye - jacobian, self(x) - x)
        return x


def picard(operator, x0, alpha, n):
    """x_0 .. x_n by the definition, not by the engine."""
    x = [x0]
    for _ in range(n):
        x.append(alpha * x[-1] + (1 - alpha) * operator(x[-1]))
    return x
