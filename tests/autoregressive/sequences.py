"""Sequence models that need nothing but torch."""

import torch
from torch import nn
from torch.nn import functional as F


class Table:
    """Logits of the next token, looked up by the last ``order`` tokens. Its
    sums do not depend on how many positions are evaluated at once. Counts its
    calls."""

    def __init__(self, vocabulary=7, order=3, seed=0, sharpness=2.0):
        rng = torch.Generator().manual_seed(seed)
        self.size, self.order = 257, order
        self.weight = torch.randint(1, 1000, (order,), generator=rng)
        self.table = sharpness * torch.randn(
            self.size, vocabulary, generator=rng
        )
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        before = F.pad(x, (self.order - 1, 0)).unfold(1, self.order, 1)
        return self.table[(before * self.weight).sum(-1) % self.size]

    def sequential(self, ids, new, choose=lambda logits, place: None):
        """``choose`` takes logits [B, V]; None: the largest."""
        for _ in range(new):
            logits = self(ids)[:, -1]
            token = choose(logits, ids.size(1))
            if token is None:
                token = logits.argmax(-1)
            ids = torch.cat([ids, token[:, None]], 1)
        return ids


class Recurrent(nn.Module):
    def __init__(self, vocabulary=11, width=16):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, x):
        return self.out(self.rnn(self.embed(x))[0])


class PixelCNN(nn.Module):
    """Grey levels [B, side*side], in rows; each depends on those before it.
    Logits at i are for pixel i, as such models have it."""

    def __init__(self, side=5, levels=4, width=12):
        super().__init__()
        self.side, self.levels = side, levels
        self.first = nn.Conv2d(levels, width, 3, padding=1)
        self.second = nn.Conv2d(width, levels, 3, padding=1)
        allowed = torch.ones(3, 3)
        allowed[1, 1:] = 0
        allowed[2] = 0
        self.register_buffer("before", allowed)
        allowed = allowed.clone()
        allowed[1, 1] = 1
        self.register_buffer("upto", allowed)

    def forward(self, pixels):
        x = F.one_hot(pixels, self.levels).float()
        x = x.view(-1, self.side, self.side, self.levels).permute(0, 3, 1, 2)
        x = F.conv2d(
            x, self.first.weight * self.before, self.first.bias, padding=1
        ).relu()
        x = F.conv2d(
            x, self.second.weight * self.upto, self.second.bias, padding=1
        )
        return x.flatten(2).transpose(1, 2)

    def next_token(self, x):
        """The same with a first token that is no pixel, logits at i being
        for what follows i."""
        missing = self.side**2 - (x.size(1) - 1)
        pixels = F.pad(x[:, 1:], (0, missing))
        return self(pixels)[:, : x.size(1)]
