"""One iteration count for all."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from torch_picard import NewtonKrylov, PicardConv, fixed_point
from torch_picard.distributed import agreed_stopping


class Talking(nn.Module):
    """A conv that communicates whenever it is called, as one does whose
    parameters are sharded."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x, edge_index):
        seen = torch.ones(1)
        dist.all_reduce(seen)
        assert seen == dist.get_world_size()
        return self.rate * x


def solve(rank, world):
    rate = (0.1, 0.9)[rank]
    picard = PicardConv(Talking(rate), alpha=0.0, inject=True, max_iter=300)
    x, edges = torch.ones(3, 2), torch.zeros(2, 0, dtype=torch.long)
    with agreed_stopping():
        out, solution = picard(x, edges, return_solution=True)
    alone = fixed_point(
        lambda y: rate * y + x, x, rtol=1e-4, max_iter=300,
        method=picard.iteration(),
    )  # fmt: skip
    same = torch.equal(out, alone.value)
    return (
        same, solution.evaluations, alone.evaluations,
        solution.iterations.item() == alone.iterations.item(),
        solution.converged.all().item(),
    )  # fmt: skip


def test_all_evaluate_until_the_last_is_done_and_nothing_moves(processes):
    found = processes(2, solve)
    assert all(same and count and ok for same, _, _, count, ok in found)
    assert found[0][1] == found[1][1] == max(found[0][2], found[1][2])
    assert found[0][2] < found[1][2]


def by_newton(rank, world):
    picard = PicardConv(Talking(0.5), method=NewtonKrylov(), inject=True)
    x, edges = torch.ones(3, 2), torch.zeros(2, 0, dtype=torch.long)
    with agreed_stopping():
        try:
            picard(x, edges)
        except ValueError as error:
            return str(error)


def test_a_method_that_would_lose_step_is_refused(processes):
    for text in processes(2, by_newton):
        assert "method must make one evaluation a step" in text


def ddp(rank, world):
    """Counts that differ, without agreement: one reduction a backward."""
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.mul_((0.2, 0.9)[rank])
    wrapped = nn.parallel.DistributedDataParallel(Solving(model))
    value, evaluations = wrapped(torch.ones(2, 3) * (1 + rank))
    value.sum().backward()
    return model.weight.grad.numpy(), evaluations


class Solving(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        rate = 0.1 if dist.get_rank() == 0 else 0.8
        solution = fixed_point(
            lambda y: rate * torch.tanh(self.inner(y)) + x, x, rtol=1e-6,
            max_iter=200,
        )  # fmt: skip
        return solution.value, solution.evaluations


def test_ddp_needs_no_agreement(processes):
    (first, few), (second, many) = processes(2, ddp)
    assert few != many
    assert (first == second).all()


def test_without_a_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        with agreed_stopping():
            pass


def sharded(rank, world, agreed):
    """FSDP gathers the parameters whenever the module within P is called."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,))
    torch.manual_seed(0)
    inner = nn.Linear(4, 4)
    fully_shard(inner, mesh=mesh)
    model = Solving(inner)
    with agreed_stopping():
        value, evaluations = model(torch.ones(2, 4) * (1 + rank))
    value.sum().backward()
    grad = inner.weight.grad.full_tensor()
    return value.detach().numpy(), evaluations, grad.numpy()


def whole(rank, world):
    torch.manual_seed(0)
    inner = nn.Linear(4, 4)
    value, evaluations = Solving(inner)(torch.ones(2, 4) * (1 + rank))
    value.sum().backward()
    dist.all_reduce(inner.weight.grad)
    return value.detach().numpy(), evaluations, inner.weight.grad.numpy()


def test_fsdp_within_p(processes):
    found, want = processes(2, sharded, True), processes(2, whole)
    counts = [count for _, count, _ in want]
    assert counts[0] != counts[1]
    for (value, count, grad), (true, _, total) in zip(found, want):
        assert count == max(counts)
        assert abs(value - true).max() < 1e-5
        assert abs(grad - total / 2).max() < 1e-5  # FSDP takes the mean
