"""The packages themselves.

vit-pytorch and timm ask for torchvision, which replaces torch: no extra of
this package may name them. So these tests bring them along, without what they
depend on, in a folder beside the environment that nothing else sees.
"""

import functools
import importlib
import importlib.machinery
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from torch_picard.vit import PicardViT, split

pytestmark = pytest.mark.slow

PACKAGES = ("vit-pytorch==1.26.11", "timm==1.0.31", "einops==0.8.2")


@functools.cache
def folder():
    """Where they are; fetched on the first run."""
    place = Path(sys.prefix) / "hosts"
    stamp = place / "stamp"
    if stamp.exists() and stamp.read_text() == " ".join(PACKAGES):
        return place
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
             "--upgrade", "--target", str(place), *PACKAGES],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "pip took more than 300 s"
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    stamp.write_text(" ".join(PACKAGES))
    return place


@pytest.fixture(scope="module", autouse=True)
def packages():
    """On the path, and an empty module in place of torchvision."""
    place = folder()
    if isinstance(place, str):
        pytest.skip(f"vit-pytorch and timm could not be fetched: {place}")
    before = set(sys.modules)
    sys.path.insert(0, str(place))
    for name in ("torchvision", "torchvision.transforms",
                 "torchvision.transforms.functional",
                 "torchvision.datasets", "torchvision.ops",
                 "torchvision.ops.misc"):  # fmt: skip
        sys.modules.setdefault(name, Blank(name))
    yield
    sys.path.remove(str(place))
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("torchvision", "vit_pytorch", "timm"):
            del sys.modules[name]


class AnyName(type):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class Blank(types.ModuleType):
    """A module that has any name, for imports that are not used here."""

    __path__ = ()

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        inner = sys.modules.get(f"{self.__name__}.{name}")
        return AnyName(name, (), {}) if inner is None else inner


SIZES = {"num_classes": 5, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32}
FLAT = {"image_size": 16, "patch_size": 4}
DEEP = {
    "image_size": 16, "image_patch_size": 4, "frames": 4,
    "frame_patch_size": 2,
}  # fmt: skip
IMAGE, VIDEO = (2, 3, 16, 16), (2, 3, 4, 16, 16)


def vit_pytorch(name, kind, size, **more):
    torch.manual_seed(0)
    module = importlib.import_module(f"vit_pytorch.{name}")
    return getattr(module, kind)(**size, **SIZES, **more).eval()


@pytest.mark.parametrize(
    "name, kind, size, shape",
    [
        ("vit", "ViT", FLAT, IMAGE),
        ("simple_vit", "SimpleViT", FLAT, IMAGE),
        ("parallel_vit", "ViT", FLAT, IMAGE),
        ("vit_for_small_dataset", "ViT", FLAT, IMAGE),
        ("vit_3d", "ViT", DEEP, VIDEO),
        ("simple_vit_3d", "SimpleViT", DEEP, VIDEO),
        ("simple_vit_with_register_tokens", "SimpleViT", FLAT, IMAGE),
        ("simple_vit_with_qk_norm", "SimpleViT", FLAT, IMAGE),
        ("simple_vit_with_fft", "SimpleViT", {**FLAT, "freq_patch_size": 4},
         IMAGE),
        ("simple_uvit", "SimpleUViT", FLAT, IMAGE),
        ("vit_1d", "ViT", {"seq_len": 16, "patch_size": 4}, (2, 3, 16)),
        ("rvt", "RvT", FLAT, IMAGE),
        ("deepvit", "DeepViT", FLAT, IMAGE),
    ],
)  # fmt: skip
def test_vit_pytorch(name, kind, size, shape):
    check(vit_pytorch(name, kind, size), torch.randn(shape))


def test_a_packed_batch_of_images_of_many_sizes():
    host = vit_pytorch("na_vit", "NaViT", FLAT)
    images = [torch.randn(3, 16, 8), torch.randn(3, 8, 16)]
    once = PicardViT(host, 1, 0.0, inject=False, rtol=0.0)
    assert torch.equal(once([images]), host([images]))


def test_timm():
    host = timm("VisionTransformer", img_size=16, patch_size=4, embed_dim=16,
                depth=2, num_heads=2, num_classes=5)  # fmt: skip
    check(host, torch.randn(2, 3, 16, 16))


def timm(kind, module="vision_transformer", **sizes):
    torch.manual_seed(0)
    module = importlib.import_module(f"timm.models.{module}")
    return getattr(module, kind)(**sizes).eval()


def test_class_attention_behind_the_blocks_is_refused():
    host = timm("Cait", "cait", img_size=16, patch_size=4, embed_dim=16,
                depth=2, num_heads=2, num_classes=5)  # fmt: skip
    with pytest.raises(ValueError, match="Cait cannot be split"):
        PicardViT(host, 1)(torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize("kind", ["ViTModel", "ViTForImageClassification"])
def test_transformers(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    host = getattr(transformers, kind)(vit_config(transformers.ViTConfig))
    host.eval()
    x = torch.randn(2, 3, 16, 16)
    out = host(x)
    check(host, x, getattr(out, "logits", None)
          if kind != "ViTModel" else out.last_hidden_state)  # fmt: skip


def vit_config(kind, size=16):
    return kind(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, image_size=size, patch_size=4, num_labels=5,
    )  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    ["Dinov2Model", "DeiTModel", "YolosModel", "ViTMSNModel", "BeitModel",
     "ViTMAEModel", "IJepaModel"],
)  # fmt: skip
def test_others_of_transformers_are_right_or_refused_by_name(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    made = getattr(transformers, kind)
    size = [16, 16] if kind == "YolosModel" else 16
    config = vit_config(made.config_class, size)
    host, x = made(config).eval(), torch.randn(2, 3, 16, 16)
    torch.manual_seed(1)
    expected = host(x).last_hidden_state
    try:
        once = PicardViT(host, 1, 0.0, inject=False, rtol=0.0)
        torch.manual_seed(1)
        out = once(x)
    except (ValueError, TypeError) as error:
        reason = str(error)
    else:
        reason = ""
        assert torch.equal(out, expected)
    assert not reason or kind in reason or "embed must return" in reason


def check(host, x, expected=None):
    with torch.no_grad():
        expected = host(x) if expected is None else expected
        once = PicardViT(host, 1, 0.0, inject=False, rtol=0.0)
        assert torch.equal(once(x), expected)
        _, solution = PicardViT(host, 3, rtol=0.0)(x, return_solution=True)
        assert solution.evaluations == 3
        embed, operator, readout = split(host)
        if type(host).__name__ == "RvT":
            with pytest.raises(ValueError, match="fmap_dims"):
                embed(x)
        else:
            assert torch.equal(readout(operator(embed(x))), expected)
