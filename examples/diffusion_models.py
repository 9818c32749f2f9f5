"""What the examples on diffusion share: images, denoisers, their training, and
the distance of samples from the data."""

import gzip
import io
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DATA = ["digits", "fashion-mnist", "cifar10"]


class Denoiser(nn.Module):
    """A residual network on flat images, for small ones.

    Args:
        dim: pixels times channels.
        width: features.
        blocks: residual blocks.
        steps: T; the time enters as t / T.
    """

    def __init__(self, dim: int, width: int, blocks: int, steps: int):
        super().__init__()
        self.steps = steps
        frequency = torch.logspace(0, 3, 32)
        self.register_buffer("frequency", frequency)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU())
        self.enter = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, width),
            )
            for _ in range(blocks)
        )
        self.leave = nn.Linear(width, dim)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] / self.steps * self.frequency
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = h + block(h + time)
        return self.leave(h).view_as(x)


def unet(size: int, channels: int, widths: list[int], attention: bool):
    """diffusers' UNet2DModel; with ``attention`` as the paper has it, in the
    4th block down and the 2nd up."""
    from diffusers import UNet2DModel

    down = ["DownBlock2D"] * len(widths)
    up = ["UpBlock2D"] * len(widths)
    if attention:
        down[3], up[1] = "AttnDownBlock2D", "AttnUpBlock2D"
    net = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=2,
        block_out_channels=tuple(widths),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        norm_num_groups=min(32, widths[0]),
    )
    factor = 2 ** (len(widths) - 1)
    return net if size % factor == 0 else Padded(net, -size % factor)


class Padded(nn.Module):
    """A network for images with so many more rows and columns."""

    def __init__(self, net: nn.Module, more: int):
        super().__init__()
        self.net, self.more = net, more

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        more = F.pad(x, (0, self.more, 0, self.more))
        return self.net(more, t).sample[..., : x.size(-2), : x.size(-1)]


def build(setting: dict, shape: torch.Size, steps: int) -> nn.Module:
    """For images of this shape [C, s, s]."""
    if "widths" in setting:
        channels, size, _ = shape
        return unet(
            size, channels, setting["widths"], setting.get("attention", False)
        )
    dim = math.prod(shape)
    return Denoiser(dim, setting["width"], setting["blocks"], steps)


def noise_level(steps: int, rescaled: bool) -> Tensor:
    """alphas_cumprod [T] of betas from 1e-4 to 0.02; rescaled: times
    1000 / T, so that every T ends at the same noise."""
    beta = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    if rescaled:
        beta = (beta * 1000 / steps).clamp(max=0.999)
    return (1 - beta).cumprod(0).float()


def diffusion_loss(net: nn.Module, y: Tensor, alphas: Tensor) -> Tensor:
    """Mean squared error of the predicted noise at random times."""
    t = torch.randint(len(alphas), (len(y),), device=y.device)
    alpha = alphas[t].view(-1, 1, 1, 1)
    noise = torch.randn_like(y)
    out = net(alpha.sqrt() * y + (1 - alpha).sqrt() * noise, t)
    return F.mse_loss(getattr(out, "sample", out), noise)


# -- data ---------------------------------------------------------------------


class Images:
    """Images [n, C, s, s] in [-1, 1] for training and test, and a feature
    space: the last hidden layer of a classifier trained on the former."""

    def __init__(self, data: str, device: str = "cpu"):
        (y, label), (test, test_label) = {
            "digits": digits, "fashion-mnist": fashion, "cifar10": cifar10
        }[data]()  # fmt: skip
        self.train, self.test = y.to(device), test.to(device)
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Flatten(),
            nn.Linear(y[0].numel(), 256),
            nn.ReLU(),
            nn.Linear(256, 64),
            nn.ReLU(),
        ).to(device)
        head = nn.Linear(64, int(label.max()) + 1).to(device)
        net = nn.Sequential(self.features, head)
        optimizer = torch.optim.Adam(net.parameters(), 1e-3, weight_decay=1e-4)
        for _ in range(1500):
            rows = torch.randint(len(y), (128,))
            loss = F.cross_entropy(
                net(self.train[rows]), label[rows].to(device)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            guess = net(self.test).argmax(1).cpu()
        self.accuracy = float((guess == test_label).float().mean())
        self._moments = self.moments(self.train)

    @torch.no_grad()
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.cat([self.features(part) for part in images.split(1000)])
        h = h.double().cpu()
        return h.mean(0), torch.cov(h.T)

    def distance(self, images: Tensor) -> float:
        """Frechet distance to the training images in the feature space."""
        return frechet(*self.moments(images), *self._moments)


def frechet(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor) -> float:
    r"""Between Gaussians: :math:`|m_1 - m_2|^2 + \operatorname{tr}(C_1 + C_2 -
    2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2})`."""
    values, vectors = torch.linalg.eigh(c1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0).sqrt()
    apart = (m1 - m2).square().sum()
    return float(apart + c1.trace() + c2.trace() - 2 * mixed.sum())


Labelled = tuple[Tensor, Tensor]


def digits() -> tuple[Labelled, Labelled]:
    from sklearn.datasets import load_digits

    found = load_digits()
    y = torch.from_numpy(found.images / 8.0 - 1).float()[:, None]
    label = torch.from_numpy(found.target).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:-300], order[-300:]
    return (y[train], label[train]), (y[test], label[test])


def fashion() -> tuple[Labelled, Labelled]:
    """FOLDER/fashion-mnist/*-ubyte.gz, else by torchvision."""
    folder = _folder("fashion-mnist")
    if folder is None:
        return _torchvision("FashionMNIST")

    def read(name: str, head: int) -> np.ndarray:
        with gzip.open(folder / f"{name}-ubyte.gz") as file:
            return np.frombuffer(file.read(), np.uint8, offset=head).copy()

    parts = []
    for part in ("train", "t10k"):
        grey = read(f"{part}-images-idx3", 16).reshape(-1, 1, 28, 28)
        label = read(f"{part}-labels-idx1", 8)
        parts.append((scaled(grey), torch.from_numpy(label).long()))
    return parts[0], parts[1]


def cifar10() -> tuple[Labelled, Labelled]:
    """FOLDER/cifar10-jpg/*.zip (a folder for each class), else by
    torchvision."""
    folder = _folder("cifar10-jpg")
    if folder is None:
        return _torchvision("CIFAR10")
    from PIL import Image

    parts = []
    for pattern in ("train*.zip", "test*.zip"):
        found = []
        for path in sorted(folder.glob(pattern)):
            with zipfile.ZipFile(path) as archive:
                for name in sorted(archive.namelist()):
                    if name.endswith(".jpg"):
                        image = Image.open(io.BytesIO(archive.read(name)))
                        pixels = np.asarray(image.convert("RGB"))
                        found.append((pixels, Path(name).parent.name))
        classes = sorted({kind for _, kind in found})
        y = np.stack([image for image, _ in found]).transpose(0, 3, 1, 2)
        label = torch.tensor([classes.index(kind) for _, kind in found])
        parts.append((scaled(y), label))
    return parts[0], parts[1]


def scaled(bytes_: np.ndarray) -> Tensor:
    return torch.from_numpy(bytes_ / np.float32(127.5) - 1)


def _folder(name: str) -> Path | None:
    root = os.environ.get("TORCH_PICARD_DATA")
    return Path(root, name) if root and Path(root, name).is_dir() else None


def _torchvision(name: str) -> tuple[Labelled, Labelled]:
    try:
        from torchvision import datasets
    except ImportError:
        raise SystemExit(
            f"no {name}: set TORCH_PICARD_DATA to a folder that holds it, or "
            "install torchvision"
        ) from None
    parts = []
    for train in (True, False):
        found = getattr(datasets, name)("outputs/data", train, download=True)
        y = np.asarray(found.data).reshape(len(found.data), *(
            (28, 28, 1) if name == "FashionMNIST" else (32, 32, 3)
        ))  # fmt: skip
        label = torch.as_tensor(found.targets).long()
        parts.append((scaled(y.transpose(0, 3, 1, 2)), label))
    return parts[0], parts[1]
