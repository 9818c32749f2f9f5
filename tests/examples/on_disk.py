"""Small data sets, written as PyG's classes find them: no test downloads."""

import pickle

import numpy as np
import torch

EDGES = 3  # edges of a node, on average


def pairs(draw, labels):
    """Edges [E, 2] mostly between nodes of one class; a path joins all."""
    nodes = np.arange(len(labels))
    near = [
        draw.choice(np.flatnonzero(labels == labels[i]), EDGES) for i in nodes
    ]
    found = np.stack([np.repeat(nodes, EDGES), np.concatenate(near)], 1)
    path = np.stack([nodes[:-1], nodes[1:]], 1)
    found = np.unique(np.sort(np.concatenate([found, path])), axis=0)
    return found[found[:, 0] != found[:, 1]]


def bag_of_words(draw, labels, features):
    """0/1, and the words of a class more often in it."""
    word = np.arange(features) % (labels.max() + 1)
    chance = np.where(labels[:, None] == word, 0.5, 0.1)
    return (draw.random((len(labels), features)) < chance).astype(np.float32)


def planetoid(root, name="Cora", classes=3, features=30, seed=0):
    """20 labels a class, 500 nodes for validation, 40 for the test."""
    from scipy.sparse import csr_matrix

    draw = np.random.default_rng(seed)
    train, test = 20 * classes, 40
    nodes = train + 500 + test
    labels = np.arange(nodes) % classes
    x = bag_of_words(draw, labels, features)
    y = np.eye(classes, dtype=np.int32)[labels]
    graph = {i: [] for i in range(nodes)}
    for one, other in pairs(draw, labels).tolist():
        graph[one].append(other)
        graph[other].append(one)
    parts = {"x": train, "allx": nodes - test}
    files = {part: csr_matrix(x[:count]) for part, count in parts.items()}
    files |= {"tx": csr_matrix(x[-test:]), "y": y[:train], "ty": y[-test:]}
    files |= {"ally": y[:-test], "graph": graph}
    raw = root / "planetoid" / name / "raw"
    raw.mkdir(parents=True)
    for part, value in files.items():
        with (raw / f"ind.{name.lower()}.{part}").open("wb") as file:
            pickle.dump(value, file)
    index = "\n".join(map(str, range(nodes - test, nodes)))
    (raw / f"ind.{name.lower()}.test.index").write_text(index + "\n")
    return root


def minesweeper(root, side=8, seed=0):
    """A grid with mines, and how many neighbours are mines on half of the
    nodes: the place of the one says how many, or, the last, nothing."""
    draw = np.random.default_rng(seed)
    place = np.arange(side * side).reshape(side, side)
    edges = np.concatenate(
        [
            np.stack([place[:, :-1].ravel(), place[:, 1:].ravel()], 1),
            np.stack([place[:-1].ravel(), place[1:].ravel()], 1),
        ]
    )
    mine = draw.random(side * side) < 0.3
    near = np.zeros(side * side, int)
    np.add.at(near, edges[:, 0], mine[edges[:, 1]])
    np.add.at(near, edges[:, 1], mine[edges[:, 0]])
    x = np.zeros((side * side, 7), np.float32)
    x[np.arange(side * side), near] = 1.0
    hidden = draw.random(side * side) < 0.5
    x[hidden] = np.eye(7, dtype=np.float32)[6]
    part = np.stack([draw.permutation(side * side) % 4 for _ in range(10)])
    raw = root / "heterophilous" / "minesweeper" / "raw"
    raw.mkdir(parents=True)
    np.savez(
        raw / "minesweeper.npz",
        node_features=x,
        node_labels=mine.astype(np.int64),
        edges=edges,
        train_masks=part < 2,
        val_masks=part == 2,
        test_masks=part == 3,
    )
    return root


def tu(root, name="MUTAG", graphs=40, seed=0):
    """Rings of one class, paths of the other; most nodes say which."""
    draw = np.random.default_rng(seed)
    edges, owner, start = [], [], 1  # ids from 1 on
    for i in range(graphs):
        nodes = int(draw.integers(4, 9))
        here = start + np.arange(nodes)
        found = np.stack([here, np.roll(here, -1)], 1)[: nodes - i % 2]
        edges += [found, found[:, ::-1]]
        owner += [i + 1] * nodes
        start += nodes
    raw = root / "tu" / name / "raw"
    raw.mkdir(parents=True)
    label = np.arange(graphs) % 2
    of_node = label[np.array(owner) - 1]
    of_node = np.where(draw.random(len(owner)) < 0.3, 2, of_node)
    for part, rows, form in (
        ("A", np.concatenate(edges), "%d, %d"),
        ("graph_indicator", np.array(owner), "%d"),
        ("graph_labels", 2 * label - 1, "%d"),
        ("node_labels", of_node, "%d"),
    ):
        np.savetxt(raw / f"{name}_{part}.txt", rows, form)
    return root


def pascal(root, graphs=12, seed=0):
    """PascalVOC-SP: tuples of x [N, 14], edge_attr [E, 2], edge_index [2, E]
    and a list of labels in 0..20."""
    draw = np.random.default_rng(seed)
    raw = root / "lrgb" / "pascalvoc-sp" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "val", "test"):
        written = []
        for _ in range(graphs):
            labels = np.resize([0, 7, 20], draw.integers(6, 10))
            here = pairs(draw, labels)
            edge_index = torch.from_numpy(
                np.concatenate([here, here[:, ::-1]])
            )
            x = np.eye(21)[labels] @ np.random.default_rng(1).random((21, 14))
            written.append(
                (
                    torch.from_numpy(x + draw.normal(0, 0.1, x.shape)),
                    torch.from_numpy(draw.random((len(edge_index), 2))),
                    edge_index.T.contiguous(),
                    labels.tolist(),
                )
            )
        with (raw / f"{part}.pickle").open("wb") as file:
            pickle.dump(written, file)
    return root
