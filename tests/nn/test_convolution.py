"""The quicker ways of a convolution agree with torch's own, computed in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn import convolution
from limner.nn.convolution import Conv2d, channels_last


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> Conv2d:
    """A convolution with weights that keep numbers about as large as they come in."""
    made = Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options).requires_grad_(False)
    made.weight.copy_(normal(*made.weight.shape, seed=1) / (inputs * kernel**2) ** 0.5)
    if made.bias is not None:
        made.bias.copy_(normal(outputs, seed=2))
    return made


def difference(conv: Conv2d, x: Tensor) -> float:
    bias = None if conv.bias is None else conv.bias.double()
    exact = F.conv2d(x.double(), conv.weight.double(), bias, padding=conv.padding)
    with torch.inference_mode():
        found = conv(x)
    assert found.shape == exact.shape
    return float((found - exact).abs().max() / exact.abs().max())


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the ways that were taken, in turn."""
    taken: list[str] = []
    for name in ("fewer_products", "one_product"):

        def noted(*arguments: Any, way: Any = getattr(convolution, name), name: str = name) -> Tensor:
            taken.append(name)
            return way(*arguments)

        monkeypatch.setattr(convolution, name, noted)
    return taken


@pytest.mark.parametrize("size", [(24, 24), (32, 20), (25, 27), (26, 39), (64, 32)])
@pytest.mark.parametrize("last", [True, False])
def test_large_pictures_take_fewer_products(size: tuple[int, int], last: bool, ways: list[str]) -> None:
    x = normal(2, 256, *size)
    assert difference(layer(256, 288), channels_last(x) if last else x) < 6e-6
    assert ways == ["fewer_products"]


def test_strips_and_pieces_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "VALUES", 1)
    monkeypatch.setattr(convolution, "PIECE", 1)
    assert difference(layer(256, 300, bias=False), normal(2, 256, 30, 26)) < 6e-6


def test_small_pictures_are_one_product(ways: list[str]) -> None:
    assert difference(layer(512, 512), normal(2, 512, 7, 9)) < 2e-6
    assert ways == ["one_product"]


def test_a_single_pixel_s_kernel_is_a_product() -> None:
    conv = layer(24, 40, kernel=1)
    assert difference(conv, channels_last(normal(2, 24, 5, 6))) < 2e-6


def test_torch_s_own_where_that_is_meant(ways: list[str]) -> None:
    x = normal(1, 256, 24, 24)
    with torch.inference_mode():
        for options in ({"stride": 2}, {"padding_mode": "circular"}, {"groups": 2}):
            conv = layer(256, 256, **options)
            torch.testing.assert_close(conv(x), nn.Conv2d.forward(conv, x))
        half = layer(256, 256).bfloat16()
        torch.testing.assert_close(half(x.bfloat16()), nn.Conv2d.forward(half, x.bfloat16()))
    conv = layer(256, 256).requires_grad_(True)
    conv(x).sum().backward()
    assert conv.weight.grad is not None
    assert ways == []
