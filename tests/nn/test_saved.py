"""Weights that earlier versions saved.

Keys, shapes and outputs were taken from version 0.1.0 as it was when PIGN was
added (f9dd5ae), by running that code. A change here breaks the files of
users: load those, too.
"""

import math

import pytest
import torch
from torch import nn
from torch_geometric import nn as pyg

from torch_picard import PIGN, PicardConv

FIXED = {"rtol": 0.0, "max_iter": 5}
MODELS = {
    "PicardConv": lambda: PicardConv(
        pyg.GATConv(3, 3), alpha=nn.Parameter(torch.tensor(0.3)),
        inject=nn.Linear(3, 3), activation="tanh", **FIXED,
    ),
    "gcn": lambda: PIGN(3, 4, 2, conv="gcn", **FIXED),
    "gat": lambda: PIGN(3, 4, 2, conv="gat", **FIXED),
    "sage": lambda: PIGN(3, 4, 2, conv="sage", **FIXED),
    "norms": lambda: PIGN(
        3, 4, 2, norm="BatchNorm", inner_norm="LayerNorm", **FIXED
    ),
}  # fmt: skip
ENCODER = {"encoder.weight": [4, 3], "encoder.bias": [4]}
DECODER = {"decoder.weight": [2, 4], "decoder.bias": [2]}
SAVED = {
    "PicardConv": {
        "alpha": [],
        "conv.att_src": [1, 1, 3],
        "conv.att_dst": [1, 1, 3],
        "conv.bias": [3],
        "conv.lin.weight": [3, 3],
        "inject.weight": [3, 3],
        "inject.bias": [3],
    },
    "gcn": ENCODER
    | {"block.conv.bias": [4], "block.conv.lin.deviation": [4, 4]}
    | DECODER,
    "gat": ENCODER
    | {
        "block.conv.att_src": [1, 1, 4],
        "block.conv.att_dst": [1, 1, 4],
        "block.conv.bias": [4],
        "block.conv.lin.deviation": [4, 4],
    }
    | DECODER,
    "sage": ENCODER | {"block.conv.lin_l.deviation": [4, 4]} | DECODER,
    "norms": ENCODER
    | {
        "norm.module.weight": [4],
        "norm.module.bias": [4],
        "norm.module.running_mean": [4],
        "norm.module.running_var": [4],
        "norm.module.num_batches_tracked": [],
        "block.conv.conv.bias": [4],
        "block.conv.conv.lin.deviation": [4, 4],
        "block.conv.norm.weight": [4],
        "block.conv.norm.bias": [4],
    }
    | DECODER,
}
#: at node 0, of the weights below
OUTPUT = {
    "PicardConv": [0.73212, 0.6209, -0.92105],
    "gcn": [-7.91452, 6.81364],
    "gat": [4.61118, -3.3585],
    "sage": [-7.65244, 4.91784],
    "norms": [2.18002, -1.39713],
}


def weights(shapes):
    state = {}
    for i, (name, shape) in enumerate(shapes.items()):
        value = torch.sin(1.0 + i + 0.7 * torch.arange(math.prod(shape)))
        value = value.reshape(shape)
        if name == "alpha":
            value = 0.3 + 0.1 * value
        if name.endswith("running_var"):
            value = value.abs() + 0.5
        if name.endswith("num_batches_tracked"):
            value = value.long()
        state[name] = value
    return state


@pytest.mark.parametrize("name", SAVED)
def test_files_of_version_0_1_load_and_compute_the_same(name, tmp_path):
    torch.save(weights(SAVED[name]), tmp_path / "weights.pt")
    loaded = torch.load(tmp_path / "weights.pt", weights_only=True)
    model = MODELS[name]().eval()
    model.load_state_dict(loaded, strict=True)
    x = torch.sin(torch.arange(12.0)).reshape(4, 3)
    edge_index = torch.tensor([[0, 1, 2, 3, 0, 2], [1, 2, 3, 0, 2, 1]])
    with torch.no_grad():
        got = model(x, edge_index)
    want = torch.tensor(OUTPUT[name])  # to the places that are written
    torch.testing.assert_close(got[0], want, rtol=0, atol=2e-5)
    again = MODELS[name]().eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x, edge_index), got)
