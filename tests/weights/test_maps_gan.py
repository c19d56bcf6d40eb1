"""The maps of the GAN upscalers fit the published names and shapes, both ways, and files are recognised.

The manifests are written out below from the published configurations (Real-ESRGAN's model table: 23 or 6
blocks, 64 features, 32 growth; 32 or 16 layers of 64 channels), without a look at our networks or maps. No
published file was opened.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from limner.errors import WeightsError
from limner.models import gan_upscaler
from limner.models.gan_upscaler import Compact, CompactConfig, RRDBNet, RRDBNetConfig
from limner.weights import files
from limner.weights.convert import convert
from limner.weights.inspect import inspect
from limner.weights.keymap import KeyMap, to_ours, to_theirs
from limner.weights.maps import gan_upscaler as maps
from limner.weights.standalone import identify_network

Shapes = dict[str, tuple[int, ...]]
SMALL = RRDBNetConfig(blocks=2, features=8, growth=4)


def conv(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs, 3, 3)
    yield f"{name}.bias", (outputs,)


def esrgan_manifest(blocks: int, *, naming: str, inputs: int = 3, ups: int = 2) -> Shapes:
    """num_feat 64, num_grow_ch 32, in the naming of BasicSR ("new"), or of ESRGAN's two codes."""
    body = {"new": "body.{}.rdb{}.conv{}", "second": "RRDB_trunk.{}.RDB{}.conv{}"}
    block = body.get(naming, "model.1.sub.{}.RDB{}.conv{}.0")
    tail = {
        "new": ["conv_body", *[f"conv_up{i + 1}" for i in range(ups)], "conv_hr"],
        "second": ["trunk_conv", *[f"upconv{i + 1}" for i in range(ups)], "HRconv"],
        "first": [f"model.1.sub.{blocks}", *["model.3", "model.6"][:ups], f"model.{2 + 3 * ups}"],
    }[naming]
    shapes = dict(conv("model.0" if naming == "first" else "conv_first", inputs, 64))
    for i in range(blocks):
        for j in (1, 2, 3):
            for k in (1, 2, 3, 4, 5):
                shapes |= dict(conv(block.format(i, j, k), 64 + 32 * (k - 1), 64 if k == 5 else 32))
    for name in tail:
        shapes |= dict(conv(name, 64, 64))
    return shapes | dict(conv(f"model.{4 + 3 * ups}" if naming == "first" else "conv_last", 64, 3))


def compact_manifest(layers: int) -> Shapes:
    """num_feat 64, upscale 4: body is convolution, PReLU, convolution, PReLU ..., convolution."""
    shapes = dict(conv("body.0", 3, 64)) | {"body.1.weight": (64,)}
    for i in range(1, layers + 1):
        shapes |= dict(conv(f"body.{2 * i}", 64, 64)) | {f"body.{2 * i + 1}.weight": (64,)}
    return shapes | dict(conv(f"body.{2 * layers + 2}", 64, 48))


PUBLISHED = {
    "RealESRGAN_x4plus": (gan_upscaler.X4PLUS, maps.realesrgan, esrgan_manifest(23, naming="new")),
    "RealESRGAN_x2plus": (gan_upscaler.X2PLUS, maps.realesrgan, esrgan_manifest(23, naming="new", inputs=12)),
    "anime_6B": (gan_upscaler.X4PLUS_ANIME, maps.realesrgan, esrgan_manifest(6, naming="new")),
    "RRDB_ESRGAN_x4": (gan_upscaler.X4PLUS, maps.esrgan, esrgan_manifest(23, naming="second")),
    "RRDB_ESRGAN_x4_old_arch": (
        gan_upscaler.X4PLUS, maps.first_esrgan, esrgan_manifest(23, naming="first"),
    ),
    "a community's x2": (
        RRDBNetConfig(doublings=1), maps.first_esrgan, esrgan_manifest(23, naming="first", ups=1),
    ),
    "realesr-general-x4v3": (gan_upscaler.GENERAL_X4V3, maps.compact, compact_manifest(32)),
    "realesr-animevideov3": (gan_upscaler.ANIME_VIDEO_V3, maps.compact, compact_manifest(16)),
}  # fmt: skip


def build(config: RRDBNetConfig | CompactConfig) -> RRDBNet | Compact:
    return RRDBNet(config) if isinstance(config, RRDBNetConfig) else Compact(config)


def shapes(tensors: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@lru_cache
def expected(config: RRDBNetConfig | CompactConfig) -> Shapes:
    return shapes(files.empty(lambda: build(config)).state_dict())


@pytest.mark.parametrize("name", PUBLISHED)
def test_maps_lead_there_and_back(name: str) -> None:
    config, naming, published = PUBLISHED[name]
    keys: KeyMap = naming(config)  # type: ignore[operator]
    theirs = {key: torch.empty(shape, device="meta") for key, shape in published.items()}
    ours = to_ours(keys, theirs, name)
    assert shapes(ours) == expected(config)
    assert shapes(to_theirs(keys, ours)) == published
    assert maps.shape_of(theirs) == config
    assert maps.shape_of({f"params_ema.{key}": tensor for key, tensor in theirs.items()}) == config


def test_an_absurd_number_in_a_name_is_not_believed() -> None:
    small = {key: torch.empty(shape, device="meta") for key, shape in compact_manifest(2).items()}
    assert maps.shape_of(small | {"body.99999999.weight": torch.empty(48, 64, 3, 3)}) is None
    large = esrgan_manifest(1, naming="new") | dict(conv("body.999999.rdb1.conv1", 64, 32))
    assert maps.shape_of({key: torch.empty(shape, device="meta") for key, shape in large.items()}) is None
    assert maps.shape_of({"body.0.weight": torch.empty(1), "body.1.weight": torch.empty(1)}) is None
    assert maps.shape_of({"time_embed.0.weight": torch.empty(1)}) is None
    grey = esrgan_manifest(1, naming="new", inputs=1)
    assert maps.shape_of({key: torch.empty(shape, device="meta") for key, shape in grey.items()}) is None


def random(config: RRDBNetConfig | CompactConfig) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(tensor.shape) for name, tensor in build(config).state_dict().items()}


@pytest.mark.parametrize("wrap", ["params_ema", "params", None])
@pytest.mark.parametrize("as_zip", [True, False])
def test_pickles_become_files_that_load(tmp_path: Path, wrap: str | None, as_zip: bool) -> None:
    ours = random(SMALL)
    theirs = to_theirs(maps.realesrgan(SMALL), ours)
    content = {wrap: theirs, "params": theirs, "epoch": 3} if wrap else theirs
    torch.save(content, tmp_path / "up.pth", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(WeightsError, match="limner convert"):
        identify_network(tmp_path / "up.pth")
    path, notices = convert(tmp_path / "up.pth")
    assert path == tmp_path / "up.safetensors"
    assert notices == (("left out, as no tensors: epoch",) if wrap else ())
    assert files.read(path).keys() == theirs.keys()  # as others expect them
    network = identify_network(path)
    assert network.title == "an upscaler to 4 times the size (RRDBNet of 2 blocks)"
    loaded = network.load().state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in ours.items())
    assert str(inspect(path)).startswith(network.title)


@pytest.mark.parametrize("prefix", maps.PREFIXES)
@pytest.mark.parametrize("naming", [maps.realesrgan, maps.esrgan, maps.first_esrgan])
def test_every_naming_is_recognised(tmp_path: Path, prefix: str, naming: object) -> None:
    theirs = to_theirs(naming(SMALL, prefix), random(SMALL))  # type: ignore[operator]
    save_file(theirs, tmp_path / "up.safetensors")
    loaded = identify_network(tmp_path / "up.safetensors").load().state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in random(SMALL).items())


def test_compact_is_recognised_and_a_strange_tensor_is_not(tmp_path: Path) -> None:
    config = CompactConfig(features=8, depth=3, factor=2)
    theirs = to_theirs(maps.compact(config), random(config))
    save_file(theirs, tmp_path / "up.safetensors")
    assert identify_network(tmp_path / "up.safetensors").title.endswith("2 times the size (Compact)")
    save_file(theirs | {"body.3.bias": torch.zeros(8)}, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match="none of the networks"):
        identify_network(tmp_path / "odd.safetensors")
