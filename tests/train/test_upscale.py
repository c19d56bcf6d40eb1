from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from limner.train.objectives.upscale import Upscale, UpscaleConfig, blur, charbonnier

CPU = torch.device("cpu")


def objective(config: UpscaleConfig) -> Upscale:
    made = Upscale(config, CPU)
    made.model.initialize(torch.Generator().manual_seed(0))
    return made


def test_a_batch_is_all_of_its_seed(upscale: UpscaleConfig) -> None:
    first, again = objective(upscale).batch(4, 5), objective(upscale).batch(4, 5)
    other = objective(upscale).batch(4, 6)
    for part, same, different in zip(first, again, other, strict=True):
        assert torch.equal(part, same)
        assert not torch.equal(part, different)


def test_pairs_show_the_same_part_of_the_same_scene(upscale: UpscaleConfig) -> None:
    clean = objective(replace(upscale, noise=0.0, blur=0.0))
    batch = clean.batch(8, 1)
    assert batch.small.shape == (8, 3, 8, 8)
    assert batch.large.shape == (8, 3, 16, 16)
    assert (batch.noise == 0).all()
    assert (F.avg_pool2d(batch.large, 2) - batch.small).abs().mean() < 0.05
    assert (F.avg_pool2d(batch.large, 2) - batch.small.flip(3)).abs().mean() > 0.05


def test_the_network_is_told_the_noise_that_was_added(upscale: UpscaleConfig) -> None:
    clean, noisy = (objective(replace(upscale, noise=n, blur=0.0)).batch(64, 1) for n in (0.0, 0.5))
    added = (noisy.small - clean.small).flatten(1).std(1)
    torch.testing.assert_close(added, noisy.noise, rtol=0.25, atol=0.01)
    assert noisy.noise.min() >= 0
    assert noisy.noise.max() <= 0.5
    assert noisy.noise.median() < 0.2
    assert torch.equal(clean.large, noisy.large)


def test_a_new_network_costs_what_plain_enlargement_does(upscale: UpscaleConfig) -> None:
    made = objective(upscale)
    batch = made.batch(4, 1)
    error = F.interpolate(batch.small, scale_factor=2, mode="bilinear") - batch.large
    parts = made.loss(batch)
    torch.testing.assert_close(parts["pixels"], charbonnier(error))
    edges = charbonnier(error.diff(dim=2)) + charbonnier(error.diff(dim=3))
    torch.testing.assert_close(parts["edges"], 0.3 * edges)


def test_charbonnier_is_the_absolute_error_but_smooth_at_zero() -> None:
    error = torch.tensor([3.0, -4.0, 0.0], requires_grad=True)
    loss = charbonnier(error)
    assert loss.item() == pytest.approx((3 + 4) / 3, abs=1e-3)
    (gradient,) = torch.autograd.grad(loss, error)
    assert gradient.tolist() == pytest.approx([1 / 3, -1 / 3, 0.0], abs=1e-4)


def test_blur_is_gaussian_with_a_width_per_picture() -> None:
    pixels = torch.zeros(3, 3, 15, 15)
    pixels[:, :, 7, 7] = 1
    blurred = blur(pixels, torch.tensor([0.0, 0.7, 1.2]))
    assert torch.equal(blurred[0], pixels[0])
    at = torch.arange(15.0) - 7
    for row, deviation in ((1, 0.7), (2, 1.2)):
        spread = blurred[row, 0].sum(0)
        assert spread.sum().item() == pytest.approx(1, abs=1e-5)
        assert (spread * at.square()).sum().sqrt().item() == pytest.approx(deviation, rel=0.05)
        torch.testing.assert_close(blurred[row], blurred[row].mT)
        torch.testing.assert_close(blurred[row, 0], blurred[row, 1])


def test_blur_keeps_constant_pictures_up_to_the_edge() -> None:
    pixels = torch.full((1, 3, 9, 9), 0.3)
    torch.testing.assert_close(blur(pixels, torch.tensor([1.0])), pixels)


def test_the_sheet_has_three_rows(upscale: UpscaleConfig) -> None:
    made = objective(upscale)
    assert made.draw(made.model).size == (6 * (32 + 4) + 4, 3 * (32 + 4) + 4)
    assert made.published() == {name for name, _ in made.model.named_parameters()}
