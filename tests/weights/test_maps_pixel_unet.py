"""The maps of pixel U-Nets, and of the x4 upscaler, fit the published names and shapes, in both directions.

The manifests come from scripts/write_manifests.py, which knows nothing of the maps.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from limner.errors import WeightsError
from limner.models import kl_vae, pixel_unet, unet
from limner.models.pixel_unet import PixelUNet, PixelUNetConfig
from limner.weights.keymap import KeyMap, to_ours, to_theirs
from limner.weights.maps.kl_vae import diffusers_vae, ldm_vae
from limner.weights.maps.pixel_unet import diffusers_pixel_unet, original_pixel_unet
from limner.weights.maps.unet import diffusers_unet, ldm_unet
from limner.weights.parts_cascade import described
from limner.weights.settings import differing, pixel_unet_config, pixel_unet_settings, unknown

ROOT = Path(__file__).parents[2]
IF_II = replace(
    pixel_unet.IF_I_L, inputs=6, channels=(128, 256, 384, 512, 512), layers=(2, 2, 3, 5, 5), level=True,
    looks=(False, False, False, True, True), context=512, time=512, picture=False, divisor=1.414,
)  # fmt: skip
PIXELS = {
    "unet_if_i_xl": (pixel_unet.IF_I_XL, ""),
    "unet_if_i_l": (pixel_unet.IF_I_L, ""),
    "unet_if_i_m": (pixel_unet.IF_I_M, ""),
    "unet_if_ii": (IF_II, ""),
    "decoder_karlo": (pixel_unet.KARLO_DECODER, "model."),
    "super_res_karlo": (pixel_unet.KARLO_SUPER_RES, "model_last_step."),
}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, KeyMap]]] = {
    **{
        name: (
            lambda config=config: PixelUNet(config),
            {"diffusers": diffusers_pixel_unet(config), "original": original_pixel_unet(config, prefix)},
        )
        for name, (config, prefix) in PIXELS.items()
    },
    "unet_x4": (
        lambda: unet.UNet(unet.X4),
        {"diffusers": diffusers_unet(unet.X4), "original": ldm_unet(unet.X4)},
    ),
    "vae_x4": (
        lambda: kl_vae.KLVAE(kl_vae.X4),
        {"diffusers": diffusers_vae(), "original": ldm_vae(kl_vae.X4)},
    ),
}


def manifest(name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(
        gzip.decompress((ROOT / "tests" / "manifests" / f"{name}.json.gz").read_bytes())
    )
    return told


def shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_lead_there_and_back(name: str) -> None:
    build, maps = NETWORKS[name]
    with torch.device("meta"):
        ours = shapes(build().state_dict())
    for naming, rules in maps.items():
        published = manifest(name)[naming]
        read = to_ours(
            rules, {key: torch.empty(shape, device="meta") for key, shape in published.items()}, name
        )
        assert shapes(read) == ours, naming
        written = shapes(to_theirs(rules, read))
        assert {key: shape for key, shape in published.items() if key not in written} == {}, naming
        assert written == published, naming


@pytest.mark.parametrize(
    "name, billions",  # as the cards of the models say
    [("unet_if_i_xl", "4.3"), ("unet_if_i_l", "0.9"), ("unet_if_i_m", "0.4"), ("decoder_karlo", "0.9")],
)
def test_networks_are_as_large_as_published(name: str, billions: str) -> None:
    assert f"{manifest(name)['parameters'] / 1e9:.1f}" == billions


@pytest.mark.parametrize("name", PIXELS)
def test_settings_mean_what_the_reference_means(name: str) -> None:
    """A small network of theirs from our settings has our tensors, and its config.json says nothing else."""
    config, _ = PIXELS[name]
    narrow = tuple(64 * (index + 1) for index in range(len(config.channels)))
    small = replace(
        config, channels=narrow, time=96, layers=tuple(min(two, 2) for two in config.layers),
        text=64 if config.text else 0, pool_heads=4 if config.pool_heads else 0,
        context=64 if config.context else 0,
    )  # fmt: skip
    said = json.loads(json.dumps(pixel_unet_settings(small)))
    network = UNet2DConditionModel if config.context else UNet2DModel
    with torch.device("meta"):
        theirs = network.from_config({"act_fn": "silu", **said})
        ours = PixelUNet(small)
    assert shapes(to_theirs(diffusers_pixel_unet(small), ours.state_dict())) == shapes(theirs.state_dict())
    written = json.loads(theirs.to_json_string())
    assert differing(said, written) == {}
    assert unknown(said, written, "unet") == []
    if config.text:
        assert pixel_unet_config(written) == small
        assert [model.part("unet").config.level for model in described({"unet": written})] == [config.level]


@pytest.mark.parametrize("divisor", [1.414, 2**0.5, 1 / 0.7071])
def test_any_divisor_of_a_config_file_is_read_as_it_stands(divisor: float) -> None:
    """The published one is 1.414; its inverse cannot be rounded and found again."""
    theirs = json.loads(json.dumps(pixel_unet_settings(IF_II))) | {
        "resnet_out_scale_factor": divisor,
        "mid_block_scale_factor": divisor,
    }
    config = pixel_unet_config(json.loads(json.dumps(theirs)))
    assert config == replace(IF_II, divisor=divisor)
    assert differing(pixel_unet_settings(config), theirs) == {}


def test_other_networks_are_not_taken_for_a_stage() -> None:
    assert described({}) == ()
    assert described({"unet": {"addition_embed_type": "text_time"}}) == ()
    assert described({"unet": {"addition_embed_type": "text"}}) == ()


def test_tensors_of_the_wrong_shape_are_told() -> None:
    rules = original_pixel_unet(pixel_unet.IF_I_XL)
    with pytest.raises(WeightsError, match=r"input_blocks.5.1.qkv.weight"):
        to_ours(rules, {"input_blocks.5.1.qkv.weight": torch.empty(192, 64)}, "file")


def test_values_survive_the_way_there_and_back() -> None:
    config = PixelUNetConfig(
        channels=(32, 64), layers=(1, 1), looks=(False, True), context=32, time=64, groups=8
    )
    tensors = {name: torch.randn_like(tensor) for name, tensor in PixelUNet(config).state_dict().items()}
    for rules in (
        diffusers_pixel_unet(config),
        original_pixel_unet(config),
        original_pixel_unet(config, "x."),
    ):
        read = to_ours(rules, to_theirs(rules, tensors), "tiny")
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
