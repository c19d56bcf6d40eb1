import pytest
import torch
import torch.nn.functional as F

from limner.models.upscaler import Upscaler, UpscalerConfig


def network(factor: int = 2, depth: int = 4) -> Upscaler:
    model = Upscaler(UpscalerConfig(factor=factor, channels=8, depth=depth))
    model.initialize(torch.Generator().manual_seed(0))
    return model


def pictures(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 6, 10, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_new_network_only_enlarges(factor: int) -> None:
    small = pictures()
    large = network(factor)(small, torch.zeros(2))
    assert large.shape == (2, 3, 6 * factor, 10 * factor)
    assert torch.equal(large, F.interpolate(small, scale_factor=factor, mode="bilinear", align_corners=False))


@pytest.mark.parametrize("depth", [1, 4, 5])
def test_every_parameter_and_the_noise_level_matter(depth: int) -> None:
    model = network(depth=depth)
    with torch.no_grad():
        model.last.weight.normal_(generator=torch.Generator().manual_seed(2))
    level = torch.tensor([0.1, 0.2], requires_grad=True)
    model(pictures(), level).square().sum().backward()
    assert level.grad is not None
    assert (level.grad != 0).all()
    unused = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert unused == []


def test_detail_lands_on_the_pixels_it_belongs_to() -> None:
    """Channel c p q of the last layer at (y, x) is channel c of the pixel (2 y + p, 2 x + q)."""
    model = network()
    with torch.no_grad():
        model.last.bias.copy_(torch.arange(12.0))
    small = torch.zeros(1, 3, 6, 10)
    large = model(small, torch.zeros(1))
    for channel in range(3):
        expected = (4 * channel + torch.arange(4.0).view(2, 2)).repeat(6, 10)
        torch.testing.assert_close(large[0, channel], expected)


def test_initialisation_sets_every_weight_and_repeats() -> None:
    first, second = network(), Upscaler(UpscalerConfig(factor=2, channels=8, depth=4))
    with torch.no_grad():
        for p in second.parameters():
            p.fill_(torch.nan)
    second.initialize(torch.Generator().manual_seed(0))
    for (name, p), (_, q) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(p, q), name
