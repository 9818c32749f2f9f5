"""PicardConv under DDP and FSDP: batches of their own, counts of their own."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import spectral_norm
from torch_geometric import nn as pyg
from torch_geometric.data import Batch, Data

from torch_picard import (
    PIGN,
    Anderson,
    Implicit,
    Phantom,
    PicardConv,
    Unrolled,
)
from torch_picard.distributed import agreed_stopping

WIDTH = 4
CONVS = {"GCN": pyg.GCNConv, "SAGE": pyg.SAGEConv, "GAT": pyg.GATConv}
GRADIENTS = {
    "unrolled": Unrolled(),
    "checkpointed": Unrolled(checkpoint=True),
    "implicit": Implicit(rtol=1e-11),
    "phantom": Phantom(3),
}


def graphs(rank):
    """Two rings. Large features saturate tanh, and the solve is short."""
    out = []
    for i, nodes in enumerate((5, 8)):
        draw = torch.Generator().manual_seed(2 * rank + i)
        x = torch.randn(nodes, WIDTH, generator=draw, dtype=torch.float64)
        node = torch.arange(nodes)
        half = torch.stack([node, (node + 1) % nodes])
        edges = torch.cat([half, half.flip(0)], dim=1)
        out.append(Data(x=x * (20.0, 0.1)[rank], edge_index=edges))
    return out


class Model(nn.Module):
    def __init__(self, conv, gradient, **options):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(WIDTH, WIDTH)
        self.picard = PicardConv(
            CONVS[conv](WIDTH, WIDTH), rtol=1e-11, max_iter=300, inject=True,
            activation="tanh", gradient=GRADIENTS[gradient], **options,
        )  # fmt: skip
        with torch.no_grad():
            for p in self.picard.parameters():
                p.mul_(0.5)
        self.double()

    def forward(self, data):
        out, solution = self.picard(
            self.encoder(data.x), data.edge_index, batch=data.batch,
            return_solution=True,
        )  # fmt: skip
        assert solution.converged.all()
        self.solution = solution
        self.counts = solution.iterations.tolist()
        self.evaluations = solution.evaluations
        return out.sin().sum()


def trained(model, run, data, gathered=nullcontext):
    """Value, counts, and the gradients of so many processes' mean."""
    loss = run(data)
    loss.backward()
    implicit = isinstance(model.picard.gradient, Implicit)
    assert (model.solution.backward is not None) == implicit
    grads = {}
    with gathered():
        for name, p in model.named_parameters():
            whole = p.grad
            if hasattr(whole, "full_tensor"):
                whole = whole.full_tensor()
            name = name.replace("_fsdp_wrapped_module.", "")
            grads[name] = whole.clone().numpy()
    return loss.item(), model.counts, model.evaluations, grads


def by_ddp(rank, world, conv, gradient, options):
    model = Model(conv, gradient, **options)
    wrapped = DistributedDataParallel(model)
    data = Batch.from_data_list(graphs(rank))
    return trained(model, wrapped, data)


def whole_by_fsdp(rank, world, conv, gradient, options):
    """Its parameters are gathered once a solve."""
    model = Model(conv, gradient, **options)
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    fully_shard(model.picard, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh)
    data = Batch.from_data_list(graphs(rank))
    return trained(model, model, data)


def inside_by_fsdp(rank, world, conv, gradient, options):
    """Its parameters are gathered in every evaluation."""
    model = Model(conv, gradient, **options)
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    fully_shard(model.picard.conv, mesh=mesh)
    fully_shard(model, mesh=mesh)

    def run(data):
        with agreed_stopping():  # and the backward pass, outside of it
            return model(data)

    return trained(model, run, Batch.from_data_list(graphs(rank)))


def fsdp1(module):
    return FullyShardedDataParallel(
        module, device_id=torch.device("cpu"), use_orig_params=True
    )


def by_fsdp1(model, data):
    whole = fsdp1(model)

    def gathered():
        return whole.summon_full_params(whole, with_grads=True)

    def run(data):
        with agreed_stopping():
            return whole(data)

    return trained(model, run, data, gathered)


def whole_by_fsdp1(rank, world, conv, gradient, options):
    """Which rebuilds the Solution that it returns."""
    model = Model(conv, gradient, **options)
    model.picard = fsdp1(model.picard)
    return by_fsdp1(model, Batch.from_data_list(graphs(rank)))


def inside_by_fsdp1(rank, world, conv, gradient, options):
    model = Model(conv, gradient, **options)
    model.picard.conv = fsdp1(model.picard.conv)
    return by_fsdp1(model, Batch.from_data_list(graphs(rank)))


def same_as_in_one(processes, way, conv, gradient, options=None):
    options = options or {}
    found = processes(2, way, conv, gradient, options, seconds=30)
    model = Model(conv, gradient, **options)
    data = Batch.from_data_list([*graphs(0), *graphs(1)])
    value, counts, _, grads = trained(model, model, data)
    assert sum(one[0] for one in found) == pytest.approx(value, rel=1e-10)
    assert found[0][1] + found[1][1] == counts
    for _, _, _, mean in found:
        assert mean.keys() == grads.keys()
        for name, grad in grads.items():
            np.testing.assert_allclose(
                2 * mean[name], grad, rtol=1e-7, atol=1e-9, err_msg=name
            )
    return [one[2] for one in found]


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
@pytest.mark.parametrize("way", [by_ddp, whole_by_fsdp])
def test_batches_of_different_difficulty(processes, way, gradient):
    few, many = same_as_in_one(processes, way, "GCN", gradient)
    assert 0 < few < many


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_a_sharded_conv_within_p(processes, gradient):
    few, many = same_as_in_one(processes, inside_by_fsdp, "SAGE", gradient)
    assert few == many


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_fsdp1_around_all(processes, gradient):
    few, many = same_as_in_one(processes, whole_by_fsdp1, "GCN", gradient)
    assert few == many


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_fsdp1_within_p_and_around_it(processes, gradient):
    few, many = same_as_in_one(processes, inside_by_fsdp1, "SAGE", gradient)
    assert few == many


def refused(rank, world, frozen, use_orig_params):
    model = Model("GCN", "implicit")
    model.picard.conv.requires_grad_(not frozen)
    model.picard.conv = FullyShardedDataParallel(
        model.picard.conv, device_id=torch.device("cpu"),
        use_orig_params=use_orig_params,
    )  # fmt: skip
    with agreed_stopping(), pytest.raises(NotImplementedError) as info:
        model(Batch.from_data_list(graphs(rank)))
    return str(info.value)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_within_p_alone(processes, world, frozen, use_orig_params):
    for said in processes(world, refused, frozen, use_orig_params):
        assert "FSDP1" in said
        assert "fully_shard" in said


def refused_where_it_is_computed(rank, world, part):
    model = PIGN(WIDTH, WIDTH, 2)
    if part == "ParametrizedLinear":
        model.block.conv.lin = spectral_norm(nn.Linear(WIDTH, WIDTH))
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    fully_shard(model.block.conv, mesh=mesh)
    fully_shard(model, mesh=mesh)
    data = graphs(rank)[0]
    with agreed_stopping(), pytest.raises(NotImplementedError) as info:
        model(data.x.float(), data.edge_index)
    return str(info.value)


@pytest.mark.parametrize("part", ["SmoothingLinear", "ParametrizedLinear"])
def test_a_sharded_weight_that_is_computed(processes, part):
    for said in processes(2, refused_where_it_is_computed, part):
        assert part in said and "model.block" in said


@pytest.mark.slow
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize(
    "way",
    [by_ddp, whole_by_fsdp, inside_by_fsdp, whole_by_fsdp1, inside_by_fsdp1],
)
def test_every_conv_and_gradient(processes, way, conv, gradient):
    few, many = same_as_in_one(processes, way, conv, gradient)
    alone = way in (by_ddp, whole_by_fsdp)  # without agreed_stopping
    assert few < many if alone else few == many


@pytest.mark.slow
@pytest.mark.parametrize("way", [whole_by_fsdp, whole_by_fsdp1])
def test_anderson_under_fsdp(processes, way):
    options = {"method": Anderson()}
    same_as_in_one(processes, way, "GCN", "implicit", options)
