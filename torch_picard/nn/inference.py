"""Solves on graphs whose states do not fit into memory."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..engine import Picard, Solution, Status
from ..engine.held import held_weights
from ..engine.loop import recorded
from ..engine.monitor import Monitor
from ..engine.point import Smoothed
from ..engine.space import Space
from .chunks import Chunks
from .footprint import Footprint, footprint
from .inputs import fault
from .neighbourhood import check_pieces, check_rows
from .peak import peak
from .picard_conv import PicardConv
from .pign import PIGN
from .stored import Stored, digest


@torch.no_grad()
def picard_inference(
    model: nn.Module,
    data: Any,
    *,
    memory_budget: int | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    return_solution: bool = False,
) -> Tensor | tuple[Tensor, Solution]:
    """The exact full-graph solve of a trained model, chunk by chunk.

    States are kept in files. Every iteration goes through the nodes in
    chunks whose tensors stay within the budget and reads the rows of their
    neighbours. All nodes see the previous iterate and residuals are summed
    over the chunks, so values and number of iterations are those of the
    solve in memory; only a cycle or a drift with a constant residual is
    iterated to the end, as nobody sees whether it gets anywhere. With a
    ``folder``, who was interrupted (or killed) goes on at the chunk where it
    stopped.

    Args:
        model: a :class:`PIGN` or :class:`PicardConv` in eval mode, iterated
            by :class:`Picard`, on the CPU.
        data: ``x`` [N, F], dense; it may be a memory-mapped file, as in
            ``torch.from_file``. ``edge_index`` [2, E]; ``edge_weight``,
            ``edge_attr`` and the like, if the conv takes it. With ``batch``
            each graph stops by itself.
        memory_budget: bytes for the tensors of a chunk, whatever the conv
            makes for each node and edge: small chunks are measured first.
            On top come the edges with some numbers for each of them and of
            the nodes, and the output. (default: one chunk)
        folder: for the states; emptied when all is done. (default: a
            temporary one)
        progress: whether to show a progress bar.
        return_solution: whether to return the Solution, too; its value is
            None, as the states are not kept.

    Returns:
        [N, C], the values of ``model(data.x, data.edge_index)``; only where
        a solve fails before ``max_iter``, those of its last iterate, as the
        best is not kept. A warning or error as ``on_failure`` of the model
        says.

    Raises:
        TypeError: the model is neither.
        ValueError: it is in training mode, or uses another method, or
            cannot be computed in pieces; the data are not as above; the
            budget is below what one node with its neighbours takes; the
            folder holds another run.
    """
    block = _checked(model)
    _check_budget(memory_budget)
    _check_data(data)
    x, edge_index = data.x, data.edge_index
    extra = _extra(block.conv, data)
    try:
        out, solution = _solved(
            model, block, data, extra, memory_budget, folder, progress
        )
    except Exception as error:
        found = None
        if block is model:  # an encoder says it by itself
            batch = getattr(data, "batch", None)
            found = fault(
                error.__cause__ or error, block.conv, x, edge_index, (),
                extra, batch,
            )  # fmt: skip
        if found is None:
            raise
        raise ValueError(f"data: {found}") from error
    if not block.counted:
        solution.report(block.on_failure, stacklevel=3)
    return (out, solution) if return_solution else out


def _solved(
    model, block, data, extra, memory_budget, folder, progress
) -> tuple[Tensor, Solution]:
    x, edge_index = data.x, data.edge_index
    batch = [] if getattr(data, "batch", None) is None else [data.batch]
    with tempfile.TemporaryDirectory() as temporary, held_weights(model):
        state = _encoded(model, x[:1])
        takes = None
        if memory_budget is not None and x.size(0):
            _check_rows(model, block, state)
            takes = _footprint(model, block, data, state, memory_budget)
        chunks = Chunks(
            block.conv, edge_index, x.size(0), state, extra, memory_budget,
            takes,
        )  # fmt: skip
        kept = Stored(
            Path(temporary if folder is None else folder),
            {
                "the data": digest(x, edge_index, *extra.values(), *batch),
                "the model": digest(*model.state_dict().values()),
                "its options": [repr(model), *_options(model)],
                "memory_budget": memory_budget,
            },
        )
        run = _Run(model, block, data, state, chunks, kept, progress)
        found = run()
        kept.clear()
    return found


class _Run:
    """Encode, iterate, decode: stages 0, 1 to n, n + 1, a chunk at a time."""

    def __init__(self, model, block, data, state, chunks, kept, progress):
        self.model, self.block, self.data = model, block, data
        self.chunks, self.kept, self.progress = chunks, kept, progress
        self.batch = getattr(data, "batch", None)
        self.size = 1 if self.batch is None else 1 + int(self.batch.max())
        shape = (data.x.size(0), state.size(1))

        def stored(name: str) -> Tensor:
            return kept.tensor(name, shape, state.dtype)

        self.shape = shape[0], _decoded(model, state).size(1)
        self.alpha = float(block.iteration().alpha)
        self.start = stored("start") if block.inject else None
        self.states = [stored("even"), stored("odd")]
        record = kept.record
        self.stage = record.get("stage", 0)
        self.chunk = record.get("chunk", 0)
        self.sums = torch.zeros(self.size, 2, dtype=torch.float64)
        if record:
            self.sums = torch.tensor(record["sums"], dtype=torch.float64)
        self.watch: Monitor | None = None
        if not block.counted:
            ones = Space(torch.zeros(self.size, 1), "leading")
            method = block.iteration()
            self.watch = Monitor(ones, block.rtol, block.atol, method)
        #: |P(x) - x|^2 and |P(x)|^2 of every iteration, [K, S, 2]
        self.stats: list[Tensor] = []
        for seen in record.get("stats", []):
            self._judge(torch.tensor(seen, dtype=torch.float64))

    def __call__(self) -> tuple[Tensor, Solution]:
        from tqdm import tqdm

        most = self.block.max_iter
        with tqdm(disable=not self.progress, unit="chunk") as self.bar:
            self._chunks(0, "encode", self._encode)
            while not self._done and len(self.stats) < most:
                k = 1 + len(self.stats)
                self._chunks(k, f"iteration {k}", self._iterate)
                self._next()
            n = len(self.stats)
            if self.watch is not None and not self.watch.done:
                self.watch.exhaust(self._point(self.stats[-1]), None)
            self.out = torch.empty(self.shape, dtype=self.states[0].dtype)
            self.stage, self.chunk = n + 1, 0  # quick, and so done anew
            self._chunks(n + 1, "decode", self._decode)
        return self.out, self._solution()

    def once(self, span: slice) -> None:
        """Every kind of work, for the first chunk."""
        self._encode(0, span)
        self._iterate(0, span)
        self.out = torch.empty(self.shape, dtype=self.states[0].dtype)
        self._decode(0, span)

    @property
    def _done(self) -> bool:
        return self.watch is not None and self.watch.done

    def _chunks(self, stage: int, name: str, work) -> None:
        """``work`` for the chunks of a stage that are not done yet."""
        if self.stage > stage:
            return
        if self.stage < stage:
            self.stage, self.chunk = stage, 0
            self.sums = torch.zeros(self.size, 2, dtype=torch.float64)
        self.bar.set_description(name)
        for i in range(self.chunk, len(self.chunks)):
            work(i, self.chunks.span(i))
            self.chunk = i + 1
            self._save()
            self.bar.update()

    def _save(self) -> None:
        self.kept.save(
            {
                "stage": self.stage, "chunk": self.chunk,
                "sums": self.sums.tolist(),
                "stats": [s.tolist() for s in self.stats],
            }
        )  # fmt: skip

    def _encode(self, i: int, span: slice) -> None:
        batch = None if self.batch is None else self.batch[span]
        x = _encoded(self.model, self.data.x[span], batch)
        self.states[0][span] = x
        if self.start is not None:
            self.start[span] = self.block._injected(x)

    def _iterate(self, i: int, span: slice) -> None:
        block, k = self.block, len(self.stats)
        old, new = self.states[k % 2], self.states[(k + 1) % 2]
        z = self.chunks.image(i, old, block.backend)
        if self.start is not None:
            z = z + self.start[span]
        if block.activation is not None:
            z = block.activation(z)
        x = old[span]
        pairs = torch.stack([(z - x).double(), z.double()])
        squares = pairs.square().sum(2).T  # [n, 2]
        del pairs
        where = torch.zeros(len(x), dtype=torch.long)
        if self.batch is not None:
            where = self.batch[span]
        self.sums = self.sums.index_add(0, where, squares)
        y = torch.lerp(x, z, 1 - self.alpha)
        if self.watch is not None and self.watch.some_ended:
            going = torch.from_numpy(~self.watch.ended)[where]
            y = torch.where(going[:, None], y, x)
        new[span] = y

    def _next(self) -> None:
        """All chunks have seen x_k: who ends there keeps it."""
        k = len(self.stats)
        going = np.ones(self.size, dtype=bool)
        if self.watch is not None:
            going = ~self.watch.ended
        self._judge(self.sums)
        if self.watch is None:
            return
        fresh = torch.from_numpy(self.watch.ended & going)
        old, new = self.states[k % 2], self.states[(k + 1) % 2]
        for i in range(len(self.chunks) if fresh.any() else 0):
            span = self.chunks.span(i)
            if self.batch is None:
                new[span] = old[span]
            else:
                stays = fresh[self.batch[span]][:, None]
                new[span] = torch.where(stays, old[span], new[span])

    def _judge(self, sums: Tensor) -> None:
        self.stats.append(sums)
        if self.watch is not None:
            self.watch.observe(self._point(sums), None)

    def _point(self, sums: Tensor) -> Smoothed:
        """The residuals alone; the states are in files."""
        space = self.watch.space  # type: ignore[union-attr]
        return Smoothed(space, space.start, space.start, sums, None, None)

    def _decode(self, i: int, span: slice) -> None:
        final = self.states[len(self.stats) % 2]
        self.out[span] = _decoded(self.model, final[span])

    def _solution(self) -> Solution:
        history = torch.stack(self.stats)[..., 0].sqrt()
        count = torch.full((self.size,), len(self.stats))
        status = torch.full_like(count, int(Status.MAX_ITER))
        last = count - 1
        if self.watch is not None:
            status = torch.from_numpy(self.watch.status.copy())
            ended = status != Status.MAX_ITER  # these return x_last
            last = torch.from_numpy(self.watch.last.copy())
            last = torch.where(ended, last, count - 1)
            count = torch.where(ended, last, count)
        residual = history.gather(0, last[None])[0]
        solution = recorded(status, count, residual, history, last)
        solution.evaluations = len(self.stats)
        return solution


class _Scratch:
    """In the place of :class:`Stored`, for a look at a few nodes."""

    record: dict[str, Any] = {}  # noqa: RUF012

    def tensor(self, name, shape, dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)


def _footprint(model, block, data, state, budget: int) -> Footprint:
    """Of what this model does with a chunk, for features, edges and numbers
    of the kind that are in the data."""
    given = _extra(block.conv, data)

    def took(nodes: int, edges: int) -> int:
        far = torch.arange(nodes, nodes + edges)
        rows = torch.arange(nodes + edges) % data.x.size(0)
        few = SimpleNamespace(x=data.x[rows])
        few.edge_index = torch.stack([far, torch.zeros_like(far)])
        if getattr(data, "batch", None) is not None:
            few.batch = torch.zeros_like(rows)
        which = torch.arange(edges) % max(data.edge_index.size(1), 1)
        extra = {
            name: value[which]
            if len(value)
            else value.new_zeros(edges, *value.shape[1:])
            for name, value in given.items()
        }
        chunks = Chunks(
            block.conv, few.edge_index, len(rows), state, extra, None
        )
        chunks.starts = [0, nodes]
        run = _Run(model, block, few, state, chunks, _Scratch(), False)
        try:
            return peak(lambda: run.once(slice(0, nodes)))
        except Exception as error:
            raise ValueError(
                "model failed where memory_budget has it measured, with conv "
                f"{type(block.conv).__name__} on a few nodes, most of them "
                f"without incoming edges: {error}"
            ) from error

    return footprint(took, budget)


def _encoded(
    model: nn.Module, x: Tensor, batch: Tensor | None = None
) -> Tensor:
    return model.encode(x, batch) if isinstance(model, PIGN) else x


def _decoded(model: nn.Module, x: Tensor) -> Tensor:
    return model.decoder(x) if isinstance(model, PIGN) else x


def _options(model: nn.Module) -> list[str]:
    """Of all its modules, also those that no representation shows."""
    found = []
    for name, module in model.named_modules():
        for key, value in sorted(vars(module).items()):
            if callable(value):
                value = getattr(value, "__qualname__", type(value).__name__)
            plain = isinstance(value, (bool, int, float, str, tuple, list))
            if plain and not key.startswith("_"):
                found.append(f"{name}.{key}={value}")
    return found


def _checked(model: Any) -> PicardConv:
    """The iterated part of the model."""
    if not isinstance(model, (PIGN, PicardConv)):
        raise TypeError(
            "model must be a PIGN or a PicardConv, whose states alone need "
            f"the whole graph, got {type(model).__name__}"
        )
    block = model.block if isinstance(model, PIGN) else model
    assert isinstance(block, PicardConv)
    if model.training:
        raise ValueError("model must be in eval mode: call model.eval()")
    if block.method is not None and not isinstance(block.method, Picard):
        raise ValueError(
            "model must be iterated by Picard, as others keep more states, "
            f"got {block.method}"
        )
    alpha = getattr(block.iteration(), "alpha", 0.0)
    if isinstance(alpha, Tensor) and alpha.numel() > 1:
        raise ValueError(
            f"alpha of the model must be one number, got {alpha.numel()}"
        )
    check_pieces(block.conv, "in chunks")
    return block


def _check_rows(model: nn.Module, block: PicardConv, like: Tensor) -> None:
    """What is done to the rows of a chunk does not look at others."""
    given = {n: getattr(block, n) for n in ("inject", "activation")}
    if isinstance(model, PIGN):
        names = ("norm", "encoder_activation")
        given |= {name: getattr(model, name) for name in names}
    for name, function in given.items():
        check_rows(name, function, like, "in chunks")


def _check_budget(memory_budget: Any) -> None:
    whole = isinstance(memory_budget, int) and memory_budget > 0
    if memory_budget is not None and (not whole or memory_budget is True):
        raise ValueError(
            "memory_budget must be a positive number of bytes (int) or None, "
            f"got {memory_budget!r}"
        )


def _check_data(data: Any) -> None:
    x = getattr(data, "x", None)
    if not isinstance(x, Tensor) or x.layout != torch.strided or x.dim() != 2:
        raise ValueError(
            "data.x must be a dense Tensor [N, F], of one node type, got "
            f"{type(x).__name__} in {type(data).__name__}"
        )
    if not x.is_floating_point():
        raise ValueError(f"data.x must be of a floating dtype, got {x.dtype}")
    edge_index = getattr(data, "edge_index", None)
    if not isinstance(edge_index, Tensor) or edge_index.dtype != torch.long:
        raise ValueError(
            "data.edge_index must be a LongTensor [2, E], got "
            f"{getattr(edge_index, 'dtype', type(edge_index).__name__)}"
        )
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(
            "data.edge_index must be a LongTensor [2, E], got shape "
            f"{list(edge_index.shape)}"
        )
    if edge_index.numel() and not (
        0 <= int(edge_index.min()) and int(edge_index.max()) < x.size(0)
    ):
        raise ValueError(
            f"data.edge_index must be in 0..{x.size(0) - 1}, got "
            f"{int(edge_index.min())}..{int(edge_index.max())}"
        )
    batch = getattr(data, "batch", None)
    if batch is not None and (
        not isinstance(batch, Tensor)
        or batch.shape != x.shape[:1]
        or batch.dtype != torch.long
        or (batch.numel() and int(batch.min()) < 0)
    ):
        raise ValueError(
            f"data.batch must be a LongTensor [{x.size(0)}] of graph indices, "
            f"got {getattr(batch, 'dtype', type(batch).__name__)} of shape "
            f"{list(getattr(batch, 'shape', []))}"
        )
    if batch is not None and bool((batch[1:] < batch[:-1]).any()):
        raise ValueError(
            "data.batch must be sorted (non-decreasing), as that of PyG's "
            "loaders is; sort the nodes by graph first"
        )


def _extra(conv: nn.Module, data: Any) -> dict[str, Tensor]:
    """What conv takes for edges, where there is such."""
    takes = inspect.signature(conv.forward).parameters
    names = {n for n in takes if n.startswith("edge_")} - {"edge_index"}
    if any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        names |= {"edge_weight", "edge_attr"}
    found = {}
    for name in sorted(names):
        value = getattr(data, name, None)
        if value is None:
            continue
        if name == "edge_attr" and getattr(conv, "edge_dim", "") is None:
            continue  # an attention that was made without
        count = data.edge_index.size(1)
        if not isinstance(value, Tensor) or value.shape[:1] != (count,):
            raise ValueError(
                f"data.{name} must be a Tensor of all {count} edges, got "
                f"{type(value).__name__} of shape "
                f"{list(getattr(value, 'shape', []))}"
            )
        found[name] = value
    return found
