"""Hosts that are put together in other ways than the usual ones: right, or
refused by name."""

import copy
import pickle

import pytest
import torch
from hosts import DIM, OlderViT, SimpleViT, Timm, Transformer, images
from torch import nn

from torch_picard.contraction import (
    L2TransformerLayer,
    contractive,
    lipschitz_bound,
)
from torch_picard.vit import PicardViT, split


class Registers(SimpleViT):
    """Tokens of its own behind the others, dropped before the mean."""

    def __init__(self):
        super().__init__()
        self.register_tokens = nn.Parameter(torch.randn(4, DIM))

    def forward(self, img):
        x = self.to_patch_embedding(img) + self.pos_embedding
        n = x.shape[1]
        more = self.register_tokens.expand(len(x), -1, -1)
        x = self.transformer(torch.cat([x, more], 1))[:, :n].mean(1)
        return self.linear_head(self.to_latent(x))


class NoPool(OlderViT):
    """A class token, and no word of it."""

    def __init__(self):
        super().__init__()
        del self.pool


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Transformer()

    def forward(self, tokens, mask=None, scale=1.0):
        y = self.inner(tokens)
        return scale * (y if mask is None else y * mask[..., None])


class WithMask(SimpleViT):
    """Its transformer gets more than tokens, and them by name."""

    def __init__(self):
        super().__init__()
        self.transformer = Masked()

    def forward(self, img):
        x = self.to_patch_embedding(img)
        mask = (img.flatten(1)[:, : x.shape[1]] > 0).to(x)
        x = self.transformer(tokens=x, mask=mask, scale=0.5)
        return self.linear_head(x.mean(1))


class Sequence(SimpleViT):
    """torch's encoder in its default layout, [n, B, d]."""

    def __init__(self):
        super().__init__()
        self.transformer = encoder(batch_first=False)

    def forward(self, img):
        x = self.to_patch_embedding(img).transpose(0, 1)
        return self.linear_head(self.transformer(x).mean(0))


def encoder(batch_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        DIM, 2, 16, dropout=0.0, batch_first=batch_first
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


@pytest.mark.parametrize("kind", [Registers, NoPool, WithMask, Sequence])
def test_one_plain_iteration_is_the_host(kind):
    torch.manual_seed(0)
    host = kind().eval()
    vit = PicardViT(host, 1, 0.0, inject=False, rtol=0.0)
    for batch in (2, 3):
        x = images(batch)
        assert torch.equal(vit(x), host(x))
        assert torch.equal(copy.deepcopy(vit)(x), host(x))
        assert torch.equal(pickle.loads(pickle.dumps(vit))(x), host(x))
    assert "forward" not in host.transformer.__dict__


def test_what_the_transformer_gets_it_gets_in_every_iteration():
    torch.manual_seed(0)
    host, x = WithMask().eval(), images()
    f = host.to_patch_embedding(x)
    mask = (x.flatten(1)[:, : f.shape[1]] > 0).to(x)
    y = f
    for _ in range(3):
        y = 0.4 * y + 0.6 * (host.transformer(y, mask, 0.5) + f)
    vit = PicardViT(host, 3, 0.4, rtol=0.0)
    torch.testing.assert_close(vit(x), host.linear_head(y.mean(1)))
    with pytest.raises(ValueError, match=r"WithMask.*mask, scale"):
        split(host).embed(x)
    with pytest.raises(ValueError, match=r"WithMask.*mask, scale"):
        PicardViT((split(host).embed, host.transformer, len), 1)(x)


def test_the_parts_by_themselves_need_an_input_first():
    torch.manual_seed(0)
    host, x = Registers().eval(), images(3)
    embed, operator, readout = split(host)
    with pytest.raises(ValueError, match="call embed first"):
        readout(torch.ones(3, 20, DIM))
    assert torch.equal(readout(operator(embed(x))), host(x))


@pytest.mark.parametrize("whole", [True, False])
def test_samples_are_apart_in_either_layout(whole):
    """torch's default layout has the samples second."""
    first, second = encoder(True), encoder(False)
    x = torch.randn(3, 7, DIM)
    ours = []
    for host, swap in ((first, False), (second, True)):
        model = host if whole else split(host)
        vit = PicardViT(model, 60, 0.5, rtol=1e-3, on_failure="ignore")
        given = x.transpose(0, 1) if swap else x
        y, solution = vit(given, return_solution=True)
        assert solution.status.shape == (3,)
        ours.append(y.transpose(0, 1) if swap else y)
    torch.testing.assert_close(*ours, rtol=1e-4, atol=1e-5)
    for host in (first, second):
        with pytest.raises(
            TypeError, match=r"tokens \[B, n, d\].*without a batch"
        ):
            PicardViT(host, 2)(x[0])


class SamplesSecond(SimpleViT):
    def forward(self, img):
        x = self.to_patch_embedding(img).transpose(0, 1).contiguous()
        return self.linear_head(self.transformer(x).mean(0))


class Skipping(Timm):
    """What its blocks give is not what its norm gets."""

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = self.blocks(x + self.pos_embed)
        return self.forward_head(self.norm(self.blocks(x)))


class Twice(SimpleViT):
    def forward(self, img):
        x = self.transformer(self.to_patch_embedding(img))
        return self.linear_head(self.transformer(x).mean(1))


class Nameless(WithMask):
    def forward(self, img):
        return self.transformer(mask=None)


@pytest.mark.parametrize(
    "kind, reason",
    [
        (Skipping, r"Skipping cannot be split.*by up to"),
        (Twice, r"Twice cannot be split.*by up to"),
        (SamplesSecond, r"SamplesSecond has tokens \[16, 2, 8\].*batch of 2"),
        (Nameless, r"Nameless does not give its transformer 'tokens'"),
    ],
)
def test_other_hosts_are_refused_by_name(kind, reason):
    torch.manual_seed(0)
    for _ in range(2):
        with pytest.raises(ValueError, match=reason):
            PicardViT(kind(), 1)(images())


def test_the_check_is_made_once_and_leaves_no_trace():
    torch.manual_seed(0)
    host = Registers()
    host.train()
    host.linear_head.eval()
    seen = []
    host.transformer.register_forward_hook(lambda *a: seen.append(1))
    vit = PicardViT(host, 2, rtol=0.0)
    x, state = images(), torch.get_rng_state()
    for calls in (10, 4):  # embed, 2 iterations, readout; and the check
        seen.clear()
        vit(x)
        assert len(seen) <= calls
    assert torch.equal(torch.get_rng_state(), state)
    assert host.transformer.training and not host.linear_head.training


@pytest.mark.slow
def test_a_fixed_count_compiles_as_one_graph():
    """After a first call, with which the host is checked."""
    torch.manual_seed(0)
    for host in (Registers().eval(), WithMask().eval()):
        vit, x = PicardViT(host, 3, rtol=0.0), images()
        compiled = torch.compile(vit, backend="eager", fullgraph=True)
        wanted = vit(x)
        torch.testing.assert_close(compiled(x), wanted)
        torch.testing.assert_close(copy.deepcopy(vit)(x), wanted)


@pytest.mark.parametrize("residual", ["keep", "strip"])
def test_a_certified_transformer_certifies_the_iteration(residual):
    torch.manual_seed(0)
    layer = contractive(L2TransformerLayer(DIM, 2), 0.9, num_nodes=16)
    host = SimpleViT()
    host.transformer = layer
    certificates = []
    for model in (host, (nn.Identity(), layer, nn.Identity())):
        vit = PicardViT(model, 50, 0.0, residual=residual)
        certificates.append(lipschitz_bound(vit, num_nodes=16))
    assert certificates[0].constant == certificates[1].constant
    more = 0.9 if residual == "keep" else 1.9
    assert certificates[0].constant <= more * (1 + 1e-6)
    assert certificates[0].contracts == (residual == "keep")
    with pytest.raises(ValueError, match="num_nodes"):
        lipschitz_bound(vit)
    with pytest.raises(ValueError, match=r"Transformer"):
        lipschitz_bound(PicardViT(SimpleViT()), num_nodes=16)
