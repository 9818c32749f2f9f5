"""What a plan must not overlook, keep or leave behind."""

import threading

import pytest
import torch
from torch_geometric.nn import APPNP, GCNConv, SAGEConv, SimpleConv

from torch_picard import PicardConv
from torch_picard.nn import rows
from torch_picard.ops import smoothed_propagate


def edges(nodes=7, count=20):
    return torch.randint(nodes, (2, count))


def test_explain_plan_leaves_nothing_in_a_conv_that_caches():
    torch.manual_seed(0)
    x, edge_index = torch.randn(9, 4), edges()  # two nodes without edges
    conv = GCNConv(4, 4, cached=True)
    block = PicardConv(conv, max_iter=1, rtol=0.0, alpha=0.0)
    assert "fused" in block.explain_plan(edge_index)
    assert conv._cached_edge_index is None
    want = GCNConv(4, 4)
    want.load_state_dict(conv.state_dict())
    torch.testing.assert_close(block(x, edge_index), want(x, edge_index))


def test_a_graph_that_the_conv_caches_is_sorted_once(monkeypatch):
    calls = []
    compress = rows.compress
    monkeypatch.setattr(
        rows, "compress", lambda *a: calls.append(1) or compress(*a)
    )
    x, edge_index = torch.randn(7, 4), edges()
    block = PicardConv(GCNConv(4, 4, cached=True), inject=True)
    first = block(x, edge_index)
    for _ in range(3):
        torch.testing.assert_close(block(x, edge_index), first)
    if calls:  # not on the torch backend
        assert len(calls) == 1


@pytest.mark.parametrize("make", [GCNConv, SAGEConv])
def test_indices_are_checked_whatever_the_conv(make):
    block = PicardConv(make(4, 4))
    for wrong in (-1, 7):
        edge_index = torch.tensor([[0, wrong], [1, 2]])
        if "conv" in block.explain_plan(edges(), num_nodes=7)[:5]:
            pytest.skip("the conv runs its own forward")
        with pytest.raises(ValueError, match="edge_index must hold node"):
            block(torch.randn(7, 4), edge_index)


@pytest.mark.parametrize(
    "crow, col", [([0, 1, 2, 3, 4], [0, 1, 2, 10**9]), ([0, 3, 1, 3, 4], None)]
)
def test_an_unsound_adjacency_is_no_crash(crow, col):
    adjacency = torch.sparse_csr_tensor(
        torch.tensor(crow), torch.tensor(col or [0, 1, 2, 3]), torch.rand(4),
        (4, 4), check_invariants=False,
    )  # fmt: skip
    block = PicardConv(SimpleConv())
    if block.explain_plan(torch.eye(4).to_sparse_csr()).startswith("conv"):
        pytest.skip("the conv runs its own forward")
    with pytest.raises(ValueError, match=r"col must hold|rowptr must not"):
        block(torch.randn(4, 3), adjacency)


@pytest.mark.parametrize("hops", [1, 4])
def test_coefficients_are_of_the_states_precision(hops):
    torch.manual_seed(0)
    x, edge_index = torch.randn(7, 3).double(), edges()
    conv = APPNP(K=hops, alpha=0.1, normalize=False)
    block = PicardConv(conv, max_iter=1, rtol=0.0, alpha=0.0)
    torch.testing.assert_close(
        block(x, edge_index), conv(x, edge_index), rtol=1e-13, atol=1e-13
    )


def test_hooks_of_the_aggregation_are_heard():
    x, edge_index = torch.randn(7, 4), edges()
    conv = SAGEConv(4, 4)
    block = PicardConv(conv, max_iter=1, rtol=0.0, alpha=0.0)
    conv.aggr_module.register_forward_hook(lambda m, i, out: 2 * out)
    torch.testing.assert_close(block(x, edge_index), conv(x, edge_index))
    assert block.explain_plan(edge_index).startswith("conv")


def test_threads_that_share_a_graph():
    torch.manual_seed(0)
    nodes, count = 1000, 6000
    target = torch.randint(nodes, (count,)).sort().values
    rowptr = torch.searchsorted(target, torch.arange(nodes + 1))
    col = torch.randint(nodes, (count,))
    values = torch.rand(count), 100 * torch.rand(count)

    def gradient(value):
        h = torch.ones(nodes, 4, requires_grad=True)
        y, _ = smoothed_propagate(
            rowptr, col, value, h, torch.zeros(nodes, 4), 0.1
        )
        return torch.autograd.grad(y.sum(), h)[0]

    want = [gradient(value) for value in values]
    wrong = []

    def work(i):
        for _ in range(150):
            if not torch.allclose(gradient(values[i]), want[i], rtol=1e-4):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_fixed_count_compiles_with_sizes_that_change():
    block = PicardConv(
        GCNConv(4, 4, add_self_loops=False), max_iter=3, rtol=0.0
    )
    compiled = torch.compile(
        block, fullgraph=True, dynamic=True, backend="eager"
    )
    for nodes in (5, 9):
        x, edge_index = torch.randn(nodes, 4), edges(nodes, 3 * nodes)
        torch.testing.assert_close(
            compiled(x, edge_index), block(x, edge_index)
        )
