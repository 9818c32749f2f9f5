"""Layers that a configuration of GraphGym may name."""

from types import SimpleNamespace

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from torch_picard import PicardConv

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
NAMES = ["gcn", "sage", "gat"]


@pytest.mark.parametrize("name", NAMES)
def test_graphgym_knows_the_layers(name):
    from torch_geometric.graphgym.models.layer import LayerConfig
    from torch_geometric.graphgym.register import layer_dict

    from torch_picard.nn import graphgym  # noqa: F401

    layer = layer_dict[f"picard_{name}conv"](
        LayerConfig(dim_in=3, dim_out=5), max_iter=4
    )
    graphs = [Data(x=torch.randn(4, 3), edge_index=torch.randint(4, (2, 9)))]
    batch = next(iter(DataLoader(2 * graphs, batch_size=2)))
    out = layer(batch)
    assert out.x.shape == (8, 5)
    torch.testing.assert_close(out.x[:4], out.x[4:])


CONFIGURATION = """
dataset: {task: %s}
model: {loss_fun: cross_entropy}
gnn:
  layer_type: picard_%sconv
  layers_pre_mp: 1
  layers_mp: 2
  layers_post_mp: 1
  dim_inner: 8
optim: {optimizer: adam, base_lr: 0.05}
"""


def configured(tmp_path, task, name):
    """A model as GraphGym's main.py makes it from a file."""
    pytest.importorskip("yacs")
    from torch_geometric.graphgym.config import cfg, load_cfg, set_cfg
    from torch_geometric.graphgym.model_builder import create_model

    from torch_picard.nn import graphgym  # noqa: F401

    path = tmp_path / "picard.yaml"
    path.write_text(CONFIGURATION % (task, name))
    set_cfg(cfg)
    load_cfg(cfg, SimpleNamespace(cfg_file=str(path), opts=[]))
    return create_model(to_device=False, dim_in=3, dim_out=3)


@pytest.mark.parametrize("task", ["node", "graph"])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_by_configuration_trains(name, task, tmp_path):
    torch.manual_seed(0)
    model = configured(tmp_path, task, name)
    convs = [m for m in model.modules() if isinstance(m, PicardConv)]
    assert [type(m.conv).__name__.lower() for m in convs] == 2 * [
        name + "conv"
    ]
    graphs = []
    for y in (0, 1, 2):
        x = torch.randn(5, 3)
        x[:, y] += 2.0
        y = torch.tensor([y]).repeat(5 if task == "node" else 1)
        edges = torch.randint(5, (2, 9))
        graphs.append(Data(x=x, edge_index=edges, y=y))
    batch = next(iter(DataLoader(graphs, batch_size=3)))
    if task == "node":
        batch.train_mask = torch.ones(15, dtype=torch.bool)
    (optimizer,), _ = model.configure_optimizers()
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model.training_step(batch.clone())["loss"]
        loss.backward()
        for conv in convs:
            assert all(p.grad.abs().max() > 0 for p in conv.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
