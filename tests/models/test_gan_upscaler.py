"""RRDBNet and Compact against the papers' figures, written down again as plain functions of published names.

There is no reference library for them among our test oracles, and no published file was opened here: what is
compared is our network with a second reading of the same sources.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limner.models.gan_upscaler import (
    ANIME_VIDEO_V3,
    GENERAL_X4V3,
    X2PLUS,
    X4PLUS,
    X4PLUS_ANIME,
    Compact,
    CompactConfig,
    RRDBNet,
    RRDBNetConfig,
)
from limner.weights.keymap import to_theirs
from limner.weights.maps.gan_upscaler import compact, realesrgan

Weights = dict[str, Tensor]
SMALL = RRDBNetConfig(blocks=2, features=8, growth=4)


def filled(network: RRDBNet | Compact) -> RRDBNet | Compact:
    """Weights from which signals neither die nor explode, so that every layer shows."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            deviation = parameter[0].numel() ** -0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * 1.2 * deviation
        else:
            parameter.data = 0.3 * torch.rand(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)


def pictures(height: int = 7, width: int = 10) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


# What the papers draw, for RGB in [0, 1].


def convolved(x: Tensor, weights: Weights, name: str) -> Tensor:
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)


def dense_block(x: Tensor, weights: Weights, name: str) -> Tensor:
    """ESRGAN, figure 4: each convolution sees the block's input and all results before it."""
    x1 = F.leaky_relu(convolved(x, weights, f"{name}.conv1"), 0.2)
    x2 = F.leaky_relu(convolved(torch.cat((x, x1), 1), weights, f"{name}.conv2"), 0.2)
    x3 = F.leaky_relu(convolved(torch.cat((x, x1, x2), 1), weights, f"{name}.conv3"), 0.2)
    x4 = F.leaky_relu(convolved(torch.cat((x, x1, x2, x3), 1), weights, f"{name}.conv4"), 0.2)
    x5 = convolved(torch.cat((x, x1, x2, x3, x4), 1), weights, f"{name}.conv5")
    return x + 0.2 * x5


def rrdbnet(x: Tensor, weights: Weights, blocks: int, scale: int) -> Tensor:
    """ESRGAN, figures 3 and 4; Real-ESRGAN, figure 4 for the pixel-unshuffle of scale 2."""
    if scale == 2:
        x = F.pixel_unshuffle(x, 2)
    shallow = convolved(x, weights, "conv_first")
    deep = shallow
    for index in range(blocks):
        inner = deep
        for block in ("rdb1", "rdb2", "rdb3"):
            inner = dense_block(inner, weights, f"body.{index}.{block}")
        deep = deep + 0.2 * inner
    features = shallow + convolved(deep, weights, "conv_body")
    for name in ("conv_up1", "conv_up2"):
        larger = features.repeat_interleave(2, 2).repeat_interleave(2, 3)
        features = F.leaky_relu(convolved(larger, weights, name), 0.2)
    return convolved(F.leaky_relu(convolved(features, weights, "conv_hr"), 0.2), weights, "conv_last")


def srvgg(x: Tensor, weights: Weights, depth: int, scale: int) -> Tensor:
    """SRVGGNetCompact: a stack of convolutions and PReLUs, then sub-pixels over the nearest pixels."""
    inner = x
    for index in range(depth + 1):
        inner = convolved(inner, weights, f"body.{2 * index}")
        slope = weights[f"body.{2 * index + 1}.weight"][None, :, None, None]
        inner = torch.where(inner > 0, inner, slope * inner)
    detail = F.pixel_shuffle(convolved(inner, weights, f"body.{2 * depth + 2}"), scale)
    return detail + x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() < 1e-5 * other.abs().max())


@pytest.mark.parity
@pytest.mark.parametrize("scale", [2, 4])
def test_rrdbnet_is_what_the_papers_draw(scale: int) -> None:
    config = replace(SMALL, fold=4 // scale)
    network = filled(RRDBNet(config))
    published = to_theirs(realesrgan(config), network.state_dict())
    pixels = pictures(8, 10)
    expected = rrdbnet((pixels + 1) / 2, published, config.blocks, scale)
    assert expected.shape == (2, 3, 8 * scale, 10 * scale)
    assert close((network(pixels) + 1) / 2, expected)
    assert expected.std() > 0.1


@pytest.mark.parity
@pytest.mark.parametrize("factor", [2, 4])
def test_compact_is_what_its_code_says(factor: int) -> None:
    config = CompactConfig(features=8, depth=3, factor=factor)
    network = filled(Compact(config))
    published = to_theirs(compact(config), network.state_dict())
    pixels = pictures()
    expected = srvgg((pixels + 1) / 2, published, config.depth, factor)
    assert expected.shape == (2, 3, 7 * factor, 10 * factor)
    assert close((network(pixels) + 1) / 2, expected)


@pytest.mark.parametrize("size", [(1, 1), (7, 10), (8, 9), (3, 1)])
def test_any_size_is_enlarged(size: tuple[int, int]) -> None:
    for network in (RRDBNet(replace(SMALL, fold=2)), Compact(CompactConfig(features=8, depth=1))):
        factor = network.config.factor
        assert network(pictures(*size)).shape == (2, 3, size[0] * factor, size[1] * factor)


def test_an_odd_edge_is_made_up_for_and_cut_off() -> None:
    network = filled(RRDBNet(replace(SMALL, fold=2)))
    odd = pictures(7, 9)
    even = F.pad(odd, (0, 1, 0, 1), mode="replicate")
    assert torch.equal(network(odd), network(even)[:, :, :14, :18])


@pytest.mark.parametrize(
    "network", [RRDBNet(SMALL), RRDBNet(replace(SMALL, fold=2)), Compact(CompactConfig(features=8, depth=3))]
)
def test_nothing_beyond_the_radius_matters(network: RRDBNet | Compact) -> None:
    radius = filled(network).config.radius
    pixels = torch.zeros(1, 3, 2, 2 * radius + 20, requires_grad=True)
    middle = network.config.factor * (radius + 10)
    network(pixels)[:, :, :, middle].square().sum().backward()
    assert pixels.grad is not None
    reached = pixels.grad.abs().amax((0, 1, 2)).nonzero()
    assert reached.min() >= radius + 10 - radius
    assert reached.max() <= radius + 10 + radius


@pytest.mark.parametrize(
    "config, parameters, factor",
    [
        (X4PLUS, 16_697_987, 4),
        (X2PLUS, 16_703_171, 2),
        (X4PLUS_ANIME, 4_467_779, 4),
        (GENERAL_X4V3, 1_213_296, 4),
        (ANIME_VIDEO_V3, 621_424, 4),
    ],
)
def test_published_sizes(config: RRDBNetConfig | CompactConfig, parameters: int, factor: int) -> None:
    with torch.device("meta"):
        network = RRDBNet(config) if isinstance(config, RRDBNetConfig) else Compact(config)
    assert sum(weight.numel() for weight in network.parameters()) == parameters
    assert config.factor == factor


def test_factors_are_whole() -> None:
    with pytest.raises(ValueError, match="whole factor"):
        RRDBNetConfig(doublings=1, fold=4)
