"""Rows travel while the interior is computed.

The second process holds its rows back until the first has computed its
interior: it would wait for ever if it waited for the rows before.
"""

import datetime

import pytest
import torch
import torch.distributed as dist
from torch_geometric import nn as pyg

from torch_picard import PicardConv
from torch_picard.distributed import PartitionedGraph, halo, local

WIDTH, NODES, EVALUATIONS = 4, 20, 3
CONVS = {"GCN": pyg.GCNConv, "SAGE": pyg.SAGEConv}


def path():
    node = torch.arange(NODES - 1)
    half = torch.stack([node, node + 1])
    return torch.cat([half, half.flip(0)], dim=1)


class First:
    """Records what it does, and tells the other when it has computed."""

    def __init__(self, store, waits_at_once):
        self.store, self.events = store, []
        self.exchange, self.wait = halo.Halo.exchange, halo.Arriving.wait
        self.plan, self.at_once = local.plan, waits_at_once
        halo.Halo.exchange = lambda *args: self.exchanging(*args)
        halo.Arriving.wait = lambda *args: self.waiting(*args)
        local.plan = self.planning

    def exchanging(self, its_halo, x):
        arriving = self.exchange(its_halo, x)
        self.events.append(f"{x.size(1)} features sent")
        if self.at_once and x.size(1) == WIDTH:
            for work in arriving._work:
                work.wait()
        return arriving

    def waiting(self, arriving):
        rows = self.wait(arriving)
        self.events.append("rows have come")
        return rows

    def planning(self, *args, **kwargs):
        made = self.plan(*args, **kwargs)
        call = made.operator

        def calling(rows):
            out = call(rows)
            self.events.append("computed")
            count = self.events.count("computed")
            self.store.set(f"computed {count}", "")
            return out

        made.operator = calling
        return made


def second(store, patience):
    """Sends its rows of a state when the first has computed a piece of it;
    degrees, which are sent before, at once."""
    exchange, evaluations = halo.Halo.exchange, []

    def exchanging(its_halo, x):
        if x.size(1) == WIDTH:
            evaluations.append(x)
            store.wait(
                [f"computed {2 * len(evaluations) - 1}"],
                datetime.timedelta(seconds=patience),
            )
        return exchange(its_halo, x)

    halo.Halo.exchange = exchanging


def work(rank, world, name, waits_at_once, file):
    store = dist.FileStore(file, world)
    owner = (torch.arange(NODES) >= NODES // 2).long()
    graph = PartitionedGraph(path(), NODES, owner=owner)
    assert graph.num_interior == NODES // 2 - 1
    if rank == 0:
        first = First(store, waits_at_once)
    else:
        second(store, patience=1 if waits_at_once else 20)
    picard = PicardConv(
        CONVS[name](WIDTH, WIDTH), rtol=0.0, max_iter=EVALUATIONS
    )
    with torch.no_grad():
        for p in picard.parameters():
            p.fill_(0.1)
        picard(torch.ones(graph.num_owned, WIDTH), graph)
    return first.events if rank == 0 else []


@pytest.mark.parametrize("name", CONVS)
def test_rows_are_waited_for_after_the_interior(processes, tmp_path, name):
    file = str(tmp_path / "store")
    events, _ = processes(2, work, name, False, file)
    degrees = ["1 features sent", "rows have come"]
    each = ["4 features sent", "computed", "rows have come", "computed"]
    assert events == degrees * (name == "GCN") + each * EVALUATIONS


def test_an_operator_that_waits_first_would_be_seen(processes, tmp_path):
    file = str(tmp_path / "store")
    errors = processes(2, work, "SAGE", True, file, answering=2)
    assert "in exchanging" in errors[0]
    assert "in exchanging" in errors[1] and "store.wait" in errors[1]
