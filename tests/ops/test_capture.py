"""Recorded loops, with a recorder that needs no GPU: it runs the function
again and leaves the results in the outputs of the first time, as a CUDA graph
does."""

import gc

import pytest
import torch

from torch_picard.ops import capture


class Recorder:
    def __init__(self):
        self.records = self.replays = 0

    def __call__(self, function):
        self.records += 1
        outputs = function()

        def replay():
            self.replays += 1
            for old, new in zip(outputs, function()):
                old.copy_(new)

        return outputs, replay


class Case:
    def __init__(self):
        torch.manual_seed(0)
        self.weight = torch.randn(3, 3)
        self.record = Recorder()
        self.runs = 0

    def run(self, x, inject):
        self.runs += 1
        y = x @ self.weight
        y = y if inject is None else y + inject
        return y, y.square().sum(0)

    def __call__(self, x, inject=None, options=(), owner=None):
        owner = OWNER if owner is None else owner
        return capture.steps(
            self.run, owner, options, (owner, self.weight), x, inject,
            self.record,
        )  # fmt: skip


OWNER = torch.arange(4)


@pytest.fixture(autouse=True)
def _forget():
    capture._LOOPS.clear()


@pytest.mark.parametrize("with_inject", [False, True])
def test_every_call_has_the_result_of_a_plain_one(with_inject):
    case = Case()
    results = []
    for _ in range(5):
        x = torch.randn(4, 3)
        inject = torch.randn(4, 3) if with_inject else None
        found = case(x, inject)
        for a, b in zip(found, case.run(x, inject)):
            assert torch.equal(a, b)
        results.append((found, [t.clone() for t in found]))
    # later calls leave earlier results alone
    for found, copy in results:
        assert all(torch.equal(a, b) for a, b in zip(found, copy))
    assert case.record.records == 1
    assert case.record.replays == 4


def test_weights_may_change_in_place():
    case = Case()
    x = torch.randn(4, 3)
    for _ in range(3):
        case(x)
    case.weight.mul_(2)
    assert torch.equal(case(x)[0], x @ case.weight)
    assert case.record.records == 1


def test_another_place_shape_or_option_is_another_record():
    case = Case()
    x = torch.randn(4, 3)
    for _ in range(2):
        case(x)
    assert case.record.records == 1
    for change in (
        lambda: case(torch.randn(5, 3)),
        lambda: case(x, x),
        lambda: case(x, options=(0.5,)),
        lambda: case(x, options=(0.7,)),
    ):
        before = case.record.records
        change()
        assert case.record.records == before  # seen once
        change()
        assert case.record.records == before + 1
    case.weight = case.weight.clone()
    assert torch.equal(case(x)[0], x @ case.weight)


def test_a_few_are_kept_and_none_longer_than_the_graph():
    case = Case()
    x = torch.randn(4, 3)
    owner = torch.arange(5)
    for i in range(3 * capture.KEPT):
        for _ in range(2):
            case(x, options=(i,), owner=owner)
    assert len(capture._LOOPS[owner]) == capture.KEPT
    case(x)
    assert len(capture._LOOPS) == 2
    del owner
    gc.collect()
    assert len(capture._LOOPS) == 1


def test_what_cannot_be_recorded_runs_as_it_is():
    case = Case()

    def refuse(function):
        raise RuntimeError("operation not permitted")

    case.record = refuse
    x = torch.randn(4, 3)
    case(x)
    with pytest.warns(UserWarning, match="not permitted"):
        case(x)
    assert torch.equal(case(x)[0], x @ case.weight)


def test_nothing_is_recorded_on_cpu_or_where_a_gradient_is_wanted():
    x = torch.randn(4, 3)
    assert not capture.applies(x)
    assert not capture.applies(x.requires_grad_())
