"""A monitor counts what the solves report, for the module that made them, and
changes nothing."""

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.nn import GCNConv

from torch_picard import (
    PIGN,
    Anderson,
    ConvergenceError,
    Implicit,
    PicardConv,
    Status,
    fixed_point,
)
from torch_picard.contraction import ConvergenceMonitor, monitoring
from torch_picard.engine import observers

EDGES = torch.tensor([[0, 1, 1, 2, 3, 4, 4, 5], [1, 0, 2, 1, 4, 3, 5, 4]])
BATCH = torch.tensor([0, 0, 0, 1, 1, 1])
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def conv(**options):
    options = {"inject": True, "activation": "tanh", **options}
    return PicardConv(GCNConv(4, 4), **options)


class Two(torch.nn.Module):
    """Two solves in a row, and one by no module of its own."""

    def __init__(self):
        super().__init__()
        self.first = conv(max_iter=200)
        self.second = conv(max_iter=3, rtol=0.0)

    def forward(self, x, edge_index, batch=None):
        x, one = self.first(x, edge_index, batch=batch, return_solution=True)
        x, two = self.second(x, edge_index, batch=batch, return_solution=True)
        return x, one, two


class Nested(torch.nn.Module):
    """A conv that solves in every evaluation."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.inner = conv(max_iter=5, rtol=0.0)
        self.calls, self.fail_at = 0, fail_at

    def forward(self, x, edge_index):
        self.calls += 1
        if self.calls == self.fail_at:
            self.inner(x, torch.tensor([[0], [99]]))  # no such node
        return 0.5 * self.inner(x, edge_index)


@pytest.fixture(autouse=True)
def nobody_listens():
    torch.manual_seed(0)
    yield
    gc.collect()
    assert not [r for r in observers._observers if r() is not None]


def same(record, solution):
    """Whether a record says what the solution says."""
    pairs = [
        (record.status, solution.status),
        (record.iterations, solution.iterations),
        (record.residual, solution.residual),
        (record.rate, solution.rate),
        (record.residual_history, solution.residual_history),
    ]
    return record.evaluations == solution.evaluations and all(
        torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0)) for a, b in pairs
    )


# -- counts -------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=12),
    st.sampled_from([1, 3, 64]),
)
def test_counts_add_up_over_calls_and_segments(calls, pending):
    model, solutions = conv(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitoring, "PENDING", pending)
        with ConvergenceMonitor(model, keep=99) as monitor:
            for max_iter, batched in calls:
                model.max_iter = max_iter
                solutions.append(
                    model(
                        X * max_iter, EDGES, return_solution=True,
                        batch=BATCH if batched else None,
                    )[1]
                )  # fmt: skip
        tally = monitor.tallies()["PicardConv"]

    statuses = [s for x in solutions for s in x.status.tolist()]
    iterations = [k for x in solutions for k in x.iterations.tolist()]
    assert tally.calls == len(calls)
    assert tally.segments == len(statuses) == sum(tally.statuses.values())
    assert all(statuses.count(s) == n for s, n in tally.statuses.items())
    assert tally.evaluations == sum(x.evaluations for x in solutions)
    assert tally.iterations.total == sum(iterations)
    if calls:
        residual = torch.cat([x.residual for x in solutions]).double()
        assert tally.iterations.largest == max(iterations)
        assert tally.residual.largest == residual.max()
        assert tally.residual.mean == pytest.approx(float(residual.mean()))
    records = monitor.records()["PicardConv"]
    assert len(records) == len(calls)
    assert all(map(same, records, solutions))


@pytest.mark.parametrize(
    "options, x",
    [
        ({"max_iter": 200}, X),
        ({"max_iter": 2}, X),
        ({"max_iter": 200}, X * torch.nan),
        ({"method": Anderson(), "max_iter": 30}, X),
        ({"gradient": Implicit(), "max_iter": 200}, X),
        ({"max_iter": 4, "rtol": 0.0}, X),
        ({"activation": lambda z: 9 * z, "alpha": 0.0, "max_iter": 200}, X),
    ],
)
def test_a_record_is_its_solution(options, x):
    model = conv(**options)
    with ConvergenceMonitor(model) as monitor:
        _, solution = model(x, EDGES, batch=BATCH, return_solution=True)
    (record,) = monitor.records()["PicardConv"]
    assert same(record, solution)
    curves = record.curves()
    assert [status for status, _ in curves] == solution.status.tolist()
    for (_, curve), last in zip(curves, solution.ending.last):
        assert len(curve) == last + 1


def test_one_broken_graph_spoils_no_average():
    x = X.clone()
    x[0] = torch.nan
    model = conv(max_iter=200)
    with ConvergenceMonitor(model) as monitor:
        model(x, EDGES, batch=BATCH)
    tally = monitor.tallies()["PicardConv"]
    assert tally.statuses[Status.NONFINITE] == 1
    assert tally.statuses[Status.CONVERGED] == 1
    assert tally.residual.count == 1 and tally.residual.mean < 1
    assert all(v == v for v in monitor.metrics().values())


def test_memory_is_bounded():
    model = conv(max_iter=10)
    batch = torch.arange(6)
    with ConvergenceMonitor(model, keep=3, segments=2) as monitor:
        for _ in range(200):
            model(X, EDGES, batch=batch)
            assert len(monitor._pending) < monitoring.PENDING
    records = monitor.records()["PicardConv"]
    assert [r.size for r in records] == [6] * 3
    assert all(r.residual_history.shape[1] == 2 for r in records)
    numbers = records[0].residual_history
    assert numbers.untyped_storage().nbytes() == numbers.nbytes
    assert monitor.tallies()["PicardConv"].segments == 1200


def test_large_solves_do_not_wait(monkeypatch):
    monkeypatch.setattr(monitoring, "PENDING_NUMBERS", 10)
    with ConvergenceMonitor(bare=True) as monitor:
        fixed_point(torch.cos, X, segments="leading")
        assert not monitor._pending


def test_the_worst_segments_are_kept():
    x = torch.tensor([[0.1], [torch.nan], [0.3], [5.0], [0.7]])
    with ConvergenceMonitor(bare=True, segments=2) as monitor:
        s = fixed_point(
            lambda x: 0.5 * x, x, segments="leading", on_failure="ignore",
            atol=0.1, max_iter=9,
        )  # fmt: skip
    (record,) = monitor.records()["fixed_point"]
    assert record.segments.tolist() == [1, 3] and record.size == 5
    assert torch.equal(record.status, s.status[[1, 3]])
    assert record.residual_history.shape == (len(s.residual_history), 2)


# -- whose solve it was -------------------------------------------------------


def test_each_solve_is_counted_for_its_module():
    model = Two()
    with ConvergenceMonitor(model) as monitor:
        _, one, two = model(X, EDGES, BATCH)
    records = monitor.records()
    assert list(records) == ["first", "second"]
    assert same(*records["first"], one) and same(*records["second"], two)


def test_a_model_ready_to_train():
    model = PIGN(4, 8, 2)
    with ConvergenceMonitor(model) as monitor:
        _, solution = model(X, EDGES, return_solution=True)
    assert same(*monitor.records()["block"], solution)


def test_nested_solves():
    model = PicardConv(Nested(), max_iter=3, rtol=0.0)
    with ConvergenceMonitor(model) as monitor:
        model(X, EDGES)
    tallies = monitor.tallies()
    assert {n: t.calls for n, t in tallies.items()} == {
        "PicardConv": 1,
        "conv.inner": 3,
    }
    assert tallies["PicardConv"].evaluations == 3
    assert tallies["conv.inner"].evaluations == 15


@pytest.mark.parametrize("bare", [False, True])
def test_solves_outside_are_counted_on_request(bare):
    model = conv()
    with ConvergenceMonitor(model, bare=bare) as monitor:
        model(X, EDGES)
        solution = fixed_point(torch.cos, X)
    records = monitor.records()
    assert list(records) == ["PicardConv", "fixed_point"][: 1 + bare]
    assert len(records["PicardConv"]) == 1
    if bare:
        assert same(*records["fixed_point"], solution)


def test_a_module_may_have_the_name_of_the_function():
    model = torch.nn.ModuleDict({"fixed_point": conv()})
    with ConvergenceMonitor(model, bare=True) as monitor:
        model["fixed_point"](X, EDGES)
        fixed_point(torch.cos, X)
    calls = {name: t.calls for name, t in monitor.tallies().items()}
    assert calls == {"fixed_point": 1, "fixed_point_": 1}


def test_an_own_module_that_solves():
    class Own(torch.nn.Module):
        solves_fixed_point = True

        def forward(self, x):
            return fixed_point(torch.cos, x).value

    model = torch.nn.Sequential(Own(), torch.nn.Tanh(), Own())
    with ConvergenceMonitor(model) as monitor:
        model(X)
    assert [t.calls for t in monitor.tallies().values()] == [1, 1]


def test_an_exception_ends_the_solves_it_left():
    model = PicardConv(Nested(fail_at=2), max_iter=3, rtol=0.0)
    with ConvergenceMonitor(model, bare=True) as monitor:
        with pytest.raises((ValueError, IndexError, RuntimeError)):
            model(X, EDGES)
        fixed_point(torch.cos, X)
        model(X, EDGES)
    calls = {name: t.calls for name, t in monitor.tallies().items()}
    assert calls == {"PicardConv": 1, "conv.inner": 4, "fixed_point": 1}


def test_an_interrupt_too():
    def interrupt(z):
        raise KeyboardInterrupt

    model = conv(activation=interrupt)
    with ConvergenceMonitor(model, bare=True) as monitor:
        with pytest.raises(KeyboardInterrupt):
            model(X, EDGES)
        fixed_point(torch.cos, X)
    assert monitor.tallies()["fixed_point"].calls == 1


def test_another_hook_that_fails():
    def fail(*args):
        raise ValueError("mine")

    model = Two()
    with ConvergenceMonitor(model, bare=True) as monitor:
        handle = model.second.register_forward_pre_hook(fail, prepend=True)
        with pytest.raises(ValueError, match="mine"):
            model(X, EDGES)
        handle.remove()
        fixed_point(torch.cos, X)
    calls = {name: t.calls for name, t in monitor.tallies().items()}
    assert calls == {"first": 1, "second": 0, "fixed_point": 1}


def test_a_failed_solve_that_raises_is_recorded():
    model = conv(max_iter=1, on_failure="raise")
    with ConvergenceMonitor(model) as monitor:
        with pytest.raises(ConvergenceError) as raised:
            model(X, EDGES)
    assert same(*monitor.records()["PicardConv"], raised.value.solution)


def test_threads_keep_their_solves_apart():
    model = Two()
    barrier = threading.Barrier(4)

    def work():
        barrier.wait()
        for _ in range(20):
            model.first(X, EDGES)
            fixed_point(torch.cos, X)

    with ConvergenceMonitor(model, bare=True) as monitor:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    calls = {name: t.calls for name, t in monitor.tallies().items()}
    assert calls == {"first": 80, "second": 0, "fixed_point": 80}


# -- attaching and removing ---------------------------------------------------


def test_several_monitors():
    model = Two()
    whole = ConvergenceMonitor(model).attach()
    with ConvergenceMonitor(model.first) as part:
        model(X, EDGES)
    model(X, EDGES)
    whole.remove()
    assert [t.calls for t in whole.tallies().values()] == [2, 2]
    assert [t.calls for t in part.tallies().values()] == [1]


def test_a_removed_monitor_records_nothing_and_keeps_what_it_has():
    model = conv()
    monitor = ConvergenceMonitor(model, bare=True)
    model(X, EDGES)
    assert not monitor.attached and not monitor.metrics()
    assert monitor.attach() is monitor.attach() and monitor.attached
    model(X, EDGES)
    monitor.remove()
    monitor.remove()
    model(X, EDGES)
    fixed_point(torch.cos, X)
    calls = [t.calls for t in monitor.tallies().values()]
    assert calls == [1, 0] and not monitor.attached
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_reset():
    model = Two()
    with ConvergenceMonitor(model) as monitor:
        model(X, EDGES)
        monitor.reset()
        model.first(X, EDGES)
    assert [t.calls for t in monitor.tallies().values()] == [1, 0]


def test_hooks_leave_with_the_monitor():
    model = conv()
    monitor = weakref.ref(ConvergenceMonitor(model).attach())
    gc.collect()
    assert monitor() is None and not model._forward_hooks


# -- nothing else changes -----------------------------------------------------


@pytest.mark.parametrize("gradient", [None, Implicit()])
def test_output_and_gradient_are_the_same_bit_for_bit(gradient):
    model = PIGN(4, 8, 2, gradient=gradient, inner_dropout=0.3)
    results = []
    for watched in (False, True):
        torch.manual_seed(1)
        monitor = ConvergenceMonitor(model)
        if watched:
            monitor.attach()
        out = model(X, EDGES)
        grads = torch.autograd.grad(out.square().sum(), model.parameters())
        results.append((out, *grads))
        monitor.remove()
    assert all(map(torch.equal, *results))


def test_the_same_kernels_run():
    model = conv()
    before = model.explain_plan(EDGES)
    with ConvergenceMonitor(model):
        assert model.explain_plan(EDGES) == before


def test_no_value_and_no_graph_is_kept():
    x = X.clone().requires_grad_()
    with ConvergenceMonitor(bare=True) as monitor:
        solution = fixed_point(torch.cos, x, rtol=0.0)
        value = weakref.ref(solution.value)
        solution = solution.residual  # as a caller might keep it
        gc.collect()
        assert value() is None or solution.requires_grad
    (record,) = monitor.records()["fixed_point"]
    assert not record.residual_history.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    model = conv(max_iter=60)
    with mode(), ConvergenceMonitor(model) as monitor:
        model(X, EDGES)
    assert monitor.tallies()["PicardConv"].statuses[Status.CONVERGED] == 1


def test_copies_are_not_watched():
    model = conv()
    model.monitor = ConvergenceMonitor(model)  # as a careless owner would
    keys = list(model.state_dict())
    with model.monitor as monitor:
        assert list(model.state_dict()) == keys
        clone = copy.deepcopy(model)
        stored = io.BytesIO()
        torch.save(model, stored)
        stored.seek(0)
        loaded = torch.load(stored, weights_only=False)
        for other in (clone, loaded):
            assert torch.equal(other(X, EDGES), model(X, EDGES))
            assert other.monitor.model is other
            assert not other.monitor.attached and not other.monitor.metrics()
            assert "module" in other.monitor.summary()
            with other.monitor:
                other(X, EDGES)
            assert other.monitor.metrics()["PicardConv/calls"] == 1
    assert monitor.tallies()["PicardConv"].calls == 2
    assert pickle.loads(pickle.dumps(monitor)).keep == monitor.keep


class Compilable(torch.nn.Module):
    solves_fixed_point = True

    def __init__(self, rtol):
        super().__init__()
        self.lin, self.rtol = torch.nn.Linear(4, 4), rtol

    def forward(self, x):
        return fixed_point(
            lambda y: 0.1 * torch.tanh(self.lin(y)) + x, x, max_iter=4,
            rtol=self.rtol, on_failure="ignore",
        ).value  # fmt: skip


@pytest.mark.parametrize(
    "rtol", [0.0, pytest.param(1e-2, marks=pytest.mark.slow)]
)
def test_compiled_models_are_not_recorded_which_is_said(rtol):
    torch._dynamo.reset()
    model = torch.nn.Sequential(Compilable(rtol))
    compiled = torch.compile(model, backend="eager", fullgraph=rtol == 0)
    expected = model(X)
    with ConvergenceMonitor(model) as monitor:
        for _ in range(2):
            assert torch.allclose(compiled(X), expected)
        if rtol == 0:
            assert not monitor.metrics()
            assert "torch.compile" in monitor.summary()
        monitor.reset()
        assert "torch.compile" not in monitor.summary()
        model(X)
    assert "torch.compile" not in monitor.summary()
    assert monitor.metrics()["0/calls"] == 1
    assert torch.allclose(compiled(X), expected)


def test_transforms_are_not_recorded_which_is_said():
    def solve(x):
        return fixed_point(torch.cos, x, max_iter=5, rtol=0.0).value

    with ConvergenceMonitor(bare=True) as monitor:
        torch.func.jvp(solve, (X,), (X,))
        torch.func.grad(lambda x: solve(x).sum())(X)
        assert not monitor.metrics()
        assert "not recorded: 2 calls" in monitor.summary()
        monitor.reset()
        assert "not recorded" not in monitor.summary()


# -- reports ------------------------------------------------------------------


class Lightning:
    def __init__(self):
        self.logged = []

    def log_metrics(self, metrics, step=None):
        self.logged.append((metrics, step))


class TensorBoard:
    def __init__(self):
        self.logged = []

    def add_scalar(self, tag, scalar_value, global_step=None):
        self.logged.append((tag, scalar_value, global_step))


def test_the_table_has_a_row_a_module():
    model = Two()
    with ConvergenceMonitor(model) as monitor:
        empty = monitor.summary()
        model(X, EDGES, BATCH)
    head, first, second = monitor.summary().splitlines()
    assert (
        head.split()[:5] == "module calls segments CONVERGED MAX_ITER".split()
    )
    assert first.split()[:5] == ["first", "1", "2", "2", "0"]
    assert second.split()[:5] == ["second", "1", "2", "0", "2"]
    assert second.split()[-1] == "3"
    assert len({len(row) for row in (head, first, second)}) == 1
    assert [row.split()[1] for row in empty.splitlines()[1:]] == ["0", "0"]
    assert repr(monitor).endswith(monitor.summary())


def test_metrics_are_of_the_calls_since_the_last_log():
    model, logger, board = Two(), Lightning(), TensorBoard()
    with ConvergenceMonitor(model) as monitor:
        for step in range(3):
            model(X, EDGES, BATCH)
            assert monitor.metrics() == monitor.metrics()
            monitor.log_to(logger, step)
        assert monitor.metrics() == {}
        model.first(X, EDGES)
        expected = monitor.metrics()
        monitor.log_to(board, 3)
    for step, (metrics, at) in enumerate(logger.logged):
        assert at == step
        assert metrics["first/calls"] == 1 and metrics["first/segments"] == 2
        assert metrics["second/status_max_iter"] == 2
        assert metrics["second/iterations_max"] == 3
        assert all(type(value) is float for value in metrics.values())
    assert board.logged == [(k, v, 3) for k, v in expected.items()]
    assert not any(name.startswith("second") for name in expected)
    assert monitor.tallies()["first"].calls == 4


def test_a_rate_that_nobody_observed_is_not_logged():
    model = conv(max_iter=1)
    with ConvergenceMonitor(model) as monitor:
        model(X, EDGES)
    metrics = monitor.metrics()
    assert "PicardConv/rate_mean" not in metrics
    assert "PicardConv/residual_mean" in metrics
    assert " - " in monitor.summary()


def test_tensorboard(tmp_path):
    board = pytest.importorskip("torch.utils.tensorboard")
    model = conv()
    with ConvergenceMonitor(model) as monitor:
        model(X, EDGES)
    with board.SummaryWriter(tmp_path) as writer:
        monitor.log_to(writer, 0)
    assert list(tmp_path.iterdir())


def test_the_picture_has_a_curve_a_solve(tmp_path):
    pytest.importorskip("matplotlib")
    model = Two()
    with ConvergenceMonitor(model, bare=True) as monitor:
        solutions = [model(X, EDGES, BATCH)[1:] for _ in range(3)]
    path = tmp_path / "residuals.png"
    figure = monitor.plot(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    first, second, bare = figure.axes
    assert (len(first.lines), len(second.lines), len(bare.lines)) == (6, 6, 0)
    assert first.get_title().startswith("first")
    line, history = second.lines[0], solutions[0][1].residual_history
    assert line.get_ydata() == pytest.approx(history[:, 0].tolist())
    colours = {line.get_color() for line in first.lines}
    assert colours.isdisjoint(line.get_color() for line in second.lines)
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == ["CONVERGED", "MAX_ITER"]


def test_a_picture_says_what_it_leaves_out():
    pytest.importorskip("matplotlib")
    with ConvergenceMonitor(bare=True, segments=2) as monitor:
        fixed_point(torch.cos, X, segments="leading")
    (panel,) = monitor.plot().axes
    assert "2 of 6 segments" in panel.get_title()
    assert len(panel.lines) == 2


def test_residuals_of_0_and_nan_can_be_drawn(no_warnings, tmp_path):
    pytest.importorskip("matplotlib")
    with ConvergenceMonitor(bare=True) as monitor:
        for x in (0 * X, torch.nan * X):
            fixed_point(lambda x: x / 2, x, on_failure="ignore")
    (panel,) = monitor.plot(tmp_path / "a.png").axes
    assert len(panel.lines) == 2


def test_matplotlib_is_optional(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"torch-picard\[examples\]"):
        ConvergenceMonitor(conv()).plot()


# -- bad input ----------------------------------------------------------------


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: ConvergenceMonitor("model"), TypeError, "model"),
        (lambda: ConvergenceMonitor(), ValueError, "bare=True"),
        (
            lambda: ConvergenceMonitor(torch.nn.Linear(2, 2)),
            ValueError,
            "Linear has no PicardConv",
        ),
        (lambda: ConvergenceMonitor(conv(), keep=0), ValueError, "keep"),
        (lambda: ConvergenceMonitor(conv(), keep=1.5), TypeError, "keep"),
        (lambda: ConvergenceMonitor(conv(), segments=0), ValueError, "segm"),
        (lambda: ConvergenceMonitor(conv(), bare=1), TypeError, "bare"),
        (lambda: ConvergenceMonitor(conv()).plot(3), TypeError, "path"),
        (
            lambda: ConvergenceMonitor(conv()).log_to(print, 0),
            TypeError,
            "logger must have log_metrics",
        ),
        (
            lambda: ConvergenceMonitor(conv()).log_to(Lightning(), "0"),
            TypeError,
            "step",
        ),
    ],
)
def test_bad_input(make, error, match):
    with pytest.raises(error, match=match):
        make()
