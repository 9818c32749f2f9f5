"""Splitting, Algorithm 2, and an attention with an exact answer."""

import copy

import pytest
import torch
from hosts import DIM, HOSTS, SIZE, OlderViT, SimpleViT, Timm, ViT, images
from torch import nn

from torch_picard import Anderson, Implicit, Picard, Status, Unrolled
from torch_picard.vit import PicardViT, split


def make(name):
    torch.manual_seed(0)
    build, inputs = HOSTS[name]
    return build().eval(), inputs()


@pytest.mark.parametrize("name", HOSTS)
def test_the_parts_together_are_the_host(name):
    host, x = make(name)
    embed, operator, readout = split(host)
    tokens = embed(x)
    assert operator(tokens).shape == tokens.shape
    assert torch.equal(readout(operator(tokens)), host(x))


@pytest.mark.parametrize("name", HOSTS)
def test_one_plain_iteration_is_the_host_exactly(name):
    host, x = make(name)
    for rtol in (0.0, 1e-5):
        vit = PicardViT(
            host, 1, 0.0, inject=False, rtol=rtol, on_failure="ignore"
        )
        assert torch.equal(vit(x), host(x))


@pytest.mark.parametrize("name", HOSTS)
def test_algorithm_2_by_hand(name):
    host, x = make(name)
    embed, operator, readout = split(host)
    f = embed(x)
    y = f
    for _ in range(4):
        y = 0.3 * y + 0.7 * (operator(y) + f)
    vit = PicardViT(host, 4, 0.3, rtol=0.0)
    torch.testing.assert_close(vit(x), readout(y))
    states = vit.states(x)
    assert len(states) == 4
    torch.testing.assert_close(states[-1], readout(y))
    torch.testing.assert_close(
        states[0], readout(0.3 * f + 0.7 * (operator(f) + f))
    )


def test_parameters_are_the_hosts_and_gradients_reach_all():
    torch.manual_seed(0)
    host = ViT().double().eval()
    vit = PicardViT(host, 3)
    assert {id(p) for p in vit.parameters()} == {
        id(p) for p in host.parameters()
    }
    vit = PicardViT(host, 3, on_failure="ignore")
    vit(images().double()).square().sum().backward()
    assert all(p.grad is not None for p in host.parameters())


def test_iterations_are_chosen_at_the_call():
    host, x = make("ViT")
    vit = PicardViT(host, 2, rtol=0.0)
    for n in (1, 2, 5):
        _, solution = vit(x, max_iter=n, return_solution=True)
        assert solution.evaluations == n
    with pytest.raises(ValueError, match="max_iter"):
        vit(x, max_iter=0)


class Mixing(nn.Module):
    """Attention with W_Q = 0: the mean of all tokens, times V."""

    def __init__(self, values):
        super().__init__()
        self.weight = nn.Parameter(values)

    def forward(self, x):
        return (x.mean(1, keepdim=True) @ self.weight).expand_as(x)


def test_uniform_attention_has_its_exact_answer_and_gradient():
    torch.manual_seed(0)
    values = torch.randn(DIM, DIM, dtype=torch.double)
    values = 0.6 * values / torch.linalg.matrix_norm(values, 2)
    f = torch.randn(3, 7, DIM, dtype=torch.double)
    grads = []
    for gradient in (Unrolled(), Implicit(rtol=1e-12)):
        mixing = Mixing(values.clone())
        vit = PicardViT(
            (lambda x: x, mixing, lambda x: x), 300, 0.0, rtol=1e-13,
            gradient=gradient,
        )  # fmt: skip
        out, solution = vit(f, return_solution=True)
        assert solution.converged.all()
        v = mixing.weight
        eye = torch.eye(DIM, dtype=torch.double)
        exact = f + f.mean(1, keepdim=True) @ v @ torch.linalg.inv(eye - v)
        assert (out - exact).abs().max() < 1e-10
        (found,) = torch.autograd.grad(out.square().sum(), v)
        (wanted,) = torch.autograd.grad(exact.square().sum(), v)
        assert (found - wanted).abs().max() / wanted.abs().max() < 1e-8
        grads.append(found)
    assert (grads[0] - grads[1]).abs().max() < 1e-8 * grads[0].abs().max()


def test_each_sample_stops_by_itself():
    torch.manual_seed(0)
    scale = torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1)
    vit = PicardViT(
        (lambda x: x, lambda y: scale * y.tanh(), lambda x: x), 500, 0.0
    )
    x = torch.randn(3, 4, 2)
    _, solution = vit(x, return_solution=True)
    assert solution.converged.all()
    assert solution.iterations[0] < solution.iterations[1]
    assert solution.iterations[1] < solution.iterations[2]


def test_a_state_that_grows_is_not_converged():
    """x + g(x) with |g| fixed: the relative residual falls like 1/k."""

    def grow(y):
        return y + torch.nn.functional.normalize(y, dim=-1)

    x = torch.randn(2, 4, 3)
    vit = PicardViT(
        (lambda x: x, grow, lambda x: x), 400, 0.0, inject=False, rtol=2e-2,
        on_failure="ignore",
    )  # fmt: skip
    _, solution = vit(x, return_solution=True)
    assert (solution.status == Status.DIVERGED).all()
    vit.on_failure = "raise"
    with pytest.raises(Exception, match=r"(?i)diverged"):
        vit(x)


def test_a_fixed_point_far_away_is_still_one():
    vit = PicardViT(
        (lambda x: x, lambda y: 0.95 * y, lambda x: x), 1000, 0.0, rtol=1e-6
    )
    x = torch.randn(2, 4, 3)
    out, solution = vit(x, return_solution=True)
    assert solution.converged.all()
    torch.testing.assert_close(out, 20 * x, rtol=1e-3, atol=1e-3)


def test_stripped_residuals():
    torch.manual_seed(0)
    inner = nn.Linear(DIM, DIM)
    plain = PicardViT((lambda x: x, inner, lambda x: x), 3, rtol=0.0)
    residual = PicardViT(
        (lambda x: x, lambda y: y + inner(y), lambda x: x), 3, rtol=0.0,
        residual="strip",
    )  # fmt: skip
    x = torch.randn(2, 5, DIM)
    torch.testing.assert_close(plain(x), residual(x))


def test_dropout_is_the_same_map_in_every_iteration():
    torch.manual_seed(0)
    drop = nn.Dropout(0.5)
    vit = PicardViT(
        (lambda x: x, lambda y: drop(0.4 * y.tanh()), lambda x: x), 300, 0.0,
        rtol=1e-6,
    )  # fmt: skip
    x = torch.randn(2, 6, 3)
    values = []
    for _ in range(2):
        out, solution = vit(x, return_solution=True)
        assert solution.converged.all()
        values.append(out)
    assert not torch.allclose(*values)


def test_a_stall_far_from_the_start_is_no_divergence():
    """Rounding stops the residual; the state is 20 times as large."""
    vit = PicardViT(
        (lambda x: x, lambda y: 0.95 * y, lambda x: x), 2000, 0.0,
        rtol=1e-9, on_failure="ignore",
    )  # fmt: skip
    _, solution = vit(torch.randn(2, 4, 3), return_solution=True)
    assert (solution.status != Status.DIVERGED).all()


class Denoiser(nn.Module):
    """An image to an image, through tokens."""

    def __init__(self):
        super().__init__()
        self.to_patch_embedding = nn.Unfold(2, stride=2)
        self.lin = nn.Linear(12, 12)

    def forward(self, y):
        tokens = self.to_patch_embedding(y).mT
        tokens = tokens + 0.1 * self.lin(tokens).tanh()
        return nn.functional.fold(tokens.mT, (SIZE, SIZE), 2, stride=2)


def test_the_state_may_be_the_image():
    torch.manual_seed(0)
    net = Denoiser()
    parts = (lambda x: x, net, lambda x: x)
    x = images()
    vit = PicardViT(parts, 2, 0.5, inject=False, state="image", rtol=0.0)
    y = 0.5 * x + 0.5 * net(x)
    y = 0.5 * y + 0.5 * net(y)
    torch.testing.assert_close(vit(x), y)
    classifier = PicardViT(SimpleViT(), 2, state="image", rtol=0.0)
    with pytest.raises(ValueError, match="image"):
        classifier(x)


def test_methods_and_deepcopies():
    host, x = make("small datasets")
    vit = PicardViT(host, 40, method=Anderson(), on_failure="ignore")
    _, solution = vit(x, return_solution=True)
    assert solution.status.shape == (2,)
    with pytest.raises(ValueError, match="method"):
        vit.states(x)
    plain = PicardViT(host, 2, rtol=0.0)
    copied = copy.deepcopy(plain)
    with torch.no_grad():
        for p in host.parameters():
            p.mul_(1.5)
    assert not torch.allclose(plain(x), copied(x))


def test_a_model_that_merges_tokens_is_refused():
    vit = PicardViT(
        (lambda x: x, lambda y: y[:, ::2], lambda x: x), 2, rtol=0.0
    )
    with pytest.raises(ValueError, match="tokens"):
        vit(torch.randn(2, 6, 3))


def test_embedding_by_interruption_leaves_no_trace():
    host, x = make("ViT")
    embed, _, _ = split(host)
    embed(x)
    assert not host.transformer._forward_pre_hooks
    with pytest.raises(RuntimeError):
        embed(torch.randn(2, 3, SIZE + 1, SIZE))
    assert not host.transformer._forward_pre_hooks


class Untouched(OlderViT):
    def forward(self, img):
        return img


@pytest.mark.parametrize(
    "build, error, name",
    [
        (lambda: PicardViT(nn.Linear(2, 2)), TypeError, "Linear"),
        (lambda: PicardViT((1, 2, 3)), TypeError, "three callables"),
        (lambda: PicardViT((nn.Identity(),)), TypeError, "three callables"),
        (lambda: PicardViT("vit"), TypeError, "model"),
        (lambda: PicardViT(ViT(), 0), ValueError, "max_iter"),
        (lambda: PicardViT(ViT(), 2, 1.0), ValueError, "alpha"),
        (lambda: PicardViT(ViT(), inject=1), TypeError, "inject"),
        (lambda: PicardViT(ViT(), state="pixels"), ValueError, "state"),
        (lambda: PicardViT(ViT(), residual="no"), ValueError, "residual"),
        (lambda: PicardViT(ViT(), rtol=-1.0), ValueError, "rtol"),
        (lambda: PicardViT(ViT(), gradient="all"), TypeError, "gradient"),
        (lambda: PicardViT(ViT(), method=Picard), TypeError, "method"),
        (lambda: PicardViT(ViT(), 2, 0.5, method=Anderson()), ValueError,
         "alpha"),
        (lambda: PicardViT(ViT(), on_failure="no"), ValueError,
         "on_failure"),
        (lambda: PicardViT(Untouched())(images()), ValueError,
         "did not call"),
    ],
)  # fmt: skip
def test_wrong_arguments(build, error, name):
    with pytest.raises(error, match=name):
        build()


def test_checkpointed_blocks_are_refused():
    host = Timm()
    host.grad_checkpointing = True
    with pytest.raises(ValueError, match="grad_checkpointing"):
        split(host)
