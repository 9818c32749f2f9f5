"""Work and traffic of one solve over several processes.

    python benchmarks/distributed.py [--processes 1 2 4]
        [--parts METIS breadth-first] [--write DIR]

PicardConv(GCNConv), 64 features, forward with a fixed number of iterations,
gloo processes on this machine with one thread each: what each of them has to
do, what it receives in an iteration, how long one takes, and the share of
that spent in the exchange. With fewer cores than processes, time says nothing
of speed; rows, edges and bytes do. Graphs: a grid, communities, and a random
graph, which no partition suits. A table for each way to divide them; --write
puts the tables into DIR.
"""

import argparse
import importlib.util
import multiprocessing
import socket
import statistics
import time
from pathlib import Path

import torch
import torch.distributed as dist
from _table import rst, show
from torch_geometric import typing
from torch_geometric.nn import GCNConv

from torch_picard import PicardConv
from torch_picard.distributed import PartitionedGraph
from torch_picard.distributed.partition import in_pieces

WIDTH, ITERATIONS = 64, 8
HEAD = [
    "graph", "processes", "rows", "edges", "halo", "halo / rows",
    "MB an iteration", "ms an iteration", "in the exchange",
]  # fmt: skip


def grid(nodes: int) -> torch.Tensor:
    side = round(nodes**0.5)
    node = torch.arange(side * side).reshape(side, side)
    right = torch.stack([node[:, :-1].flatten(), node[:, 1:].flatten()])
    down = torch.stack([node[:-1].flatten(), node[1:].flatten()])
    half = torch.cat([right, down], dim=1)
    return torch.cat([half, half.flip(0)], dim=1)


def communities(nodes: int) -> torch.Tensor:
    """Blocks of 1000, 9 of 10 edges within, 1 of 10 to the next block."""
    draw = torch.Generator().manual_seed(0)
    source = torch.randint(nodes, (6 * nodes,), generator=draw)
    away = torch.rand(source.shape, generator=draw) < 0.1
    block = source // 1000 + away.long()
    inside = torch.randint(1000, source.shape, generator=draw)
    target = (1000 * block + inside) % nodes
    half = torch.stack([source, target])
    return torch.cat([half, half.flip(0)], dim=1)


def at_random(nodes: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    half = torch.randint(nodes, (2, 6 * nodes), generator=draw)
    return torch.cat([half, half.flip(0)], dim=1)


PARTS = ("METIS", "breadth-first")
GRAPHS = {"grid": grid, "communities": communities, "random": at_random}


def work(rank, world, port, name, parts, nodes, repeats, answers) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank,
        world_size=world,
    )  # fmt: skip
    edge_index = GRAPHS[name](nodes)
    nodes = int(edge_index.max()) + 1
    owner = None
    if parts == "breadth-first":
        owner = in_pieces(edge_index, nodes, world)
    graph = PartitionedGraph(edge_index, nodes, owner=owner)
    torch.manual_seed(0)
    conv = GCNConv(WIDTH, WIDTH)
    picard = PicardConv(conv, rtol=0.0, max_iter=ITERATIONS)
    x = torch.randn(graph.num_owned, WIDTH)
    spent, waiting = [], []
    with torch.no_grad():
        picard(x, graph)
        for _ in range(repeats):
            dist.barrier()
            received = graph.halo.bytes_received
            before, start = graph.halo.seconds, time.perf_counter()
            picard(x, graph)
            spent.append(1000 * (time.perf_counter() - start) / ITERATIONS)
            waiting.append(graph.halo.seconds - before)
            received = graph.halo.bytes_received - received
    received -= 4 * graph.halo.size  # degrees, once a solve
    share = 1000 * statistics.median(waiting) / ITERATIONS
    answers.put(
        {
            "rows": graph.num_owned,
            "edges": graph.incoming().numel(),
            "halo": graph.halo.size,
            "bytes": received / ITERATIONS,
            "ms": statistics.median(spent),
            "share": share / statistics.median(spent),
        }
    )
    dist.barrier()
    dist.destroy_process_group()


def measured(
    name: str, parts: str, nodes: int, world: int, repeats: int
) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    children = [
        context.Process(
            target=work,
            args=(r, world, port, name, parts, nodes, repeats, answers),
        )
        for r in range(world)
    ]
    for child in children:
        child.start()
    found = [answers.get(timeout=600) for _ in children]
    for child in children:
        child.join()

    def most(key: str) -> float:
        return max(one[key] for one in found)

    return [
        name, str(world), f"{most('rows'):,}", f"{most('edges'):,}",
        f"{most('halo'):,}", f"{most('halo') / most('rows'):.3f}",
        f"{most('bytes') / 1e6:.2f}", f"{most('ms'):.0f}",
        f"{100 * most('share'):.0f}%",
    ]  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    options.add_argument("--nodes", type=int, default=200_000)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options.add_argument("--write", type=Path)
    args = options.parse_args()
    metis = importlib.util.find_spec("pymetis") or typing.WITH_METIS
    if "METIS" in args.parts and not metis:
        options.error("METIS needs pymetis: pip install torch-picard[metis]")
    written = []
    for parts in args.parts:
        rows = [HEAD]
        for name in GRAPHS:
            for world in args.processes:
                rows.append(
                    measured(name, parts, args.nodes, world, args.repeats)
                )
        title = (
            f"The largest share of a process, {args.nodes:,} nodes, {WIDTH} "
            f"features in float32, parts by {parts}, torch "
            f"{torch.__version__}, gloo, {multiprocessing.cpu_count()} cores"
        )
        show(title, rows)
        written.append(rst(title, rows))
    if args.write is not None:
        args.write.mkdir(parents=True, exist_ok=True)
        (args.write / "distributed.inc").write_text("\n".join(written))


if __name__ == "__main__":
    main()
