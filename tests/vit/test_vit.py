"""Splitting, Algorithm 2, and an attention with an exact answer."""

import copy
import pickle

import pytest
import torch
from hosts import DIM, HOSTS, SIZE, OlderViT, SimpleViT, Timm, ViT, images
from torch import nn

from torch_picard import (
    Anderson,
    Implicit,
    OneStep,
    Phantom,
    Picard,
    Status,
    Unrolled,
)
from torch_picard.problems import uniform_attention
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


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_the_bank_s_attention_through_the_module(rho):
    """A1, with its scores and its softmax; P(0) = f."""
    problem = uniform_attention(rho=rho)
    f = problem.operator(problem.x0)

    def attend(y):
        return torch.stack([problem.operator(row) for row in y]) - f

    gradients = []
    for gradient in (Unrolled(), Implicit(rtol=1e-12, max_iter=1000)):
        vit = PicardViT(
            (lambda x: x, attend, lambda y: y), 1000, 0.0, rtol=1e-13,
            gradient=gradient,
        )  # fmt: skip
        x = torch.stack([f, 2 * f]).requires_grad_()
        out, solution = vit(x, return_solution=True)
        assert solution.converged.all()
        # linear in f
        wanted = torch.stack([problem.solution, 2 * problem.solution])
        assert (out - wanted).abs().max() < 1e-10
        (found,) = torch.autograd.grad(out.square().sum(), x)
        gradients.append(found)
    size = gradients[0].abs().max()
    assert (gradients[0] - gradients[1]).abs().max() < 1e-8 * size


@pytest.mark.parametrize(
    "gradient",
    [Unrolled(checkpoint=True), Implicit(rtol=1e-10), Phantom(60), OneStep()],
    ids=str,
)
def test_gradient_modes(gradient):
    """The same loss at a solution; all but one step agree with unrolling."""
    torch.manual_seed(0)
    host = ViT().double().eval()
    embed, operator, readout = split(host)

    def contracts(y):
        return 0.2 * operator(y).tanh()

    def differentiate(mode):
        vit = PicardViT(
            (embed, contracts, readout), 300, 0.0, rtol=1e-11, gradient=mode
        )
        vit(x).square().sum().backward()
        found = torch.cat([p.grad.flatten() for p in host.parameters()])
        host.zero_grad()
        return found

    x = images().double()
    wanted, found = differentiate(Unrolled()), differentiate(gradient)
    near = torch.allclose(found, wanted, rtol=1e-5, atol=1e-8)
    assert near == (not isinstance(gradient, OneStep))
    assert torch.nn.functional.cosine_similarity(found, wanted, 0) > 0.9


def test_supervising_all_iterates_is_a_loss_on_each():
    host, x = make("ViT")
    vit = PicardViT(host, 3, 0.3, rtol=0.0)
    sum(out.square().sum() for out in vit.states(x)).backward()
    together = [p.grad.clone() for p in host.parameters()]
    host.zero_grad()
    for n in (1, 2, 3):
        vit(x, max_iter=n).square().sum().backward()
    for p, wanted in zip(host.parameters(), together):
        torch.testing.assert_close(p.grad, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HOSTS)
def test_the_parts_of_a_host_keep_its_parameters(name):
    """In a tuple, and with another readout."""
    host, _ = make(name)
    embed, operator, readout = split(host)
    mine = nn.Linear(DIM, 2)
    for third in (readout, mine):
        vit = PicardViT((embed, operator, third), 2, rtol=0.0)
        wanted = set(host.parameters())
        if third is mine:
            wanted |= set(mine.parameters())
            if name == "ViTForImageClassification":
                wanted -= set(host.classifier.parameters())
        assert set(vit.parameters()) == wanted
        assert len(list(vit.parameters())) == len(vit.state_dict()) - len(
            list(host.buffers())
        )


class Scaled(nn.Module):
    """Has parameters besides those of its host, a name like any other."""

    def __init__(self, host):
        super().__init__()
        self.host = host
        self.scale = nn.Parameter(torch.ones(DIM))

    def forward(self, x):
        return self.host(x) * self.scale


def test_parts_that_are_modules_show_up_once():
    embed, operator = nn.Linear(3, DIM), nn.Linear(DIM, DIM)
    readout = Scaled(operator)
    vit = PicardViT((embed, operator, readout), 2, rtol=0.0)
    wanted = {*embed.parameters(), *readout.parameters()}
    assert set(vit.parameters()) == wanted
    assert len(vit.state_dict()) == len(wanted) == 5
    assert vit(torch.randn(2, 5, 3)).shape == (2, 5, DIM)


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("whole", [True, False])
def test_a_copy_is_its_own(name, whole):
    host, x = make(name)
    vit = PicardViT(host if whole else split(host), 2, rtol=0.0)
    before, copied = vit(x), copy.deepcopy(vit)
    with torch.no_grad():
        for p in host.parameters():
            p.fill_(torch.nan)
    assert vit(x).isnan().all()
    assert torch.equal(copied(x), before)


def test_a_module_pickles():
    host, x = make("ViT, mean")
    vit = PicardViT(host, 2, rtol=0.0)
    assert torch.equal(pickle.loads(pickle.dumps(vit))(x), vit(x))


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


class Merging(nn.Module):
    """A transformer that averages pairs of tokens between two blocks."""

    def forward(self, x):
        return (x[:, :-1:2] + x[:, 1::2]) / 2


def test_a_host_that_merges_tokens_is_refused_by_name():
    torch.manual_seed(0)
    host = ViT()
    host.transformer = Merging()
    for inject in (True, False):
        vit = PicardViT(host, 2, inject=inject, rtol=0.0)
        with pytest.raises(ValueError, match=r"tokens \[2, 17, 8\].*merges"):
            vit(images())


def test_embeddings_that_are_no_tokens_are_refused():
    """Those of hierarchical and masked models come with more."""
    host, x = make("ViTModel")
    inner = host.embeddings.forward
    host.embeddings.forward = lambda x: (inner(x), (4, 4))
    with pytest.raises(TypeError, match=r"embed .* got tuple"):
        PicardViT(host, 2, rtol=0.0)(x)


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
