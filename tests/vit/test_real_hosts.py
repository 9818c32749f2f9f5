"""The packages themselves, where they are installed."""

import importlib.util
import sys

import pytest
import torch

from torch_picard.vit import PicardViT, split

pytestmark = pytest.mark.slow


def module(package, name):
    """One file of a package, without the others: some of them want
    torchvision."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    place = f"{found.submodule_search_locations[0]}/{name}.py"
    spec = importlib.util.spec_from_file_location(f"{package}_{name}", place)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    try:
        spec.loader.exec_module(loaded)
    except ImportError as error:
        pytest.skip(str(error))
    return loaded


SIZES = {"num_classes": 5, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32}
FLAT = {"image_size": 16, "patch_size": 4}
DEEP = {
    "image_size": 16, "image_patch_size": 4, "frames": 4,
    "frame_patch_size": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    "name, kind, size, shape",
    [
        ("vit", "ViT", FLAT, (2, 3, 16, 16)),
        ("simple_vit", "SimpleViT", FLAT, (2, 3, 16, 16)),
        ("parallel_vit", "ViT", FLAT, (2, 3, 16, 16)),
        ("vit_for_small_dataset", "ViT", FLAT, (2, 3, 16, 16)),
        ("vit_3d", "ViT", DEEP, (2, 3, 4, 16, 16)),
        ("simple_vit_3d", "SimpleViT", DEEP, (2, 3, 4, 16, 16)),
    ],
)
def test_vit_pytorch(name, kind, size, shape):
    torch.manual_seed(0)
    host = getattr(module("vit_pytorch", name), kind)(**size, **SIZES).eval()
    check(host, torch.randn(shape))


def test_timm():
    timm = pytest.importorskip("timm", exc_type=ImportError)
    torch.manual_seed(0)
    host = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2,
        num_classes=5,
    ).eval()  # fmt: skip
    check(host, torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize("kind", ["ViTModel", "ViTForImageClassification"])
def test_transformers(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, image_size=16, patch_size=4, num_labels=5,
    )  # fmt: skip
    host = getattr(transformers, kind)(config).eval()
    x = torch.randn(2, 3, 16, 16)
    out = host(x)
    check(host, x, getattr(out, "logits", None)
          if kind != "ViTModel" else out.last_hidden_state)  # fmt: skip


def check(host, x, expected=None):
    with torch.no_grad():
        expected = host(x) if expected is None else expected
        embed, operator, readout = split(host)
        assert torch.equal(readout(operator(embed(x))), expected)
        once = PicardViT(host, 1, 0.0, inject=False, rtol=0.0)
        assert torch.equal(once(x), expected)
        _, solution = PicardViT(host, 3, rtol=0.0)(x, return_solution=True)
        assert solution.evaluations == 3
