"""A denoiser that spreads its rows over devices gives the same samples."""

import copy

import pytest
import torch
from torch import nn

from torch_picard.diffusion import PicardSampler, reverse_chain

ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.05, 200), 0)
STEPS, ROWS = 30, 3
# where DataParallel wants its network
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Network(nn.Module):
    """Of noise, with a condition; counts its rows."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(8, 16), nn.Linear(16, 4)
        self.rows = []

    def forward(self, x, t, condition):
        self.rows.append(len(x))
        time = (t / 200)[:, None].expand_as(condition["late"])
        h = torch.cat([x, condition["shift"], time * condition["late"]], 1)
        return self.leave(torch.tanh(self.enter(h)))


class Spread(nn.Module):
    """Replicas of a network; each takes a part of the rows."""

    def __init__(self, network, devices):
        super().__init__()
        self.devices = devices
        self.replicas = nn.ModuleList(
            copy.deepcopy(network).to(device) for device in devices
        )

    def forward(self, x, t, condition):
        parts = [
            part.tensor_split(len(self.devices))
            for part in (x, t, *condition.values())
        ]
        out = [
            net(
                x.to(d), t.to(d), dict(zip(condition, (c.to(d) for c in more)))
            )
            for net, d, x, t, *more in zip(self.replicas, self.devices, *parts)
        ]
        return torch.cat([part.to(x.device) for part in out])


@pytest.fixture
def problem():
    torch.manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, dtype=torch.float64).to(DEVICE)

    condition = {"shift": drawn(ROWS, 3), "late": drawn(ROWS, 1)}
    given = {"noise": drawn(STEPS, ROWS, 4), "condition": condition}
    return Network().double().to(DEVICE), drawn(ROWS, 4), given


def sampled(denoiser, problem, tol=0.1, method="picard"):
    _, x, given = problem
    options = {"window": 11, "tol": tol, "method": method, "eta": 0.5}
    return PicardSampler(denoiser, ALPHAS, STEPS, **options)(x, **given)


@pytest.mark.parametrize("method", ["picard", "anderson"])
@pytest.mark.parametrize("count", [2, 5])
def test_rows_in_parts(problem, count, method):
    network, x, given = problem
    spread = Spread(network, [DEVICE] * count)
    found, solution = sampled(spread, problem, method=method)
    want, alone = sampled(network, problem, method=method)
    assert solution.rounds == alone.rounds
    torch.testing.assert_close(found, want, rtol=0, atol=1e-8)
    # all have worked, and nothing twice
    rows = [net.rows for net in spread.replicas]
    assert [sum(parts) for parts in zip(*rows)] == network.rows
    assert all(max(parts) - min(parts) <= 1 for parts in zip(*rows))
    exact, _ = sampled(spread, problem, tol=0.0, method=method)
    chain = reverse_chain(network, ALPHAS, STEPS, x, eta=0.5, **given)
    torch.testing.assert_close(exact, chain, rtol=0, atol=1e-8)


def test_data_parallel(problem):
    network, x, given = problem
    parallel = nn.DataParallel(network)
    found, _ = sampled(parallel, problem)
    want, _ = sampled(network, problem)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-8)
    chain = reverse_chain(parallel, ALPHAS, STEPS, x, eta=0.5, **given)
    exact, _ = sampled(parallel, problem, tol=0.0)
    torch.testing.assert_close(exact, chain, rtol=0, atol=1e-8)
