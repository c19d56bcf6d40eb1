import diffusers
import pytest
import torch

from limner.models.tiny_vae import TAESD, TinyVAE, TinyVAEConfig
from limner.weights.keymap import to_ours
from limner.weights.maps.tiny_vae import diffusers_tiny_vae


@pytest.mark.parity
@pytest.mark.parametrize("latents", [4, 16])
def test_both_directions_equal_the_reference(latents: int) -> None:
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 3,
        decoder_block_out_channels=(8,) * 3,
        num_encoder_blocks=(1, 2, 2),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=latents,
    )
    theirs = theirs.eval().requires_grad_(False)
    ours = TinyVAE(TinyVAEConfig(latents=latents, width=8, blocks=(1, 2, 2)))
    ours.load_state_dict(to_ours(diffusers_tiny_vae(), theirs.state_dict(), "test"))
    pixels = torch.rand(2, 3, 24, 16) * 2 - 1
    want = theirs.encode(pixels).latents
    assert (ours.encode(pixels) - want).abs().max() < 1e-5 * want.abs().max()
    latents_ = 4 * torch.randn(2, latents, 6, 4)
    want = theirs.decode(latents_).sample
    assert (ours.decode(latents_) - want).abs().max() < 1e-5 * want.abs().max()


def test_published_shape_makes_eight_pixels_of_a_latent() -> None:
    assert TAESD.factor == 8
    with torch.device("meta"):
        network = TinyVAE(TAESD)
        assert network.decode(torch.empty(1, 4, 8, 16)).shape == (1, 3, 64, 128)
        assert network.encode(torch.empty(1, 3, 64, 128)).shape == (1, 4, 8, 16)
    assert sum(weight.numel() for weight in network.decoder.parameters()) == 1_222_531
    assert sum(weight.numel() for weight in network.encoder.parameters()) == 1_222_532
