"""Maps of the autoencoders: over the names and shapes of the published files, and with numbers against the
reference's own conversion."""

import gzip
import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor

from limner.models.kl_vae import FLUX, KLVAE, SD, KLVAEConfig
from limner.models.tiny_vae import TAESD, TinyVAE
from limner.weights.keymap import to_ours, to_theirs
from limner.weights.maps.kl_vae import diffusers_vae, ldm_vae
from limner.weights.maps.tiny_vae import diffusers_tiny_vae, taesd_decoder, taesd_encoder

MANIFESTS = Path(__file__).parents[1] / "manifests"
TINY = KLVAEConfig(channels=(8, 16, 16), layers=1, groups=4)


def tensors(name: str, naming: str) -> dict[str, Tensor]:
    """A manifest as tensors on the meta device."""
    shapes = json.loads(gzip.decompress((MANIFESTS / f"{name}.json.gz").read_bytes()))[naming]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def shapes(named: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in named.items()}


@pytest.mark.parametrize("naming", ["diffusers", "original"])
@pytest.mark.parametrize("name, config", [("vae_sd", SD), ("vae_flux", FLUX)])
def test_published_files_become_ours_and_again_themselves(
    name: str, config: KLVAEConfig, naming: str
) -> None:
    rules = diffusers_vae() if naming == "diffusers" else ldm_vae(config)
    with torch.device("meta"):
        network = KLVAE(config)
    theirs = tensors(name, naming)
    assert shapes(to_ours(rules, theirs, name)) == shapes(network.state_dict())
    assert shapes(to_theirs(rules, network.state_dict())) == shapes(theirs)


def test_files_of_the_autoencoder_alone_and_what_its_training_left() -> None:
    published = tensors("vae_sd", "original")
    alone = {name.removeprefix("first_stage_model."): tensor for name, tensor in published.items()}
    alone |= {"loss.logvar": torch.empty(()), "loss.discriminator.main.0.weight": torch.empty(1)}
    ours = to_ours(ldm_vae(SD, ""), alone, "alone")
    assert shapes(ours) == shapes(to_ours(ldm_vae(SD), published, "whole"))


def test_old_names_of_the_attention_are_read_and_the_new_are_written() -> None:
    new = tensors("vae_sd", "diffusers")
    spelling = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in new.items():
        for now, before in spelling.items():
            name = name.replace(f"attentions.0.{now}.", f"attentions.0.{before}.")
        old[name] = tensor
    assert len(old.keys() - new.keys()) == 16
    ours = to_ours(diffusers_vae(), old, "old")
    assert shapes(to_theirs(diffusers_vae(), ours)) == shapes(new)


@pytest.mark.parity
def test_the_reference_loads_what_we_write() -> None:
    """Folder: by name. Single file: through the conversion that diffusers has."""
    torch.manual_seed(0)
    ours = KLVAE(TINY).requires_grad_(False)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
    ).requires_grad_(False)
    pixels, raw_latents = torch.rand(1, 3, 16, 24), torch.randn(1, 4, 4, 6)
    folder = to_theirs(diffusers_vae(), ours.state_dict())
    single = to_theirs(ldm_vae(TINY), ours.state_dict())
    for written in (folder, convert_ldm_vae_checkpoint(single, theirs.config)):
        for weight in theirs.parameters():
            weight.zero_()
        theirs.load_state_dict(written)
        want = ours.decode(raw_latents)
        assert (theirs.decode(raw_latents).sample - want).abs().max() < 1e-5 * want.abs().max()
        mean = ours.encode(pixels).mean
        assert (theirs.encode(pixels).latent_dist.mean - mean).abs().max() < 1e-5 * mean.abs().max()


def test_taesd_goes_both_ways() -> None:
    with torch.device("meta"):
        network = TinyVAE(TAESD)
    theirs = tensors("vae_taesd", "diffusers")
    rules = diffusers_tiny_vae()
    assert shapes(to_ours(rules, theirs, "folder")) == shapes(network.state_dict())
    assert shapes(to_theirs(rules, network.state_dict())) == shapes(theirs)


def test_the_two_files_of_taesd_begin_as_published() -> None:
    """taesd.py: the encoder begins with a convolution, the decoder with a clamp, then a convolution and a
    ReLU; its last convolution is the 19th layer."""
    with torch.device("meta"):
        network = TinyVAE(TAESD)
    encoder = to_theirs(taesd_encoder(), network.encoder.state_dict())
    decoder = to_theirs(taesd_decoder(TAESD), network.decoder.state_dict())
    assert encoder["0.weight"].shape == (64, 3, 3, 3)
    assert encoder["14.weight"].shape == (4, 64, 3, 3)
    assert decoder["1.weight"].shape == (64, 4, 3, 3)
    assert "3.conv.0.weight" in decoder
    assert decoder["7.weight"].shape == (64, 64, 3, 3)
    assert "7.bias" not in decoder
    assert decoder["19.weight"].shape == (3, 64, 3, 3)
    back = to_ours(taesd_decoder(TAESD), decoder, "decoder")
    assert shapes(back) == shapes(network.decoder.state_dict())
