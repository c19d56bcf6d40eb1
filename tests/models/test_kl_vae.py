import diffusers
import pytest
import torch
from torch import Tensor

from limner.errors import WeightsError
from limner.models.kl_vae import KLVAE, KLVAEConfig, Posterior, decode_tiled, encode_tiled
from limner.weights.keymap import to_ours
from limner.weights.maps.kl_vae import diffusers_vae

TINY = KLVAEConfig(channels=(8, 16, 16), layers=1, groups=4)


def far(a: Tensor, b: Tensor) -> float:
    """Relative difference: max|a - b| / max|b|."""
    return float((a - b).abs().max() / b.abs().max())


def pair(latents: int, pointwise: bool) -> tuple[KLVAE, diffusers.AutoencoderKL]:
    """Ours and the reference, with the same random weights."""
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=latents,
        norm_num_groups=4,
        use_quant_conv=pointwise,
        use_post_quant_conv=pointwise,
    )
    for weight in theirs.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    theirs = theirs.eval().requires_grad_(False)
    ours = KLVAE(KLVAEConfig(channels=(8, 16, 16), layers=1, groups=4, latents=latents, pointwise=pointwise))
    ours.load_state_dict(to_ours(diffusers_vae(), theirs.state_dict(), "test"))
    return ours.requires_grad_(False), theirs


@pytest.fixture(scope="module")
def vae() -> KLVAE:
    return pair(4, True)[0]


@pytest.mark.parity
@pytest.mark.parametrize("latents, pointwise", [(4, True), (16, False)])
def test_both_directions_equal_the_reference(latents: int, pointwise: bool) -> None:
    ours, theirs = pair(latents, pointwise)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, 3, 24, 40, generator=generator) * 2 - 1
    got, want = ours.encode(pixels), theirs.encode(pixels).latent_dist
    assert far(got.mean, want.mean) < 1e-5
    assert far(got.logvar, want.logvar) < 1e-5
    raw_latents = torch.randn(2, latents, 6, 10, generator=generator)
    assert far(ours.decode(raw_latents), theirs.decode(raw_latents).sample) < 1e-5


def test_posterior_draws_from_its_distribution() -> None:
    posterior = Posterior(torch.full((1, 1, 100, 100), 3.0), torch.full((1, 1, 100, 100), 0.0).add(2 * 0.5))
    noise = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0))
    drawn = posterior.sample(noise)
    assert drawn.mean() == pytest.approx(3.0, abs=0.06)
    assert drawn.var() == pytest.approx(2.718, rel=0.05)


def test_log_variance_stays_within_its_bounds(vae: KLVAE) -> None:
    torch.nn.init.constant_(vae.leave.bias, 100.0)
    try:
        assert vae.encode(torch.zeros(1, 3, 8, 8)).logvar.max() == 20
    finally:
        torch.nn.init.zeros_(vae.leave.bias)


def test_scaling_goes_both_ways() -> None:
    config = KLVAEConfig(channels=(8,), layers=1, groups=4, scale_factor=0.5, shift=0.25)
    network = KLVAE(config)
    raw_latents = torch.tensor([0.25, 2.25]).reshape(1, 1, 1, 2).expand(1, 4, 1, 2)
    assert network.scaled(raw_latents)[0, 0, 0].tolist() == [0.0, 1.0]
    assert torch.equal(network.unscaled(network.scaled(raw_latents)), raw_latents)


def test_one_tile_is_the_whole(vae: KLVAE) -> None:
    raw_latents = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decode_tiled(vae, raw_latents, tile=8, overlap=2), vae.decode(raw_latents))
    pixels = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encode_tiled(vae, pixels, tile=8, overlap=2).mean, vae.encode(pixels).mean)


def test_tiles_cover_every_size_and_no_larger_picture_is_decoded() -> None:
    """A stand-in that enlarges only: tiles together are the enlarged picture, seams and borders included."""

    class Enlarge(KLVAE):
        seen: list[torch.Size]

        def decode(self, raw_latents: Tensor) -> Tensor:
            self.seen.append(raw_latents.shape)
            return raw_latents[:, :3].repeat_interleave(4, 2).repeat_interleave(4, 3)

    network = Enlarge(TINY)
    for height, width in ((9, 8), (8, 21), (13, 30), (17, 5)):
        network.seen = []
        raw_latents = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(0))
        whole = Enlarge.decode(network, raw_latents)
        tiled = decode_tiled(network, raw_latents, tile=8, overlap=3)
        assert torch.allclose(tiled, whole, atol=1e-6)
        assert all(max(shape[2:]) <= 8 for shape in network.seen[1:])
        assert len(network.seen) > 2


def test_tiles_fade_into_each_other() -> None:
    """Tiles that disagree most, each of one level: the steps between neighbouring pixels stay small."""

    class Flat(KLVAE):
        level: float = 0.0

        def decode(self, raw_latents: Tensor) -> Tensor:
            self.level = 1.0 - self.level
            height, width = raw_latents.shape[2:]
            return torch.full((1, 3, 4 * height, 4 * width), self.level)

    tiled = decode_tiled(Flat(TINY), torch.zeros(1, 4, 8, 30), tile=8, overlap=4)
    assert tiled.min() < 0.06
    assert tiled.max() > 0.94
    assert tiled.diff(dim=3).abs().max() < 0.07  # 16 pixels to fade; a hard seam would be 1


@pytest.mark.parametrize("tile, overlap", [(8, 8), (4, 6), (8, -1)])
def test_tiles_that_would_not_move_on_are_refused(vae: KLVAE, tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"overlap {overlap} is not between 0 and tile {tile}"):
        decode_tiled(vae, torch.zeros(1, 4, 4, 4), tile=tile, overlap=overlap)


def test_encoding_covers_every_size_as_well() -> None:
    class Shrink(KLVAE):
        def moments(self, pixels: Tensor) -> Tensor:
            assert max(pixels.shape[2:]) <= 32
            mean = torch.nn.functional.avg_pool2d(pixels, 4)
            return torch.cat([mean, mean + 25], 1)

    pixels = torch.rand(2, 3, 84, 52, generator=torch.Generator().manual_seed(0))
    posterior = encode_tiled(Shrink(TINY), pixels, tile=8, overlap=3)
    whole = torch.nn.functional.avg_pool2d(pixels, 4)
    assert torch.allclose(posterior.mean, whole, atol=1e-6)
    assert posterior.logvar.eq(20).all()


def test_overflow_of_half_precision_says_what_to_do(vae: KLVAE) -> None:
    half = KLVAE(TINY)
    half.load_state_dict(vae.state_dict())
    torch.nn.init.constant_(half.decoder.last.bias, 60_000.0)
    torch.nn.init.constant_(half.decoder.last.weight, 5_000.0)
    with pytest.raises(WeightsError, match=r"overflows float16.*float32 or bfloat16"):
        half.half().decode(torch.ones(1, 4, 4, 4, dtype=torch.float16))
