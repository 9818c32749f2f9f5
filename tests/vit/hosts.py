"""Small models with the attributes and the course of the real ones."""

import torch
from torch import nn

DIM, PATCH, SIZE, CLASSES = 8, 2, 8, 5


class Patches(nn.Module):
    """[B, C, (F,) H, W] -> [B, n, DIM]."""

    def __init__(self, channels=3, frames=None):
        super().__init__()
        self.frames = frames
        width = channels * PATCH**2 * (1 if frames is None else PATCH)
        self.lin = nn.Linear(width, DIM)

    def forward(self, x):
        if self.frames is not None:
            b, c, f, h, w = x.shape
            x = x.view(b, c, f // PATCH, PATCH, h // PATCH, PATCH, w // PATCH,
                       PATCH)  # fmt: skip
            x = x.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)
        else:
            b, c, h, w = x.shape
            x = x.view(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
            x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return self.lin(x)


class Block(nn.Module):
    def __init__(self, branches=1, dropout=0.0):
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.attend = nn.ModuleList(
            nn.MultiheadAttention(DIM, 2, dropout=dropout, batch_first=True)
            for _ in range(branches)
        )
        self.feed = nn.Sequential(
            nn.LayerNorm(DIM), nn.Linear(DIM, 16), nn.GELU(),
            nn.Dropout(dropout), nn.Linear(16, DIM),
        )  # fmt: skip

    def forward(self, x):
        y = self.norm(x)
        x = x + sum(a(y, y, y, need_weights=False)[0] for a in self.attend)
        return x + self.feed(x)


class Transformer(nn.Module):
    def __init__(self, norm=True, branches=1, dropout=0.0):
        super().__init__()
        self.layers = nn.ModuleList(Block(branches, dropout) for _ in range(2))
        self.norm = nn.LayerNorm(DIM) if norm else nn.Identity()

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class ViT(nn.Module):
    """vit-pytorch's ViT: class token and positions without a batch axis."""

    def __init__(self, pool="cls", classes=CLASSES, dropout=0.0):
        super().__init__()
        self.to_patch_embedding = Patches()
        extra = 1 if pool == "cls" else 0
        n = (SIZE // PATCH) ** 2 + extra
        self.cls_token = nn.Parameter(torch.randn(extra, DIM))
        self.pos_embedding = nn.Parameter(torch.randn(n, DIM))
        self.dropout = nn.Dropout(dropout)
        self.transformer = Transformer(dropout=dropout)
        self.pool = pool
        self.to_latent = nn.Identity()
        self.mlp_head = nn.Linear(DIM, classes) if classes else None

    def forward(self, img):
        x = self.to_patch_embedding(img)
        cls = self.cls_token.expand(len(x), *self.cls_token.shape)
        x = torch.cat([cls, x], 1) + self.pos_embedding
        x = self.transformer(self.dropout(x))
        if self.mlp_head is None:
            return x
        x = x.mean(1) if self.pool == "mean" else x[:, 0]
        return self.mlp_head(self.to_latent(x))


class OlderViT(ViT):
    """Parallel, small-dataset and 3-D ViTs: positions with a batch axis, no
    final norm, a head with a norm of its own."""

    def __init__(self, branches=1, frames=None):
        nn.Module.__init__(self)
        self.to_patch_embedding = Patches(frames=frames)
        n = (SIZE // PATCH) ** 2
        n *= 1 if frames is None else frames // PATCH
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.pos_embedding = nn.Parameter(torch.randn(1, n + 1, DIM))
        self.dropout = nn.Dropout(0.0)
        self.transformer = Transformer(norm=False, branches=branches)
        self.pool = "cls"
        self.to_latent = nn.Identity()
        self.mlp_head = nn.Sequential(
            nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES)
        )

    def forward(self, img):
        x = self.to_patch_embedding(img)
        b, n, _ = x.shape
        x = torch.cat([self.cls_token.expand(b, 1, DIM), x], 1)
        x += self.pos_embedding[:, : n + 1]
        x = self.transformer(self.dropout(x))
        return self.mlp_head(self.to_latent(x[:, 0]))


class SimpleViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_patch_embedding = Patches()
        self.pos_embedding = torch.randn((SIZE // PATCH) ** 2, DIM)
        self.transformer = Transformer()
        self.pool = "mean"
        self.to_latent = nn.Identity()
        self.linear_head = nn.Linear(DIM, CLASSES)

    def forward(self, img):
        x = self.to_patch_embedding(img)
        x += self.pos_embedding.to(x)
        x = self.transformer(x).mean(1)
        return self.linear_head(self.to_latent(x))


class Timm(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = Patches()
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.pos_embed = nn.Parameter(
            torch.randn(1, (SIZE // PATCH) ** 2 + 1, DIM)
        )
        self.num_prefix_tokens = 1
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, CLASSES)
        self.grad_checkpointing = False

    def forward_head(self, x, pre_logits=False):
        return x[:, 0] if pre_logits else self.head(x[:, 0])

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = self.norm(self.blocks(x + self.pos_embed))
        return self.forward_head(x)


class Encoder(nn.Module):
    """Answers in one of the ways that versions differ in."""

    def __init__(self, answer):
        super().__init__()
        self.inner = Transformer(norm=False)
        self.answer = answer

    def forward(self, x):
        return self.answer(self.inner(x))


class Output:
    def __init__(self, x):
        self.last_hidden_state = x


class Embeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = Patches()
        self.cls = nn.Parameter(torch.randn(1, 1, DIM))

    def forward(self, x):
        x = self.patches(x)
        return torch.cat([self.cls.expand(len(x), -1, -1), x], 1)


class HFModel(nn.Module):
    def __init__(self, answer=Output):
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = Encoder(answer)
        self.layernorm = nn.LayerNorm(DIM)

    def forward(self, x):
        out = self.encoder(self.embeddings(x))
        if isinstance(out, Output):
            out = out.last_hidden_state
        return self.layernorm(out[0] if isinstance(out, tuple) else out)


class NewerHFModel(nn.Module):
    """Layers of its own, no encoder."""

    def __init__(self):
        super().__init__()
        self.embeddings = Embeddings()
        self.layers = nn.ModuleList([Block(), Block()])
        self.layernorm = nn.LayerNorm(DIM)

    def forward(self, x):
        x = self.embeddings(x)
        for layer in self.layers:
            x = layer(x)
        return self.layernorm(x)


class HFClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.vit = HFModel(lambda x: (x,))
        self.classifier = nn.Linear(DIM, CLASSES)

    def forward(self, x):
        return self.classifier(self.vit(x)[:, 0])


def images(batch=2):
    return torch.randn(batch, 3, SIZE, SIZE)


def encoder():
    layer = nn.TransformerEncoderLayer(
        DIM, 2, 16, dropout=0.0, batch_first=True
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


#: name -> (model, inputs)
HOSTS = {
    "ViT": (ViT, images),
    "ViT, mean": (lambda: ViT("mean"), images),
    "ViT without head": (lambda: ViT(classes=0), images),
    "small datasets": (OlderViT, images),
    "parallel": (lambda: OlderViT(branches=2), images),
    "3-D": (
        lambda: OlderViT(frames=4),
        lambda: torch.randn(2, 3, 4, SIZE, SIZE),
    ),
    "SimpleViT": (SimpleViT, images),
    "timm": (Timm, images),
    "ViTModel": (HFModel, images),
    "ViTModel, tensors": (lambda: HFModel(lambda x: x), images),
    "ViTModel, newer": (NewerHFModel, images),
    "ViTForImageClassification": (HFClassifier, images),
    "TransformerEncoder": (encoder, lambda: torch.randn(2, 6, DIM)),
}
