"""Pictures made bad."""

from dataclasses import replace

import pytest
import torch

from limner.data.degrade import SECOND, DegradeConfig, PassConfig, blur, degrade, sharpened, sinc

SPARED = PassConfig(blur=0.0, resize=(0.0, 0.0, 1.0), noise=(0.0, 0.0), gaussian=1.0, jpeg=(100.0, 100.0))
GENTLE = DegradeConfig(first=SPARED, second=SPARED, ring=0.0)


@pytest.fixture
def pixels() -> torch.Tensor:
    """Smooth pictures, as photographs are."""
    coarse = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (48, 48), mode="bicubic").clamp(-1, 1)


def test_the_same_seed_gives_the_same_pictures_and_no_two_are_worn_alike(pixels: torch.Tensor) -> None:
    same = pixels[:1].expand(3, -1, -1, -1)
    one, again, other = (degrade(same, 4, seed, DegradeConfig()) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    assert one.shape == (3, 3, 12, 12)
    assert one.abs().max() <= 1
    torch.testing.assert_close((one + 1) * 127.5, ((one + 1) * 127.5).round(), atol=1e-3, rtol=0)
    assert torch.equal(degrade(same[:1], 4, 1, DegradeConfig()), one[:1])  # whatever the batch


def test_every_way_through_gives_pictures(pixels: torch.Tensor) -> None:
    for seed in range(30):
        worn = degrade(pixels[:1], 2, seed, DegradeConfig())
        assert worn.isfinite().all()
        assert worn.shape == (1, 3, 24, 24)


def test_where_nothing_is_done_the_picture_is_only_smaller() -> None:
    """Two JPEGs of the best quality and a resize are left."""
    corners = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels = torch.nn.functional.interpolate(corners, (48, 48), mode="bilinear", align_corners=True)
    worn = degrade(pixels, 4, 0, GENTLE)
    area = torch.nn.functional.interpolate(pixels, scale_factor=0.25, mode="area")
    assert (worn - area).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("what", "least"),
    [
        ({"gaussian": 1.0, "noise": (30.0, 30.0)}, 0.05),
        ({"gaussian": 0.0, "poisson": (3.0, 3.0)}, 0.05),
        ({"jpeg": (5.0, 5.0)}, 0.03),
        ({"blur": 1.0, "deviation": (3.0, 3.0)}, 0.03),
        ({"blur": 1.0, "sinc": 1.0}, 0.005),
        ({"resize": (0.0, 1.0, 0.0), "scale": (0.1, 1.0)}, 0.02),
    ],
)
def test_each_kind_of_wear_shows(pixels: torch.Tensor, what: dict[str, object], least: float) -> None:
    clean = degrade(pixels, 1, 0, GENTLE)
    worn = degrade(pixels, 1, 0, replace(GENTLE, first=replace(SPARED, **what)))  # type: ignore[arg-type]
    assert (worn - clean).abs().mean() > least


def test_grey_noise_is_the_same_in_all_colours() -> None:
    flat = torch.zeros(1, 3, 64, 64)
    grey = replace(SPARED, noise=(20.0, 20.0), grey=1.0)
    worn = degrade(flat, 1, 0, replace(GENTLE, first=grey))
    assert (worn[:, 0] - worn[:, 1]).abs().mean() < 0.02
    assert worn.std() > 0.1


def test_kernels() -> None:
    gaussian = blur(15, 2.0, 2.0, 0.0)
    torch.testing.assert_close(gaussian, gaussian.mT)
    torch.testing.assert_close(gaussian.sum(), torch.tensor(1.0))
    places = torch.arange(15) - 7.0
    assert float((gaussian.sum(0) * places**2).sum()) == pytest.approx(4.0, rel=0.01)  # its variance
    turned = blur(15, 4.0, 1.0, torch.pi / 2)
    assert float((turned.sum(1) * places**2).sum()) > 3 * float((turned.sum(0) * places**2).sum())
    flat = blur(21, 3.0, 3.0, 0.0, 2.0, plateau=True)
    assert float(flat[10, 10] / flat[10, 12]) < 1.3 < float(gaussian[7, 7] / gaussian[7, 9])
    ring = sinc(21, torch.pi / 2)
    assert float(ring.sum()) == pytest.approx(1.0, abs=1e-5)
    assert ring.min() < 0  # it rings
    spectrum = torch.fft.fft2(ring, s=(64, 64)).abs()[0]
    assert spectrum[4] > 0.9  # below the cutoff
    assert spectrum[28] < 0.1  # beyond it


def test_sharpening_raises_edges_and_leaves_flat_places() -> None:
    pixels = torch.full((1, 3, 64, 64), -0.5)
    assert torch.allclose(sharpened(pixels), pixels, atol=1e-5)
    pixels[..., 32:] = 0.5
    sharp = sharpened(pixels)
    assert sharp[0, 0, 32, 32] > 0.55
    assert sharp[0, 0, 32, 31] < -0.55
    assert sharp.abs().max() <= 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"blur": 1.5},
        {"resize": (0.5, 0.5, 0.5)},
        {"noise": (3.0, 1.0)},
        {"scale": (1.1, 1.5)},
        {"jpeg": (0.0, 9.0)},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PassConfig(**wrong)  # type: ignore[arg-type]
    assert SECOND.blur == 0.8
